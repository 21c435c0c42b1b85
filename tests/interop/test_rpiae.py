"""Tokenizers of RPiAE come back bit for bit, work as the reference does, and wrong ones are refused."""

import jax
import numpy as np
import pytest
from golden import cases, nhwc, tokens
from golden_modules import autoencoder, heads

from rae_jax.interop.rpiae import export_rpiae, identify, import_rpiae
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder


def assert_same_files(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def parts_of(case) -> set[str]:
    """Encoder and decoder, with the frozen encoder of stage I or the bridge of the later stages."""
    pivot = {"pivot"} if case.constructor.get("use_teacher") else set()
    return (
        {"encoder", "decoder"}
        | pivot
        | ({"bridge_encoder", "bridge_decoder"} if "vb_heads" in case.constructor else set())
    )


@cases("rpiae_pivot", "rpiae_vb", "rae_dinov2", "rae_siglip2", "rae_mae")
def test_checkpoints_of_every_stage_come_back_bit_for_bit(case):
    architecture, params, carried = import_rpiae(case.weights, **heads(case))
    assert params.keys() == parts_of(case)
    assert architecture.keys() == parts_of(case) - {"pivot"}
    assert_same_files(export_rpiae(params, architecture, carried, *identify(case.weights)), case.weights)


@cases("rpiae_vb")
def test_a_tokenizer_trained_here_is_exported_with_the_position_table_that_the_reference_expects(case):
    architecture, params, carried = import_rpiae(case.weights, **heads(case))
    del carried["decoder.decoder_pos_embed"]
    assert_same_files(export_rpiae(params, architecture, carried), case.weights)


@cases("rpiae_vb")
def test_latent_and_reconstruction_equal_the_reference(case):
    model, params, architecture = autoencoder(case)
    to_latent, from_latent = (
        BridgeEncoder(**architecture["bridge_encoder"]),
        BridgeDecoder(**architecture["bridge_decoder"]),
    )

    @jax.jit
    def encode(params, images):
        features = model.apply({"params": params}, images, method="encode")
        return features, to_latent.apply({"params": params["bridge_encoder"]}, features)

    @jax.jit
    def decode(params, z):
        features = from_latent.apply({"params": params["bridge_decoder"]}, z)
        return model.apply({"params": params}, features, method="decode")

    call = case.call(r"encode \(eval\)")
    features, posterior = encode(params, nhwc(call.inputs["x"]))
    case.assert_close(features, tokens(call.outputs["clean_features"]))
    case.assert_close(posterior.mode(), tokens(call.outputs["latent"]))
    case.assert_close(posterior.logvar, tokens(call.outputs["posterior_logvar"]))
    call = case.call("decode")
    case.assert_close(decode(params, tokens(call.inputs["z"])), nhwc(call.outputs["image"]))


@cases("rpiae_vb")
def test_every_name_that_does_not_fit_is_listed_with_its_prefix(case):
    tensors = dict(case.weights)
    tensors["encoder.encoder.embeddings.cls_tokem"] = tensors.pop("encoder.encoder.embeddings.cls_token")
    tensors["vb_extra.weight"] = np.zeros(3, np.float32)
    del tensors["decoder.decoder_norm.bias"]
    with pytest.raises(ValueError) as error:
        import_rpiae(tensors, **heads(case))
    for line in (
        "missing    encoder.encoder.embeddings.cls_token",
        "missing    decoder.decoder_norm.bias",
        "unexpected encoder.encoder.embeddings.cls_tokem",
        "unexpected vb_extra.weight",
    ):
        assert line in str(error.value)


@cases("rpiae_vb")
def test_positions_of_the_decoder_that_were_trained_come_back(case):
    positions = "decoder.decoder_pos_embed"
    moved = case.weights | {positions: case.weights[positions] + 1e-3}
    found, params, carried = import_rpiae(moved, **heads(case))
    assert positions not in carried
    np.testing.assert_array_equal(params["decoder"]["positions"]["table"], moved[positions][0])
    np.testing.assert_array_equal(export_rpiae(params, found, carried)[positions], moved[positions])


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no tokenizer of RPiAE"):
        identify({"conv_in.weight": np.zeros((3, 1))})
