"""Guidance against the reference's, per sample and inside its interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case, tokens

from rae_jax.flow.guidance import autoguidance, classifier_free_guidance, guide
from rae_jax.interop.dit_dh import import_dit_dh
from rae_jax.interop.lightning_dit import import_lightning_dit
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.lightning_dit import LightningDiT


def field(import_model, module, weights):
    """`(z, t, labels) -> v` of an official checkpoint, and its null label."""
    architecture, params, _ = import_model(weights)
    model = module(**architecture)
    return jax.jit(lambda z, t, y: model.apply({"params": params}, z, t, y)), architecture["num_classes"]


def calls(case, function):
    return [call for call in case.description["calls"] if call["function"] == function]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("dit_dh_xl_flags", "model."), ("dit_dh_equal_width_qknorm", ""), ("dit_dh_layernorm_gelu", "")],
)
def test_classifier_free_guidance_is_the_references(name, prefix):
    case = load_case(name)
    velocity, null_label = field(import_dit_dh, DiTDH, case.weights_under(prefix))
    # The reference's batch is [conditional; unconditional] with the same x and t in both halves.
    half = len(case.io["cfg_y"]) // 2
    z, t, labels = tokens(case.io["cfg_x"])[:half], case.io["cfg_t"][:half], case.io["cfg_y"][:half]
    assert (case.io["cfg_y"][half:] == null_label).all()
    for call in calls(case, "forward_with_cfg"):
        scale, interval = call["inputs"]["cfg_scale"], tuple(call["inputs"]["cfg_interval"])
        guided = classifier_free_guidance(
            velocity, jnp.asarray(labels), np.full_like(labels, null_label), scale=scale, interval=interval
        )
        expected = tokens(case.io[call["outputs"]["velocity"].removeprefix("@")])[:half]
        np.testing.assert_allclose(guided(z, t), expected, atol=2e-5, rtol=2e-4)


def test_autoguidance_is_the_references():
    case = load_case("dit_dh_xl_flags")
    velocity, _ = field(import_dit_dh, DiTDH, case.weights_under("model."))
    weak, _ = field(import_dit_dh, DiTDH, case.weights_under("guidance_model."))
    z, t, labels = tokens(case.io["x"]), case.io["t"], case.io["y"]
    for call in calls(case, "forward_with_autoguidance"):
        scale, interval = call["inputs"]["cfg_scale"], tuple(call["inputs"]["cfg_interval"])
        guided = autoguidance(
            lambda z, t: velocity(z, t, labels), lambda z, t: weak(z, t, labels), scale=scale, interval=interval
        )
        expected = tokens(case.io[call["outputs"]["velocity"].removeprefix("@")])
        np.testing.assert_allclose(guided(z, t), expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("where", ["in", "out"])
def test_the_reference_lightning_dit_guides_outside_the_interval_that_it_is_given(where):
    case = load_case("lightning_dit")
    velocity, null_label = field(import_lightning_dit, LightningDiT, case.weights_under("model."))
    weak, _ = field(import_lightning_dit, LightningDiT, case.weights_under("guidance_model."))
    half = len(case.io["cfg_y"]) // 2
    z, labels = tokens(case.io["cfg_x"])[:half], jnp.asarray(case.io["cfg_y"][:half])
    t = case.io[f"cfg_t_{where}_interval"][:half]
    # Its interval [0.3, 0.6) says where guidance is off.
    scale = 1.0 if where == "in" else 2.0
    guided = classifier_free_guidance(velocity, labels, np.full_like(labels, null_label), scale=scale)
    np.testing.assert_allclose(guided(z, t), tokens(case.io[f"cfg_out_{where}_interval"])[:half], atol=2e-5, rtol=2e-4)
    guided = autoguidance(lambda z, t: velocity(z, t, labels), lambda z, t: weak(z, t, labels), scale=scale)
    np.testing.assert_allclose(guided(z, t), tokens(case.io[f"ag_out_{where}_interval"])[:half], atol=2e-5, rtol=2e-4)


def test_guidance_acts_on_both_ends_of_its_interval_and_nowhere_outside():
    t = jnp.array([0.19, 0.2, 0.5, 0.7, 0.71])
    v, v_weak = jnp.ones((5, 2, 3)), jnp.zeros((5, 2, 3))
    assert np.asarray(guide(v, v_weak, t, 3.0, (0.2, 0.7)))[:, 0, 0].tolist() == [1, 3, 3, 3, 1]
    with pytest.raises(ValueError, match="is empty"):
        guide(v, v_weak, t, 3.0, (0.7, 0.2))


def test_classifier_free_guidance_calls_the_network_once():
    batches = []

    def velocity(z, t, labels):
        batches.append(labels)
        return z * labels[:, None]

    guided = classifier_free_guidance(velocity, jnp.array([1, 2]), jnp.array([0, 0]), scale=2.0)
    np.testing.assert_array_equal(guided(jnp.ones((2, 3)), jnp.zeros(2)), [[2, 2, 2], [4, 4, 4]])
    assert [batch.tolist() for batch in batches] == [[1, 0, 2, 0]]
