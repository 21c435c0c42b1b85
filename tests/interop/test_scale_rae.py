"""Checkpoints of Scale-RAE come back bit for bit, wrapped and compressed ones too, and wrong ones are refused."""

import numpy as np
import pytest
from golden import cases

from rae_jax.interop import kinds, scale_rae
from rae_jax.interop.checkpoint_files import read_tensors, write_tensors


def published(case):
    """The tensors that upstream's file has: without the encoder and the frequencies."""
    left_out = f"{scale_rae.DIT}{scale_rae.FREQUENCIES}"
    return {n: v for n, v in case.weights.items() if not n.startswith("vision_tower.") and n != left_out}


def options_of(case):
    return {"num_heads": case.constructor["num_attention_heads"]}


@cases("scale_rae_t2i", "scale_rae_understanding")
def test_a_published_file_is_known_and_comes_back_bit_for_bit(case):
    tensors = published(case)
    assert kinds.identify(tensors) == "scale_rae"
    model = kinds.import_model("scale_rae", tensors, **options_of(case))
    frequencies = model.params["text_dit"]["time_embedding"]["frequencies"]
    expected = case.weights[f"{scale_rae.DIT}{scale_rae.FREQUENCIES}"]
    np.testing.assert_allclose(frequencies, expected, atol=2e-6)
    back = kinds.export_model("scale_rae", model)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@cases("scale_rae_t2i")
def test_a_projector_that_reads_squares_of_tokens_is_told_by_an_option(case):
    tensors, name = published(case), "model.mm_projector.0.weight"
    channels = tensors[name].shape[1]
    tensors[name] = np.tile(tensors[name], 4)
    model = kinds.import_model("scale_rae", tensors, **options_of(case), spatial_merge=2)
    adapters = model.architecture["adapters"]
    assert (adapters["features"], adapters["spatial_merge"]) == (channels, 2)
    np.testing.assert_array_equal(kinds.export_model("scale_rae", model)[name], tensors[name])
    with pytest.raises(ValueError, match=f"{name} reads {4 * channels} channels, which are not 9 x 9 tokens'"):
        kinds.import_model("scale_rae", tensors, **options_of(case), spatial_merge=9)


@cases("scale_rae_t2i")
def test_a_training_checkpoint_is_unwrapped_and_goes_out_compressed(case, tmp_path):
    torch = pytest.importorskip("torch")
    zstandard = pytest.importorskip("zstandard")
    tensors = published(case)
    wrapped = {name.replace("layers.0.", "layers.0._orig_module."): torch.tensor(v) for name, v in tensors.items()}
    torch.save({"model": wrapped}, tmp_path / "plain.pth")
    compressed = zstandard.ZstdCompressor().compress((tmp_path / "plain.pth").read_bytes())
    (tmp_path / "model.pth.zstd").write_bytes(compressed)
    write_tensors(tmp_path / "ours.pth.zstd", tensors)
    for path in (tmp_path, tmp_path / "model.pth.zstd", tmp_path / "ours.pth.zstd"):
        read = read_tensors(path)
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(read[name], value, err_msg=name)
    (tmp_path / "model.pth.zstd").write_bytes(compressed[:-100])
    with pytest.raises(ValueError, match="is no readable"):
        read_tensors(tmp_path)


@cases("scale_rae_t2i")
def test_a_file_that_lacks_something_is_refused_by_name(case):
    for name in (
        "model.latent_queries",
        "model.layers.1.mlp.up_proj.weight",
        f"{scale_rae.DIT}final_layer.linear.bias",
    ):
        tensors = published(case)
        del tensors[name]
        with pytest.raises(ValueError, match=name.removeprefix(scale_rae.DIT).replace(".", r"\.")):
            kinds.import_model("scale_rae", tensors, **options_of(case))
