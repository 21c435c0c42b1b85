"""The representation autoencoder: a pretrained encoder and a trained decoder around the latent space of the flow."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

# Added to the variance, as batch normalisation does.
EPSILON = 1e-5


class LatentStatistics(struct.PyTreeNode):
    """Mean and variance of the latent, per element `[N, C]` or per channel `[1, C]`; float32.

    `mean` may be None, as in the published DINOv2-B statistics: the latent is then scaled only.
    """

    mean: jax.Array | None
    variance: jax.Array

    def normalise(self, tokens: jax.Array) -> jax.Array:
        """`(tokens - mean) / sqrt(variance + 1e-5)`, `[B, N, C]`."""
        self._check(tokens)
        centred = tokens if self.mean is None else tokens - self.mean
        return centred / jnp.sqrt(self.variance + EPSILON)

    def denormalise(self, z: jax.Array) -> jax.Array:
        """The inverse of `normalise`."""
        self._check(z)
        scaled = z * jnp.sqrt(self.variance + EPSILON)
        return scaled if self.mean is None else scaled + self.mean

    def _check(self, z: jax.Array) -> None:
        for name, value in (("mean", self.mean), ("variance", self.variance)):
            if value is not None and value.shape not in (z.shape[-2:], (1, z.shape[-1])):
                raise ValueError(
                    f"latent statistics: {name} has shape {value.shape}, but tokens of shape {z.shape} need "
                    f"{z.shape[-2:]} or {(1, z.shape[-1])}; compute statistics with this encoder at this input size"
                )


def noise_augmentation(key: jax.Array, tokens: jax.Array, tau: float, distribution: str = "uniform") -> jax.Array:
    """`tokens + sigma n` with `n ~ N(0, I)` and one sigma for each image, `[B, N, C]`.

    What the decoder sees in training, so that it bears the imperfect latents of a generator (RAE, noise-augmented
    decoding).

    `distribution` of sigma: `uniform` on [0, tau] (released code), or `half_normal`, |N(0, tau^2)| (paper).
    """
    sigma_key, noise_key = jax.random.split(key)
    shape = (tokens.shape[0], 1, 1)
    if distribution == "uniform":
        sigma = tau * jax.random.uniform(sigma_key, shape)
    elif distribution == "half_normal":
        sigma = tau * jnp.abs(jax.random.normal(sigma_key, shape))
    else:
        raise ValueError(f"noise distribution {distribution!r} is not one of ['half_normal', 'uniform']")
    return tokens + sigma * jax.random.normal(noise_key, tokens.shape)


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [0, 1] -> 8 bits: clamped, times 255, truncated (not rounded), as published samples are saved."""
    return (jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)


class RepresentationAutoencoder(nn.Module):
    """Encoder and decoder (RAE, Zheng et al. 2025), with parameters `{"encoder": ..., "decoder": ...}`.

    Call a part with `model.apply({"params": p}, x, method="encode")`; only the subtree that it uses need be present.

    Attributes:
      encoder: images `[B, H, W, 3]` in its own normalisation -> tokens `[B, N, D]`.
      decoder: tokens `[B, N, C]` -> images in the encoder's normalisation.
      encoder_input_size: side to which images are resized for the encoder.
      image_mean, image_std: of the encoder's pixel normalisation, for pixels in [0, 1].
      plain_pixels: whether the decoder's are pixels in [0, 1] as they are (RAEv2), rather than so normalised.
    """

    encoder: nn.Module
    decoder: nn.Module
    encoder_input_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    plain_pixels: bool = False

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` in [0, 1] as the encoder takes them: resized, then normalised by mean and deviation."""
        size = (images.shape[0], self.encoder_input_size, self.encoder_input_size, 3)
        if images.shape != size:
            # PyTorch's bicubic (a = -0.75) without antialias, as the reference feeds its encoders.
            images = jax.image.resize(images, size, "cubic-pytorch", antialias=False)
        return (images - jnp.asarray(self.image_mean)) / jnp.asarray(self.image_std)

    def tokens(self, images: jax.Array, **options: Any) -> jax.Array:
        """The encoder's tokens `[B, N, D]`, float32, of images `[B, H, W, 3]` in [0, 1].

        `options` are the encoder's, `coordinate_scales` or `class_token`, if any.
        """
        return self.encoder(self.preprocess(images), **options)

    def encode(
        self, images: jax.Array, statistics: LatentStatistics | None = None, noise: jax.Array | None = None
    ) -> jax.Array:
        """The latent `z: [B, N, D]` of images `[B, H, W, 3]` in [0, 1]; `noise: [B, N, D]` joins before normalising."""
        z = self.tokens(images)
        if noise is not None:
            z = z + noise
        return z if statistics is None else statistics.normalise(z)

    def decode(self, z: jax.Array, statistics: LatentStatistics | None = None) -> jax.Array:
        """Images `[B, H, W, 3]` of the latent `z: [B, N, C]`, in the scale of [0, 1] but not clamped to it."""
        pixels = self.decoder(z if statistics is None else statistics.denormalise(z))
        if self.plain_pixels:
            return pixels
        return pixels * jnp.asarray(self.image_std) + jnp.asarray(self.image_mean)

    def __call__(self, images: jax.Array, statistics: LatentStatistics | None = None) -> jax.Array:
        """The reconstruction `[B, H, W, 3]` of images `[B, H, W, 3]` in [0, 1], not clamped."""
        return self.decode(self.encode(images, statistics), statistics)
