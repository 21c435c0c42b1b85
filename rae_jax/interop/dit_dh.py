"""DiT^DH from and to the official checkpoints of RAE and, as a flow map, of MF-RAE."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import lightning_dit
from rae_jax.interop.layout import Rule, Tensors, export_params, import_params, require
from rae_jax.interop.lightning_dit import POSITIONS
from rae_jax.interop.model import Model
from rae_jax.models.dit_dh import HEAD
from rae_jax.models.embeddings import sincos_table

BACKBONE_TABLE, HEAD_TABLE = "enc_feat_rope", "dec_feat_rope"


def architecture(tensors: Mapping[str, np.ndarray], head_depth: int | None = None) -> dict[str, Any]:
    """Arguments of `DiTDH` for these tensors.

    Where backbone and head are equally wide and have no query-key norms that differ, the file does not tell where the
    head begins: it is then taken to have `head_depth` blocks, or two, as all published ones.

    Raises:
      ValueError: the tensors are no DiT^DH's.
    """
    backbone_table, head_table = f"{BACKBONE_TABLE}.freqs_cos", f"{HEAD_TABLE}.freqs_cos"
    backbone, head, labels = "s_embedder.proj.weight", "x_embedder.proj.weight", "y_embedder.embedding_table.weight"
    lightning_dit.require(tensors, backbone_table, head_table, backbone, head, labels)
    width, in_channels, patch_size, _ = tensors[backbone].shape
    head_width = tensors[head].shape[0]
    num_tokens, head_dim = tensors[backbone_table].shape
    num_blocks = lightning_dit.count_blocks(tensors)

    def shapes(block: int) -> dict[str, tuple[int, ...]]:
        names = {part: f"blocks.{block}.attn.{part}.weight" for part in ("qkv", "proj", "q_norm")}
        return {part: np.shape(tensors[name]) for part, name in names.items() if name in tensors}

    first = shapes(0)
    unlike_first = [
        block for block in range(num_blocks) if any(first.get(part, s) != s for part, s in shapes(block).items())
    ]
    depth = unlike_first[0] if unlike_first else num_blocks - (head_depth or HEAD["head_depth"])
    if depth < 1:
        raise ValueError(f"{num_blocks} blocks in all leave no backbone before the head; give head_depth")
    return {
        "grid_size": math.isqrt(num_tokens) * patch_size,
        "in_channels": in_channels,
        "num_classes": tensors[labels].shape[0] - 1,
        "width": width,
        "depth": depth,
        "num_heads": width // head_dim,
        "head_width": head_width,
        "head_depth": num_blocks - depth,
        "head_num_heads": head_width // tensors[head_table].shape[1],
        "patch_size": patch_size,
        "absolute_positions": POSITIONS in tensors,
        "trained_tables": lightning_dit.trained_tables(tensors, width),
        **lightning_dit.block_options(tensors, {"blocks.0.": width, f"blocks.{depth}.": head_width}),
    }


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one model; `architecture` as from the function of that name."""
    options = {name: architecture[name] for name in ("qk_norm", "swiglu", "rms_norm")}
    depth, patch_size = architecture["depth"], architecture["patch_size"]
    result = lightning_dit.conditioning(architecture["flow_map"]) + lightning_dit.position_rules(architecture)
    result += lightning_dit.patches("s_embedder", "patch_embedding", patch_size)
    result += lightning_dit.patches("x_embedder", "head_patch_embedding", patch_size)
    if architecture["width"] != architecture["head_width"]:
        result += lightning_dit.linear("s_projector", "head_projection")
    stacks = [("blocks", 0, depth, "num_heads"), ("head_blocks", depth, architecture["head_depth"], "head_num_heads")]
    for ours, first, count, heads in stacks:
        for i in range(count):
            result += lightning_dit.block_rules(
                f"blocks.{first + i}.", f"{ours}_{i}", architecture[heads], rope=True, **options
            )
    return result + lightning_dit.final_rules(architecture["rms_norm"])


def tables(architecture: Mapping[str, Any]) -> Tensors:
    """The fixed tables of the official file."""
    side = architecture["grid_size"] // architecture["patch_size"]
    fixed = architecture["absolute_positions"] and not architecture.get("trained_tables")
    result = {POSITIONS: sincos_table(side, architecture["width"])[None]} if fixed else {}
    for table, width, heads in ((BACKBONE_TABLE, "width", "num_heads"), (HEAD_TABLE, "head_width", "head_num_heads")):
        result |= lightning_dit.official_rotary_table(table, side, architecture[width] // architecture[heads])
    return result


def import_dit_dh(
    tensors: Mapping[str, np.ndarray], head_depth: int | None = None, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of DiTDH, its parameters with unrolled blocks, carried tensors)`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do; or a fixed table is not what the model computes.
    """
    found = architecture(tensors, head_depth)
    params, carried = import_params(tensors, rules(found), lightning_dit.carried_names(found["trained_tables"]), like)
    lightning_dit.check_tables(carried, tables(found))
    return found, params, carried


def export_dit_dh(
    params: Any, architecture: Mapping[str, Any], carried: Mapping[str, np.ndarray] | None = None
) -> Tensors:
    """The inverse of `import_dit_dh`, for parameters with unrolled blocks.

    Without the imported tables in `carried` they are computed.
    """
    return export_params(params, rules(architecture), {**tables(architecture), **(carried or {})})


def read(tensors: Mapping[str, np.ndarray], head_depth: int | None = None) -> Model:
    """A velocity network; a flow map is refused."""
    if any(name.startswith("r_embedder.") for name in tensors):
        raise ValueError("it has a second time embedder, r_embedder: the kind is 'mf_dit_dh'")
    return Model(*import_dit_dh(tensors, head_depth))


def read_flow_map(tensors: Mapping[str, np.ndarray], head_depth: int | None = None) -> Model:
    """A flow map, which has a second time embedder."""
    require(tensors, "r_embedder.W")
    return Model(*import_dit_dh(tensors, head_depth))


def write(model: Model) -> Tensors:
    """The inverse of `read` and of `read_flow_map`."""
    return export_dit_dh(model.params, model.architecture, model.carried)
