"""Weights directories: how trained or imported parameters are kept on disk for other stages, runs and tools.

A directory holds `weights.safetensors`, with a float32 tensor for each parameter under its path
(`blocks_0/mlp/up/kernel`), and `weights.json`, which says what they are. Blocks are always stored one by one, whether the model scans them or not.
"""

import difflib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from rae_jax.interop.layout import flatten, stack_blocks, unstack_blocks

TENSORS, DESCRIPTION = "weights.safetensors", "weights.json"


def save_weights(directory: str | Path, params: Any, description: dict[str, Any]) -> None:
    """Writes `params` (nested dict of arrays) to `directory`, whole or not at all, replacing what was there."""
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        flat = flatten(unstack_blocks(params) if "blocks" in params else params)
        save_file({name: np.ascontiguousarray(value) for name, value in flat.items()}, temporary / TENSORS)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(directory: str | Path, structure: Any, component: str) -> Any:
    """The parameters in `directory`, arranged as `structure` (nested dict of things with a shape).

    Raises:
      ValueError: no such weights, or names or shapes that differ from the structure's; all differences are listed.
    """
    path = Path(directory) / TENSORS
    if not path.is_file():
        raise ValueError(f"config.{component}.weights={str(directory)!r}: there is no {TENSORS} in it")
    with safe_open(path, framework="numpy") as file:
        stored = unflatten_dict({name: file.get_tensor(name) for name in file.keys()}, sep="/")  # noqa: SIM118
    stored = flatten(stack_blocks(stored) if "blocks" in structure else stored)
    expected = flatten(structure)
    problems = [
        f"missing    {name} {tuple(expected[name].shape)}{_nearest(name, stored)}" for name in expected.keys() - stored
    ]
    problems += [
        f"unexpected {name} {stored[name].shape}{_nearest(name, expected)}" for name in stored.keys() - expected
    ]
    problems += [
        f"misshapen  {name}: {stored[name].shape}, the model has {tuple(expected[name].shape)}"
        for name in stored.keys() & expected
        if stored[name].shape != tuple(expected[name].shape)
    ]
    if problems:
        raise ValueError(
            f"config.{component}.weights={str(directory)!r} does not fit config.{component}.model:\n  "
            + "\n  ".join(sorted(problems))
        )
    return unflatten_dict(stored, sep="/")


def _nearest(name: str, candidates: Any) -> str:
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.7)
    return f"; nearest: {near[0]}" if near else ""
