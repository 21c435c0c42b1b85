"""Official files are read whatever wraps them, never run code, and are written whole."""

import argparse
import json
import os
import pathlib
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rae_jax.interop.checkpoint_files import read_tensors, write_safetensors, write_tensors

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)}


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def torch_file(path, content, **options):
    torch = pytest.importorskip("torch")

    def convert(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        return {k: convert(v) for k, v in value.items()} if isinstance(value, dict) else value

    torch.save(convert(content), path, **options)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_what_is_written_is_read(tmp_path, suffix):
    write_tensors(tmp_path / f"x{suffix}", STATE)
    assert_same(read_tensors(tmp_path / f"x{suffix}"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_dtypes_are_kept(tmp_path, suffix, dtype):
    state = {"a": np.array([[1.5, -2.0]], dtype), "flag": np.array(True), "none": np.zeros((0, 3), np.float32)}
    write_tensors(tmp_path / f"x{suffix}", state)
    assert_same(read_tensors(tmp_path / f"x{suffix}"), state)


def test_safetensors_are_what_the_library_reads_and_writes(tmp_path):
    transposed = {"c": STATE["a.weight"].T, "half": np.ones(3, np.float16), **STATE}
    write_safetensors(tmp_path / "ours.safetensors", transposed)
    assert_same(load_file(tmp_path / "ours.safetensors"), transposed)
    save_file(STATE, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    read = read_tensors(tmp_path / "theirs.safetensors")
    assert_same(read, STATE)
    assert not read["b"].flags.writeable  # a view of the file


WRAPPED = {
    "raw": STATE,
    "model": {"model": STATE, "opt": {"state": {0: {"step": np.zeros(1)}}}, "epoch": 3},
    "ema is preferred": {"model": {"a": np.zeros(1)}, "ema": STATE},
    "state_dict": {"state_dict": STATE},
    "module.": {f"module.{name}": value for name, value in STATE.items()},
    "both": {"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "args": ["x"]},
    "an empty ema": {"ema": {}, "model": STATE},
    "arguments of a training script": {"ema": STATE, "args": argparse.Namespace(lr=1e-4)},
    "model_state_dict": {"model_state_dict": STATE, "epoch": 3},
    "an average": {"n_averaged": np.array(7), **{f"module.{name}": value for name, value in STATE.items()}},
    "a compiled part": {"_orig_mod.a._orig_mod.weight": STATE["a.weight"], "b": STATE["b"]},
    "divided": {"_fsdp_wrapped_module.a._checkpoint_wrapped_module.weight": STATE["a.weight"], "module.b": STATE["b"]},
    "a path": {"model": STATE, "workdir": pathlib.Path("/runs/x")},
    "numbers of NumPy": {"model": STATE, "best": np.float64(2.5), "step": np.int64(7), "loss": np.float32(1)},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_recognised(tmp_path, case):
    assert_same(read_tensors(torch_file(tmp_path / "x.pt", WRAPPED[case])), STATE)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_prefix_of_all_names_is_dropped_and_one_of_some_is_kept(tmp_path, prefix):
    write_safetensors(tmp_path / "x.safetensors", {prefix + name: value for name, value in STATE.items()})
    assert_same(read_tensors(tmp_path / "x.safetensors"), STATE)
    some = {prefix + "a": STATE["b"], "b": STATE["b"]}
    write_safetensors(tmp_path / "x.safetensors", some)
    kept = prefix.removeprefix("module.")  # a wrapper goes wherever it stands
    assert_same(read_tensors(tmp_path / "x.safetensors"), {kept + "a": STATE["b"], "b": STATE["b"]})


def test_two_names_that_differ_in_a_wrapper_only_are_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a.module.b": STATE["b"], "a.b": STATE["b"]})
    with pytest.raises(ValueError, match=r"a\.b and a\.module\.b are one name without module"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_part_can_be_chosen(tmp_path):
    path = torch_file(tmp_path / "x.pt", {"model": STATE, "ema": {"a": np.zeros(1)}})
    assert_same(read_tensors(path, "model"), STATE)
    write_safetensors(tmp_path / "y.safetensors", {"weak.a": STATE["b"], "model.a": STATE["a.weight"]})
    assert_same(read_tensors(tmp_path / "y.safetensors", "weak"), {"a": STATE["b"]})
    with pytest.raises(ValueError, match=r"no part 'modle'; nearest: model; there are \['model', 'weak'\]"):
        read_tensors(tmp_path / "y.safetensors", "modle")


def test_files_of_the_format_before_zip_are_read(tmp_path):
    path = torch_file(tmp_path / "x.pth", {"model": STATE}, _use_new_zipfile_serialization=False)
    assert_same(read_tensors(path), STATE)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_malicious_pickle_is_refused_and_nothing_is_executed(tmp_path, how):
    torch = pytest.importorskip("torch")
    marker, path = tmp_path / "executed", tmp_path / "x.pt"
    content = {"model": {"a": torch.zeros(2)}, "args": RunsCode(str(marker))}
    if how == "pickle":
        path.write_bytes(pickle.dumps(RunsCode(str(marker))))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"x.pt is refused: .* could run code. Nothing of it was run"):
        read_tensors(path)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017 (anything)
        torch.load(path, weights_only=False)["nothing"]
    assert marker.exists()  # the file was malicious indeed


def test_without_torch_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"to read .*x.pt needs PyTorch: pip install torch"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model"])
def test_hugging_face_directories_are_read_whole_or_in_shards(tmp_path, name):
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    write_safetensors(single / f"{name}.safetensors", STATE)
    assert_same(read_tensors(single), STATE)
    places = {}
    for i, (tensor, value) in enumerate(STATE.items()):
        places[tensor] = f"{name}-{i}.safetensors"
        write_safetensors(sharded / places[tensor], {tensor: value})
    index = sharded / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(read_tensors(sharded), STATE)
    assert_same(read_tensors(index), STATE)
    write_safetensors(tmp_path / "half" / f"{name}.fp16.safetensors", STATE)
    assert_same(read_tensors(tmp_path / "half"), STATE)
    index.write_text(json.dumps({"weight_map": {**places, "b": f"../single/{name}.safetensors"}}))
    with pytest.raises(ValueError, match="no index of the shards beside it"):
        read_tensors(sharded)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "no readable safetensors file"),
        ("x.pt", b"PK\x03\x04 not really", "no readable torch checkpoint|is refused"),
        ("x.npz", b"", "name ends in .safetensors or one of .pt"),
    ],
)
def test_damaged_and_foreign_files_are_errors_that_name_them(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(tmp_path / name)
    assert name in str(error.value)


def test_absent_files_and_empty_directories_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no file or directory"):
        read_tensors(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"no directory of weights: there is none of model.safetensors"):
        read_tensors(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path, calls = tmp_path / "x.safetensors", []
    write_tensors(path, STATE)

    def full_disk(array):
        calls.append(array)
        if len(calls) == 2:
            raise OSError("disk full")
        return array

    monkeypatch.setattr(np, "ascontiguousarray", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"c": STATE["b"], **STATE})
    assert_same(read_tensors(path), STATE)
    assert list(tmp_path.iterdir()) == [path]
