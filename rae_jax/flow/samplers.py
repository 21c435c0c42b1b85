"""From noise to data along a velocity field: Euler, Heun, dopri5 and Euler-Maruyama, each one compiled loop.

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
LAST_STEPS = ("mean", "tweedie")
# The method of Dormand and Prince, which is of fifth order and estimates its error by one of fourth: times and weights
# of each stage (those of the last are the result's) and the weights of the error.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def euler(
    velocity: VelocityFunction, noise: jax.Array, times: jax.Array | np.ndarray, *, trajectory: bool = False
) -> jax.Array:
    """Solves `dz/dt = v(z, t)` from `noise` by Euler's method, with one evaluation a step."""

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        return z - over(t - t_next, z) * velocity(z, t)

    return walk(step, noise, times, trajectory=trajectory)


def euler_as_coded(
    velocity: VelocityFunction, noise: jax.Array, times: jax.Array | np.ndarray, *, trajectory: bool = False
) -> jax.Array:
    """Euler's method as Scale-RAE's code runs over its grid `times`, 1 = times[0] > ... > times[K].

    It reads its list of times, which rises there, from the wrong end: the noise is taken to lie at times[1], the steps
    lead from there to times[K], and one more, of times[0] - times[1] > 0, is made with the velocity at times[1]. K
    evaluations of the network. `euler` on the same times is what was meant.
    """
    times = jnp.asarray(times, jnp.float32)
    states = euler(velocity, noise, times[1:], trajectory=True)
    last = states[-1] + (times[0] - times[1]) * velocity(states[-1], jnp.full(noise.shape[0], times[1]))
    return jnp.concatenate([states, last[None]]) if trajectory else last


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


def dopri5(
    velocity: VelocityFunction,
    noise: jax.Array,
    times: jax.Array | np.ndarray,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    trajectory: bool = False,
) -> jax.Array:
    """Solves `dz/dt = v(z, t)` from `noise` by the adaptive fifth-order method of Dormand and Prince.

    Its steps are as long as the error, root mean square over the whole batch, allows: a sample depends a little, within
    the tolerances, on the batch that it is in. `times` say where it starts and where it ends, and nothing between them
    unless a trajectory is asked for. Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", II.4 f.
    """

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
        end = t_next[0]

        def attempt(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            z, v, t, dt = state
            dt = jnp.minimum(dt, t - end)
            slopes = [v]
            for node, row in zip(_NODES, _STAGES, strict=True):
                moved = z - dt * sum(a * k for a, k in zip(row, slopes, strict=True))
                slopes.append(velocity(moved, jnp.full(z.shape[0], t - node * dt)))
            error = dt * sum(e * k for e, k in zip(_ERROR, slopes, strict=True))
            error = jnp.sqrt(jnp.mean(jnp.square(error / (atol + rtol * jnp.maximum(jnp.abs(z), jnp.abs(moved))))))
            taken = ~(error > 1)  # what is no number ends the loop, rather than being tried for ever
            t_new = jnp.where(dt < t - end, t - dt, end + 0 * error)
            dt = dt * jnp.clip(0.9 * error**-0.2, 0.2, 10.0)
            return *(jnp.where(taken, new, old) for new, old in ((moved, z), (slopes[-1], v), (t_new, t))), dt

        start = (z, velocity(z, t), t[0], (t[0] - end) / 10)
        return jax.lax.while_loop(lambda state: state[2] > end, attempt, start)[0]

    return walk(step, noise, times if trajectory else (times[0], times[-1]), trajectory=trajectory)


def euler_maruyama(
    velocity: VelocityFunction,
    noise: jax.Array,
    times: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    diffusion: Callable[[jax.Array], jax.Array] = DIFFUSIONS["sigma"],
    last: str = "mean",
    trajectory: bool = False,
) -> jax.Array:
    """Solves the reverse SDE with the same marginals, `dz = (v - w(t) score / 2) dt + sqrt(w(t)) dW`.

    Ma et al., "SiT" (2024), Section 2. The score comes from the velocity: `-(z + (1 - t) v) / t`. The last step adds no
    noise.

    Args:
      keys: one random key a sample, `[B]`, so that a sample does not depend on the batch it is in.
      diffusion: w(t), for `t: [B]`.
      last: what the last step is. "mean": of the SDE's step. "tweedie": the mean of the data given the last state,
        `(z + t^2 score) / (1 - t)`; on this path it is `z - t v`, which is SiT's "Euler" too if the path ends at 0.

    Raises:
      ValueError: `last` is neither.
    """
    if last not in LAST_STEPS:
        raise ValueError(f"the last step {last!r} is not one of {list(LAST_STEPS)}")
    keys = jax.vmap(lambda key: jax.random.split(key, len(times) - 1), out_axes=1)(keys)  # [steps, B]
    noisy = jnp.arange(len(times) - 1) < len(times) - 2

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array, keys: jax.Array, noisy: jax.Array) -> jax.Array:
        v = velocity(z, t)
        w = over(diffusion(t), z)
        dt = over(t - t_next, z)
        score = -noise_from_velocity(z, v, t) / over(t, z)
        draw = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
        w = w * (noisy if last == "tweedie" else 1.0)  # without a diffusion, a step is along the velocity
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
