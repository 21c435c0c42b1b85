"""The contract of `objectives/objective.py`, written once and run on every objective of the laptop experiment."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from products import HIGHEST, kinds_of_products
from random_params import random_state, random_weights

from configs import architectures, digits, digits_edit, digits_rac, digits_rpiae, digits_text
from rae_jax.components.catalogue import trained_components
from rae_jax.data.scenes import SceneSource
from rae_jax.experiment.stages import open_batches
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding

CONFIGS = {stage: digits for stage in ("encoder", "decoder", "stats", "flow", "mid_training", "flow_map")}
IN_CONTEXT = types.SimpleNamespace(get_config=digits.get_config)  # with another generator
CONFIGS |= {f"{stage}/in_context": IN_CONTEXT for stage in ("flow", "mid_training", "flow_map")}
GUIDED = types.SimpleNamespace(get_config=digits.get_config)  # with guidance as an input of the flow map
CONFIGS |= {"flow_map/guided": GUIDED}
CONFIGS |= {stage: digits_rac for stage in ("teacher", "coder", "joint_coder", "tuned_coder", "flow/aligned")}
CONFIGS |= {stage: digits_rpiae for stage in ("feature_stats", "pivot", "bridge", "specialisation")}
CONFIGS |= {"text_to_image": digits_text, "mixture": digits_edit}
PROMPTED = types.SimpleNamespace(get_config=lambda variant: digits_text.get_config(f"{variant}-few_steps"))
CONFIGS |= {f"{stage}/prompted": PROMPTED for stage in ("mid_training", "flow_map")}
INSTRUCTED = types.SimpleNamespace(get_config=lambda variant: digits_edit.get_config(f"{variant}-few_steps"))
CONFIGS |= {f"{stage}/instructed": INSTRUCTED for stage in ("mid_training", "flow_map")}
BY_JVP = types.SimpleNamespace(get_config=PROMPTED.get_config)  # by the exact derivative along its own velocity
CONFIGS |= {"flow_map/prompted_jvp": BY_JVP}
STAGES = tuple(CONFIGS)
TRAINED = tuple(stage for stage in STAGES if "stats" not in stage)
# What starts from an earlier stage and has parts of its own, and what learns slowly from random parameters.
DRAWN = ("mid_training", "mid_training/prompted", "text_to_image")
BATCH = 8
GUIDANCE_EMBEDDINGS = ("scale_embedding", "t_min_embedding", "t_max_embedding")


def config_of(stage: str):
    """A tiny config with this stage; what follows a slash is another objective for the stage."""
    config = CONFIGS[stage].get_config("tiny")
    if CONFIGS[stage] is digits_rac:  # few and small layers: all are compiled
        config.data.image_size = 8  # 4 x 4 latents still
        config.teacher.model.channels, config.teacher.model.blocks_per_level = (4, 4), 0
        config.coder.model.channels, config.coder.model.patch_size = (4,), 2
        config.coder.num_steps = 1
    if stage in ("tuned_coder", "flow/aligned"):
        config.flow.objective = "aligned_velocity"
        config.flow.alignment_depth, config.flow.alignment_width = 1, 16
        config.tuned_coder.train.optimizer.learning_rate = 1e-3
    if stage == "flow_map/guided":
        config.flow_map.update(guided=True, largest_guidance_scale=2.0)
    if stage == "flow_map/prompted_jvp":
        config.flow_map.update(derivative="jvp", tangent="own", eta=0.5)
    if stage == "tuned_coder":  # the other terms of the coder's loss are those of the stage "coder"
        config.coder.pixel_weight = config.coder.round_trip_weight = 0.0
    if stage.endswith("/in_context"):  # RAEv2: in-context conditions, x-prediction, both heads, REPA, Muon
        config.flow.family = "dit_in_context"
        config.flow.train.optimizer.name, config.flow.train.optimizer.learning_rate = "muon", 1e-2
        if stage.startswith("flow/"):
            config.flow.prediction, config.flow.t_eps = "x", 0.5
        config.flow.model = architectures.dit_in_context(
            width=16, depth=2, num_heads=2, head_width=24, head_depth=1, head_num_heads=2, base_depth=1,
            alignment_depth=1, alignment_features=config.encoder.model.width,
        )  # fmt: skip
    optimizer = config[stage.partition("/")[0]].train.optimizer
    optimizer.final_learning_rate = optimizer.learning_rate  # the tests run past the end of the schedule
    return config


def batch_of(seed: int, size: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    stripes = rng.integers(0, 256, (BATCH, 4, 1, 1), dtype=np.uint8)  # something that a network can learn
    return {
        "image": jnp.asarray(np.broadcast_to(stripes.repeat(size // 4, axis=1), (BATCH, size, size, 3))),
        "label": jnp.asarray(rng.integers(0, 10, BATCH, dtype=np.int32)),
        "mask": jnp.ones(BATCH, bool),
    }


def error(metrics) -> float:
    """What falls as the stage learns; MeanFlow's weighting keeps its loss near 1."""
    return float(metrics.get("mean_squared_error", metrics["loss"]))


@functools.cache
def prepared(stage: str):
    """The objective of a stage, a state, its compiled step, a batch, and shapes of the state as it is made.

    The state is at random parameters; for those of `DRAWN` it is the one that a run starts from, which is compiled.

    The config is empty before anything is traced.
    """
    config, drawn = config_of(stage), stage in DRAWN
    stage = stage.partition("/")[0]
    objective = OBJECTIVES[config[stage].objective](config, stage)
    if objective.reads_conversations or objective.reads_packs or objective.reads_requests:
        config[stage].train.batch_size = BATCH
        with contextlib.closing(open_batches(config, stage, objective, SceneSource("train"))) as batches:
            batch = jax.tree.map(jnp.asarray, next(batches))
    else:
        batch = batch_of(0, config.data.image_size)
    with config.unlocked():
        for name in list(config):
            del config[name]
    frozen = {
        name: random_weights(part, seed)
        for seed, (name, part) in enumerate({**objective.frozen, **objective.wanted}.items())
    }
    boxed = jax.eval_shape(objective.init, jax.random.key(1), batch)
    if drawn:
        state = sharding.unbox(jax.jit(objective.init)(jax.random.key(1), batch))
    else:
        state = jax.tree.map(jnp.asarray, random_state(objective, batch))
    return objective, state.replace(frozen=frozen), jax.jit(objective.train_step), batch, boxed


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_is_read_once_and_by_nothing_that_is_traced(stage):
    objective, state, step, batch, _ = prepared(stage)
    jax.eval_shape(step, state, batch)
    if objective.pictures:
        jax.eval_shape(objective.pictures, state, batch)


@pytest.mark.parametrize("stage", STAGES)
def test_every_float32_product_of_a_step_is_exact(stage):
    _, state, step, batch, _ = prepared(stage)
    assert kinds_of_products(step.trace(state, batch).jaxpr) == {("float32", HIGHEST)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_keeps_structure_shapes_and_dtypes(stage):
    _, state, step, batch, _ = prepared(stage)
    new, metrics = step(state, batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert int(new.step) == 1
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_changes_the_parameters_and_nothing_frozen(stage):
    _, state, step, batch, _ = prepared(stage)
    new, _ = step(state, batch)
    assert not all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_step_and_batch_give_the_same_metrics_and_another_step_other_noise(stage):
    _, state, step, batch, _ = prepared(stage)
    _, once = step(state, batch)
    _, again = step(state, batch)
    assert jax.tree.map(float, once) == jax.tree.map(float, again)
    if stage in TRAINED and stage != "specialisation":  # which adds no noise
        _, later = step(state.replace(step=state.step + 1), batch)
        assert error(once) != error(later)


@pytest.mark.parametrize("stage", STAGES)
def test_the_result_is_what_other_stages_take_as_frozen(stage):
    objective, state, step, batch, _ = prepared(stage)
    state, _ = step(state, batch)
    takers = {
        name: part
        for other in STAGES
        if CONFIGS[other] is CONFIGS[stage]  # the laptop experiments have latents of their own
        for kind in (prepared(other)[0].frozen, prepared(other)[0].wanted, prepared(other)[0].initial)
        for name, part in kind.items()
    }
    trained = trained_components(config_of(stage), stage.partition("/")[0])
    left = objective.result(state) if len(trained) > 1 else {trained[0]: objective.result(state)}
    assert left.keys() == set(trained)
    for name in trained:
        if name in takers:
            shapes = jax.tree.map(lambda x: (x.shape, x.dtype), left[name])
            assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), takers[name].structure())


@pytest.mark.parametrize("stage", TRAINED)
def test_the_loss_falls_on_one_batch(stage):
    _, state, step, batch, _ = prepared(stage)
    losses = []
    for _ in range(100):
        state, metrics = step(state, batch)
        losses.append(error(metrics))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.parametrize("stage", TRAINED)
def test_every_matrix_has_a_place_in_the_sharding_rules(stage):
    *_, boxed = prepared(stage)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    sharding.shardings_of(boxed, mesh)
    leaves = jax.tree.leaves(boxed.params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    unnamed = [leaf for leaf in leaves if not isinstance(leaf, nn.LogicallyPartitioned)]
    assert not unnamed


@pytest.mark.parametrize("stage", ["mid_training", "flow_map", "mid_training/prompted", "flow_map/prompted"])
def test_a_stage_starts_from_the_initial_parameters_average_included(stage):
    objective, fresh, _, batch, _ = prepared(stage)
    initial = {name: random_weights(part) for name, part in objective.initial.items()}
    state = jax.jit(objective.first_state)(jax.random.key(1), batch, initial)
    ((name, source),) = initial.items()
    assert jax.tree.structure(state) == jax.tree.structure(fresh.replace(frozen=None))
    for params in (state.params, state.ema_params):
        for part, values in params.items():
            expected = source.get(part, fresh.params[part])
            jax.tree.map(np.testing.assert_array_equal, values, expected)
    new = {"flow": {"duration_embedding"}, "text_dit": {"duration_embedding", *GUIDANCE_EMBEDDINGS}}
    assert fresh.params.keys() - source.keys() == new.get(name, set())
