"""Differentiable augmentation against the golden outputs and written-out answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, nhwc

from rae_jax.models import diffaug

augment = jax.jit(diffaug.augment, static_argnames=("probability", "cutout"))
augment_with = jax.jit(diffaug.augment_with, static_argnames=("probability", "cutout"))
cut_out = jax.jit(diffaug.cut_out, static_argnums=3)
recolour, translate = jax.jit(diffaug.recolour), jax.jit(diffaug.translate)


@cases("diffaug")
def test_augmented_images_equal_the_reference(case):
    for call in case.calls("DiffAug.aug"):
        images, draws, switches = nhwc(call.inputs["x"]), call.inputs["rand"][:, :, 0, 0], call.inputs["switches"]
        chances = {"probability": call.inputs["prob"], "cutout": call.inputs["cutout"]}
        case.assert_close(augment_with(images, switches, draws, **chances), nhwc(call.outputs["x"]))


def test_translation_reads_ahead_by_the_shift_and_fills_with_zeros():
    image = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 8, 1).repeat(8, axis=1)
    # A shift of at most 1 of 8 pixels: draws below 1/3, below 2/3 and above give -1, 0 and 1.
    for draw, expected in [(0.1, [0, 1, 2, 3, 4, 5, 6, 7]), (0.5, range(1, 9)), (0.9, [2, 3, 4, 5, 6, 7, 8, 0])]:
        moved = translate(image, np.float32([0.5]), np.float32([draw]))
        np.testing.assert_array_equal(moved[0, 3, :, 0], list(expected))
        np.testing.assert_array_equal(
            translate(image.swapaxes(1, 2), np.float32([draw]), np.float32([0.5]))[0, :, 3, 0], list(expected)
        )


@pytest.mark.parametrize(("side", "most"), [(4, 0), (12, 2), (20, 2), (28, 4)])
def test_half_a_pixel_of_the_largest_shift_and_of_a_hole_is_rounded_to_the_even_number(side, most):
    image = np.arange(1, side + 1, dtype=np.float32).reshape(1, 1, side, 1).repeat(side, axis=1)
    moved = np.asarray(translate(image, np.float32([0.5]), np.float32([0.999])))
    assert moved[0, 0, 0, 0] == 1 + most
    hole = cut_out(np.ones((1, side, side, 1), np.float32), np.float32([0.5]), np.float32([0.5]), 0.125)
    assert np.sum(np.asarray(hole) == 0) == most**2


def test_colours_at_the_middle_of_their_range_leave_the_image_alone():
    images = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    half = np.full(2, 0.5, np.float32)
    np.testing.assert_allclose(recolour(images, half, half, half), images, atol=1e-6)
    grey = recolour(images, half, np.zeros(2, np.float32), half)  # no saturation
    np.testing.assert_allclose(grey, images.mean(-1, keepdims=True).repeat(3, -1), atol=1e-6)


def test_a_hole_of_even_and_of_odd_size_may_lie_partly_outside():
    images = np.ones((2, 8, 8, 1), np.float32)
    # Size 4 of 8: 9 centres 0..8, rows centre - 2 to centre + 1.
    rows = np.asarray(cut_out(images, np.float32([0.0, 0.999]), np.float32([0.5, 0.5]), 0.5))[:, :, 4, 0]
    np.testing.assert_array_equal(rows, [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]])


def test_augmentation_differs_between_images_repeats_with_the_key_and_lets_gradients_through():
    images = np.ones((3, 16, 16, 3), np.float32) * np.linspace(0, 1, 16, dtype=np.float32)[:, None]
    key = jax.random.key(0)
    first, again, other = (np.asarray(augment(k, images)) for k in (key, key, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 0
    assert np.abs(first - other).max() > 0
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(augment(key, x, cutout=0.2)))))(images)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_probability_zero_changes_nothing():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(augment(jax.random.key(1), images, probability=0.0, cutout=0.2), images)
