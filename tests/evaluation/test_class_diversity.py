import numpy as np
import pytest
from sklearn.datasets import load_digits

from rae_jax.data.digits import digits
from rae_jax.evaluation.class_diversity import class_diversity, small_images


def by_hand(pixels: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([[pixels[labels == label][:, i].std() for i in range(64)] for label in range(10)]))


def test_digits_are_as_diverse_as_scikit_learns_own_pixels():
    """The images are those pixels enlarged: made small again, they are the same, from 0 to 16."""
    own = load_digits()
    source = digits("train")
    small = small_images(source.images)
    assert small.shape == (1438, 8, 8) and small.min() == 0 and small.max() == 16
    originals = {row.tobytes() for row in own.data.round().astype(np.uint8)}
    assert all(row.tobytes() in originals for row in small.round().astype(np.uint8))
    found = class_diversity(small, source.labels)
    assert found == pytest.approx(by_hand(small.reshape(-1, 64).round(), source.labels), abs=2e-3)
    assert found == pytest.approx(2.63, abs=0.01)


def test_the_same_image_over_and_over_has_none_and_classes_that_are_not_there_do_not_count():
    image = np.random.RandomState(0).randint(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    same = small_images(np.repeat(image, 4, axis=0))
    assert class_diversity(same, np.array([3, 3, 7, 7])) == 0
    two = same + np.array([0, 2, 0, 6], np.float32)[:, None, None]  # deviations of 1 and 3
    assert class_diversity(two, np.array([3, 3, 7, 7])) == pytest.approx(2)
