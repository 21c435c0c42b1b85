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


def guide(v: jax.Array, v_weak: jax.Array, t: jax.Array, scale: float, interval: Interval) -> jax.Array:
    """The guided velocity `[B, ...]` from the two models' at times `t: [B]`.

    Raises:
      ValueError: the interval is empty.
    """
    t_min, t_max = interval
    if t_min > t_max:
        raise ValueError(f"guidance interval {interval} is empty; give (t_min, t_max) with t_min <= t_max")
    inside = (t >= t_min) & (t <= t_max)
    return jnp.where(over(inside, v), v_weak + scale * (v - v_weak), v)


def guide_outside(
    v: jax.Array, v_weak: jax.Array, t: jax.Array, scale: float, interval: Interval, inside: float = 1.0
) -> jax.Array:
    """Guidance as Scale-RAE's code has it: `scale` outside the open interval, and `inside` within it.

    Its sampler passes an interval that holds all times, and so does not guide at all.
    """
    t_min, t_max = interval
    scales = jnp.where((t > t_min) & (t < t_max), inside, scale)
    return v_weak + over(scales, v) * (v - v_weak)


def classifier_free_guidance(
    velocity: Callable[[jax.Array, jax.Array, Any], jax.Array],
    condition: Any,
    null: Any,
    *,
    scale: float,
    interval: Interval = (0.0, 1.0),
    rule: Callable[..., jax.Array] = guide,
) -> VelocityFunction:
    """Guidance by the model's own unconditional velocity (Ho & Salimans, 2022).

    Args:
      velocity: `(z, t, condition) -> v`; called once, on twice the batch.
      condition: what the samples are asked for, a tree of arrays `[B, ...]`.
      null: the condition that asks for nothing, of the same shapes.
      rule: how the two velocities are put together, `guide` or `guide_outside`.
    """

    def guided(z: jax.Array, t: jax.Array) -> jax.Array:
        # Each sample next to its twin, rather than one half after the other, keeps a divided batch where it is.
        both = jax.tree.map(lambda c, n: jnp.stack([c, n], axis=1).reshape(-1, *c.shape[1:]), condition, null)
        v = velocity(jnp.repeat(z, 2, axis=0), jnp.repeat(t, 2), both)
        v = v.reshape(-1, 2, *v.shape[1:])
        return rule(v[:, 0], v[:, 1], t, scale, interval)

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
