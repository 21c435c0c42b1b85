"""LPIPS, the learned perceptual distance of two images: a loss of the decoder and a metric of its reconstructions.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), version 0.1: the features
of a classification network, with weights of the channels that come from people's judgements.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# A convolution is (channels, kernel, stride, padding), "tap" hands on the features so far, "pool" is (window, stride).
NETWORKS: dict[str, tuple[Any, ...]] = {
    "vgg16": (
        *[("conv", 64, 3, 1, 1)] * 2,
        ("tap",),
        ("pool", 2, 2),
        *[("conv", 128, 3, 1, 1)] * 2,
        ("tap",),
        ("pool", 2, 2),
        *[("conv", 256, 3, 1, 1)] * 3,
        ("tap",),
        ("pool", 2, 2),
        *[("conv", 512, 3, 1, 1)] * 3,
        ("tap",),
        ("pool", 2, 2),
        *[("conv", 512, 3, 1, 1)] * 3,
        ("tap",),
    ),
    "alexnet": (
        ("conv", 64, 11, 4, 2),
        ("tap",),
        ("pool", 3, 2),
        ("conv", 192, 5, 1, 2),
        ("tap",),
        ("pool", 3, 2),
        ("conv", 384, 3, 1, 1),
        ("tap",),
        ("conv", 256, 3, 1, 1),
        ("tap",),
        ("conv", 256, 3, 1, 1),
        ("tap",),
    ),
}
# ImageNet's pixel mean and deviation on the scale of [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Features(nn.Module):
    """Rectified features `[B, h, w, C]` at the taps of a network in `NETWORKS`, from scaled images `[B, H, W, 3]`."""

    network: str

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taps, count = [], 0
        for kind, *numbers in NETWORKS[self.network]:
            if kind == "conv":
                channels, kernel, stride, padding = numbers
                x = nn.relu(nn.Conv(channels, (kernel, kernel), stride, padding, name=f"conv_{count}")(x))
                count += 1
            elif kind == "pool":
                window, stride = numbers
                x = nn.max_pool(x, (window, window), (stride, stride))
            else:
                taps.append(x)
        return taps


class LPIPS(nn.Module):
    """Distance `[B]` of images `a` and `b: [B, H, W, 3]` in [-1, 1], float32.

    RAE's first release passed images in [0, 1] as they are, which is another loss; scaling is the caller's choice. The
    parameters are frozen: `interop.lpips.pretrained` reads them. `network` is `vgg16` (the loss) or `alexnet` (the
    usual metric); sides of at least 16 and 31 pixels are needed.
    """

    network: str = "vgg16"

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        if self.network not in NETWORKS:
            raise ValueError(f"LPIPS network {self.network!r} is not one of {sorted(NETWORKS)}")
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
            raise ValueError(f"LPIPS compares images [B, H, W, 3] of one shape; got {a.shape} and {b.shape}")
        features = Features(self.network, name="features")
        # Two passes, not one of both: the gradient then skips the image that needs none.
        taps_a, taps_b = (features((x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)) for x in (a, b))
        total = jnp.zeros(a.shape[0])
        for i, (features_a, features_b) in enumerate(zip(taps_a, taps_b, strict=True)):
            weight = self.param(f"head_{i}", nn.initializers.ones, (features_a.shape[-1],))
            difference = jnp.square(unit_length(features_a) - unit_length(features_b))
            total = total + jnp.mean(jnp.sum(difference * weight, axis=-1), axis=(1, 2))
        return total


def unit_length(features: jax.Array) -> jax.Array:
    """`features / (|features| + 1e-10)` over the channels; where all are zero, zero with gradient zero."""
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    nonzero = square > 0
    # The root of zero has no gradient: PyTorch's would be nan there.
    norm = jnp.sqrt(jnp.where(nonzero, square, 1.0))
    return jnp.where(nonzero, features / (norm + 1e-10), 0.0)
