"""Latent spaces without an autoencoder."""

import jax.numpy as jnp
import numpy as np

from configs import baselines
from rae_jax.components.latent_spaces import latent_space


def test_pixels_are_their_own_latents_in_minus_one_to_one():
    config = baselines.get_config("pixels-dit")
    config.data.image_size = 4
    space = latent_space(config)
    assert space.shape == (16, 3) and not space.encoding and not space.decoding
    images = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
    latents = space.encode({}, jnp.asarray(images))
    np.testing.assert_allclose(latents[1, 6], 2 * images[1, 1, 2] - 1, atol=1e-6)  # row-major
    np.testing.assert_allclose(space.decode({}, latents), images, atol=1e-6)
