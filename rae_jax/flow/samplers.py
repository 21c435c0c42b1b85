"""From noise to data along a velocity field: Euler, Heun, and Euler-Maruyama, each one compiled loop.

A velocity function takes `z: [B, ...]` and `t: [B]` to `v: [B, ...]`; `guidance` makes one from a network. Times fall
from 1, see `times.sampling_times`. With `trajectory=True` a sampler returns all states, `[len(times), B, ...]`: the
noise first and the sample last.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.flow.path import noise_from_velocity, over

VelocityFunction = Callable[[jax.Array, jax.Array], jax.Array]
# w(t) of the SDE, SiT's forms (Ma et al., 2024, Section 2.3) with t = 1 at the noise.
DIFFUSIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "sigma": lambda t: t,  # the standard deviation of the noise
    "decreasing": lambda t: 0.25 * (1 - jnp.cos(jnp.pi * t)) ** 2,
    "increasing_decreasing": lambda t: jnp.sin(jnp.pi * t) ** 2,
}


def euler(
    velocity: VelocityFunction, noise: jax.Array, times: jax.Array | np.ndarray, *, trajectory: bool = False
) -> jax.Array:
    """Solves `dz/dt = v(z, t)` from `noise` by Euler's method, with one evaluation a step."""

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        return z - over(t - t_next, z) * velocity(z, t)

    return walk(step, noise, times, trajectory=trajectory)


def heun(
    velocity: VelocityFunction, noise: jax.Array, times: jax.Array | np.ndarray, *, trajectory: bool = False
) -> jax.Array:
    """Solves `dz/dt = v(z, t)` from `noise` by Heun's second-order method, with two evaluations a step."""

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        dt = over(t - t_next, z)
        v = velocity(z, t)
        v_next = velocity(z - dt * v, t_next)
        return z - dt * (v + v_next) / 2

    return walk(step, noise, times, trajectory=trajectory)


def euler_maruyama(
    velocity: VelocityFunction,
    noise: jax.Array,
    times: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    diffusion: Callable[[jax.Array], jax.Array] = DIFFUSIONS["sigma"],
    trajectory: bool = False,
) -> jax.Array:
    """Solves the reverse SDE with the same marginals, `dz = (v - w(t) score / 2) dt + sqrt(w(t)) dW`.

    Ma et al., "SiT" (2024), Section 2. The score comes from the velocity: `-(z + (1 - t) v) / t`. The last step adds no
    noise.

    Args:
      keys: one random key a sample, `[B]`, so that a sample does not depend on the batch it is in.
      diffusion: w(t), for `t: [B]`.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, len(times) - 1), out_axes=1)(keys)  # [steps, B]
    noisy = jnp.arange(len(times) - 1) < len(times) - 2

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array, keys: jax.Array, noisy: jax.Array) -> jax.Array:
        v = velocity(z, t)
        w = over(diffusion(t), z)
        dt = over(t - t_next, z)
        score = -noise_from_velocity(z, v, t) / over(t, z)
        draw = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
        return z - dt * (v - w * score / 2) + noisy * jnp.sqrt(w * dt) * draw

    return walk(step, noise, times, keys, noisy, trajectory=trajectory)


def walk(
    step: Callable[..., jax.Array], z: jax.Array, times: jax.Array | np.ndarray, *inputs: Any, trajectory: bool
) -> jax.Array:
    """Applies `step(z, t, t_next, *inputs of the step)`, t and t_next `[B]`, between all neighbours of `times`."""
    times = jnp.asarray(times, jnp.float32)

    def body(z: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array | None]:
        t, t_next, *rest = xs
        z = step(z, jnp.full(z.shape[0], t), jnp.full(z.shape[0], t_next), *rest)
        return z, z if trajectory else None

    last, states = jax.lax.scan(body, z, (times[:-1], times[1:], *inputs))
    return jnp.concatenate([z[None], states]) if trajectory else last
