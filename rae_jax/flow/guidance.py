"""Guidance: a velocity pushed away from what a worse model would say, inside an interval of time.

`v_weak + w (v - v_weak)` where `t_min <= t <= t_max`, both ends included and decided for each sample; plain v elsewhere
(Kynkäänniemi et al., 2024). With w = 1 it changes nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rae_jax.flow.path import over
from rae_jax.flow.samplers import VelocityFunction

Interval = tuple[float, float]


def guide(v: jax.Array, v_weak: jax.Array, t: jax.Array, scale: jax.Array | float, interval: Interval) -> jax.Array:
    """The guided velocity `[B, ...]` from the two models' at times `t: [B]`; a scale for all, or for each, `[B]`.

    Raises:
      ValueError: the interval is empty.
    """
    t_min, t_max = interval
    if t_min > t_max:
        raise ValueError(f"guidance interval {interval} is empty; give (t_min, t_max) with t_min <= t_max")
    inside = (t >= t_min) & (t <= t_max)
    scale = over(scale, v) if jnp.ndim(scale) else scale
    return jnp.where(over(inside, v), v_weak + scale * (v - v_weak), v)


def throughout(scale: jax.Array) -> jax.Array:
    """Guidance `[B, 3]`, as `draw` gives it, of scales `[B]` at all times."""
    return jnp.stack([scale, jnp.zeros_like(scale), jnp.ones_like(scale)], axis=1)


def draw(key: jax.Array, batch_size: int, largest: float) -> jax.Array:
    """Guidance `(w, t_min, t_max)` for each sample in the training of a flow map that is told it, `[B, 3]` (iMF).

    Scales are in [1, largest] with a density as 1 / w, intervals begin uniformly in [0, 0.5] and end in [0.5, 1].
    """
    scale, t_min, t_max = jax.random.uniform(key, (3, batch_size))
    return jnp.stack([largest**scale, t_min / 2, (1 + t_max) / 2], axis=1)


def scale_at(guidance: jax.Array, t: jax.Array) -> jax.Array:
    """The scale `[B]` that guidance `[B, 3]` has at times `t: [B]`: w inside its interval, 1 elsewhere."""
    scale, t_min, t_max = jnp.moveaxis(guidance, -1, 0)
    return jnp.where((t >= t_min) & (t <= t_max), scale, 1.0)


def classifier_free_guidance(
    velocity: Callable[[jax.Array, jax.Array, Any], jax.Array],
    condition: Any,
    null: Any,
    *,
    scale: float,
    interval: Interval = (0.0, 1.0),
) -> VelocityFunction:
    """Guidance by the model's own unconditional velocity (Ho & Salimans, 2022).

    Args:
      velocity: `(z, t, condition) -> v`; called once, on twice the batch.
      condition: what the samples are asked for, a tree of arrays `[B, ...]`.
      null: the condition that asks for nothing, of the same shapes.
    """

    def guided(z: jax.Array, t: jax.Array) -> jax.Array:
        # Each sample next to its twin, rather than one half after the other, keeps a divided batch where it is.
        both = jax.tree.map(lambda c, n: jnp.stack([c, n], axis=1).reshape(-1, *c.shape[1:]), condition, null)
        v = velocity(jnp.repeat(z, 2, axis=0), jnp.repeat(t, 2), both)
        v = v.reshape(-1, 2, *v.shape[1:])
        return guide(v[:, 0], v[:, 1], t, scale, interval)

    return guided


def internal_guidance(
    outputs: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]],
    *,
    interval: Interval = (0.0, 1.0),
) -> Callable[[jax.Array, jax.Array, tuple[Any, jax.Array]], jax.Array]:
    """Guidance by the model's own early output, in one pass of the network (RAEv2).

    Args:
      outputs: `(z, t, condition) -> (v, early v)`.

    Returns:
      `(z, t, (condition, scales [B])) -> v`. The scales go with the conditions, so that `classifier_free_guidance` of
      it may guide conditional and unconditional velocities by different ones.
    """

    def guided(z: jax.Array, t: jax.Array, told: tuple[Any, jax.Array]) -> jax.Array:
        condition, scales = told
        v, early = outputs(z, t, condition)
        return guide(v, early, t, scales, interval)

    return guided


def autoguidance(
    velocity: VelocityFunction,
    weak_velocity: VelocityFunction,
    *,
    scale: float,
    interval: Interval = (0.0, 1.0),
) -> VelocityFunction:
    """Guidance by a smaller or less trained model under the same condition (Karras et al., 2024)."""

    def guided(z: jax.Array, t: jax.Array) -> jax.Array:
        return guide(velocity(z, t), weak_velocity(z, t), t, scale, interval)

    return guided


RENORMALISATIONS = ("global", "channel", "text_channel")


def shrink(v: jax.Array, to: jax.Array, least: float, axes: tuple[int, ...]) -> jax.Array:
    """`v` times `|to| / |v|` over `axes`, at least by `least` and at most by 1: guidance makes velocities too long."""
    norm, wanted = (jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (v, to))
    return v * jnp.clip(wanted / (norm + 1e-8), least, 1.0)


def check_renormalisation(renormalisation: str) -> None:
    """Raises ValueError for one that there is not."""
    if renormalisation not in RENORMALISATIONS:
        raise ValueError(f"renormalisation {renormalisation!r} is not one of {RENORMALISATIONS}")


def guide_twice(
    v: jax.Array,
    v_without_text: jax.Array,
    v_without_image: jax.Array | None = None,
    *,
    text_scale: float,
    image_scale: float = 1.0,
    renormalisation: str = "global",
    least_norm: float = 0.0,
) -> jax.Array:
    """Guidance by two conditions, away from the velocity without the text, then from that without the image (Bagel).

    All are `[B, N, C]`. The result is no longer than `v`: as a whole (`global`), each token (`channel`), or each token
    between the two steps and not after them (`text_channel`).

    Args:
      v_without_image: needed where `image_scale` is above 1.
      least_norm: the smallest factor of the renormalisation; 1 switches it off.

    Raises:
      ValueError: an unknown renormalisation.
    """
    check_renormalisation(renormalisation)
    guided = v_without_text + text_scale * (v - v_without_text)
    if renormalisation == "text_channel":
        guided = shrink(guided, v, least_norm, (-1,))
    if image_scale > 1:
        guided = v_without_image + image_scale * (guided - v_without_image)
    if renormalisation == "text_channel":
        return guided
    return shrink(guided, v, least_norm, (-1,) if renormalisation == "channel" else (-2, -1))
