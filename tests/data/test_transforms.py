import pickle

import numpy as np
import pytest
from golden import cases
from PIL import Image

from rae_jax.data.transforms import (
    center_crop_adm,
    random_crop,
    random_flip,
    random_resized_crop,
    transform,
    without_flip,
)

NAMES = ["none", "resize", "center_crop", "center_crop_flip", "random_crop", "random_resized_crop"]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@cases("center_crop")
def test_the_centre_crop_is_the_reference_codes_to_the_pixel(case):
    for call in case.calls("center_crop_arr"):
        cropped = center_crop_adm(call.inputs["image"], call.inputs["image_size"])
        np.testing.assert_array_equal(cropped, call.outputs["image"])


def test_the_centre_crop_of_an_image_of_the_right_size_is_the_image():
    image = noise(32, 32)
    np.testing.assert_array_equal(center_crop_adm(image, 32), image)
    np.testing.assert_array_equal(center_crop_adm(noise(32, 41), 32), noise(32, 41)[:, 4:36])


def test_an_image_of_exactly_twice_the_size_is_averaged_over_two_by_two_pixels():
    image = noise(64, 64)
    blocks = image.reshape(32, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(center_crop_adm(image, 32), blocks, atol=1)  # Pillow rounds twice


@pytest.mark.parametrize("name", NAMES)
def test_every_transform_gives_squares_and_pickles(name):
    made = pickle.loads(pickle.dumps(transform(name, 48)))
    for shape in [(48, 48)] if name == "none" else [(48, 48), (21, 50), (300, 200)]:
        image = made(noise(*shape), np.random.default_rng(0))
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    assert bool(made.random) == (name not in ("none", "resize", "center_crop"))


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_alone_decides(name):
    def draws(seed):
        rng = np.random.default_rng(seed)
        return np.stack([transform(name, 32)(noise(32, 32), rng) for _ in range(8)])

    np.testing.assert_array_equal(draws(0), draws(0))
    assert (draws(0) != draws(1)).any() == bool(transform(name, 32).random)


def test_none_is_the_identity_and_refuses_other_sizes():
    np.testing.assert_array_equal(transform("none", 32)(noise(32, 32)), noise(32, 32))
    with pytest.raises(ValueError, match=r"32 x 32 pixels as they are, and got one of shape \(40, 32, 3\)"):
        transform("none", 32)(noise(40, 32))


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(ValueError, match="nearest: center_crop"):
        transform("centre_crop", 32)


class Corner(np.random.Generator):
    """Draws the same share of every integer range."""

    def __init__(self, share: float):
        super().__init__(np.random.PCG64(0))
        self._share = share

    def integers(self, high, endpoint=False):
        return int(self._share * (high + endpoint - 1))


@pytest.mark.parametrize("shape", [(60, 90), (90, 61), (33, 20), (48, 48)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_random_crop_equals_resizing_everything_and_then_cropping(shape, share):
    height, width = shape
    image = noise(height, width) // 2 + 64  # away from the ends of the range, where the order of the passes matters
    new_height, new_width = height * 48 // min(shape), width * 48 // min(shape)
    resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = int(share * (new_height - 32)), int(share * (new_width - 32))
    crop = random_crop(image, Corner(share), shorter_side=48, size=32)
    np.testing.assert_allclose(crop.astype(int), resized[top : top + 32, left : left + 32], atol=1)


def test_random_crops_reach_every_place_equally_often():
    image = np.zeros((3, 3, 3), np.uint8)
    image[..., 0] = np.arange(9).reshape(3, 3)
    rng = np.random.default_rng(0)
    seen = [random_crop(image, rng, shorter_side=3, size=2)[0, 0, 0] for _ in range(2000)]
    counts = np.bincount(seen, minlength=9)
    assert set(np.flatnonzero(counts)) == {0, 1, 3, 4}
    assert counts[counts > 0].min() > 430  # 500 expected, standard deviation 19


def test_random_crop_at_256_pixels_resizes_the_shorter_side_to_384():
    assert transform("random_crop", 256).random[0].keywords == {"shorter_side": 384, "size": 256}
    assert transform("random_crop", 512).random[0].keywords == {"shorter_side": 768, "size": 512}


def test_a_transform_that_draws_at_most_a_flip_is_known_without_it():
    assert without_flip("center_crop_flip") == ("center_crop", True)
    assert [without_flip(name) for name in NAMES[:3]] == [(name, False) for name in NAMES[:3]]
    for name in ("random_crop", "random_resized_crop"):
        with pytest.raises(ValueError, match="draws more than a flip"):
            without_flip(name)
    with pytest.raises(ValueError, match="no transform"):
        without_flip("centre_crop_flip")


def test_flips_happen_half_the_time():
    image, rng = noise(4, 5), np.random.default_rng(0)
    flipped = [bool((random_flip(image, rng) == image[:, ::-1]).all()) for _ in range(1000)]
    assert 430 < sum(flipped) < 570


def test_random_parts_have_the_promised_areas_and_shapes():
    # A horizontal and a vertical ramp: the range of each tells which part of the image was taken.
    y, x = np.mgrid[0:200, 0:250]
    image = np.stack([y, x, x], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(300):
        part = random_resized_crop(image, rng, 16).astype(float)
        h, w = (np.ptp(part[..., i]) * 16 / 15 for i in (0, 1))  # between the centres of the outer pixels
        areas.append(h * w / (200 * 250))
        ratios.append(w / h)
    assert 0.17 < min(areas) < 0.25 and 0.85 < max(areas) < 1.05
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.45
    assert 0.45 < np.mean(areas) < 0.65


def test_a_part_of_an_image_too_narrow_for_any_draw_is_its_middle():
    image = np.zeros((10, 400, 3), np.uint8)
    image[:, 193:206] = 255  # 4/3 of the height
    assert (random_resized_crop(image, np.random.default_rng(0), 8) == 255).all()
    image[:, 194:205] = 0
    assert (random_resized_crop(image, np.random.default_rng(0), 8)[:, [0, -1]] > 50).all()


@pytest.mark.parametrize("name", ["center_crop", "random_crop", "resize", "random_resized_crop"])
def test_of_an_image_that_is_far_too_long_only_the_middle_is_enlarged(name):
    image = np.zeros((1, 30_001, 3), np.uint8)
    image[0, 15_000 - 10 : 15_000 + 10] = 200
    square = transform(name, 64)(image, np.random.default_rng(0))
    assert square.shape == (64, 64, 3) and square.min() == 200
