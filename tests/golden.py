"""Golden cases: outputs of the official implementations, to compare with, and weights under their official names.

A case is a folder of `../shared/golden`, or of the directory that `RAE_JAX_GOLDEN` names. Its `case.json` says which
class was built with which arguments, and which calls were made: names and literals of their inputs and outputs, and the
tolerance. Tests take all of it from there, so that they hold for any case of the kind, whatever its sizes.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

DIRECTORY = Path(os.environ.get("RAE_JAX_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")
NO_CASE = "no golden case"  # the reason of every skip, by which conftest.py counts them


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the official code; remarks in brackets are cut off the names of inputs and outputs.

    Attributes:
      function: what was called.
      inputs: tensors and literals by name.
      outputs: tensors by name.
    """

    function: str
    inputs: dict[str, Any]
    outputs: dict[str, np.ndarray]

    def gradients(self, of: str) -> dict[str, np.ndarray]:
        """The expected gradients of `of`, by the official name of the parameter."""
        start = f"grad of {of} wrt "
        return {name.removeprefix(start): g for name, g in self.outputs.items() if name.startswith(start)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case; files are read when they are first asked for."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """The content of case.json."""
        return json.loads((self.folder / "case.json").read_text())

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "weights.safetensors")

    @functools.cached_property
    def io(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "io.safetensors")

    @property
    def constructor(self) -> dict[str, Any]:
        """The official arguments of what was built."""
        return self.description["constructor"]

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The official arguments of each network in the file, by the prefix of its weights; the main one is first."""
        prefixes = self.description.get("weights_prefixes", {"": ""})
        return {p: self.description.get(f"{p.removesuffix('.')}_constructor", self.constructor) for p in prefixes}

    def weights_under(self, prefix: str) -> dict[str, np.ndarray]:
        """The weights whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}

    def calls(self, function: str) -> list[Call]:
        """The calls whose function matches the pattern `function` as a whole, in their order."""

        def resolved(values: dict[str, Any]) -> dict[str, Any]:
            names = {re.sub(r" [(\[].*", "", name): value for name, value in values.items()}
            return {name: self.io[v[1:]] if str(v).startswith("@") else v for name, v in names.items()}

        chosen = [call for call in self.description["calls"] if re.fullmatch(function, call["function"])]
        return [Call(c["function"], resolved(c["inputs"]), resolved(c["outputs"])) for c in chosen]

    def call(self, function: str) -> Call:
        """The only such call."""
        (only,) = self.calls(function)
        return only

    def noted(self, unit: str) -> float:
        """The number before `unit` in the note on the tolerance, such as "3e-3 absolute" or "1 percent"."""
        return float(re.search(rf"([\d.e-]+) {unit}", self.description["tolerance"]["note"])[1])

    def assert_close(self, actual: Any, expected: Any, *, part: float = 1.0, **noted: float) -> None:
        """`actual` equals `expected` within `part` of the case's tolerance.

        `noted` is an `atol` or `rtol` that the case has for this output.
        """
        tolerance = {name: part * self.description["tolerance"][name] for name in ("atol", "rtol")} | noted
        np.testing.assert_allclose(np.asarray(actual), expected, **tolerance, err_msg=self.name)

    def assert_gradient_close(self, actual: Any, expected: np.ndarray, rtol: float | None = None) -> None:
        """Within the case's relative tolerance, or `rtol`, of the largest entry: gradients are small numbers."""
        rtol = self.description["tolerance"]["rtol"] if rtol is None else rtol
        np.testing.assert_allclose(actual, expected, atol=rtol * np.abs(expected).max(), rtol=0, err_msg=self.name)


@functools.cache
def find(*kinds: str) -> tuple[Case, ...]:
    """The cases whose folder's name starts with one of `kinds`."""
    return tuple(
        Case(file.parent) for file in sorted(DIRECTORY.glob("*/case.json")) if file.parent.name.startswith(kinds)
    )


def cases(*kinds: str, where: Callable[[Case], Any] = lambda case: True) -> pytest.MarkDecorator:
    """Runs a test with every `case` of `kinds`, or of those for which `where` holds."""
    return over("case", ((case,) for case in find(*kinds) if where(case)), kinds)


def networks(*kinds: str) -> pytest.MarkDecorator:
    """Runs a test with every network, `case` and `prefix` of its weights, in the cases of `kinds`."""
    return over("case, prefix", ((case, prefix) for case in find(*kinds) for prefix in case.networks), kinds)


def over(arguments: str, values: Iterable[tuple], kinds: tuple[str, ...]) -> pytest.MarkDecorator:
    """Runs a test with each of `values`; where there are none it is skipped, and the run's last lines say so."""
    made = [pytest.param(*v, id="-".join(x.name if isinstance(x, Case) else str(x) for x in v)) for v in values]
    count = len(arguments.split(","))
    reason = f"{NO_CASE} for it among {' and '.join(f'{kind}*' for kind in kinds)} in {DIRECTORY}"
    return pytest.mark.parametrize(
        arguments, made or [pytest.param(*[None] * count, marks=pytest.mark.skip(reason=reason), id="none")]
    )


def tokens(feature_map: np.ndarray) -> np.ndarray:
    """`[..., C, h, w] -> [..., h * w, C]`."""
    return np.swapaxes(feature_map.reshape(*feature_map.shape[:-2], -1), -1, -2)


def nhwc(images: np.ndarray) -> np.ndarray:
    """`[..., C, H, W] -> [..., H, W, C]`."""
    return np.moveaxis(images, -3, -1)
