"""RPiAE's variational bridge from and to its official checkpoints, where it is `vb_feature_encoder` and `_decoder`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Rule,
    Tensors,
    export_params,
    import_params,
    stacked,
    to_heads,
)
from rae_jax.interop.model import Model
from rae_jax.models.bridge import heads_of

ENCODER, DECODER = "vb_feature_encoder.", "vb_feature_decoder."


def architecture(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, dict[str, Any]]:
    """Arguments of `BridgeEncoder` and `BridgeDecoder`, under `bridge_encoder` and `bridge_decoder`.

    The file does not tell the number of heads; without `num_heads` it is the default for the width.

    Raises:
      ValueError: the tensors are of no bridge, or the heads do not divide its width.
    """
    moments, up = f"{ENCODER}to_moments.weight", f"{ENCODER}proj2.0.weight"
    if moments not in tensors or up not in tensors:
        raise ValueError(f"no variational bridge: there is no {moments} or {up}; first names: {sorted(tensors)[:5]}")
    outputs, width = tensors[moments].shape
    heads = heads_of(width, num_heads)
    depth = 0
    while f"{DECODER}net.{depth}.norm1.weight" in tensors:
        depth += 1
    return {
        "bridge_encoder": {"latent_channels": outputs // 2, "num_heads": heads, "mlp_dim": tensors[up].shape[0]},
        "bridge_decoder": {"width": width, "depth": depth, "num_heads": heads},
    }


def rules(architecture: Mapping[str, Mapping[str, Any]]) -> list[Rule]:
    """The rules of both halves; `architecture` as from the function of that name."""
    layers = [
        (f"{ENCODER}skip_proj", "bridge_encoder/skip"),
        (f"{ENCODER}proj2.0", "bridge_encoder/up"),
        (f"{ENCODER}proj2.3", "bridge_encoder/down"),
        (f"{ENCODER}to_moments", "bridge_encoder/moments"),
        (f"{DECODER}in_proj", "bridge_decoder/embedding"),
        (f"{DECODER}out_proj", "bridge_decoder/features"),
    ]
    heads = architecture["bridge_encoder"]["num_heads"]
    result = _attention(f"{ENCODER}attn", f"{ENCODER}norm", "bridge_encoder", heads)
    for i in range(architecture["bridge_decoder"]["depth"]):
        official, ours = f"{DECODER}net.{i}.", f"bridge_decoder/blocks_{i}"
        heads = architecture["bridge_decoder"]["num_heads"]
        result += _attention(f"{official}self_attn", f"{official}norm", ours, heads)
        layers += [(f"{official}linear1", f"{ours}/mlp/up"), (f"{official}linear2", f"{ours}/mlp/down")]
    for official, ours in layers:
        result.append(Rule(f"{official}.weight", f"{ours}/kernel", LINEAR))
        result.append(Rule(f"{official}.bias", f"{ours}/bias", IDENTITY))
    return result


def _attention(official: str, official_norm: str, ours: str, num_heads: int) -> list[Rule]:
    """Attention and the two norms of one block."""
    heads = stacked(to_heads(num_heads))
    result = [
        Rule(f"{official}.in_proj_weight", f"{ours}/attention/qkv/kernel", heads),
        Rule(f"{official}.in_proj_bias", f"{ours}/attention/qkv/bias", heads),
        Rule(f"{official}.out_proj.weight", f"{ours}/attention/out/kernel", LINEAR),
        Rule(f"{official}.out_proj.bias", f"{ours}/attention/out/bias", IDENTITY),
    ]
    for number, norm in ((1, "attention_norm"), (2, "mlp_norm")):
        result.append(Rule(f"{official_norm}{number}.weight", f"{ours}/{norm}/scale", IDENTITY))
        result.append(Rule(f"{official_norm}{number}.bias", f"{ours}/{norm}/bias", IDENTITY))
    return result


def import_bridge(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None, like: Any = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """`(arguments of the two modules, their parameters with unrolled blocks)`.

    Both are dicts with `bridge_encoder` and `bridge_decoder`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, num_heads)
    params, _ = import_params(tensors, rules(found), like=like)
    return found, params


def export_bridge(params: Any, architecture: Mapping[str, Mapping[str, Any]]) -> Tensors:
    """The inverse of `import_bridge`, for parameters with unrolled blocks."""
    return export_params(params, rules(architecture))


def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    """A file of the bridge alone."""
    return Model(*import_bridge(tensors, num_heads))


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_bridge(model.params, model.architecture)
