"""Differentiable augmentation of images before a discriminator sees them.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (2020). Random numbers come in as uniform
draws, so that the functions are pure; images are `[B, H, W, C]` in any range, usually [-1, 1].
"""

import jax
import jax.numpy as jnp

TRANSLATION = 0.125


def augment(key: jax.Array, images: jax.Array, *, probability: float = 1.0, cutout: float = 0.0) -> jax.Array:
    """Images translated, recoloured and cut out at random, each kind for the whole batch with `probability`.

    Within a batch every image has its own shift, colours and hole. RAE uses probability 1 without cutout.
    """
    switch_key, draw_key = jax.random.split(key)
    switches = jax.random.uniform(switch_key, (3,))
    draws = jax.random.uniform(draw_key, (7, images.shape[0]))
    return augment_with(images, switches, draws, probability=probability, cutout=cutout)


def augment_with(
    images: jax.Array, switches: jax.Array, draws: jax.Array, *, probability: float, cutout: float
) -> jax.Array:
    """`augment` with the uniform draws given.

    Args:
      switches: `[3]`; translation, colour and cutout act where theirs is at most `probability`.
      draws: `[7, B]`; shift down, shift right, brightness, saturation, contrast, row and column of the hole.
    """
    steps = [lambda x: translate(x, draws[0], draws[1]), lambda x: recolour(x, *draws[2:5])]
    if cutout > 0:
        steps.append(lambda x: cut_out(x, draws[5], draws[6], cutout))
    for switch, step in zip(switches, steps, strict=False):
        images = jnp.where(switch <= probability, step(images), images)
    return images


def translate(images: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
    """Images moved by whole pixels, at most an eighth of a side either way, zeros coming in.

    Output pixel i is input pixel `i + floor(r (2 m + 1)) - m` for the draw r in [0, 1) and the largest shift m.
    """
    _, height, width, channels = images.shape
    most = [round(side * TRANSLATION) for side in (height, width)]  # a half to the even number, as in the reference
    padded = jnp.pad(images, ((0, 0), (most[0],) * 2, (most[1],) * 2, (0, 0)))
    starts = [jnp.floor(r * (2 * m + 1)).astype(jnp.int32) for r, m in zip((down, right), most, strict=True)]

    def crop(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, channels))

    return jax.vmap(crop)(padded, *starts)


def recolour(images: jax.Array, brightness: jax.Array, saturation: jax.Array, contrast: jax.Array) -> jax.Array:
    """Brightness shifted by -0.5 to 0.5, then saturation times 0 to 2, then contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = (r[:, None, None, None] for r in (brightness, saturation, contrast))
    images = images + (brightness - 0.5)
    grey = jnp.mean(images, axis=-1, keepdims=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + 0.5) + mean


def cut_out(images: jax.Array, row: jax.Array, column: jax.Array, share: float) -> jax.Array:
    """Images with a rectangle of `share` of each side set to zero; at the border part of it falls outside."""
    masks = []
    for side, r in zip(images.shape[1:3], (row, column), strict=True):
        size = round(side * share)
        centre = jnp.floor(r * (side + 1 - size % 2))
        first = (centre - size // 2)[:, None]
        at = jnp.arange(side)
        masks.append((at >= first) & (at < first + size))
    hole = masks[0][:, :, None, None] & masks[1][:, None, :, None]
    return jnp.where(hole, 0.0, images)
