"""LightningDiT from and to RAE's official checkpoints, and the parts of them that DiT^DH shares."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    ROTARY,
    Layout,
    Rule,
    Tensors,
    affine,
    export_params,
    fused,
    import_params,
    moved,
    patch_embedding,
    stacked,
    to_heads,
    without_leading,
)
from rae_jax.interop.model import Model
from rae_jax.models.embeddings import rotary_table, sincos_table
from rae_jax.models.lightning_dit import BLOCK_MODULATION, FINAL_MODULATION, SIZES

POSITIONS = "pos_embed"
ROTARY_TABLE = "feat_rope"
ROTARY_TABLES = r"(\w+_)?feat_rope\.freqs_(cos|sin)"


def architecture(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of `LightningDiT` for these tensors.

    `num_heads` is needed only where there are neither rotary positions nor query-key norms to tell the head's width and
    the width is no published one.

    Raises:
      ValueError: it is missing, or the tensors are no LightningDiT's.
    """
    labels, final = "y_embedder.embedding_table.weight", "final_layer.linear.weight"
    require(tensors, POSITIONS, "x_embedder.proj.weight", labels, final)
    width, in_channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
    return {
        "grid_size": math.isqrt(tensors[POSITIONS].shape[1]) * patch_size,
        "in_channels": in_channels,
        "num_classes": tensors[labels].shape[0] - 1,
        "width": width,
        "depth": count_blocks(tensors),
        "num_heads": num_heads or width // head_width(tensors, "blocks.0.", ROTARY_TABLE, width),
        "patch_size": patch_size,
        "rope": any(name.startswith(f"{ROTARY_TABLE}.") for name in tensors),
        "trained_tables": trained_tables(tensors, width),
        "learn_sigma": tensors[final].shape[0] == 2 * in_channels * patch_size**2,
        **block_options(tensors, {"blocks.0.": width}),
    }


def trained_tables(tensors: Mapping[str, np.ndarray], width: int) -> bool:
    """Whether the positions in the file, if there are any, are others than the sine-cosine table."""
    if POSITIONS not in tensors:
        return False
    return moved(tensors, POSITIONS, sincos_table(math.isqrt(tensors[POSITIONS].shape[1]), width)[None], 1e-4)


def carried_names(trained_tables: bool) -> list[str]:
    """Patterns of the fixed tables, which the file holds and our modules compute."""
    return [ROTARY_TABLES] if trained_tables else [ROTARY_TABLES, POSITIONS]


def position_rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The positions, where they are parameters."""
    return [Rule(POSITIONS, "positions/table", without_leading(1))] if architecture.get("trained_tables") else []


def require(tensors: Mapping[str, np.ndarray], *names: str) -> None:
    """Raises a ValueError unless all of `names`, which tell the architecture, are there."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(
            f"not a diffusion transformer in the official layout: there is no {', '.join(missing)}; "
            f"the first names are {sorted(tensors)[:5]}"
        )


def count_blocks(tensors: Mapping[str, np.ndarray]) -> int:
    """How many `blocks.<i>.` there are."""
    return len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})


def in_any_block(tensors: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether some block has a tensor of that name, so that one block without it is found to be damaged."""
    return any(re.fullmatch(rf"blocks\.\d+\.{re.escape(name)}", other) for other in tensors)


def head_width(tensors: Mapping[str, np.ndarray], block: str, table: str, width: int) -> int:
    """Width of one attention head of `block`: from the rotary table, the query norm, or the published sizes."""
    if any(name.startswith(f"{table}.") for name in tensors):
        require(tensors, f"{table}.freqs_cos")
        return tensors[f"{table}.freqs_cos"].shape[1]
    if in_any_block(tensors, "attn.q_norm.weight"):
        require(tensors, f"{block}attn.q_norm.weight")
        return tensors[f"{block}attn.q_norm.weight"].shape[0]
    published = {size["width"]: size["num_heads"] for size in SIZES.values()}
    if width not in published:
        raise ValueError(
            f"the tensors do not tell the number of heads, and no published model has width {width}; give num_heads"
        )
    return width // published[width]


def block_options(tensors: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> dict[str, Any]:
    """The options that all blocks share, from some blocks (`prefix -> width`)."""
    swiglu = in_any_block(tensors, "mlp.w12.weight")
    down = "mlp.w3.weight" if swiglu else "mlp.fc2.weight"
    require(tensors, *(f"{block}{down}" for block in widths))
    hidden = {width: tensors[f"{block}{down}"].shape[1] for block, width in widths.items()}
    return {
        "mlp_ratio": mlp_ratio(hidden, swiglu),
        "qk_norm": in_any_block(tensors, "attn.q_norm.weight"),
        "swiglu": swiglu,
        "rms_norm": in_any_block(tensors, "norm1.weight"),
        "flow_map": "r_embedder.W" in tensors,
    }


def mlp_ratio(hidden: Mapping[int, int], swiglu: bool) -> float:
    """The roundest ratio that gives these hidden widths (`width -> hidden width`).

    Raises:
      ValueError: none does.
    """

    def fits(ratio: float) -> bool:
        full = {width: int(width * ratio) for width in hidden}
        return all((int(2 / 3 * full[width]) if swiglu else full[width]) == size for width, size in hidden.items())

    width, size = max(hidden.items())
    estimate = (math.ceil(1.5 * size) if swiglu else size) / width
    for digits in range(10):
        candidates = (round(estimate, digits), round(estimate + 0.5 / width, digits))
        for ratio in candidates:
            if fits(ratio):
                return ratio
    raise ValueError(f"no mlp_ratio gives feed-forward layers of {hidden} (model width: hidden width)")


def linear(official: str, ours: str) -> list[Rule]:
    """A linear layer with a bias."""
    return affine(official, ours, LINEAR)


def modulation(official: str, ours: str, names: tuple[str, ...]) -> list[Rule]:
    """A linear layer whose rows are those of our `names`, one after the other."""
    return [
        Rule(f"{official}.{tensor}", tuple(f"{ours}/{name}/{leaf}" for name in names), fused(*[layout] * len(names)))
        for tensor, leaf, layout in (("weight", "kernel", LINEAR), ("bias", "bias", IDENTITY))
    ]


def patches(official: str, ours: str, patch_size: int) -> list[Rule]:
    """A patch embedding."""
    return [
        Rule(f"{official}.proj.weight", f"{ours}/kernel", patch_embedding(patch_size)),
        Rule(f"{official}.proj.bias", f"{ours}/bias", IDENTITY),
    ]


def conditioning(flow_map: bool) -> list[Rule]:
    """The embeddings of time, of duration in a flow map, and of the label."""
    result = [Rule("y_embedder.embedding_table.weight", "label_embedding/table/embedding", IDENTITY)]
    embedders = {"t_embedder": "time_embedding"} | ({"r_embedder": "duration_embedding"} if flow_map else {})
    for official, ours in embedders.items():
        result.append(Rule(f"{official}.W", f"{ours}/frequencies", IDENTITY))
        result += linear(f"{official}.mlp.0", f"{ours}/hidden")
        result += linear(f"{official}.mlp.2", f"{ours}/out")
    return result


def block_rules(
    official: str, ours: str, num_heads: int, *, rope: bool, qk_norm: bool, swiglu: bool, rms_norm: bool
) -> list[Rule]:
    """One transformer block."""
    heads = stacked(to_heads(num_heads, rotary=rope))
    result = [
        Rule(f"{official}attn.qkv.weight", f"{ours}/attention/qkv/kernel", heads),
        Rule(f"{official}attn.qkv.bias", f"{ours}/attention/qkv/bias", heads),
        *linear(f"{official}attn.proj", f"{ours}/attention/out"),
    ]
    if qk_norm:
        turned: Layout = ROTARY if rope else IDENTITY
        for norm in ("q_norm", "k_norm"):
            target = f"{ours}/attention/{'query' if norm == 'q_norm' else 'key'}_norm"
            result.append(Rule(f"{official}attn.{norm}.weight", f"{target}/scale", turned))
            if not rms_norm:
                result.append(Rule(f"{official}attn.{norm}.bias", f"{target}/bias", turned))
    if rms_norm:
        result.append(Rule(f"{official}norm1.weight", f"{ours}/attention_norm/scale", IDENTITY))
        result.append(Rule(f"{official}norm2.weight", f"{ours}/mlp_norm/scale", IDENTITY))
    if swiglu:
        for tensor, parameter, layout in (("weight", "kernel", LINEAR), ("bias", "bias", IDENTITY)):
            targets = (f"{ours}/mlp/gate/{parameter}", f"{ours}/mlp/up/{parameter}")
            result.append(Rule(f"{official}mlp.w12.{tensor}", targets, fused(layout, layout)))
        result += linear(f"{official}mlp.w3", f"{ours}/mlp/down")
    else:
        result += linear(f"{official}mlp.fc1", f"{ours}/mlp/up")
        result += linear(f"{official}mlp.fc2", f"{ours}/mlp/down")
    return result + modulation(f"{official}adaLN_modulation.1", f"{ours}/modulation", BLOCK_MODULATION)


def final_rules(rms_norm: bool) -> list[Rule]:
    """The final layer."""
    result = modulation("final_layer.adaLN_modulation.1", "final/modulation", FINAL_MODULATION)
    if rms_norm:
        result.append(Rule("final_layer.norm_final.weight", "final/norm/scale", IDENTITY))
    return result + linear("final_layer.linear", "final/linear")


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one model; `architecture` as from the function of that name."""
    options = {name: architecture[name] for name in ("rope", "qk_norm", "swiglu", "rms_norm")}
    result = conditioning(architecture["flow_map"]) + position_rules(architecture)
    result += patches("x_embedder", "patch_embedding", architecture["patch_size"])
    for i in range(architecture["depth"]):
        result += block_rules(f"blocks.{i}.", f"blocks_{i}", architecture["num_heads"], **options)
    return result + final_rules(architecture["rms_norm"])


def official_rotary_table(name: str, side: int, head_dim: int) -> Tensors:
    """The buffers `<name>.freqs_cos` and `freqs_sin`, `[N, E]`: every angle twice, for the channels 2i and 2i + 1."""
    cos, sin = rotary_table(side, head_dim)
    return {f"{name}.freqs_cos": np.repeat(cos, 2, axis=1), f"{name}.freqs_sin": np.repeat(sin, 2, axis=1)}


def tables(architecture: Mapping[str, Any]) -> Tensors:
    """The fixed tables of the official file."""
    side = architecture["grid_size"] // architecture["patch_size"]
    result = {} if architecture.get("trained_tables") else {POSITIONS: sincos_table(side, architecture["width"])[None]}
    if architecture["rope"]:
        result |= official_rotary_table(ROTARY_TABLE, side, architecture["width"] // architecture["num_heads"])
    return result


def check_tables(carried: Tensors, computed: Tensors) -> None:
    """Raises a ValueError unless the carried tables are those that our modules compute."""
    if missing := sorted(computed.keys() - carried.keys()):
        raise ValueError(
            "the checkpoint does not fit this model:\n  " + "\n  ".join(f"missing    {m}" for m in missing)
        )
    for name, table in carried.items():
        expected = computed.get(name)
        if expected is None or expected.shape != table.shape or not np.allclose(expected, table, atol=1e-4):
            raise ValueError(
                f"the table {name} in the file is not the fixed one of this architecture, the only one that the model "
                "computes"
            )


def import_lightning_dit(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of LightningDiT, its parameters with unrolled blocks, carried tensors)`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do; or a fixed table is not what the model computes.
    """
    found = architecture(tensors, num_heads)
    params, carried = import_params(tensors, rules(found), carried_names(found["trained_tables"]), like)
    check_tables(carried, tables(found))
    return found, params, carried


def export_lightning_dit(
    params: Any, architecture: Mapping[str, Any], carried: Mapping[str, np.ndarray] | None = None
) -> Tensors:
    """The inverse of `import_lightning_dit`, for parameters with unrolled blocks.

    Without the imported tables in `carried` they are computed.
    """
    return export_params(params, rules(architecture), {**tables(architecture), **(carried or {})})


def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    """A file of LightningDiT."""
    return Model(*import_lightning_dit(tensors, num_heads))


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_lightning_dit(model.params, model.architecture, model.carried)
