"""Embeddings of position, time and label against the tables in the reference's checkpoints and closed forms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import networks

from rae_jax.models.attention import rotate
from rae_jax.models.embeddings import (
    LabelEmbedding,
    SinCosPositions,
    TimeEmbedding,
    rotary_table,
    sincos_table,
    time_embeddings,
)

TRANSFORMERS = ("dit_dh", "mf_dit_dh", "sample_euler_dit_dh", "lightning_dit")


@networks(*TRANSFORMERS)
def test_sine_cosine_table_is_bit_identical_to_the_reference(case, prefix):
    weights = case.weights_under(prefix)
    expected = weights.get("pos_embed")
    assert (expected is not None) == case.networks[prefix].get("use_pos_embed", True)
    if expected is not None:
        table = sincos_table(math.isqrt(expected.shape[1]), expected.shape[2])
        assert table.dtype == np.float32
        np.testing.assert_array_equal(table, expected[0])


@networks(*TRANSFORMERS)
def test_rotary_table_is_the_references_to_the_last_bit_or_the_one_before(case, prefix):
    weights = case.weights_under(prefix)
    found = [name.removesuffix("cos") for name in weights if name.endswith("feat_rope.freqs_cos")]
    assert bool(found) == case.networks[prefix]["use_rope"]
    for name in found:
        expected = [weights[name + part] for part in ("cos", "sin")]
        tables = rotary_table(math.isqrt(len(expected[0])), expected[0].shape[1])
        for table, official in zip(tables, expected, strict=True):
            # The official table holds every angle twice, for the channels 2i and 2i + 1.
            np.testing.assert_allclose(np.repeat(table, 2, axis=1), official, rtol=0, atol=6e-8)


def test_rotary_attention_depends_on_differences_of_position_only():
    grid, head_dim = 5, 8
    rotary = rotary_table(grid, head_dim)
    query, key = np.random.default_rng(0).normal(size=(2, head_dim)).astype(np.float32)
    tables = tuple(table.T for table in rotary)
    q, k = (np.asarray(rotate(jnp.asarray(np.repeat(x[:, None], grid**2, axis=1)), tables)).T for x in (query, key))
    scores = (q @ k.T).reshape(grid, grid, grid, grid)
    np.testing.assert_allclose(scores[:-1, :-1, :-1, :-1], scores[1:, 1:, 1:, 1:], atol=1e-5)
    assert not np.allclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0], atol=1e-2)


def test_tables_refuse_widths_that_do_not_divide_by_four():
    for table in (sincos_table, rotary_table):
        with pytest.raises(ValueError, match="divisible by 4, got 6"):
            table(4, 6)


def test_time_embedding_matches_the_formula_in_double_precision_and_its_frequencies_get_no_gradient():
    module, t = TimeEmbedding(8), jnp.array([0.0, 0.3, 0.999])
    params = meta.unbox(module.init(jax.random.key(0), t)["params"])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    angle = 2 * np.pi * np.asarray(t, np.float64)[:, None] * p["frequencies"]
    hidden = np.concatenate([np.sin(angle), np.cos(angle)], axis=1) @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    expected = hidden / (1 + np.exp(-hidden)) @ p["out"]["kernel"] + p["out"]["bias"]
    out = module.apply({"params": params}, t)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert params["frequencies"].shape == (256,)
    assert np.std(params["frequencies"]) == pytest.approx(1, abs=0.15)

    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, t) ** 2))(params)
    assert not np.any(gradient["frequencies"])
    assert np.any(gradient["hidden"]["kernel"])


def test_time_embedding_computes_in_float32_whatever_it_is_given():
    module = TimeEmbedding(8)
    t = jnp.array([0.25], jnp.bfloat16)  # exact in bfloat16
    variables = module.init(jax.random.key(0), t)
    assert module.apply(variables, t).dtype == jnp.float32
    np.testing.assert_array_equal(module.apply(variables, t), module.apply(variables, t.astype(jnp.float32)))


def test_label_embedding_has_one_row_more_than_there_are_classes():
    module = LabelEmbedding(10, 16)
    variables = module.init(jax.random.key(0), jnp.array([0]))
    table = variables["params"]["table"]["embedding"]
    assert table.names == ("classes", "embed")
    assert table.value.shape == (11, 16)
    assert np.std(table.value) == pytest.approx(0.02, rel=0.3)
    np.testing.assert_array_equal(module.apply(variables, jnp.array([10, 3])), table.value[jnp.array([10, 3])])


def test_trained_frequencies_get_a_gradient():
    module, t = TimeEmbedding(8, trained=True), jnp.array([0.3])
    params = meta.unbox(module.init(jax.random.key(0), t)["params"])
    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, t) ** 2))(params)
    assert np.any(gradient["frequencies"])


def test_trained_positions_start_at_the_fixed_ones():
    fixed, trained = (SinCosPositions(4, 8, class_token=True, spacing=0.5, trained=t) for t in (False, True))
    assert not fixed.init(jax.random.key(0))
    params = meta.unbox(trained.init(jax.random.key(0)))
    np.testing.assert_array_equal(trained.apply(params), fixed.apply({}))
    np.testing.assert_array_equal(fixed.apply({}), sincos_table(4, 8, spacing=0.5, class_token=True))
    moved = jax.tree.map(lambda table: table + 1, params)
    np.testing.assert_array_equal(trained.apply(moved), fixed.apply({}) + 1)


@pytest.mark.parametrize(("flow_map", "r", "message"), [(True, None, "r is missing"), (False, 0.5, "takes t only")])
def test_a_flow_map_needs_both_times_and_a_velocity_model_one(flow_map, r, message):
    with pytest.raises(ValueError, match=message):
        time_embeddings(jnp.ones(1), None if r is None else jnp.full(1, r), width=8, flow_map=flow_map)


def test_guidance_is_embedded_as_times_are_its_scale_by_1_less_its_inverse():
    class Embeddings(nn.Module):
        @nn.compact
        def __call__(self, guidance):
            return time_embeddings(jnp.ones(1), jnp.zeros(1), guidance, width=8, flow_map=True, guided=True)

    module, told = Embeddings(), jnp.array([[4.0, 0.2, 0.9]])
    params = meta.unbox(module.init(jax.random.key(0), told)["params"])
    embedded = module.apply({"params": params}, told)
    expected = {"scale": 0.75, "t_min": 0.2, "t_max": 0.9}
    assert len(embedded) == 2 + len(expected)
    for actual, (name, value) in zip(embedded[2:], expected.items(), strict=True):
        alone = TimeEmbedding(8).apply({"params": params[f"{name}_embedding"]}, jnp.array([value]))
        np.testing.assert_allclose(actual, alone, atol=1e-6)


@pytest.mark.parametrize("guided", [True, False])
def test_guidance_is_given_to_networks_that_take_it_and_to_no_other(guided):
    with pytest.raises(ValueError, match="is missing" if guided else "takes no guidance"):
        told = None if guided else jnp.ones((1, 3))
        time_embeddings(jnp.ones(1), jnp.zeros(1), told, width=8, flow_map=True, guided=guided)
