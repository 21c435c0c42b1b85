"""KL-VAEs in the names of latent diffusion's own code: diffusers' converter reads what is written here."""

import numpy as np
import pytest
from golden import cases

from rae_jax.interop import diffusers_kl, ldm_kl
from rae_jax.interop.kinds import identify


def assert_same_files(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def of_diffusers(**changes):
    """A small AutoencoderKL, and its tensors."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, latent_channels=32, **blocks | changes
    )
    return model, {name: value.numpy() for name, value in model.state_dict().items()}


def test_what_is_written_is_what_diffusers_converts_to_its_own_names_and_comes_back():
    converter = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    model, tensors = of_diffusers()
    ours = ldm_kl.write(diffusers_kl.read(tensors, num_groups=4))
    assert "decoder.up.0.block.0.nin_shortcut.weight" in ours and ours["encoder.mid.attn_1.q.weight"].ndim == 4
    converted = converter.convert_ldm_vae_checkpoint(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in ours.items()}, dict(model.config)
    )
    assert_same_files({name: value.numpy() for name, value in converted.items()}, tensors)
    assert identify(ours) == "ldm_kl"
    assert_same_files(ldm_kl.write(ldm_kl.read(ours, num_groups=4)), ours)


def test_attention_within_levels_comes_back_under_its_level():
    attention = dict(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    _, tensors = of_diffusers(**attention)
    ours = ldm_kl.write(diffusers_kl.read(tensors, num_groups=4))
    assert {"encoder.down.2.attn.1.proj_out.weight", "decoder.up.2.attn.2.norm.bias"} <= ours.keys()
    read = ldm_kl.read(ours, num_groups=4)
    assert read.architecture["encoder_attention_levels"] == read.architecture["decoder_attention_levels"] == (2,)
    assert_same_files(diffusers_kl.write(diffusers_kl.read(tensors, num_groups=4)), tensors)
    assert_same_files(ldm_kl.write(read), ours)


@cases("kl_vae")
def test_what_belongs_to_training_is_carried_and_anything_else_refused(case):
    model = diffusers_kl.read(case.weights, num_groups=case.constructor["norm_num_groups"])
    ours = ldm_kl.write(model) | {"loss.logvar": np.zeros(()), "linear_proj.weight": np.zeros((2, 2))}
    read = ldm_kl.read(ours, num_groups=case.constructor["norm_num_groups"])
    assert read.carried.keys() == {"loss.logvar", "linear_proj.weight"}
    assert_same_files(ldm_kl.write(read), ours)
    with pytest.raises(ValueError, match=r"encoder\.down\.0\.blok\.0\.norm1\.weight is no tensor of a KL-VAE"):
        ldm_kl.read(ours | {"encoder.down.0.blok.0.norm1.weight": np.zeros(1)})
