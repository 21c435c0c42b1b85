"""Latent spaces without an autoencoder, and in patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_weights

from configs import baselines, digits_text
from rae_jax.components.language import text_dit, token_condition
from rae_jax.components.latent_spaces import LatentSpace, in_patches, latent_space
from rae_jax.experiment.configuration import trace


def test_pixels_are_their_own_latents_in_minus_one_to_one():
    config = baselines.get_config("pixels-dit")
    config.data.image_size = 4
    space = latent_space(config)
    assert space.shape == (16, 3) and not space.encoding and not space.decoding
    images = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
    latents = space.encode({}, jnp.asarray(images))
    np.testing.assert_allclose(latents[1, 6], 2 * images[1, 1, 2] - 1, atol=1e-6)  # row-major
    np.testing.assert_allclose(space.decode({}, latents), images, atol=1e-6)


def test_tokens_of_two_by_two_positions_are_bagels_patches():
    config = baselines.get_config("pixels-dit")
    config.data.image_size, config.latent_patch_size = 4, 2
    space, whole = latent_space(config), latent_space(config, "pixels")
    assert space.shape == (4, 12) and whole.shape == (16, 3)
    images = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32))
    # Bagel: a latent [C, h p, w p] becomes h w tokens of row in patch, column in patch, channel.
    latents = np.moveaxis(np.asarray(whole.encode({}, images)).reshape(2, 4, 4, 3), -1, 1)
    expected = latents.reshape(2, 3, 2, 2, 2, 2).transpose(0, 2, 4, 3, 5, 1).reshape(2, 4, 12)
    tokens = space.encode({}, images)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(space.decode({}, tokens), images, atol=1e-6)
    config.latent_patch_size = 3
    with pytest.raises(ValueError, match="latent_patch_size=3 does not divide the 4 x 4 positions"):
        latent_space(config)


def test_a_dit_of_patches_is_the_dit_that_makes_patches_of_its_own():
    config = digits_text.get_config("tiny-kl")
    assert config.latent_patch_size == 4 and config.text_dit.model.patch_size == 1
    given, params = text_dit(config), random_weights(text_dit(config))
    told = jax.tree.map(lambda x: jnp.ones((2, *x.shape[1:]), x.dtype), token_condition(config))
    config.latent_patch_size, config.text_dit.model.patch_size = 1, 4
    own, space = text_dit(config), latent_space(config)
    z = jax.random.normal(jax.random.key(0), (2, *space.shape))
    patches = in_patches(LatentSpace(space.shape, {}, {}, lambda parts, x: x, lambda parts, x: x), 4)
    t = jnp.array([0.2, 0.7])
    expected = own.apply(params, z, t, told)
    found = patches.decode({}, given.apply(params, patches.encode({}, z), t, told))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(expected) > 0.1


def test_generators_of_patches_of_the_encoders_tokens_are_not_given_the_tokens_for_them():
    config = digits_text.get_config("tiny")
    config.latent_patch_size = 2
    trace(config, "text_to_image")
