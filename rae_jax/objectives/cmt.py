"""Consistency mid-training: a flow map learns to jump along the teacher's own trajectories (MF-RAE, Section 3).

From noise the teacher walks to data in a few steps. Between any two of the points that it visits, `z_i` at time `t_i`
and `z_j` at the earlier `t_j < t_i`, the mean velocity is known, and the flow map is regressed on it:

    || u(z_i, t_j, t_i) - (z_i - z_j) / (t_i - t_j) ||^2

Points are counted from the clean end, so that i > j. The stage learns from noise, conditions and a teacher. If the
flow map is guided, as `objectives/meanflow.py` has it, each trajectory has a scale and an interval of its own, with
which the teacher's velocity is guided.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import drop
from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.generators import flow_map_teacher, time_shift
from rae_jax.components.language import speaks
from rae_jax.components.latent_spaces import by_name, latent_space
from rae_jax.components.telling import telling
from rae_jax.flow import guidance
from rae_jax.flow.path import over
from rae_jax.flow.times import sampling_times
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key
from rae_jax.objectives.quality import sample_evaluation
from rae_jax.sampling.generator import ODE_SAMPLERS, flow_map_generator, parts_beside, shown_samples

ConditionalFlowMap = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
TIME_LABELS = ("true", "released")


def all_pairs(num_points: int) -> np.ndarray:
    """All pairs (i, j), i > j, of `num_points` points, `[P, 2]`: (1, 0), (2, 0), (2, 1), (3, 0)..."""
    return np.array([(i, j) for i in range(1, num_points) for j in range(i)], np.int32)


def draw_pairs(key: jax.Array, batch_size: int, num_points: int, num_pairs: int) -> jax.Array:
    """`num_pairs` pairs for each trajectory, drawn with replacement as released, `[B, num_pairs, 2]`; 0: each once.

    The release draws from the pairs of all trajectories that a process has at a time, which is one in its scripts.
    """
    pairs = jnp.asarray(all_pairs(num_points))
    if not num_pairs:
        return jnp.broadcast_to(pairs, (batch_size, *pairs.shape))
    return pairs[jax.random.randint(key, (batch_size, num_pairs), 0, len(pairs))]


def label_times(times: np.ndarray, labels: str) -> np.ndarray:
    """The times `[T]` by which the points at `times` (falling) are known to the flow map.

    Raises:
      ValueError: unknown kind of labels.
    """
    if labels not in TIME_LABELS:
        raise ValueError(f"time labels {labels!r} are not one of {TIME_LABELS}")
    # The released code spaces the labels evenly, although the teacher walked the shifted grid; the paper's equation has
    # the times of the points.
    return times if labels == "true" else np.linspace(1, 0, len(times), dtype=np.float32)


def pairs_of(
    states: jax.Array, times: jax.Array | np.ndarray, pairs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What the flow map sees and must say of the chosen pairs.

    Args:
      states: `[T, B, ...]` a trajectory from noise to data.
      times: `[T]` its times, falling.
      pairs: `[B, K, 2]` points (i, j), i > j, counted from the clean end.

    Returns:
      `z_i: [B * K, ...]`, `t_j` (the flow map's r) and `t_i` (its t), each `[B * K]`, and the mean velocity
      `(z_i - z_j) / (t_i - t_j)`, `[B * K, ...]`; the pairs of a trajectory follow each other.
    """
    states, times = jnp.swapaxes(states[::-1], 0, 1), jnp.asarray(times)[::-1]  # [B, T, ...] from the clean end
    pairs_first = rearrange(pairs, "b k two -> two b k")
    z_i, z_j = (rearrange(jax.vmap(lambda z, i: z[i])(states, i), "b k ... -> (b k) ...") for i in pairs_first)
    t, r = (times[i].reshape(-1) for i in pairs_first)
    return z_i, r, t, (z_i - z_j) / over(t - r, z_i)


def errors(
    flow_map: ConditionalFlowMap,
    states: jax.Array,
    times: jax.Array | np.ndarray,
    pairs: jax.Array,
    asked: Any,
) -> jax.Array:
    """Mean squared error of each pair, `[B, K]`; arguments as in `pairs_of`, and what each trajectory was asked for.

    `flow_map` is `(z, r, t, what it was asked for) -> mean velocity`. Nothing is differentiated but it.
    """
    z, r, t, target = jax.lax.stop_gradient(pairs_of(states, times, pairs))
    u = flow_map(z, r, t, jax.tree.map(lambda c: jnp.repeat(c, pairs.shape[1], axis=0), asked))
    return jnp.mean(jnp.square(u - target), axis=tuple(range(1, u.ndim))).reshape(pairs.shape[:2])


def starts_from(config: ConfigDict, stage: str) -> dict[str, Component]:
    """The component whose parameters the flow map of `stage` starts from, as `Objective.initial`.

    Raises:
      ValueError: `initial` names no component that a flow map can start from.
    """
    known = by_name(flow_map_teacher(config), flow_map_network(config, "mid_training"))
    known.pop(stage, None)
    name = config[stage].initial
    if name and name not in known:
        raise ValueError(f"initial={name!r} is not one of {list(known)}, or '' for random parameters")
    return {name: known[name]} if name else {}


def take_over(params: Params, initial: dict[str, Params]) -> Params:
    """A flow map's parameters `params` with those of `initial` in their place, as `Objective.begin`.

    A velocity network has no embedding of t - r, which then keeps its fresh values.
    """
    (source,) = initial.values()
    ours, theirs = flatten_dict(params), flatten_dict(source)
    if unknown := sorted({path[0] for path in theirs.keys() - ours.keys()}):
        raise ValueError(f"the flow map has no place for the parameters {unknown} that it is to start from")
    return unflatten_dict(ours | theirs)


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`."""
    section, told, space = config[stage], telling(config), latent_space(config)
    student = flow_map_network(config, stage)
    if section.trajectory_method not in ODE_SAMPLERS:
        raise ValueError(f"trajectory_method={section.trajectory_method!r} is not one of {list(ODE_SAMPLERS)}")
    walk = ODE_SAMPLERS[section.trajectory_method]
    times = sampling_times(section.trajectory_steps, shift=time_shift(config), grid=section.trajectory_grid)
    labelled = label_times(times, section.time_labels)
    dropout, again, num_pairs = section.label_dropout, section.label_dropout_network, section.pairs
    guided, largest_scale = config.flow_map.guided, config.flow_map.largest_guidance_scale
    if num_pairs < 0:
        raise ValueError(f"{stage}.pairs={num_pairs}: it is how many are drawn of each trajectory, or 0 for all, once")

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        noise_key, drop_key, pair_key, again_key, guidance_key = jax.random.split(key, 5)
        asked = told.condition(frozen, told.seen(frozen, batch))
        batch_size = jax.tree.leaves(asked)[0].shape[0]
        noise = jax.random.normal(noise_key, (batch_size, *space.shape))
        # Dropped before the teacher walks, so that it and the flow map mean the same.
        null = told.null(asked)
        asked = drop(drop_key, asked, null, dropout)
        guiding = [guidance.draw(guidance_key, batch_size, largest_scale)] if guided else []
        scale = functools.partial(guidance.scale_at, *guiding) if guided else None

        def flow_map(z: jax.Array, r: jax.Array, t: jax.Array, told_now: Any) -> jax.Array:
            asked, null, *guiding = told_now
            return student.apply(params, z, t, drop(again_key, asked, null, again), r, *guiding)

        states = walk(told.velocity(frozen, asked, null, scale), noise, times, trajectory=True)
        pairs = draw_pairs(pair_key, batch_size, len(times), num_pairs)
        read = student.read(params, asked)
        nothing = student.read(params, null) if again else read  # which is for nothing else
        of_pairs = errors(flow_map, states, labelled, pairs, [read, nothing, *guiding])
        return jnp.mean(told.shares(batch) * jnp.mean(of_pairs, axis=1)), {}

    return single_network(
        model_init=student.init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=by_name(flow_map_teacher(config)) | told.parts,
        initial=starts_from(config, stage),
        begin=take_over,
        whole=told.whole,
        **told.reads,
        **sampled_in_one_step(config, stage),
    )


def sampled_in_one_step(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The fields of an `Objective` that say how one-step samples of a flow map are shown and judged.

    Those of a mixture of transformers are not while it trains.
    """
    if config.mixture.model:
        return {}
    in_one_step = flow_map_generator(config, (1.0, 0.0))
    return dict(
        wanted=parts_beside(config),
        evaluation=None if speaks(config) else sample_evaluation(config, stage, in_one_step),
        **shown_samples(config, in_one_step),
    )
