"""Decoder checkpoints, official and diffusers', come back bit for bit, and wrong ones are refused."""

import numpy as np
import pytest
from golden import load_case

from rae_jax.interop.decoder import POSITIONS, architecture, export_decoder, import_decoder


@pytest.mark.parametrize(
    ("name", "prefix", "source", "heads", "grid"),
    [
        ("rae_decoder", "", "official", 4, 4),
        ("rae_decoder_upsample", "", "official", 4, 3),
        ("rae_mae", "decoder.", "official", 3, 5),
        ("diffusers_rae", "decoder.", "diffusers", 3, 3),
    ],
)
def test_checkpoints_come_back_bit_for_bit(name, prefix, source, heads, grid):
    tensors = load_case(name).weights_under(prefix)
    found, params, carried = import_decoder(tensors, grid_size=grid, num_heads=heads)
    assert found["grid_size"] == grid
    exported = export_decoder(params, found, carried, source)
    assert exported.keys() == tensors.keys()
    for tensor, value in tensors.items():
        np.testing.assert_array_equal(exported[tensor], value, err_msg=tensor)


def test_a_decoder_trained_here_is_exported_with_the_position_table_that_the_reference_expects():
    tensors = load_case("rae_decoder").weights
    found, params, _ = import_decoder(tensors, num_heads=4)
    np.testing.assert_array_equal(export_decoder(params, found)[POSITIONS], tensors[POSITIONS])


def test_other_positions_than_the_fixed_ones_are_refused():
    tensors = dict(load_case("rae_decoder").weights)
    tensors[POSITIONS] = tensors[POSITIONS] + 1e-3
    with pytest.raises(ValueError, match="sine-cosine"):
        import_decoder(tensors, num_heads=4)


def test_a_decoder_of_other_positions_than_diffusers_computes_is_not_exported_to_it():
    found, params, _ = import_decoder(load_case("rae_decoder").weights, num_heads=4)
    with pytest.raises(ValueError, match=r"4.0 apart.*1.0 apart"):
        export_decoder(params, found, source="diffusers")


def test_diffusers_decoders_need_the_grid_and_unpublished_widths_the_heads():
    with pytest.raises(ValueError, match="give grid_size"):
        architecture(load_case("diffusers_rae").weights_under("decoder."), num_heads=3)
    with pytest.raises(ValueError, match="give num_heads"):
        architecture(load_case("rae_decoder").weights)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no known decoder"):
        import_decoder({"decoder.decoder_pred.weight": np.zeros((3, 1))})
