"""The bridge's loss against the golden outputs."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import load_case, nhwc, tokens

from rae_jax.interop.bridge import import_bridge
from rae_jax.interop.rpiae import import_rpiae
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from rae_jax.objectives.bridge_loss import bridge_loss


def modules(architecture):
    return BridgeEncoder(**architecture["bridge_encoder"]), BridgeDecoder(**architecture["bridge_decoder"])


def assert_gradient_close(actual, expected):
    """Within a part of the largest entry: gradients are small numbers."""
    np.testing.assert_allclose(actual, expected, atol=1e-3 * np.abs(expected).max())


def test_the_loss_without_pixels_and_its_gradients_equal_the_reference():
    case = load_case("rpiae_bridge")
    architecture, params = import_bridge(case.weights, num_heads=3)
    to_latent, from_latent = modules(architecture)
    features, clean, no_image = tokens(case.io["features"]), tokens(case.io["target"]), jnp.zeros((1, 1, 1, 3))

    def loss(params):
        posterior = to_latent.apply({"params": params["bridge_encoder"]}, features)
        decoded = from_latent.apply({"params": params["bridge_decoder"]}, posterior.mode())
        return bridge_loss(decoded=decoded, clean=clean, posterior=posterior, reconstruction=no_image, images=no_image)

    (value, terms), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    case.assert_close(value, "loss")
    case.assert_close(terms["feature_mse"], "feature_mse")
    case.assert_close(terms["kl"], "kl_mean")
    moments = gradients["bridge_encoder"]["moments"]["kernel"].T
    assert_gradient_close(moments, case.io["grad.vb_feature_encoder.to_moments.weight"])
    embedding = gradients["bridge_decoder"]["embedding"]["kernel"].T
    assert_gradient_close(embedding, case.io["grad.vb_feature_decoder.in_proj.weight"])


def test_the_loss_of_the_whole_stage_and_its_gradients_equal_the_reference():
    case = load_case("rpiae_vb")
    constructor = case.description["constructor"]
    architecture, params, _ = import_rpiae(case.weights, encoder_heads=4, decoder_heads=3)
    to_latent, from_latent = modules(architecture)
    autoencoder = RepresentationAutoencoder(
        VisionTransformer(**architecture["encoder"]),
        ViTDecoder(**architecture["decoder"]),
        encoder_input_size=constructor["encoder_input_size"],
        image_mean=tuple(constructor["image_mean"]),
        image_std=tuple(constructor["image_std"]),
    )
    images = nhwc(case.io["image"])
    noise = constructor["noise_tau"] * case.io["noise_uniform"] * case.io["noise_normal"]
    frozen = {"params": {name: params[name] for name in ("encoder", "decoder")}}

    def loss(bridge):
        clean = autoencoder.apply(frozen, images, method="tokens")
        posterior = to_latent.apply({"params": bridge["bridge_encoder"]}, clean + noise)
        decoded = from_latent.apply({"params": bridge["bridge_decoder"]}, posterior.mode())
        reconstruction = autoencoder.apply(frozen, decoded, method="decode")
        value, terms = bridge_loss(
            decoded=decoded, clean=clean, posterior=posterior, reconstruction=reconstruction, images=images
        )
        return value, (terms, decoded, reconstruction)

    bridge = {name: params[name] for name in ("bridge_encoder", "bridge_decoder")}
    (value, (terms, decoded, reconstruction)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(bridge)
    close = {"atol": 1e-4, "rtol": 1e-3}
    np.testing.assert_allclose(decoded, tokens(case.io["train_decoded_features"]), **close)
    np.testing.assert_allclose(reconstruction, nhwc(case.io["train_reconstruction"]), **close)
    for term, expected in (("feature_mse", "loss_feature"), ("kl", "loss_kl"), ("l1", "loss_rec")):
        case.assert_close(terms[term], expected)
    case.assert_close(value, "loss")
    moments = gradients["bridge_encoder"]["moments"]["kernel"].T
    assert_gradient_close(moments, case.io["grad.vb_feature_encoder.to_moments.weight"])
    features = gradients["bridge_decoder"]["features"]["kernel"].T
    assert_gradient_close(features, case.io["grad.vb_feature_decoder.out_proj.weight"])
