"""Official checkpoint files, as tensors by name: reading never runs code from the file, writing is whole or not at all.

Read are `.safetensors` files, memory-mapped, so that a large file costs no more memory than what is looked at; `.pt`,
`.pth`, `.bin` and `.ckpt` files by torch's weights-only loading, also compressed, with `.zstd` after that; and
directories as Hugging Face lays them out, with one file or with shards and their index, which may be named itself.
Dtypes are the file's own, bfloat16 included.
"""

import argparse
import json
import mmap
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rae_jax.files import whole_file
from rae_jax.interop.layout import Tensors
from rae_jax.spelling import nearest

# What a training checkpoint calls the weights to use, the wanted first.
ENTRIES = ("ema", "model", "state_dict", "model_state_dict")
# What stands before every name of an entry that was written flat.
PREFIXES = tuple(f"{entry}." for entry in ENTRIES)
# What compiled, parallel and checkpointed modules put into the names of what they wrap, anywhere.
WRAPPERS = ("module", "_orig_mod", "_orig_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "n_averaged"  # beside the weights of torch's AveragedModel
PATHLIB = ("pathlib", "pathlib._local")  # where its classes are, by the version of Python that wrote
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
COMPRESSED = ".zstd"  # after one of these
DIRECTORY_FILES = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin",
    "model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.pth.zstd",
)  # fmt: skip
INDEX = ".index.json"
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


def read_tensors(path: str | Path, part: str = "") -> Tensors:
    """The tensors of an official file or directory, without the wrapping of training checkpoints.

    Of a checkpoint with several entries the first of `ENTRIES` is taken; `WRAPPERS` are cut out of names, and a prefix
    of `PREFIXES` that all names share is dropped.

    Args:
      path: a file, or a directory that Hugging Face's libraries wrote.
      part: read only this entry of the checkpoint, or only the tensors named `<part>.<name>`, as `<name>`.

    Raises:
      ValueError: the file is absent, damaged, would run code when loaded, or has no such part.
    """
    path = Path(path)
    content = _read_directory(path) if path.is_dir() else _read_file(path)
    if part:
        content = _part(content, part, path)
    else:
        while entry := next((name for name in ENTRIES if _holds_arrays(content.get(name))), None):
            content = content[entry]
    tensors = _unwrapped(_flatten(content), path)
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors` as a safetensors file or as a torch state dict, by the ending of `path`.

    A compressed one has them in its entry `model`, as Scale-RAE's trainer writes it.

    Raises:
      ValueError: the ending is another.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    elif _is_pickle(path):
        torch = _torch(f"to write {path}")
        content = {name: _to_torch(torch, value) for name, value in tensors.items()}
        with whole_file(path) as file:
            if path.suffix == COMPRESSED:
                with _zstandard(path).ZstdCompressor().stream_writer(file, closefd=False) as stream:
                    torch.save({"model": content}, stream)
            else:
                torch.save(content, file)
    else:
        raise ValueError(_endings(path))


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, one tensor after the other: in memory is a copy of one at a time."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    # The widest first: every tensor then begins at a multiple of its own width, as memory-mapping wants it.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, offset = {}, 0
    for name in order:
        array = tensors[name]
        if array.dtype not in codes:
            raise ValueError(f"{name} is {array.dtype}, which safetensors files cannot hold")
        end = offset + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def read_safetensors(path: str | Path) -> Tensors:
    """Read-only arrays over the memory-mapped file: a page of it is read when it is looked at.

    Raises:
      ValueError: no such file, or no valid one.
    """
    try:
        with safe_open(path, framework="numpy"):  # checks that the header describes the file exactly
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from None
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    if unknown := {name: entry["dtype"] for name, entry in header.items() if entry["dtype"] not in DTYPES}:
        raise ValueError(f"{path}: tensors of an unknown dtype: {unknown}")
    return {
        name: np.ndarray(entry["shape"], DTYPES[entry["dtype"]], data, 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _unwrapped(tensors: Tensors, path: Path) -> Tensors:
    """The tensors without the counter of an average, and with names from which wrappers are cut out."""
    tensors = {name: value for name, value in tensors.items() if name != COUNTER}
    names = {name: ".".join(word for word in name.split(".") if word not in WRAPPERS) for name in tensors}
    if len(set(names.values())) < len(names):
        twice = sorted(name for name in names if list(names.values()).count(names[name]) > 1)
        raise ValueError(f"{path}: {' and '.join(twice[:2])} are one name without {', '.join(WRAPPERS)}")
    return {names[name]: value for name, value in tensors.items()}


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file or directory {path}")
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == COMPRESSED and _is_pickle(path):
        return _read_compressed(path)
    if _is_pickle(path):
        return _read_pickle(path)
    raise ValueError(_endings(path))


def _is_pickle(path: Path) -> bool:
    return (path.with_suffix("") if path.suffix == COMPRESSED else path).suffix in PICKLES


def _endings(path: Path) -> str:
    return f"{path}: a checkpoint's name ends in .safetensors or one of {', '.join(PICKLES)}, perhaps with {COMPRESSED}"


def _read_compressed(path: Path) -> dict[str, Any]:
    """A compressed checkpoint, by way of a file that takes disk, not memory, and is gone once nothing maps it."""
    zstandard = _zstandard(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.with_suffix("").name
        try:
            with path.open("rb") as compressed, plain.open("wb") as file:
                zstandard.ZstdDecompressor().copy_stream(compressed, file)
        except zstandard.ZstdError as error:
            raise ValueError(f"{path} is no readable compressed checkpoint: {error}") from None
        return _read_pickle(plain)


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{path} needs zstandard: pip install zstandard") from None
    return zstandard


def _read_directory(path: Path) -> dict[str, Any]:
    for name in DIRECTORY_FILES:
        if (path / name).is_file():
            return _read_file(path / name)
        if (path / f"{name}{INDEX}").is_file():
            return _read_shards(path / f"{name}{INDEX}")
    raise ValueError(f"{path} is no directory of weights: there is none of {', '.join(DIRECTORY_FILES)} in it")


def _read_shards(index: Path) -> dict[str, Any]:
    """The tensors of a sharded checkpoint, each from the shard that the index names."""
    try:
        places = dict(json.loads(index.read_text())["weight_map"])
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from None
    try:
        shards = {name: _read_file(index.parent / name) for name in names if _beside(name)}
        return {name: shards[shard][name] for name, shard in places.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of the shards beside it: {error!r}") from None


def _beside(name: str) -> bool:
    """Whether `name` is that of a file in the same directory, not a path to somewhere else."""
    return Path(name).name == name


def _read_pickle(path: Path) -> dict[str, Any]:
    torch = _torch(f"to read {path}")
    try:
        # Only the zip format of torch 1.6 and later can be mapped.
        with torch.serialization.safe_globals(_plain_data()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"more than tensors ({named[1]})" if named else "more than tensors"
        raise ValueError(
            f"{path} is refused: it holds {what}, and loading it could run code. Nothing of it was run. "
            "Ask whoever made it for a safetensors file, or a plain state dict"
        ) from None
    except Exception as error:  # a damaged pickle can end in an error of any type
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is no readable torch checkpoint ({type(error).__name__}: {reason})") from None
    content = _to_numpy(torch, content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state dict")
    return content


def _plain_data() -> list[Any]:
    """What training scripts keep beside the weights and what runs nothing: arguments, paths, NumPy's numbers."""
    scalar, numbers = np.float32(0).__reduce__()[0], (np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [
        argparse.Namespace,
        *((path, f"{module}.{path.__name__}") for path in (PosixPath, PurePosixPath) for module in PATHLIB),
        *((scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
        np.dtype,
        *(type(np.dtype(number)) for number in numbers),
    ]


def _to_numpy(torch: Any, content: Any) -> Any:
    """`content` with arrays for tensors and without anything that is none; lists become mappings by index."""
    if isinstance(content, torch.Tensor):
        content = content.detach()
        if content.dtype == torch.bfloat16:
            return content.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return content.numpy()
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, Mapping):
        converted = {str(name): _to_numpy(torch, value) for name, value in content.items()}
        return {name: value for name, value in converted.items() if value is not None}
    return None


def _to_torch(torch: Any, array: np.ndarray) -> Any:
    array = np.require(array, requirements=("C", "W"))  # which torch shares; a copy only where it has to be
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{purpose} needs PyTorch: pip install torch, or use a .safetensors file") from None
    return torch


def _part(content: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    if isinstance(content.get(part), Mapping):
        return content[part]
    prefix = part.removesuffix(".") + "."
    chosen = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    if not chosen:
        parts = sorted({name.split(".")[0] for name in content})
        raise ValueError(f"{path} has no part {part!r}{nearest(part, parts)}; there are {parts[:20]}")
    return chosen


def _holds_arrays(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(value, np.ndarray) or _holds_arrays(value) for value in content.values()
    )


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Tensors:
    tensors: Tensors = {}
    for name, value in content.items():
        tensors |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return tensors
