"""Reads the golden cases: reference outputs of the official implementations, and weights under their official names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case: `description` is its case.json, `weights` and `io` its tensors by name."""

    name: str
    description: dict[str, Any]
    weights: dict[str, np.ndarray]
    io: dict[str, np.ndarray]

    def weights_under(self, prefix: str) -> dict[str, np.ndarray]:
        """The weights whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}

    def assert_close(self, actual: Any, expected: str, *, atol: float | None = None, rtol: float | None = None) -> None:
        """`actual` equals the tensor `expected` within the case's own tolerance, or a given one."""
        tolerance = self.description["tolerance"]
        np.testing.assert_allclose(
            np.asarray(actual),
            self.io[expected],
            atol=tolerance["atol"] if atol is None else atol,
            rtol=tolerance["rtol"] if rtol is None else rtol,
            err_msg=f"{self.name}: {expected}",
        )


def load_case(name: str) -> Case:
    """The golden case `name`; skips the calling test where the golden files are not beside the checkout."""
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"golden reference outputs are not beside this checkout ({folder})")
    weights = folder / "weights.safetensors"
    return Case(
        name,
        json.loads((folder / "case.json").read_text()),
        load_file(weights) if weights.exists() else {},
        load_file(folder / "io.safetensors"),
    )


def tokens(feature_map: np.ndarray) -> np.ndarray:
    """`[..., C, h, w] -> [..., h * w, C]`."""
    return np.swapaxes(feature_map.reshape(*feature_map.shape[:-2], -1), -1, -2)


def nhwc(images: np.ndarray) -> np.ndarray:
    """`[..., C, H, W] -> [..., H, W, C]`."""
    return np.moveaxis(images, -3, -1)
