"""Batches of 12 MB, which processes read without importing more than NumPy."""

import time

import numpy as np

SHAPE = (64, 256, 256, 3)  # 12.6 MB
LAYOUT = {"image": (SHAPE, np.dtype(np.uint8)), "label": ((64,), np.dtype(np.int32))}


class Large:
    """`length` batches, filled with their number, each after `seconds`."""

    def __init__(self, length: int = 10**6, seconds: float = 0.0):
        self._length, self._seconds = length, seconds

    def __len__(self) -> int:
        return self._length

    def read(self, number: int, into: dict[str, np.ndarray]) -> None:
        time.sleep(self._seconds)
        into["image"][:] = number % 256
        into["label"][:] = number


def check(batch: dict[str, np.ndarray], number: int) -> None:
    """Asserts that `batch` is the whole of batch `number`."""
    assert (batch["image"] == number % 256).all() and (batch["label"] == number).all()
