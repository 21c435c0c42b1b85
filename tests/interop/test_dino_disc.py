"""Discriminator checkpoints come back bit for bit."""

import math

import numpy as np
import pytest
from golden import cases

from configs import base
from rae_jax.components.catalogue import component
from rae_jax.interop.checkpoint_files import write_safetensors
from rae_jax.interop.dino_disc import export_dino, export_heads, import_dino, import_heads
from rae_jax.interop.layout import flatten


def assert_same_files(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def heads_of(case) -> int:
    return case.constructor["recipe"]["num_heads"]


@cases("dino_disc")
def test_the_frozen_network_comes_back_bit_for_bit(case):
    tensors = case.weights_under("dino.")
    params, carried = import_dino(tensors, heads_of(case))
    assert_same_files(export_dino(params, carried, heads_of(case)), tensors)


@cases("dino_disc")
def test_the_heads_come_back_bit_for_bit(case):
    tensors = case.weights_under("heads.")
    assert_same_files(export_heads(import_heads(tensors)), tensors)


@cases("dino_disc")
def test_heads_without_spectral_norm_come_back_bit_for_bit(case):
    tensors = {
        name.replace("weight_orig", "weight"): value
        for name, value in case.weights_under("heads.").items()
        if not name.endswith(("weight_u", "weight_v"))
    }
    variables = import_heads(tensors)
    assert set(variables) == {"params"}
    assert_same_files(export_heads(variables), tensors)


def test_files_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not a DINO ViT"):
        import_dino({"x": np.zeros(1)})
    with pytest.raises(ValueError, match="not the heads"):
        import_heads({"x": np.zeros(1)})


@cases("dino_disc")
def test_a_config_takes_the_frozen_network_from_the_official_file_and_refuses_another_architecture(case, tmp_path):
    tensors, num_heads = case.weights_under("dino."), heads_of(case)
    write_safetensors(tmp_path / "dino.safetensors", tensors)
    params, _ = import_dino(tensors, num_heads)
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    config = base.get_config()
    config.discriminator.model.update(
        image_size=math.isqrt(params["embedding"]["position_embedding"].shape[0]) * patch, patch_size=patch,
        width=width,
        depth=sum(name.startswith("blocks_") for name in params), num_heads=num_heads,
        mlp_dim=params["blocks_0"]["mlp"]["up"]["bias"].shape[0], key_depths=(0,),
    )  # fmt: skip
    loaded = component(config, "discriminator").load(tmp_path / "dino.safetensors")
    assert_same_files(flatten(loaded), flatten(params))
    config.discriminator.model.num_heads = 2 * num_heads
    config.discriminator.model.depth += 1
    with pytest.raises(ValueError, match=r"config\.discriminator\.model:\n  depth is"):
        component(config, "discriminator").load(tmp_path / "dino.safetensors")
