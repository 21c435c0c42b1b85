"""A judge of small generated images: a classifier of real pixels, asked whether it sees the class asked for."""

import dataclasses

import numpy as np
from sklearn.svm import SVC

from rae_jax.sampling.samples import check_images, check_labels


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier of uint8 images `[N, H, W, 3]` and its `accuracy` in [0, 1] on held-out real ones."""

    classifier: SVC
    accuracy: float

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class `[N]` seen in each image."""
        check_images(images, "images to judge")
        return self.classifier.predict(_pixels(images))

    def agreement(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of `images` in which the judge sees the class in `labels: [N]`; compare it with `accuracy`."""
        check_labels(labels, len(images), "labels to judge")
        return float(np.mean(self.predict(images) == labels))


def train_judge(
    images: np.ndarray, labels: np.ndarray, held_out_images: np.ndarray, held_out_labels: np.ndarray
) -> Judge:
    """A support vector classifier (radial kernel) on the pixels of real training images.

    Pixels are standardised by one variance, in the kernel's scale: each by its own would make faint noise in a corner
    that is black in all real images outweigh the digit. For laptop experiments: cost grows as the square of N.
    """
    for part_images, part_labels, name in (
        (images, labels, "training"),
        (held_out_images, held_out_labels, "held-out"),
    ):
        check_images(part_images, f"{name} images")
        check_labels(part_labels, len(part_images), f"{name} labels")
    classifier = SVC(C=10.0, gamma="scale").fit(_pixels(images), labels)
    return Judge(classifier, float(classifier.score(_pixels(held_out_images), held_out_labels)))


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)
