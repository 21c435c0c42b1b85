import numpy as np
import pytest
from golden import cases
from skimage.metrics import structural_similarity

from rae_jax.evaluation.image_quality import psnr, ssim


@pytest.mark.parametrize("metric", [psnr, ssim])
@cases("psnr_ssim")
def test_quality_equals_the_reference_for_each_image_and_in_the_mean(case, metric):
    call = case.call(f"calculate_{metric.__name__}")
    quality = metric(call.inputs["a"], call.inputs["b"])
    case.assert_close(quality, call.outputs["per image"])
    case.assert_close(np.mean(quality), call.outputs["mean"])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bytes_and_the_same_images_in_unit_range_have_the_same_quality(metric):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, 12, 14, 3), dtype=np.uint8)
    np.testing.assert_allclose(metric(a / np.float32(255), b / np.float32(255)), metric(a, b), rtol=1e-5)
    np.testing.assert_allclose(metric(a / np.float32(255), b), metric(a, b), rtol=1e-5)


def test_identical_images_have_a_psnr_of_100_and_an_ssim_of_1():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 14, 3), dtype=np.uint8)
    np.testing.assert_allclose(psnr(images, images), 100, rtol=1e-6)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-5)


def test_ssim_away_from_the_border_equals_scikit_image():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    # scikit-image pads and crops differently at the border: extend both so that only the inside counts.
    wide_a, wide_b = (np.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)), mode="reflect") for x in (a, b))
    _, similarity = structural_similarity(
        wide_a[0] / 255,
        wide_b[0] / 255,
        channel_axis=-1,
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    np.testing.assert_allclose(ssim(a, b), [similarity[5:-5, 5:-5].mean()], atol=1e-5)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_ssim_in_a_flat_region_is_that_of_the_means(value):
    a, b = (np.full((1, 16, 16, 3), v, np.uint8) for v in (value, 100))
    x, y, c1 = value / 255, 100 / 255, 1e-4
    np.testing.assert_allclose(ssim(a, b), (2 * x * y + c1) / (x * x + y * y + c1), atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 8, 8, 3), int), np.zeros((1, 8, 8, 3), np.uint8), r"must be uint8 or floats.*got int"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), r"must both be \[B, H, W, C\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 9, 3), np.uint8), r"\(1, 8, 8, 3\) and \(1, 8, 9, 3\)"),
        (np.zeros((1, 5, 8, 3), np.uint8), np.zeros((1, 5, 8, 3), np.uint8), "too small"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        ssim(a, b)
