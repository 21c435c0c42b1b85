"""The ViT decoder from and to RAE's official checkpoints, and those of `diffusers.AutoencoderRAE`."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import vit_names
from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Rule,
    Tensors,
    count_blocks,
    export_params,
    import_params,
    moved,
    require,
    without_leading,
)
from rae_jax.interop.model import Model
from rae_jax.interop.vit import block_rules
from rae_jax.models.embeddings import sincos_table

# The checkpoints do not hold the number of heads; these are the published decoders'.
NUM_HEADS = {512: 16, 768: 12, 1024: 16, 1152: 16}
POSITIONS = "decoder_pos_embed"
# diffusers spaces the positions so that every image is this many units wide.
DIFFUSERS_POSITION_RANGE = 16


# Of a block, after `decoder_layers.<i>.`: the official decoder is MAE's, block for block.
_OFFICIAL = vit_names.NAMES["mae", 4]
NAMES = {
    "official": _OFFICIAL,
    "diffusers": dataclasses.replace(
        _OFFICIAL, query="attention.to_q", key="attention.to_k", value="attention.to_v", out="attention.to_out.0"
    ),
}


def identify(names: Mapping[str, Any]) -> str:
    """`official` or `diffusers`: whose names these are.

    Raises:
      ValueError: neither's.
    """
    for source, candidate in NAMES.items():
        if any(re.fullmatch(rf"decoder_layers\.\d+\.{re.escape(candidate.query)}\.weight", name) for name in names):
            return source
    raise ValueError(
        "the tensors are of no known decoder (decoder_layers.0.attention... without prefix); "
        f"the first names are {sorted(names)[:5]}"
    )


def architecture(
    tensors: Mapping[str, np.ndarray], grid_size: int | None = None, num_heads: int | None = None
) -> dict[str, Any]:
    """Arguments of `ViTDecoder` for these tensors.

    `grid_size` is needed where the file has no position table (diffusers), `num_heads` where the width is no published
    one.

    Raises:
      ValueError: one of them is missing, or the decoder is unknown.
    """
    source = identify(tensors)
    pixels, width = tensors["decoder_pred.weight"].shape
    if POSITIONS in tensors:
        grid_size = math.isqrt(tensors[POSITIONS].shape[1] - 1)
    if grid_size is None:
        raise ValueError(f"the file has no {POSITIONS}; give grid_size, the image's side in patches")
    if num_heads is None and width not in NUM_HEADS:
        raise ValueError(f"no published decoder has width {width}; give num_heads")
    spacing = {"position_spacing": DIFFUSERS_POSITION_RANGE / grid_size} if source == "diffusers" else {}
    return {
        "grid_size": grid_size,
        "patch_size": math.isqrt(pixels // 3),
        "width": width,
        "depth": count_blocks(tensors, "decoder_layers.{}."),
        "num_heads": num_heads or NUM_HEADS[width],
        "mlp_dim": tensors["decoder_layers.0.output.dense.weight"].shape[1],
        "qkv_bias": f"decoder_layers.0.{NAMES[source].query}.bias" in tensors,
        "trained_tables": trained_tables(tensors, width),
        **spacing,
    }


def trained_tables(tensors: Mapping[str, np.ndarray], width: int) -> bool:
    """Whether the positions in the file, if there are any, are others than the sine-cosine table."""
    if POSITIONS not in tensors:
        return False
    fixed = sincos_table(math.isqrt(tensors[POSITIONS].shape[1] - 1), width, class_token=True)[None]
    return moved(tensors, POSITIONS, fixed, 1e-5)


def carried_names(architecture: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Patterns of what an official file, whose names start with `prefix`, holds and `ViTDecoder` computes."""
    return [] if architecture.get("trained_tables") else [re.escape(prefix + POSITIONS)]


def rules(source: str, architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one decoder; `source` is `official` or `diffusers`."""
    result = [Rule("trainable_cls_token", "cls_token", without_leading(1))]
    if architecture.get("trained_tables"):
        result.append(Rule(POSITIONS, "positions/table", without_leading(1)))
    for official, ours in (("decoder_embed", "embedding"), ("decoder_pred", "pixels")):
        result.append(Rule(f"{official}.weight", f"{ours}/kernel", LINEAR))
        result.append(Rule(f"{official}.bias", f"{ours}/bias", IDENTITY))
    result.append(Rule("decoder_norm.weight", "norm/scale", IDENTITY))
    result.append(Rule("decoder_norm.bias", "norm/bias", IDENTITY))
    heads, qkv_bias = architecture["num_heads"], architecture.get("qkv_bias", True)
    for i in range(architecture["depth"]):
        result += block_rules(f"decoder_layers.{i}.", f"blocks_{i}", NAMES[source], heads, qkv_bias)
    return result


def import_decoder(
    tensors: Mapping[str, np.ndarray], grid_size: int | None = None, num_heads: int | None = None, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of ViTDecoder, its parameters with unrolled blocks, carried tensors)`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, grid_size, num_heads)
    params, carried = import_params(tensors, rules(identify(tensors), found), carried_names(found), like)
    return found, params, carried


def positions(architecture: Mapping[str, Any], prefix: str = "") -> Tensors:
    """The position table of an official file, whose names start with `prefix`, if it is fixed."""
    if architecture.get("trained_tables"):
        return {}
    spacing = architecture.get("position_spacing", 1.0)
    table = sincos_table(architecture["grid_size"], architecture["width"], spacing=spacing, class_token=True)
    return {f"{prefix}{POSITIONS}": table[None]}


def export_decoder(
    params: Any,
    architecture: Mapping[str, Any],
    carried: Mapping[str, np.ndarray] | None = None,
    source: str = "official",
) -> Tensors:
    """The inverse of `import_decoder`, for parameters with unrolled blocks.

    Official files hold the position table; without the imported one in `carried` it is computed.

    Raises:
      ValueError: diffusers would give this decoder other positions than it was trained with.
    """
    grid_size, spacing = architecture["grid_size"], architecture.get("position_spacing", 1.0)
    if source == "diffusers" and architecture.get("trained_tables"):
        raise ValueError("diffusers computes positions, but this decoder has trained ones; export it as 'official'")
    if source == "diffusers" and not math.isclose(grid_size * spacing, DIFFUSERS_POSITION_RANGE):
        raise ValueError(
            f"diffusers computes positions {DIFFUSERS_POSITION_RANGE / grid_size} apart for a grid of {grid_size}, "
            f"but this decoder has them {spacing} apart; export it as 'official'"
        )
    table = positions(architecture) if source == "official" else {}
    return export_params(params, rules(source, architecture), table | dict(carried or {}))


def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None, grid_size: int | None = None) -> Model:
    """A file of the decoder alone."""
    source = identify(tensors)
    if source == "official":
        require(tensors, POSITIONS)
    return Model(*import_decoder(tensors, grid_size, num_heads), {"source": source})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_decoder(model.params, model.architecture, model.carried, model.names.get("source", "official"))
