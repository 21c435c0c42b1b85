"""The FID Inception network as pytorch-fid and torch-fidelity distribute it (`pt_inception-2015-12-05`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import CONV, IDENTITY, LINEAR, Rule, Tensors, export_params, import_params
from rae_jax.interop.model import Model

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_DOUBLE = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_A = ("branch1x1", "branch5x5_1", "branch5x5_2", *_DOUBLE, "branch_pool")
_B = ("branch3x3", *_DOUBLE)
_C = ("branch1x1", *(f"branch7x7_{i}" for i in (1, 2, 3)), *(f"branch7x7dbl_{i}" for i in range(1, 6)), "branch_pool")
_D = ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{i}" for i in range(1, 5)))
_E = (
    "branch1x1",
    *("branch3x3_1", "branch3x3_2a", "branch3x3_2b"),
    *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b"),
    "branch_pool",
)
_BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),
    "Mixed_6a": _B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),
    "Mixed_7a": _D,
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), _E),
}
_CONVOLUTIONS = (*_STEM, *(f"{block}.{branch}" for block, branches in _BLOCKS.items() for branch in branches))
_PARTS = (
    ("conv.weight", "kernel", CONV),
    ("bn.weight", "scale", IDENTITY),
    ("bn.bias", "bias", IDENTITY),
    ("bn.running_mean", "mean", IDENTITY),
    ("bn.running_var", "var", IDENTITY),
)

INCEPTION_RULES = (
    *(
        Rule(f"{convolution}.{official}", f"{convolution.replace('.', '/')}/{ours}", layout)
        for convolution in _CONVOLUTIONS
        for official, ours, layout in _PARTS
    ),
    Rule("fc.weight", "fc/kernel", LINEAR),
)
# ADM takes the Inception score from logits without the bias; the counters are PyTorch's own.
INCEPTION_CARRIED = (r"fc\.bias", r".*\.bn\.num_batches_tracked")


def import_inception(tensors: Mapping[str, np.ndarray], like: Any = None) -> dict[str, Any]:
    """The parameters of `models.inception.Inception` from the official tensors; `like` as in `import_params`."""
    return import_params(tensors, INCEPTION_RULES, INCEPTION_CARRIED, like)[0]


def read(tensors: Mapping[str, np.ndarray]) -> Model:
    """The official file."""
    return Model({}, *import_params(tensors, INCEPTION_RULES, INCEPTION_CARRIED))


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_params(model.params, INCEPTION_RULES, model.carried)
