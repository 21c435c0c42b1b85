"""RPiAE's stages: each step against its equation written out, and where the gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_params import random_state, random_values
from whole_autoencoder import autoencoder

from configs import digits_rpiae
from rae_jax.components.catalogue import component
from rae_jax.components.latent_spaces import latent_space
from rae_jax.models.autoencoder import LatentStatistics, noise_augmentation
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.objectives.objective import stage_key
from rae_jax.objectives.pivot import last_layer

JOINT = (("pivot.trains", ("encoder", "decoder", "bridge_encoder", "bridge_decoder")),)
LATE = 200  # a step at which the pivot's weight is adaptive


def a_batch():
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)}


@functools.cache
def prepared(stage, *changes):
    """The config, the objective, its first state and its compiled step, from parameters that are all different."""
    config = digits_rpiae.get_config("tiny")
    config.encoder.model.layer_scale, config.pivot.pivot_balance_layer = True, "scale"
    config.update_from_flattened_dict(dict(changes))
    objective = OBJECTIVES[config[stage].objective](config, stage)
    return config, objective, random_state(objective), jax.jit(objective.train_step)


def gradient_of(config, stage, state, step):
    """The gradient of one step, from Adam's first moment: (1 - beta1) times it after one update from zero."""
    new, metrics = step(state, a_batch())
    (adam,) = [s for s in jax.tree.leaves(new.opt_state, is_leaf=_is_adam) if _is_adam(s)]
    optimizer = config[stage].train.optimizer
    clip = min(1.0, optimizer.clip_norm / float(metrics["gradient_norm"]))
    return jax.tree.map(lambda m: np.asarray(m) / (1 - optimizer.beta1) / clip, adam.mu), new, metrics


def _is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def assert_same(actual, expected):
    largest = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * largest), actual, expected)


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="released"),
        pytest.param(
            (("pivot.pivot_balance_layer", "kernel"), ("pivot.pivot_features", "normalised")),
            id="normalised",
            marks=pytest.mark.slow,
        ),
        pytest.param(JOINT, id="joint", marks=pytest.mark.slow),
    ],
)
def test_stage_one_is_the_gradient_of_reconstruction_and_weighted_pivot_distance(changes):
    config, _, state, step = prepared("pivot", *changes)
    state = state.replace(step=np.int32(LATE))
    images, joint = a_batch()["image"] / np.float32(255), changes == JOINT
    key = jax.random.split(jax.random.fold_in(stage_key(config.seed, "pivot"), LATE))[0]
    noise_key, latent_key, _ = jax.random.split(key, 3)
    whole = autoencoder(config)
    tokens_of = jax.jit(lambda params: whole.apply({"params": params}, images, method="tokens"))
    pivot = tokens_of({"encoder": state.frozen["encoder"]})
    statistics = LatentStatistics(**state.frozen["feature_stats"]) if "feature_stats" in state.frozen else None

    def terms(params):
        tokens = whole.apply({"params": params}, images, method="tokens")
        seen, bridge = noise_augmentation(noise_key, tokens, config.pivot.noise_tau), 0.0
        if joint:
            posterior = component(config, "bridge_encoder").module.apply(
                {"params": params["bridge_encoder"]}, statistics.normalise(seen)
            )
            restored = component(config, "bridge_decoder").module.apply(
                {"params": params["bridge_decoder"]}, posterior.sample(latent_key)
            )
            clean = jax.lax.stop_gradient(statistics.normalise(tokens))
            kl = jnp.mean(posterior.mean**2 + jnp.exp(posterior.logvar) - 1 - posterior.logvar)
            bridge = jnp.mean((restored - clean) ** 2) + 1e-3 * kl
            seen = statistics.denormalise(restored)
        decoded = whole.apply({"params": params}, seen, method="decode")
        near = (tokens - pivot) / (jnp.sqrt(statistics.variance + 1e-5) if statistics and not joint else 1.0)
        return jnp.stack([jnp.mean(jnp.abs(decoded - images)), jnp.mean(near**2), bridge])

    values, gradients = jax.jit(lambda params: (terms(params), jax.jacrev(terms)(params)))(state.params)
    last = gradients["encoder"]["blocks_0"]
    measured = last["mlp_scale"] if "kernel" not in dict(changes).values() else last["mlp"]["down"]["kernel"]
    weight = 0.75 * norm(measured[0]) / (norm(measured[1]) + 1e-4)
    expected = jax.tree.map(lambda g: g[0] + weight * g[1] + g[2], jax.device_get(gradients))

    actual, _, metrics = gradient_of(config, "pivot", state, step)
    assert metrics["pivot_weight"] == pytest.approx(weight, rel=1e-3)
    assert metrics["pivot"] == pytest.approx(float(values[1]), rel=1e-4)
    assert metrics["loss"] == pytest.approx(float(values[0] + weight * values[1] + values[2]), rel=1e-3)
    assert_same(actual, expected)


def test_stage_two_is_the_gradient_of_features_divergence_and_pixels():
    config, _, state, step = prepared("bridge")
    images, key = a_batch()["image"] / np.float32(255), jax.random.fold_in(stage_key(config.seed, "bridge"), 0)
    noise_key, latent_key = jax.random.split(key)
    whole, statistics = autoencoder(config), LatentStatistics(**state.frozen["feature_stats"])
    parts = {name: state.frozen[name] for name in ("encoder", "decoder")}

    def expected(params):
        tokens = whole.apply({"params": parts}, images, method="tokens")
        noisy = noise_augmentation(noise_key, tokens, config.bridge.noise_tau)
        posterior = component(config, "bridge_encoder").module.apply(
            {"params": params["bridge_encoder"]}, statistics.normalise(noisy)
        )
        z = posterior.mean + jnp.exp(posterior.logvar / 2) * jax.random.normal(latent_key, posterior.mean.shape)
        restored = component(config, "bridge_decoder").module.apply({"params": params["bridge_decoder"]}, z)
        decoded = whole.apply({"params": parts}, statistics.denormalise(restored), method="decode")
        kl = jnp.mean(posterior.mean**2 + jnp.exp(posterior.logvar) - 1 - posterior.logvar)
        features = jnp.mean((restored - statistics.normalise(tokens)) ** 2)
        return features + 1e-3 * kl + 0.05 * jnp.mean(jnp.abs(decoded - images))

    value, gradient = jax.jit(jax.value_and_grad(expected))(state.params)
    actual, _, metrics = gradient_of(config, "bridge", state, step)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-4)
    assert_same(actual, gradient)


def test_stage_three_is_the_gradient_of_the_reconstruction_from_the_posteriors_mode():
    config, _, state, step = prepared("specialisation")
    images, space = a_batch()["image"] / np.float32(255), latent_space(config)

    def expected(decoder):
        z = space.encode(state.frozen, images)
        return jnp.mean(jnp.abs(space.decode({**state.frozen, "decoder": decoder}, z) - images))

    actual, _, _ = gradient_of(config, "specialisation", state, step)
    assert_same(actual, jax.jit(jax.grad(expected))(state.params))


def test_the_pivots_weight_is_fixed_at_first():
    config, _, state, step = prepared("pivot")
    assert step(state, a_batch())[1]["pivot_weight"] == pytest.approx(0.75)
    last_fixed = state.replace(step=np.int32(config.pivot.pivot_fixed_steps - 1))
    assert step(last_fixed, a_batch())[1]["pivot_weight"] == pytest.approx(0.75)
    first_adaptive = state.replace(step=np.int32(config.pivot.pivot_fixed_steps))
    assert step(first_adaptive, a_batch())[1]["pivot_weight"] != pytest.approx(0.75)


TRAINED = {
    "pivot": {"encoder", "decoder"},
    "bridge": {"bridge_encoder", "bridge_decoder"},
    "specialisation": {"decoder"},
}


@pytest.mark.parametrize("stage", TRAINED)
def test_the_gradient_reaches_every_layer_of_what_a_stage_trains_and_nothing_else(stage):
    config, _, state, step = prepared(stage)
    gradient, new, _ = gradient_of(config, stage, state, step)
    by_component = gradient if len(TRAINED[stage]) > 1 else {"decoder": gradient}
    assert by_component.keys() == TRAINED[stage]
    for path, leaf in jax.tree_util.tree_leaves_with_path(by_component):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):  # softmax does not see it
            assert norm(leaf) > 0, name
    jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)
    if stage == "pivot":  # the same architecture, once trained and once the pivot
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), new.params["encoder"], state.params["encoder"])
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("stage", TRAINED)
def test_the_optimizer_holds_two_numbers_for_a_trained_parameter_and_none_for_a_frozen_one(stage):
    _, _, state, _ = prepared(stage)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 0]
    counters = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 0]
    assert sum(x.nbytes for x in moments) == 2 * 4 * parameters
    assert sum(x.nbytes for x in counters) <= 16
    assert state.frozen and sum(x.size for x in jax.tree.leaves(state.frozen)) > 0


def test_stage_one_starts_from_the_pretrained_encoder_and_leaves_encoder_and_decoder():
    _, objective, state, _ = prepared("pivot")
    assert objective.initial.keys() == {"encoder"}
    pretrained = random_values(state.params["encoder"], seed=4)
    begun = jax.jit(objective.first_state)(jax.random.key(1), a_batch(), {"encoder": pretrained})
    for params in (begun.params, begun.ema_params):
        jax.tree.map(np.testing.assert_array_equal, params["encoder"], pretrained)
    assert objective.result(begun).keys() == {"encoder", "decoder"}


def test_without_a_pivot_weight_there_is_no_pivot():
    config = digits_rpiae.get_config("tiny")
    config.pivot.pivot_weight = 0.0
    assert not OBJECTIVES["pivot"](config, "pivot").frozen


def test_the_last_layer_of_stacked_blocks_is_that_of_the_last_one():
    blocks = [{"mlp_scale": jnp.full(2, i), "mlp": {"down": {"kernel": jnp.full((3, 2), -i)}}} for i in range(3)]
    apart = {f"blocks_{i}": block for i, block in enumerate(blocks)}
    stacked = {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    for encoder in (apart, stacked):
        np.testing.assert_array_equal(last_layer(encoder, "scale"), [2, 2])
        np.testing.assert_array_equal(last_layer(encoder, "kernel"), np.full((3, 2), -2))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pivot.pivot_features", "cosine", r"pivot\.pivot_features='cosine' is not one of \['plain', 'normalised'\]"),
        ("pivot.trains", ("encoder",), r"neither encoder and decoder nor these with bridge_encoder and bridge_decoder"),
        ("pivot.initial", ("bridge_encoder",), r"pivot\.initial names \['bridge_encoder'\]"),
        ("bridge.latent", "mean", r"bridge\.latent='mean' is not one of \['sample', 'mode'\]"),
    ],
)
def test_a_field_that_means_nothing_is_named(field, value, message):
    config = digits_rpiae.get_config("tiny")
    config.update_from_flattened_dict({field: value})
    stage = field.partition(".")[0]
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[config[stage].objective](config, stage)


def test_balancing_by_layer_scales_that_an_encoder_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="has no layer scales; use 'kernel'"):
        last_layer({"blocks_0": {"mlp": {}}}, "scale")
