"""The pivot loss and its weight against the golden outputs."""

import jax
import jax.numpy as jnp
import pytest
from golden import cases, nhwc, tokens
from golden_modules import autoencoder

from rae_jax.interop.rpiae import export_rpiae
from rae_jax.objectives.pivot_loss import pivot_loss, pivot_weight


@cases("rpiae_pivot")
def test_loss_weight_and_gradients_of_the_whole_stage_equal_the_reference(case):
    forward, call = case.call("training forward"), case.call("pivot loss and adaptive weight")
    model, params, architecture = autoencoder(case)
    images = nhwc(forward.inputs["x"])
    noise = case.constructor["noise_tau"] * forward.inputs["noise_uniform"] * forward.inputs["noise_normal"]
    trained = {name: params[name] for name in ("encoder", "decoder")}

    def terms(trained):
        pivot = model.apply({"params": {"encoder": params["pivot"]}}, images, method="tokens")
        clean = model.apply({"params": trained}, images, method="tokens")
        reconstruction = model.apply({"params": trained}, clean + noise, method="decode")
        losses = jnp.stack([jnp.mean(jnp.abs(reconstruction - images)), pivot_loss(clean, pivot)])
        return losses, (losses, clean, pivot, reconstruction)

    gradients, ((l1, pivot_term), clean, pivot, reconstruction) = jax.jit(jax.jacrev(terms, has_aux=True))(trained)
    case.assert_close(clean, tokens(forward.outputs["student_features"]))
    case.assert_close(pivot, tokens(forward.outputs["teacher_features"]))
    case.assert_close(reconstruction, nhwc(forward.outputs["reconstruction"]))
    case.assert_close(l1, call.outputs["l1"])
    case.assert_close(pivot_term, call.outputs["pivot_mse"])

    # Under their official names; a layout is linear, so it carries gradients.
    gradients = jax.device_get(gradients)
    of_l1, of_pivot = (export_rpiae(jax.tree.map(lambda g: g[i], gradients), architecture) for i in range(2))  # noqa: B023
    adaptive = case.description["adaptive_layer"]
    case.assert_gradient_close(of_l1[adaptive], call.outputs["grad of l1 wrt adaptive layer"])
    case.assert_gradient_close(of_pivot[adaptive], call.outputs["grad of pivot wrt adaptive layer"])

    assert call.inputs["max_piv_weight"] == 1e5  # which `pivot_weight` takes from the release
    fc2 = adaptive.replace("layer_scale2.lambda1", "mlp.fc2.weight")
    weights = [
        pivot_weight(1000, of_l1[layer], of_pivot[layer], weight=call.inputs["piv_weight"]) for layer in (adaptive, fc2)
    ]
    percent = case.noted("percent") / 100
    case.assert_close(weights[0], call.outputs["weight"], rtol=percent)
    case.assert_close(weights[1], call.outputs["weight if taken at the last mlp.fc2.weight"], rtol=percent)
    case.assert_close(l1 + weights[0] * pivot_term, call.outputs["loss = l1 + weight * pivot"])
    expected = call.gradients("loss")
    assert expected
    for name, gradient in expected.items():
        case.assert_gradient_close(of_l1[name] + weights[0] * of_pivot[name], gradient)


def test_the_weight_is_fixed_at_first_then_the_clamped_ratio_of_gradients():
    ten, two = jnp.full(4, 5.0), jnp.ones(4)
    assert pivot_weight(999, ten, two) == pytest.approx(0.75)
    assert pivot_weight(1000, ten, two) == pytest.approx(0.75 * 5, rel=1e-3)
    assert pivot_weight(0, ten, two, weight=1.0, fixed_steps=0) == pytest.approx(10 / (2 + 1e-4))
    assert pivot_weight(1000, 1e3 * ten, jnp.zeros(4)) == pytest.approx(0.75e5)


def test_the_pivot_gets_no_gradient():
    gradient = jax.grad(pivot_loss, argnums=1)(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)))
    assert not gradient.any()
