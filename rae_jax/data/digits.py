"""Images held in memory: scikit-learn's handwritten digits, the laptop's data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import repeat

PIXELS = 32
# The held-out digits follow from this number; every result on digits depends on it staying as it is.
SPLIT_SEED = 20_240_607
TEST_SHARE = 0.2


class ArraySource:
    """Images held in memory: `images` uint8 `[N, H, W, 3]`, `labels` int32 `[N]`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
        self.images, self.labels = images, labels
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def contents(self) -> dict[str, Any]:
        return {"images": len(self), "classes": class_counts(self.class_names, self.labels)}


def digits(split: str) -> ArraySource:
    """scikit-learn's digits, 8 x 8 values from 0 to 16, scaled to [0, 255] and enlarged to uint8 RGB `[N, 32, 32, 3]`.

    Each value becomes a square of 4 x 4 pixels, whose mean gives it back: a smooth filter would cost what is sharp in a
    digit. No random numbers are involved. A fifth of each class is held out as "test" (359 of 1,797), always the same
    images.

    Raises:
      ValueError: `split` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"the digits have the splits 'train' and 'test', not {split!r}")
    from sklearn.datasets import load_digits  # takes a second, which other sources need not wait

    data = load_digits()
    held_out = np.zeros(len(data.target), bool)
    random = np.random.RandomState(SPLIT_SEED)  # its streams are frozen by NumPy's policy
    for label in range(10):
        members = np.flatnonzero(data.target == label)
        held_out[random.permutation(members)[: round(TEST_SHARE * len(members))]] = True
    chosen = held_out if split == "test" else ~held_out
    grey = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)
    scale = PIXELS // grey.shape[1]
    images = repeat(grey, "n h w -> n (h s) (w t) rgb", s=scale, t=scale, rgb=3)
    return ArraySource(images, data.target[chosen].astype(np.int32), [str(label) for label in range(10)])


def class_counts(names: Sequence[str], labels: np.ndarray) -> dict[str, int]:
    """How many images there are of each class, by its name."""
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))
