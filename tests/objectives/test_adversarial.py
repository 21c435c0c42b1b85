"""Adversarial losses and their balance against the golden outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from rae_jax.objectives.adversarial import (
    adaptive_weight,
    discriminator_accuracy,
    generator_loss,
    hinge_discriminator_loss,
    to_8_bits,
    vanilla_discriminator_loss,
)


@cases("gan_losses")
def test_losses_equal_the_reference(case):
    for name, loss in (
        ("hinge_d_loss", hinge_discriminator_loss),
        ("vanilla_d_loss", vanilla_discriminator_loss),
        ("vanilla_g_loss", generator_loss),
    ):
        call = case.call(name)
        logits = {argument.removeprefix("logits_"): value for argument, value in call.inputs.items()}
        case.assert_close(loss(**logits), call.outputs["loss"])


@cases("dino_disc")
def test_accuracy_equals_the_reference(case):
    outputs = case.call(r"forward \(train mode.*").outputs
    real, fake = outputs["logits_real"], outputs["logits_fake"]
    case.assert_close(discriminator_accuracy(real, fake), outputs["accuracy"])
    case.assert_close(hinge_discriminator_loss(real, fake), outputs["hinge_d_loss"])


@cases("gan_losses")
def test_the_adaptive_weight_equals_the_reference_and_has_no_gradient(case):
    call = case.call("calculate_adaptive_weight")
    features, layer, target, c, largest = call.inputs.values()

    def reconstruction(layer):
        return jnp.mean(jnp.abs(features @ layer.T - target))

    def gan(layer):
        return -jnp.mean(jnp.tanh(features @ layer.T) * c)

    def weight(layer, maximum=largest):
        return adaptive_weight(jax.grad(reconstruction)(layer), jax.grad(gan)(layer), maximum=maximum)

    layer = jnp.asarray(layer)
    case.assert_close(weight(layer), call.outputs["weight"])
    limited = {name: value for name, value in call.outputs.items() if name.startswith("weight with max_d_weight")}
    assert limited
    for name, expected in limited.items():
        case.assert_close(weight(layer, float(name.split()[-1])), expected)
    assert not jax.grad(weight)(layer).any()


def test_the_adaptive_weight_is_the_ratio_of_norms_kept_finite_by_epsilon():
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    assert adaptive_weight(gradient, jnp.array([2.0]), epsilon=0.5) == pytest.approx(2.0)
    assert adaptive_weight(gradient, jnp.zeros(3)) == pytest.approx(1e4)
    assert adaptive_weight(jnp.zeros(3), jnp.zeros(3)) == 0


@cases("gan_losses")
def test_fakes_in_8_bits_equal_the_reference(case):
    call = case.call("discretise fake before the discriminator")
    case.assert_close(to_8_bits(call.inputs["x"]), call.outputs["x"], part=0.05)


def test_fakes_in_8_bits_are_the_256_levels_and_nothing_outside():
    levels = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(to_8_bits(jnp.asarray(levels)), levels, atol=1e-6)
    np.testing.assert_allclose(to_8_bits(jnp.asarray(levels + 0.4 / 127.5)), levels, atol=1e-6)
    np.testing.assert_array_equal(to_8_bits(jnp.array([-1.3, 1.3])), [-1, 1])
