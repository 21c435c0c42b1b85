"""Tokenizers of RPiAE come back bit for bit, work as the reference does, and wrong ones are refused."""

import jax
import numpy as np
import pytest
from golden import load_case, nhwc, tokens

from rae_jax.interop.rpiae import export_rpiae, identify, import_rpiae
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer

HEADS = {"encoder_heads": 4, "decoder_heads": 3}


def assert_same_files(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("name", "heads", "parts"),
    [
        ("rpiae_pivot", HEADS, {"encoder", "decoder", "pivot"}),
        ("rpiae_vb", HEADS, {"encoder", "decoder", "bridge_encoder", "bridge_decoder"}),
        ("rae_dinov2", HEADS, {"encoder", "decoder"}),
        ("rae_siglip2", HEADS, {"encoder", "decoder"}),
    ],
)
def test_checkpoints_of_every_stage_come_back_bit_for_bit(name, heads, parts):
    tensors = load_case(name).weights
    architecture, params, carried = import_rpiae(tensors, **heads)
    assert params.keys() == parts
    assert architecture.keys() == parts - {"pivot"}
    assert_same_files(export_rpiae(params, architecture, carried, *identify(tensors)), tensors)


def test_a_tokenizer_trained_here_is_exported_with_the_position_table_that_the_reference_expects():
    tensors = load_case("rpiae_vb").weights
    architecture, params, carried = import_rpiae(tensors, **HEADS)
    del carried["decoder.decoder_pos_embed"]
    assert_same_files(export_rpiae(params, architecture, carried), tensors)


def test_latent_and_reconstruction_equal_the_reference():
    case = load_case("rpiae_vb")
    constructor = case.description["constructor"]
    architecture, params, _ = import_rpiae(case.weights, **HEADS)
    autoencoder = RepresentationAutoencoder(
        VisionTransformer(**architecture["encoder"]),
        ViTDecoder(**architecture["decoder"]),
        encoder_input_size=constructor["encoder_input_size"],
        image_mean=tuple(constructor["image_mean"]),
        image_std=tuple(constructor["image_std"]),
    )
    to_latent, from_latent = (
        BridgeEncoder(**architecture["bridge_encoder"]),
        BridgeDecoder(**architecture["bridge_decoder"]),
    )

    @jax.jit
    def run(params, images):
        features = autoencoder.apply({"params": params}, images, method="encode")
        posterior = to_latent.apply({"params": params["bridge_encoder"]}, features)
        decoded = from_latent.apply({"params": params["bridge_decoder"]}, posterior.mode())
        return features, posterior, autoencoder.apply({"params": params}, decoded, method="decode")

    features, posterior, reconstruction = run(params, nhwc(case.io["image"]))
    close = {"atol": 1e-4, "rtol": 1e-3}
    np.testing.assert_allclose(features, tokens(case.io["clean_features"]), **close)
    np.testing.assert_allclose(posterior.mode(), tokens(case.io["latent"]), **close)
    np.testing.assert_allclose(posterior.logvar, tokens(case.io["posterior_logvar"]), **close)
    np.testing.assert_allclose(reconstruction, nhwc(case.io["reconstruction"]), **close)


def test_every_name_that_does_not_fit_is_listed_with_its_prefix():
    tensors = dict(load_case("rpiae_vb").weights)
    tensors["encoder.encoder.embeddings.cls_tokem"] = tensors.pop("encoder.encoder.embeddings.cls_token")
    tensors["vb_extra.weight"] = np.zeros(3, np.float32)
    del tensors["decoder.decoder_norm.bias"]
    with pytest.raises(ValueError) as error:
        import_rpiae(tensors, **HEADS)
    for line in (
        "missing    encoder.encoder.embeddings.cls_token",
        "missing    decoder.decoder_norm.bias",
        "unexpected encoder.encoder.embeddings.cls_tokem",
        "unexpected vb_extra.weight",
    ):
        assert line in str(error.value)


def test_other_positions_than_the_fixed_ones_are_refused():
    tensors = dict(load_case("rpiae_vb").weights)
    tensors["decoder.decoder_pos_embed"] = tensors["decoder.decoder_pos_embed"] + 1e-3
    with pytest.raises(ValueError, match="sine-cosine"):
        import_rpiae(tensors, **HEADS)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no tokenizer of RPiAE"):
        identify({"conv_in.weight": np.zeros((3, 1))})
