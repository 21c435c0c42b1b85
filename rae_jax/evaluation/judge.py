"""A judge of small generated images: a classifier of real pixels, asked whether it sees the class asked for."""

import dataclasses

import numpy as np
from sklearn.svm import SVC

from rae_jax.sampling.samples import check_images, check_labels


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier of uint8 images `[N, H, W, 3]`."""

    classifier: SVC

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class `[N]` seen in each image."""
        check_images(images, "images to judge")
        return self.classifier.predict(_pixels(images))

    def agrees(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether the class seen in each image is that in `labels: [N]`; bool `[N]`.

        The mean over held-out real images is the judge's accuracy, with which that over samples is to be compared.
        """
        check_labels(labels, len(images), "labels to judge")
        return self.predict(images) == labels


def train_judge(images: np.ndarray, labels: np.ndarray) -> Judge:
    """A support vector classifier (radial kernel) on the pixels of real training images.

    Pixels are standardised by one variance, in the kernel's scale: each by its own would make faint noise in a corner
    that is black in all real images outweigh the digit. For laptop experiments: cost grows as the square of N.
    """
    check_images(images, "training images")
    check_labels(labels, len(images), "training labels")
    return Judge(SVC(C=10.0, gamma="scale").fit(_pixels(images), labels))


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)
