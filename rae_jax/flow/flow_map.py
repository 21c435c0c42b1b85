"""Sampling with a flow map, which crosses an interval of time in one evaluation (MF-RAE; Geng et al., 2025).

A flow map `u(z_t, r, t)` predicts the mean velocity over `[r, t]`, so that `z_r = z_t - (t - r) u(z_t, r, t)`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import numpy as np

from rae_jax.flow.path import over
from rae_jax.flow.samplers import walk

FlowMapFunction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def jump(flow_map: FlowMapFunction, z_t: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
    """`z_r` from `z_t: [B, ...]` in one step, with `r <= t`, each `[B]`."""
    return z_t - over(t - r, z_t) * flow_map(z_t, r, t)


def jump_times(times: Sequence[float]) -> np.ndarray:
    """`times` as an array for `sample`.

    Raises:
      ValueError: they do not fall from 1 to 0.
    """
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or any(t <= r for t, r in pairwise(times)):
        raise ValueError(f"a flow map jumps over times that fall from 1.0 to 0.0, such as (1.0, 0.5, 0.0); got {times}")
    return np.asarray(times, np.float32)


def sample(
    flow_map: FlowMapFunction, noise: jax.Array, times: jax.Array | np.ndarray, *, trajectory: bool = False
) -> jax.Array:
    """Data from `noise: [B, ...]`, with one jump between neighbours of `times`.

    The papers jump over [1, 0] and [1, 0.5, 0], which is `sampling_times(num_steps)` without shift. With
    `trajectory=True` returns all states, `[len(times), B, ...]`.
    """
    return walk(lambda z, t, r: jump(flow_map, z, r, t), noise, times, trajectory=trajectory)
