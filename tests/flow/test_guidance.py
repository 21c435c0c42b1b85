"""Guidance against the reference's, per sample and inside its interval."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import network

from rae_jax.flow import guidance
from rae_jax.flow.guidance import autoguidance, classifier_free_guidance, guide


def field(case, prefix=None):
    """`(z, t, labels) -> v` of an official checkpoint, and its null label."""
    _, apply, params, architecture, _ = network(case, prefix)
    return lambda z, t, labels: apply({"params": params}, z, t, labels), architecture["num_classes"]


def halved(call, null_label):
    """`z`, `t`, labels and null labels of a reference's batch, which is [conditional; unconditional]."""
    labels, null = jnp.split(jnp.asarray(call.inputs["y"]), 2)
    assert (null == null_label).all()
    return tokens(call.inputs["x"])[: len(labels)], call.inputs["t"][: len(labels)], labels, null


@cases("dit_dh", where=lambda case: case.calls("forward_with_cfg"))
def test_classifier_free_guidance_is_the_references(case):
    velocity, null_label = field(case)
    for call in case.calls("forward_with_cfg"):
        z, t, labels, null = halved(call, null_label)
        scale, interval = call.inputs["cfg_scale"], tuple(call.inputs["cfg_interval"])
        guided = classifier_free_guidance(velocity, labels, null, scale=scale, interval=interval)
        case.assert_close(guided(z, t), tokens(call.outputs["velocity"])[: len(z)])


@cases("dit_dh", where=lambda case: case.calls("forward_with_autoguidance"))
def test_autoguidance_is_the_references(case):
    (velocity, _), (weak, _) = (field(case, prefix) for prefix in case.networks)
    for call in case.calls("forward_with_autoguidance"):
        strong, weaker = (functools.partial(model, labels=call.inputs["y"]) for model in (velocity, weak))
        scale, interval = call.inputs["cfg_scale"], tuple(call.inputs["cfg_interval"])
        guided = autoguidance(strong, weaker, scale=scale, interval=interval)
        case.assert_close(guided(tokens(call.inputs["x"]), call.inputs["t"]), tokens(call.outputs["velocity"]))


@cases("lightning_dit", where=lambda case: case.calls("forward_with_autoguidance"))
def test_the_reference_lightning_dit_guides_outside_the_intervals_that_it_is_given(case):
    (velocity, null_label), (weak, _) = (field(case, prefix) for prefix in case.networks)
    for call in case.calls("forward_with_(cfg|autoguidance)"):
        z, t, labels, null = halved(call, null_label)
        # It looks at the first time only. Inside, [low, high), the scale is `interval_cfg`, or 1 where that is no more.
        inside = any(low <= t[0] < high for low, high in call.inputs["cfg_interval"])
        scale = max(call.inputs["interval_cfg"], 1.0) if inside else call.inputs["cfg_scale"]
        if call.function == "forward_with_cfg":
            guided = classifier_free_guidance(velocity, labels, null, scale=scale)
        else:
            strong, weaker = (functools.partial(model, labels=labels) for model in (velocity, weak))
            guided = autoguidance(strong, weaker, scale=scale)
        case.assert_close(guided(z, t), tokens(call.outputs["velocity"])[: len(z)])


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


def test_scales_in_training_are_uniform_in_their_logarithm_and_intervals_hold_the_middle():
    scale, t_min, t_max = np.asarray(guidance.draw(jax.random.key(0), 20_000, 8.0)).T
    quarters = np.array([0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.quantile(scale, quarters), 8**quarters, rtol=0.03)
    np.testing.assert_allclose(np.quantile(t_min, quarters), quarters / 2, atol=0.01)
    np.testing.assert_allclose(np.quantile(t_max, quarters), 0.5 + quarters / 2, atol=0.01)
    assert scale.min() >= 1 and scale.max() <= 8
    assert np.abs(np.corrcoef([scale, t_min, t_max]) - np.eye(3)).max() < 0.03


def test_a_scale_acts_inside_its_interval_both_ends_included_and_throughout_everywhere():
    told = jnp.array([[3.0, 0.25, 0.5]] * 4)
    np.testing.assert_array_equal(guidance.scale_at(told, jnp.array([0.2, 0.25, 0.5, 0.6])), [1, 3, 3, 1])
    always = guidance.throughout(jnp.array([3.0, 2.0]))
    np.testing.assert_array_equal(guidance.scale_at(always, jnp.array([0.0, 1.0])), [3, 2])
