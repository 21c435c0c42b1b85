"""DINOv3 encoders from and to Hugging Face checkpoints, with published names or those of transformers 5."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    Rule,
    Tensors,
    export_params,
    import_params,
    patch_embedding,
    without_leading,
)
from rae_jax.interop.vit import block_rules
from rae_jax.models.dinov3 import PRETRAINED

# The checkpoints do not hold the number of heads; these are the published encoders'.
NUM_HEADS = {encoder.architecture["width"]: encoder.architecture["num_heads"] for encoder in PRETRAINED.values()}
# Where the blocks are, by major version of transformers; published files use the names of 4.
BLOCKS = {4: "layer.{}.", 5: "model.layer.{}."}
# Masking, which RAE has no use for, and the last norm, which it has without parameters.
CARRIED = (r"embeddings\.mask_token", r"norm\..*")


@dataclasses.dataclass(frozen=True)
class Names:
    """Where the tensors of a block are; fields as in `interop.vit`. Rotary halves are paired there as they are here."""

    attention_norm: str = "norm1"
    query: str = "attention.q_proj"
    key: str = "attention.k_proj"
    value: str = "attention.v_proj"
    out: str = "attention.o_proj"
    mlp_norm: str = "norm2"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    gate: str = ""


def identify(names: Iterable[str]) -> int:
    """The major version of transformers whose names these are.

    Raises:
      ValueError: they are of no DINOv3 encoder.
    """
    names = set(names)
    for version, block in BLOCKS.items():
        first = block.format(0)
        if {f"{first}attention.q_proj.weight", f"{first}mlp.up_proj.weight", "embeddings.cls_token"} <= names:
            return version
    raise ValueError(
        "the tensors are of no DINOv3 encoder as Hugging Face names it, without prefix; "
        f"the first names are {sorted(names)[:5]}"
    )


def architecture(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of `DinoV3` for these tensors; the number of heads is the published one unless given.

    Raises:
      ValueError: the tensors are of no DINOv3, or its width is no published one and `num_heads` is missing.
    """
    block = BLOCKS[identify(tensors)]
    first = block.format(0)
    width, _, patch_size, _ = tensors["embeddings.patch_embeddings.weight"].shape
    if num_heads is None and width not in NUM_HEADS:
        raise ValueError(f"no published encoder has width {width}; give num_heads")
    registers = tensors.get("embeddings.register_tokens")
    depth = 0
    while f"{block.format(depth)}norm1.weight" in tensors:
        depth += 1
    return {
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads or NUM_HEADS[width],
        "mlp_dim": tensors[f"{first}mlp.up_proj.weight"].shape[0],
        "num_registers": 0 if registers is None else registers.shape[1],
        "activation": "swiglu" if f"{first}mlp.gate_proj.weight" in tensors else "gelu",
        "qkv_bias": f"{first}attention.q_proj.bias" in tensors,
        "key_bias": f"{first}attention.k_proj.bias" in tensors,
    }


def rules(version: int, architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one encoder; `architecture` as from the function of that name."""
    names = Names(gate="mlp.gate_proj" if architecture["activation"] == "swiglu" else "")
    result = [
        Rule("embeddings.patch_embeddings.weight", "patch/kernel", patch_embedding(architecture["patch_size"])),
        Rule("embeddings.patch_embeddings.bias", "patch/bias", IDENTITY),
        Rule("embeddings.cls_token", "cls_token", without_leading(1)),
    ]
    if architecture["num_registers"]:
        result.append(Rule("embeddings.register_tokens", "register_tokens", without_leading(1)))
    for i in range(architecture["depth"]):
        official, ours = BLOCKS[version].format(i), f"blocks_{i}"
        result += block_rules(official, ours, names, architecture["num_heads"], architecture["qkv_bias"])
        result.append(Rule(f"{official}layer_scale1.lambda1", f"{ours}/attention_scale", IDENTITY))
        result.append(Rule(f"{official}layer_scale2.lambda1", f"{ours}/mlp_scale", IDENTITY))
    if not architecture["key_bias"]:
        result = [rule for rule in result if not str(rule.ours).endswith("attention/key/bias")]
    return result


def import_encoder(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of DinoV3, its parameters with unrolled blocks, carried tensors)`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, num_heads)
    # Without registers the file holds an empty tensor of them.
    unused = CARRIED if found["num_registers"] else (*CARRIED, r"embeddings\.register_tokens")
    params, carried = import_params(tensors, rules(identify(tensors), found), unused, like)
    return found, params, carried


def export_encoder(
    params: Any,
    architecture: Mapping[str, Any],
    carried: Mapping[str, np.ndarray] | None = None,
    version: int = 4,
) -> Tensors:
    """The inverse of `import_encoder`, for parameters with unrolled blocks."""
    return export_params(params, rules(version, architecture), carried)
