"""How different the images of one class are: what a generator that repeats itself loses while its samples are right."""

import numpy as np
from PIL import Image

from rae_jax.sampling.samples import check_images, check_labels

SIDE, WHITE = 8, 16  # of scikit-learn's digits


def small_images(images: np.ndarray) -> np.ndarray:
    """Images uint8 `[N, H, W, 3]` as scikit-learn has digits: grey, averaged to `[N, 8, 8]`, from 0 to 16."""
    check_images(images, "images to compare")
    grey = images.mean(axis=-1, dtype=np.float32) * (WHITE / 255)
    return np.stack([np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BOX)) for x in grey])


def class_diversity(small: np.ndarray, labels: np.ndarray) -> float:
    """The standard deviation of a pixel among images of one class, the mean over pixels and over the classes there are.

    A class with one image counts as 0.

    Args:
      small: `[N, 8, 8]`, from `small_images`.
      labels: `[N]`.
    """
    check_labels(labels, len(small), "labels of the images to compare")
    return float(np.mean([small[labels == label].std(axis=0) for label in np.unique(labels)]))
