"""What happens at an image that is bad. A module of its own: worker processes import whatever is beside a step."""

import time

import numpy as np


def drawn(count: int = 20) -> np.ndarray:
    """Images of 2 x 2 pixels; the one with number 10 is bad."""
    return np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


def failing(image: np.ndarray) -> np.ndarray:
    if (image == drawn()[10]).all():
        raise RuntimeError("image 10 is bad")
    return image


def sleeping(image: np.ndarray) -> np.ndarray:
    if (image == drawn()[10]).all():
        time.sleep(30)
    return image
