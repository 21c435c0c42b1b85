"""When training looks at the path, and where sampling stops along it: distributions, the time shift, and grids."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit, ndtr, ndtri

# Training times, before the shift, and the reference's sampling grid stay this far from the ends of [0, 1].
MAX_TRAINING_TIME = 0.999
DISTRIBUTIONS = ("uniform", "logit_normal")
GRIDS = ("full", "released", "scale_rae")
SCALE_RAE_TIMES = 1000  # equal ones, of which its grid has some


def dimension_shift(dimension: int, base: int = 4096) -> float:
    """The shift `sqrt(m / n)` for latents of `dimension` m = tokens x channels (RAE, Section 4.2).

    With more dimensions the same noise destroys less, so that times have to move towards noise.
    """
    return math.sqrt(dimension / base)


def shift_times(t: Any, shift: float) -> Any:
    """Times moved towards noise by `shift` s: `s t / (1 + (s - 1) t)`; keeps 0 and 1 where they are."""
    return shift * t / (1 + (shift - 1) * t)


def uniform_times(uniform: jax.Array, largest: float = MAX_TRAINING_TIME) -> jax.Array:
    """Times uniform in [0, largest] from draws uniform in [0, 1]."""
    return largest * uniform


def logit_normal_times(
    uniform: jax.Array, mean: float = 0.0, std: float = 1.0, largest: float = MAX_TRAINING_TIME
) -> jax.Array:
    """Times whose logit is normal, truncated to [0, largest], from draws uniform in [0, 1] (by the inverse CDF)."""
    highest = ndtr((logit(jnp.float32(largest)) - mean) / std)
    return jnp.minimum(jax.nn.sigmoid(mean + std * ndtri(highest * uniform)), largest)


def sample_times(
    key: jax.Array,
    batch_size: int,
    distribution: str = "uniform",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    largest: float = MAX_TRAINING_TIME,
    shift: float = 1.0,
) -> jax.Array:
    """Training times `[B]`, drawn in [0, largest] and then shifted.

    Args:
      distribution: `uniform` (RAE's paper, MF-RAE) or `logit_normal` (RAE's release, RPiAE).
      mean, std: of the logit; for `logit_normal`.
      shift: of the time, see `dimension_shift`.

    Raises:
      ValueError: unknown distribution, or a largest time that is none.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"time distribution {distribution!r} is not one of {DISTRIBUTIONS}")
    if not 0 < largest <= 1:
        raise ValueError(f"largest_time={largest} is not in (0, 1]")
    uniform = jax.random.uniform(key, (batch_size,))
    draw = {"uniform": uniform_times, "logit_normal": functools.partial(logit_normal_times, mean=mean, std=std)}
    t = draw[distribution](uniform, largest=largest)
    return shift_times(t, shift)


def sampling_times(num_steps: int, *, shift: float = 1.0, grid: str = "full", last_step: float = 0.0) -> np.ndarray:
    """The times `[num_steps + 1]` of a sampler with `num_steps` steps, falling from 1; float32.

    Args:
      num_steps: an Euler sampler evaluates the network this often. The reference counts the points instead: its
        `num_steps` is ours plus one, and its "50 steps" are `num_steps=49, grid="released"`.
      shift: of the time, see `dimension_shift`.
      grid: `full` ends at t = 0. `released` is the reference's, which ends just above, where 0.001 is shifted to.
        `scale_rae` ends there too; its points are evenly spaced but for rounding to one of 1,000 times.
      last_step: the size of the last step of a full grid, before the shift; the others are equally large. 0: as large
        as they. SiT and REPA take 0.04, because the score has no value at t = 0.

    Raises:
      ValueError: unknown grid, no step, or a last step that is none.
    """
    if grid not in GRIDS:
        raise ValueError(f"time grid {grid!r} is not one of {GRIDS}")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: a sampler needs at least one step")
    if not 0 <= last_step < 1 or (last_step and (grid != "full" or num_steps < 2)):
        raise ValueError(
            f"last_step={last_step}: it is in [0, 1), and above 0 only of the grid 'full', of two steps up"
        )
    if last_step:
        return shift_times(np.append(np.linspace(1, last_step, num_steps), 0.0), shift).astype(np.float32)
    if grid == "scale_rae":
        chosen = np.rint(np.arange(num_steps + 1) * (SCALE_RAE_TIMES - 1) / num_steps)
        return shift_times((chosen[::-1] + 1) / SCALE_RAE_TIMES, shift).astype(np.float32)
    last = 1.0 if grid == "full" else MAX_TRAINING_TIME
    return shift_times(1 - np.linspace(0, last, num_steps + 1), shift).astype(np.float32)
