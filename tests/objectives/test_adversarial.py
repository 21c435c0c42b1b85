"""Adversarial losses and their balance against the golden outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case

from rae_jax.objectives.adversarial import (
    adaptive_weight,
    discriminator_accuracy,
    generator_loss,
    hinge_discriminator_loss,
    to_8_bits,
    vanilla_discriminator_loss,
)


def test_losses_equal_the_reference():
    case = load_case("gan_losses")
    real, fake = case.io["logits_real"], case.io["logits_fake"]
    case.assert_close(hinge_discriminator_loss(real, fake), "hinge_d")
    case.assert_close(vanilla_discriminator_loss(real, fake), "vanilla_d")
    case.assert_close(generator_loss(fake), "vanilla_g")


def test_accuracy_equals_the_reference():
    case = load_case("dino_disc")
    real, fake = case.io["train_logits_real"], case.io["train_logits_fake"]
    case.assert_close(discriminator_accuracy(real, fake), "accuracy")
    case.assert_close(hinge_discriminator_loss(real, fake), "train_hinge_loss")


def test_the_adaptive_weight_equals_the_reference_and_has_no_gradient():
    case = load_case("gan_losses")
    features, target, c = case.io["features"], case.io["target"], case.io["c"]

    def reconstruction(layer):
        return jnp.mean(jnp.abs(features @ layer.T - target))

    def gan(layer):
        return -jnp.mean(jnp.tanh(features @ layer.T) * c)

    def weight(layer, **limits):
        return adaptive_weight({"kernel": jax.grad(reconstruction)(layer)}, {"kernel": jax.grad(gan)(layer)}, **limits)

    layer = jnp.asarray(case.io["layer"])
    case.assert_close(weight(layer), "adaptive_weight")
    case.assert_close(weight(layer, maximum=2.0), "adaptive_weight_max2")
    assert not jax.grad(weight)(layer).any()


def test_the_adaptive_weight_is_the_ratio_of_norms_kept_finite_by_epsilon():
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    assert adaptive_weight(gradient, jnp.array([2.0]), epsilon=0.5) == pytest.approx(2.0)
    assert adaptive_weight(gradient, jnp.zeros(3)) == pytest.approx(1e4)
    assert adaptive_weight(jnp.zeros(3), jnp.zeros(3)) == 0


def test_fakes_in_8_bits_equal_the_reference():
    case = load_case("gan_losses")
    case.assert_close(to_8_bits(case.io["discretise_in"]), "discretise_out", atol=1e-6)


def test_fakes_in_8_bits_are_the_256_levels_and_nothing_outside():
    levels = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(to_8_bits(jnp.asarray(levels)), levels, atol=1e-6)
    np.testing.assert_allclose(to_8_bits(jnp.asarray(levels + 0.4 / 127.5)), levels, atol=1e-6)
    np.testing.assert_array_equal(to_8_bits(jnp.array([-1.3, 1.3])), [-1, 1])
