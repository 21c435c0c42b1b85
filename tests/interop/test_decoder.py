"""Decoder checkpoints, official and diffusers', come back bit for bit, and wrong ones are refused."""

import math

import jax
import numpy as np
import pytest
from golden import cases
from golden_modules import decoder_grid, heads

from rae_jax.interop.decoder import POSITIONS, architecture, export_decoder, import_decoder
from rae_jax.models.decoder import ViTDecoder


def heads_of(case) -> int:
    """The number of heads in a case of the decoder alone."""
    return case.constructor["config"]["decoder_num_attention_heads"]


def assert_come_back(tensors, source, grid_size, num_heads):
    found, params, carried = import_decoder(tensors, grid_size=grid_size, num_heads=num_heads)
    assert found["grid_size"] == grid_size
    exported = export_decoder(params, found, carried, source)
    assert exported.keys() == tensors.keys()
    for tensor, value in tensors.items():
        np.testing.assert_array_equal(exported[tensor], value, err_msg=tensor)


@cases("rae_decoder")
def test_checkpoints_come_back_bit_for_bit(case):
    assert_come_back(case.weights, "official", math.isqrt(case.constructor["num_patches"]), heads_of(case))


@cases("rae_mae", "diffusers_rae")
def test_decoders_inside_an_autoencoder_come_back_bit_for_bit(case):
    tensors, latent = case.weights_under("decoder."), case.call("decode").inputs["z"]
    source = "official" if POSITIONS in tensors else "diffusers"
    assert_come_back(tensors, source, latent.shape[-1], heads(case)["decoder_heads"])


@cases("rae_decoder")
def test_a_decoder_trained_here_is_exported_with_the_position_table_that_the_reference_expects(case):
    found, params, _ = import_decoder(case.weights, num_heads=heads_of(case))
    np.testing.assert_array_equal(export_decoder(params, found)[POSITIONS], case.weights[POSITIONS])


@cases("rae_decoder")
def test_positions_that_were_trained_are_parameters(case):
    moved = np.random.default_rng(0).normal(size=case.weights[POSITIONS].shape).astype(np.float32)
    tensors = case.weights | {POSITIONS: moved}
    found, params, carried = import_decoder(tensors, num_heads=heads_of(case))
    assert found["trained_tables"] and not carried
    np.testing.assert_array_equal(params["positions"]["table"], tensors[POSITIONS][0])
    np.testing.assert_array_equal(export_decoder(params, found)[POSITIONS], tensors[POSITIONS])
    with pytest.raises(ValueError, match="trained ones; export it as 'official'"):
        export_decoder(params, found, source="diffusers")
    z = np.random.default_rng(0).normal(size=(1, found["grid_size"] ** 2, params["embedding"]["kernel"].shape[0]))
    model = ViTDecoder(**found)
    fixed = {name: leaf for name, leaf in params.items() if name != "positions"}
    of_fixed = jax.jit(model.clone(trained_tables=False).apply)({"params": fixed}, z.astype(np.float32))
    assert np.abs(jax.jit(model.apply)({"params": params}, z.astype(np.float32)) - of_fixed).max() > 1e-4


@cases("rae_decoder")
def test_a_decoder_of_other_positions_than_diffusers_computes_is_not_exported_to_it(case):
    found, params, _ = import_decoder(case.weights, num_heads=heads_of(case))
    with pytest.raises(ValueError, match=rf"{16 / found['grid_size']} apart.*1.0 apart"):
        export_decoder(params, found, source="diffusers")


@cases("diffusers_rae")
def test_a_diffusers_decoder_needs_the_grid(case):
    tensors, num_heads = case.weights_under("decoder."), heads(case)["decoder_heads"]
    with pytest.raises(ValueError, match="give grid_size"):
        architecture(tensors, num_heads=num_heads)
    assert architecture(tensors, decoder_grid(case), num_heads)["grid_size"] == decoder_grid(case)


@cases("rae_decoder")
def test_a_decoder_of_unpublished_width_needs_the_heads(case):
    with pytest.raises(ValueError, match="give num_heads"):
        architecture(case.weights)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no known decoder"):
        import_decoder({"decoder.decoder_pred.weight": np.zeros((3, 1))})
