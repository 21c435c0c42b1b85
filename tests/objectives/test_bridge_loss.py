"""The bridge's loss against the golden outputs."""

import jax
import jax.numpy as jnp
from golden import cases, nhwc, tokens
from golden_modules import autoencoder

from rae_jax.interop.bridge import export_bridge, import_bridge
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.objectives.bridge_loss import bridge_loss


def modules(architecture):
    return BridgeEncoder(**architecture["bridge_encoder"]), BridgeDecoder(**architecture["bridge_decoder"])


def assert_gradients_equal_the_references(case, call, gradients, architecture):
    """Those by the official parameters that the call names; a layout is linear, so it carries gradients."""
    official, expected = export_bridge(gradients, architecture), call.gradients("loss")
    assert expected
    for name, gradient in expected.items():
        case.assert_gradient_close(official[name], gradient)


@cases("rpiae_bridge")
def test_the_loss_without_pixels_and_its_gradients_equal_the_reference(case):
    encode, call = case.call("vb_encode"), case.call("losses")
    architecture, params = import_bridge(case.weights, num_heads=case.constructor["n_heads"])
    to_latent, from_latent = modules(architecture)
    features, clean = tokens(encode.inputs["features"]), tokens(call.inputs["target"])
    weights, no_image = {name: call.inputs[name] for name in ("kl_weight", "feature_weight")}, jnp.zeros((1, 1, 1, 3))

    def loss(params):
        posterior = to_latent.apply({"params": params["bridge_encoder"]}, features)
        decoded = from_latent.apply({"params": params["bridge_decoder"]}, posterior.mode())
        return bridge_loss(
            decoded=decoded, clean=clean, posterior=posterior, reconstruction=no_image, images=no_image, **weights
        )

    (value, terms), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    case.assert_close(value, call.outputs["loss"])
    case.assert_close(terms["feature_mse"], call.outputs["feature_mse"])
    case.assert_close(terms["kl"], call.outputs["kl_mean"])
    assert_gradients_equal_the_references(case, call, gradients, architecture)


@cases("rpiae_vb")
def test_the_loss_of_the_whole_stage_and_its_gradients_equal_the_reference(case):
    constructor, call = case.constructor, case.call("stage-2 training losses")
    model, params, architecture = autoencoder(case)
    to_latent, from_latent = modules(architecture)
    images = nhwc(call.inputs["x"])
    noise = constructor["noise_tau"] * call.inputs["noise_uniform"] * call.inputs["noise_normal"]
    frozen = {"params": {name: params[name] for name in ("encoder", "decoder")}}
    weights = {
        "feature_weight": constructor["vb_feat_loss_weight"],
        "kl_weight": constructor["vb_kl_weight"],
        "pixel_weight": constructor["vb_rec_weight"],
    }

    def loss(bridge):
        clean = model.apply(frozen, images, method="tokens")
        posterior = to_latent.apply({"params": bridge["bridge_encoder"]}, clean + noise)
        decoded = from_latent.apply({"params": bridge["bridge_decoder"]}, posterior.mode())
        reconstruction = model.apply(frozen, decoded, method="decode")
        value, terms = bridge_loss(
            decoded=decoded, clean=clean, posterior=posterior, reconstruction=reconstruction, images=images, **weights
        )
        return value, (terms, posterior, decoded, reconstruction)

    bridge = {name: params[name] for name in ("bridge_encoder", "bridge_decoder")}
    (value, (terms, posterior, decoded, reconstruction)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        bridge
    )
    case.assert_close(posterior.mean, tokens(call.outputs["posterior_mean"]))
    case.assert_close(posterior.logvar, tokens(call.outputs["posterior_logvar"]))
    case.assert_close(decoded, tokens(call.outputs["decoded_features"]))
    case.assert_close(reconstruction, nhwc(call.outputs["reconstruction"]))
    for name in ("feature_mse", "kl", "l1"):
        case.assert_close(terms[name], call.outputs[name])
    case.assert_close(value, call.outputs["loss"])
    assert_gradients_equal_the_references(case, call, gradients, architecture)
