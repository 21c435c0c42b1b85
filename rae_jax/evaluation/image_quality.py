"""PSNR and SSIM, the per-image measures of a reconstruction.

Images are `[B, H, W, C]`, uint8 or floats in [0, 1]. Published numbers are those of 8-bit images: convert first.
"""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def _unit_pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as float32 in [0, 1]."""
    for x in (a, b):
        if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"images to compare must be uint8 or floats in [0, 1], got {x.dtype}")
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"images to compare must both be [B, H, W, C], got {a.shape} and {b.shape}")
    return tuple(x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1) for x in (a, b))


@jax.jit
def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio `[B]` in dB of each pair of images; identical images give 100.

    `-10 log10` of the mean squared error of images in [0, 1], floored at 1e-10.
    """
    a, b = _unit_pair(a, b)
    error = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian filter of `x: [B, H, W, C]`, reflected at the border, one pass along H and one along W."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).astype(np.float32)
    for axis in (1, 2):
        size = x.shape[axis]
        pad = [(WINDOW // 2,) * 2 if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, pad, mode="reflect")
        x = sum(w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, w in enumerate(window))
    return x


@jax.jit
def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity `[B]` of each pair of images (Wang et al., 2004).

    An 11 x 11 Gaussian window of sigma 1.5 on images in [0, 1]; the mean is over all pixels, the border included,
    and all channels.
    """
    a, b = _unit_pair(a, b)
    if min(a.shape[1:3]) <= WINDOW // 2:
        raise ValueError(f"images of {a.shape[1]} x {a.shape[2]} are too small for SSIM's {WINDOW} x {WINDOW} window")
    # Second moments about each image's own mean: about zero, float32 loses the small variances of bright flat regions.
    level_a, level_b = (jnp.mean(x, axis=(1, 2), keepdims=True) for x in (a, b))
    a, b = a - level_a, b - level_b
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = jnp.maximum(_blur(a * a) - mean_a**2, 0)
    var_b = jnp.maximum(_blur(b * b) - mean_b**2, 0)
    covariance = _blur(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + level_a, mean_b + level_b
    c1, c2 = K1**2, K2**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return jnp.mean(similarity, axis=(1, 2, 3))
