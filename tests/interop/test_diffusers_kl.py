"""AutoencoderKL checkpoints come back bit for bit, with new and old names, and wrong ones are refused."""

import re

import jax
import numpy as np
import pytest
from golden import cases

from rae_jax.interop.diffusers_kl import PROJECTIONS, architecture, export_kl_vae, identify, import_kl_vae
from rae_jax.models.kl_vae import KLVAE


def assert_same_files(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def with_deprecated_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def rename(name: str) -> str:
        for projection, current in PROJECTIONS["current"].items():
            name = name.replace(f".{current}.", f".{PROJECTIONS['deprecated'][projection]}.")
        return name

    return {rename(name): value for name, value in tensors.items()}


@cases("kl_vae")
def test_checkpoints_come_back_bit_for_bit_and_fit_the_module(case):
    tensors, groups = case.weights, case.constructor["norm_num_groups"]
    found, params = import_kl_vae(tensors, num_groups=groups)
    assert identify(tensors) == "current"
    assert_same_files(export_kl_vae(params, found), tensors)
    side = 4 * 2 ** len(found["channels"])
    image = jax.ShapeDtypeStruct((1, side, side, case.constructor["in_channels"]), np.float32)
    like = jax.eval_shape(KLVAE(**found).init, jax.random.key(0), image)["params"]
    import_kl_vae(tensors, num_groups=groups, like=like)


@cases("kl_vae")
def test_the_names_of_older_files_give_the_same_parameters_and_come_back(case):
    new, groups = case.weights, case.constructor["norm_num_groups"]
    old = with_deprecated_names(new)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    found, params = import_kl_vae(old, num_groups=groups)
    jax.tree.map(np.testing.assert_array_equal, params, import_kl_vae(new, num_groups=groups)[1])
    assert identify(old) == "deprecated"
    assert_same_files(export_kl_vae(params, found, "deprecated"), old)


def test_attention_at_some_levels_comes_back_bit_for_bit():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        use_quant_conv=False,
    )
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    found, params = import_kl_vae(tensors, num_groups=4)
    assert (found["encoder_attention_levels"], found["decoder_attention_levels"]) == ((1,), (1,))
    assert (found["quant"], found["post_quant"]) == (False, True)
    assert_same_files(export_kl_vae(params, found), tensors)


@cases("kl_vae")
def test_groups_that_do_not_divide_the_channels_are_an_error(case):
    channels = tuple(case.constructor["block_out_channels"])
    groups = max(channels) + 1
    with pytest.raises(
        ValueError, match=re.escape(f"{groups} groups do not divide channels {channels}; give num_groups")
    ):
        architecture(case.weights, groups)


@cases("kl_vae")
def test_a_missing_a_misshapen_and_an_unexpected_tensor_are_all_named(case):
    tensors = dict(case.weights)
    tensors["decoder.conv_norm_aut.bias"] = tensors.pop("decoder.conv_norm_out.bias")
    tensors["quant_conv.weight"] = np.repeat(tensors["quant_conv.weight"], 3, axis=2)
    with pytest.raises(ValueError) as error:
        import_kl_vae(tensors, num_groups=case.constructor["norm_num_groups"])
    for line in (
        "missing    decoder.conv_norm_out.bias",
        "unexpected decoder.conv_norm_aut.bias",
        "misshapen  quant_conv.weight",
    ):
        assert line in str(error.value)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no AutoencoderKL"):
        architecture({"encoder.down.0.block.0.conv1.weight": np.zeros((8, 8, 3, 3))})
