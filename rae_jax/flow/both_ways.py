"""A flow that is walked in both directions: from latent to image it decodes, and back it encodes (RAC).

Fang et al., "RAC: Rectified Flow Auto Coder" (2026). Here, and only here, time runs as that paper has it: 0 is the
latent's state `s_0` and 1 the image's state `s*`. States are `[B, ...]`; a velocity function takes states and times
`[B]` to velocities; a grid of K + 1 times rises from 0 to 1.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.flow.path import over
from rae_jax.flow.samplers import VelocityFunction


def uniform_grid(num_steps: int) -> np.ndarray:
    """The times `k / K`, `[K + 1]` float32, of K equal steps.

    Raises:
      ValueError: no step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: decoding and encoding need at least one step")
    return np.linspace(0, 1, num_steps + 1, dtype=np.float32)


def random_grid(key: jax.Array, num_steps: int) -> jax.Array:
    """Times `[K + 1]` whose K - 1 inner ones are drawn uniformly and sorted, so that training sees every time."""
    inner = jnp.sort(jax.random.uniform(key, (num_steps - 1,)))
    return jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])


def decode(
    velocity: VelocityFunction,
    state: jax.Array,
    times: jax.Array | np.ndarray,
    *,
    noise: jax.Array | None = None,
    trajectory: bool = False,
) -> jax.Array:
    """The last state of Euler's steps `s_{k+1} = s_k + dt_k v(s_k, t_k)` from `state` s_0.

    Args:
      times: the grid `[K + 1]`.
      noise: `[K, B, ...]`, added to each step's state before the step, so that the field learns to correct it.
      trajectory: return all K + 1 states, `state` first.
    """

    def step(s: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        return s + over(t_next - t, s) * velocity(s, t)

    return _walk(step, state, range(len(times) - 1), times, noise, trajectory)


def encode(
    velocity: VelocityFunction,
    state: jax.Array,
    times: jax.Array | np.ndarray,
    *,
    noise: jax.Array | None = None,
    iterations: int = 1,
    trajectory: bool = False,
) -> jax.Array:
    """The first state of the reversed steps `s_k = s_{k+1} - dt_k v(., t_k)` from `state` s*.

    Each step is undone at the time t_k at which `decode` made it. With one iteration the velocity is that of `s_{k+1}`,
    which is exact if it does not change along the step, as on a straight path; each further one takes it anew at the
    `s_k` found so far. Where the field's Lipschitz constant times dt is below 1 they converge to the exact inverse of
    `decode`.

    Args:
      times: the same grid `[K + 1]` as for `decode`, rising.
      noise: `[K, B, ...]`, added to each step's state before the step.
      iterations: evaluations of the field in each step.
      trajectory: return all K + 1 states, `state` first and s_0 last.
    """

    def step(s: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        before = s
        for _ in range(iterations):
            before = s - over(t_next - t, s) * velocity(before, t)
        return before

    return _walk(step, state, reversed(range(len(times) - 1)), times, noise, trajectory)


def _walk(
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    s: jax.Array,
    order: Iterable[int],
    times: jax.Array | np.ndarray,
    noise: jax.Array | None,
    trajectory: bool,
) -> jax.Array:
    """`s` through the steps k in this order, the j-th after `noise[j]`. They are few, and unrolled: on CPUs a
    convolution inside a compiled loop takes ten times as long."""
    states = [s]
    for j, k in enumerate(order):
        s = s if noise is None else s + noise[j]
        s = step(s, jnp.full(s.shape[0], times[k]), jnp.full(s.shape[0], times[k + 1]))
        states.append(s)
    return jnp.stack(states) if trajectory else s


def straight_path(first: jax.Array, last: jax.Array, times: jax.Array | np.ndarray) -> jax.Array:
    """The states `[K + 1, B, ...]` on the line from `first` to `last`, at the times `[K + 1]` (RAC, Eq. 9)."""
    times = jnp.asarray(times, jnp.float32).reshape(-1, *(1,) * first.ndim)
    return first + times * (last - first)


def path_loss(states: jax.Array, target: jax.Array, times: jax.Array | np.ndarray) -> jax.Array:
    """How far the inner states of `states: [K + 1, B, ...]` are from the line between the first and `target: [B, ...]`.

    The decoding-path loss (RAC, Eq. 9): the mean over k = 1 .. K - 1 of the mean squared distance, with the step's time
    for k / K where the grid is not uniform. A scalar; 0 for a single step.
    """
    if states.shape[0] == 2:
        return jnp.zeros(())
    line = straight_path(states[0], target, times)
    return jnp.mean(jnp.square(states[1:-1] - line[1:-1]))


def mean_velocity_loss(
    velocity: VelocityFunction, states: jax.Array, times: jax.Array | np.ndarray, first: jax.Array, last: jax.Array
) -> jax.Array:
    """The mean-velocity regularizer (RAC, Eq. 11) at `states: [K, B, ...]` and `times: [K]`, a scalar.

    It is the mean of `|v - sg[(s* - s_0) - t dv/dt]|^2`, MeanFlow's identity with the latent's end fixed: v is then the
    mean velocity over [0, t]. The derivative is total, along the straight path from `first` to `last`; that, and that
    the target has no gradient, is MeanFlow's.
    """
    straight = last - first

    def difference(state: jax.Array, time: jax.Array) -> jax.Array:
        t = jnp.full(state.shape[0], time)
        v, dvdt = jax.jvp(velocity, (state, t), (straight, jnp.ones_like(t)))
        return v - jax.lax.stop_gradient(straight - over(t, v) * dvdt)

    return jnp.mean(jnp.square(jax.vmap(difference)(states, jnp.asarray(times))))
