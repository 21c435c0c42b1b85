"""The DINO discriminator from and to its official names: the heads RAE trains, and the published DINO ViT-S/8."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    CONV,
    IDENTITY,
    LINEAR,
    Layout,
    Rule,
    Tensors,
    count_blocks,
    export_params,
    import_params,
    patch_embedding,
    prefixed,
    stacked,
    to_heads,
    under,
    without_leading,
)
from rae_jax.interop.model import Model

# DINO's own final norm, which the discriminator does not use, and constants of its input scaling.
DINO_CARRIED = (r"norm\.(weight|bias)", r"x_scale", r"x_shift")
_CONVOLUTIONS = {"0.0": "first", "1.fn.0": "residual", "2": "logit"}
_NORMS = {"0.1": "first_norm", "1.fn.1": "residual_norm"}


def dino_rules(depth: int, num_heads: int, patch_size: int) -> list[Rule]:
    """The rules of `DinoFeatures`, under the names of DINO's published files.

    The reference sets the keys' bias to zero when it loads them. It adds the same number to all logits of one query, so
    the softmax does not see it; here it stays as it is.
    """
    result = [
        Rule("cls_token", "embedding/cls_token", without_leading(1)),
        Rule("pos_embed", "embedding/position_embedding", without_leading(1)),
        Rule("patch_embed.proj.weight", "embedding/patch/kernel", patch_embedding(patch_size)),
        Rule("patch_embed.proj.bias", "embedding/patch/bias", IDENTITY),
    ]
    for i in range(depth):
        official, ours = f"blocks.{i}", f"blocks_{i}"
        for norm, our_norm in (("norm1", "attention_norm"), ("norm2", "mlp_norm")):
            result.append(Rule(f"{official}.{norm}.weight", f"{ours}/{our_norm}/scale", IDENTITY))
            result.append(Rule(f"{official}.{norm}.bias", f"{ours}/{our_norm}/bias", IDENTITY))
        heads = stacked(to_heads(num_heads))
        for leaf, our_leaf in (("weight", "kernel"), ("bias", "bias")):
            result.append(Rule(f"{official}.attn.qkv.{leaf}", f"{ours}/attention/qkv/{our_leaf}", heads))
        result.append(Rule(f"{official}.attn.proj.weight", f"{ours}/attention/out/kernel", LINEAR))
        result.append(Rule(f"{official}.attn.proj.bias", f"{ours}/attention/out/bias", IDENTITY))
        for layer, our_layer in (("fc1", "up"), ("fc2", "down")):
            result.append(Rule(f"{official}.mlp.{layer}.weight", f"{ours}/mlp/{our_layer}/kernel", LINEAR))
            result.append(Rule(f"{official}.mlp.{layer}.bias", f"{ours}/mlp/{our_layer}/bias", IDENTITY))
    return result


def heads_rules(num_heads: int, kernel_size: int, spectral_norm: bool = True) -> list[Rule]:
    """The rules of `Heads`, for paths that start with the variable collection: `params/...` and `spectral/...`."""
    result = []
    for i in range(num_heads):
        for official, ours in _CONVOLUTIONS.items():
            official, size = f"{i}.{official}", kernel_size if ours == "residual" else 1
            params, spectral = f"params/head_{i}/{ours}", f"spectral/head_{i}/{ours}"
            result.append(Rule(f"{official}.bias", f"{params}/bias", IDENTITY))
            if spectral_norm:
                result.append(Rule(f"{official}.weight_orig", f"{params}/kernel", CONV))
                result.append(Rule(f"{official}.weight_u", f"{spectral}/u", IDENTITY))
                result.append(Rule(f"{official}.weight_v", f"{spectral}/v", _taps_first(size)))
            else:
                result.append(Rule(f"{official}.weight", f"{params}/kernel", CONV))
        for official, ours in _NORMS.items():
            result.append(Rule(f"{i}.{official}.weight", f"params/head_{i}/{ours}/scale", IDENTITY))
            result.append(Rule(f"{i}.{official}.bias", f"params/head_{i}/{ours}/bias", IDENTITY))
    return result


def _taps_first(kernel_size: int) -> Layout:
    """Vector over (channel, tap) <-> over (tap, channel)."""
    return Layout(
        lambda v: v.reshape(-1, kernel_size).transpose().reshape(-1),
        lambda v: v.reshape(kernel_size, -1).transpose().reshape(-1),
    )


def import_dino(tensors: Mapping[str, np.ndarray], num_heads: int = 6) -> tuple[dict[str, Any], Tensors]:
    """`(parameters of DinoFeatures, carried tensors)` from a DINO file; `num_heads` is ViT-S's unless given.

    Raises:
      ValueError: the file is no DINO ViT's, or does not fit.
    """
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(f"not a DINO ViT: no patch_embed.proj.weight; the first names are {sorted(tensors)[:5]}")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    patch_size = tensors["patch_embed.proj.weight"].shape[-1]
    return import_params(tensors, dino_rules(depth, num_heads, patch_size), DINO_CARRIED)


def export_dino(params: Any, carried: Mapping[str, np.ndarray], num_heads: int = 6) -> Tensors:
    """The inverse of `import_dino`."""
    depth = sum(name.startswith("blocks_") for name in params)
    patch_size = math.isqrt(params["embedding"]["patch"]["kernel"].shape[0] // 3)
    return export_params(params, dino_rules(depth, num_heads, patch_size), carried)


def import_heads(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables `{"params": ..., "spectral": ...}` of `Heads` from the names after `heads.` of the official file.

    There is no `spectral` where the file has none.

    Raises:
      ValueError: the tensors are no such heads, or do not fit.
    """
    spectral_norm = "0.2.weight_orig" in tensors
    residual = f"0.1.fn.0.{'weight_orig' if spectral_norm else 'weight'}"
    if residual not in tensors:
        raise ValueError(f"not the heads of a DINO discriminator: no {residual}; the first are {sorted(tensors)[:5]}")
    num_heads = len({name.split(".")[0] for name in tensors})
    return import_params(tensors, heads_rules(num_heads, tensors[residual].shape[-1], spectral_norm))[0]


def export_heads(variables: Mapping[str, Any]) -> Tensors:
    """The inverse of `import_heads`."""
    heads = variables["params"]
    kernel_size = heads["head_0"]["residual"]["kernel"].shape[0]
    return export_params(variables, heads_rules(len(heads), kernel_size, "spectral" in variables))


def read(tensors: Mapping[str, np.ndarray], num_heads: int = 6) -> Model:
    """The DINO ViT alone, under its own names; or the heads, and perhaps the ViT, of a discriminator."""
    prefix = "" if "patch_embed.proj.weight" in tensors else "dino."
    architecture: dict[str, Any] = {}
    if any(name.startswith(f"{prefix}blocks.") for name in tensors):
        kernel = tensors[f"{prefix}patch_embed.proj.weight"]
        architecture["dino"] = {
            "image_size": math.isqrt(tensors[f"{prefix}pos_embed"].shape[1] - 1) * kernel.shape[-1],
            "patch_size": kernel.shape[-1],
            "width": kernel.shape[0],
            "depth": count_blocks(tensors, f"{prefix}blocks.{{}}."),
            "num_heads": num_heads,
            "mlp_dim": tensors[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0],
        }
    if heads := under(tensors, "heads."):
        spectral_norm = any(name.endswith(".weight_orig") for name in heads)
        residual = tensors[f"heads.0.1.fn.0.{'weight_orig' if spectral_norm else 'weight'}"]
        architecture["heads"] = {
            "num_heads": count_blocks(heads, "{}."),
            "kernel_size": residual.shape[-1],
            "spectral_norm": spectral_norm,
        }
    carried = [re.escape(prefix) + f"(?:{pattern})" for pattern in DINO_CARRIED]
    params, unused = import_params(tensors, _rules(architecture, prefix), carried)
    return Model(architecture, params, unused, {"prefix": prefix})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_params(model.params, _rules(model.architecture, model.names["prefix"]), model.carried)


def _rules(architecture: Mapping[str, Mapping[str, Any]], prefix: str) -> list[Rule]:
    rules = []
    if dino := architecture.get("dino"):
        depth, num_heads, patch_size = (dino[field] for field in ("depth", "num_heads", "patch_size"))
        rules += prefixed(dino_rules(depth, num_heads, patch_size), prefix, "dino/")
    if heads := architecture.get("heads"):
        rules += prefixed(heads_rules(**heads), "heads.", "heads/")
    return rules
