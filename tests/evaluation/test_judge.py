import numpy as np
import pytest
from sklearn.datasets import load_digits

from rae_jax.evaluation.judge import train_judge


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return np.repeat((data.images[order, ..., None] / 16 * 255).astype(np.uint8), 3, axis=-1), data.target[order]


@pytest.fixture(scope="module")
def judge(digits):
    images, labels = digits
    return train_judge(images[:1000], labels[:1000])


@pytest.fixture(scope="module")
def accuracy(judge, digits):
    return judge.agrees(*(x[1000:1400] for x in digits)).mean()


def test_the_judge_knows_held_out_digits(accuracy):
    assert accuracy > 0.97


def test_real_images_with_other_labels_do_not_agree(judge, digits):
    images, labels = (x[1000:1400] for x in digits)
    assert judge.agrees(images, (labels + 1) % 10).mean() < 0.1
    np.testing.assert_array_equal(judge.agrees(images, judge.predict(images)), np.ones(400, bool))


def test_faint_noise_where_real_images_are_black_does_not_mislead_the_judge(judge, digits, accuracy):
    images, labels = (x[1000:1400] for x in digits)
    noisy = np.maximum(images, np.random.default_rng(0).integers(0, 25, images.shape, dtype=np.uint8))
    assert judge.agrees(noisy, labels).mean() > accuracy - 0.02


def test_noise_agrees_by_chance_only(judge):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    assert judge.agrees(noise, rng.integers(0, 10, 500)).mean() < 0.2


def test_images_in_unit_range_are_refused_rather_than_misjudged(judge, digits):
    with pytest.raises(ValueError, match="images to judge are float64, expected uint8"):
        judge.agrees(digits[0][:5] / 255, digits[1][:5])


def test_labels_that_do_not_belong_to_the_images_are_refused(judge, digits):
    with pytest.raises(ValueError, match="one integer for each of 5 images"):
        judge.agrees(digits[0][:5], digits[1][:4])
