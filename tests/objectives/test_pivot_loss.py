"""The pivot loss and its weight against the golden outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import load_case, nhwc, tokens

from rae_jax.interop.rpiae import import_rpiae
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from rae_jax.objectives.pivot_loss import pivot_loss, pivot_weight


def assert_gradient_close(actual, expected):
    """Within a part of the largest entry: gradients are small numbers."""
    np.testing.assert_allclose(actual, expected, atol=2e-3 * np.abs(expected).max())


def test_loss_weight_and_gradients_of_the_whole_stage_equal_the_reference():
    case = load_case("rpiae_pivot")
    constructor = case.description["constructor"]
    architecture, params, _ = import_rpiae(case.weights, encoder_heads=4, decoder_heads=3)
    autoencoder = RepresentationAutoencoder(
        VisionTransformer(**architecture["encoder"]),
        ViTDecoder(**architecture["decoder"]),
        encoder_input_size=constructor["encoder_input_size"],
        image_mean=tuple(constructor["image_mean"]),
        image_std=tuple(constructor["image_std"]),
    )
    images = nhwc(case.io["image"])
    noise = constructor["noise_tau"] * case.io["noise_uniform"] * case.io["noise_normal"]
    trained = {name: params[name] for name in ("encoder", "decoder")}
    pivot = autoencoder.apply({"params": {"encoder": params["pivot"]}}, images, method="tokens")

    def terms(trained):
        clean = autoencoder.apply({"params": trained}, images, method="tokens")
        reconstruction = autoencoder.apply({"params": trained}, clean + noise, method="decode")
        l1 = jnp.mean(jnp.abs(reconstruction - images))
        return jnp.stack([l1, pivot_loss(clean, pivot)]), (clean, reconstruction)

    gradients, (clean, reconstruction) = jax.jit(jax.jacrev(terms, has_aux=True))(trained)
    (l1, pivot_term), _ = terms(trained)
    case.assert_close(l1, "loss_l1")
    case.assert_close(pivot_term, "loss_pivot")
    np.testing.assert_allclose(clean, tokens(case.io["student_features"]), atol=1e-4, rtol=2e-3)
    np.testing.assert_allclose(pivot, tokens(case.io["teacher_features"]), atol=1e-4, rtol=2e-3)
    np.testing.assert_allclose(reconstruction, nhwc(case.io["reconstruction"]), atol=1e-4, rtol=2e-3)

    last = gradients["encoder"]["blocks_1"]
    for layer, expected in (
        (last["mlp_scale"], "adaptive_weight"),
        (last["mlp"]["down"]["kernel"], "adaptive_weight_fc2"),
    ):
        weight = pivot_weight(1000, layer[0], layer[1])
        np.testing.assert_allclose(weight, case.io[expected], rtol=0.01)
    assert_gradient_close(last["mlp_scale"][0], case.io["layer_grad_rec"])
    assert_gradient_close(last["mlp_scale"][1], case.io["layer_grad_pivot"])

    weight = pivot_weight(1000, last["mlp_scale"][0], last["mlp_scale"][1])
    case.assert_close(l1 + weight * pivot_term, "loss")
    flat = flatten_dict(gradients, sep="/")
    total = unflatten_dict({path: g[0] + weight * g[1] for path, g in flat.items()}, sep="/")
    for actual, expected in (
        (total["encoder"]["blocks_0"]["mlp"]["up"]["kernel"].T, "grad.encoder.encoder.encoder.layer.0.mlp.fc1.weight"),
        (total["decoder"]["pixels"]["kernel"].T, "grad.decoder.decoder_pred.weight"),
    ):
        assert_gradient_close(actual, case.io[expected])


def test_the_weight_is_fixed_at_first_then_the_clamped_ratio_of_gradients():
    ten, two = jnp.full(4, 5.0), jnp.ones(4)
    assert pivot_weight(999, ten, two) == pytest.approx(0.75)
    assert pivot_weight(1000, ten, two) == pytest.approx(0.75 * 5, rel=1e-3)
    assert pivot_weight(0, ten, two, weight=1.0, fixed_steps=0) == pytest.approx(10 / (2 + 1e-4))
    assert pivot_weight(1000, 1e3 * ten, jnp.zeros(4)) == pytest.approx(0.75e5)


def test_the_pivot_gets_no_gradient():
    gradient = jax.grad(pivot_loss, argnums=1)(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)))
    assert not gradient.any()
