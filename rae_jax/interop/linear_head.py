"""DINOv2 with its linear classifier from and to checkpoints: Hugging Face's, or Meta's two files together.

Hugging Face has both in one file (`dinov2_with_registers.*`, `classifier.*`). Meta's encoder, and its head of one
layer, whose tensors are called `weight` and `bias`, are two files without a name in common. The encoder's last norm,
which RAE replaces by one without parameters, is a part of the head here.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import vit
from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Rule,
    Tensors,
    affine,
    export_params,
    import_params,
    prefixed,
    under,
)
from rae_jax.interop.model import Model
from rae_jax.interop.vit_names import NAMES

CLASS_TOKEN = r"(dinov2(?:_with_registers)?\.)?(?:embeddings\.)?cls_token"  # a prefix, and the token


def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    """Encoder and head.

    Raises:
      ValueError: the head looks at more layers than the last.
    """
    prefix = next((found[1] or "" for name in tensors if (found := re.fullmatch(CLASS_TOKEN, name))), "")
    head = "classifier." if prefix else ""
    encoder = under(tensors, prefix)
    family, version = vit.identify(encoder)
    found = vit.architecture(encoder, num_heads)
    num_classes, features = tensors[f"{head}weight"].shape
    if features != 2 * found["width"]:
        raise ValueError(
            f"{head}weight is for {features} features; the head of one layer has {2 * found['width']}, twice the "
            "encoder's width, and others are not read"
        )
    architecture = {"encoder": found, "linear_head": {"num_classes": num_classes}}
    names = {"prefix": prefix, "head": head, "family": family, "version": version}
    norm = f"{prefix}{NAMES[family, version].last_norm}.weight"
    unused = [name for name in vit.carried_names(family, version, found, prefix) if not re.fullmatch(name, norm)]
    return Model(architecture, *import_params(tensors, _rules(architecture, **names), unused), names)


def write(model: Model) -> Tensors:
    """The inverse of `read`.

    Raises:
      ValueError: the model was not read from such files.
    """
    if not model.names:
        raise ValueError("an encoder with its linear head is written only if it was read from such files")
    return export_params(model.params, _rules(model.architecture, **model.names), model.carried)


def _rules(architecture: Mapping[str, Any], prefix: str, head: str, family: str, version: int) -> list[Rule]:
    rules = prefixed(vit.rules(family, version, architecture["encoder"]), prefix, "encoder/")
    rules += affine(f"{prefix}{NAMES[family, version].last_norm}", "linear_head/norm")
    linear = "linear_head/linear"
    return [*rules, Rule(f"{head}weight", f"{linear}/kernel", LINEAR), Rule(f"{head}bias", f"{linear}/bias", IDENTITY)]
