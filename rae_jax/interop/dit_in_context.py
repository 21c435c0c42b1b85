"""RAEv2's generator, DiT^DH with in-context conditions, from and to the official checkpoints."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import lightning_dit
from rae_jax.interop.layout import (
    IDENTITY,
    ROTARY,
    Rule,
    Tensors,
    export_params,
    import_params,
    require,
    to_heads,
)
from rae_jax.interop.lightning_dit import linear, modulation, patches
from rae_jax.interop.model import Model
from rae_jax.models.lightning_dit import BLOCK_MODULATION, FINAL_MODULATION

BACKBONE_TABLE, HEAD_TABLE = "enc_rope", "dec_rope"
TABLES = r"(enc|dec)_rope\.freqs_(cos|sin)"
# Published: blocks before the early output, and before the tokens that REPA aligns.
BASE_DEPTH = ALIGNMENT_DEPTH = 8


def architecture(
    tensors: Mapping[str, np.ndarray], base_depth: int | None = None, alignment_depth: int | None = None
) -> dict[str, Any]:
    """Arguments of `DiTInContext` for these tensors.

    The file does not tell after which block the early output and the projection of REPA read: 8, as published, unless
    `base_depth` and `alignment_depth` say otherwise.

    Raises:
      KeyError: a tensor without which the architecture cannot be told is not there.
      ValueError: the numbers of tokens do not add up.
    """
    backbone_table, head_table = f"{BACKBONE_TABLE}.freqs_cos", f"{HEAD_TABLE}.freqs_cos"
    backbone, head, time = "s_embedder.proj.weight", "x_embedder.proj.weight", "t_embedder.learnable_tokens"
    text = "ctx_embedder.proj.weight"
    labels, classes = "ctx_embedder.embedding_table.weight", "ctx_embedder.learnable_tokens"
    require(tensors, backbone_table, head_table, backbone, head, time)
    width, in_channels, patch_size, _ = tensors[backbone].shape
    head_width = tensors[head].shape[0]
    num_tokens, head_dim = tensors[head_table].shape
    num_blocks = lightning_dit.count_blocks(tensors)
    modulated = {int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.adaln_modulation\.1\.", name))}
    depth = min(modulated, default=num_blocks)
    time_tokens = tensors[time].shape[0]
    if text in tensors:
        told = {"num_classes": 0, "context_width": tensors[text].shape[1]}
        condition_tokens = tensors[backbone_table].shape[0] - num_tokens - time_tokens
    else:
        require(tensors, labels, classes)
        told = {"num_classes": tensors[labels].shape[0] - 1, "context_width": 0}
        condition_tokens = tensors[classes].shape[0]
    hidden = {}
    for block, size in ((0, width), (depth, head_width)):
        if block < num_blocks:
            require(tensors, f"blocks.{block}.mlp.w3.weight")
            hidden[size] = tensors[f"blocks.{block}.mlp.w3.weight"].shape[1]
    aligned = "repa_projector.weight" in tensors
    return {
        "grid_size": math.isqrt(num_tokens) * patch_size,
        "in_channels": in_channels,
        **told,
        "width": width,
        "depth": depth,
        "num_heads": width // tensors[backbone_table].shape[1],
        "head_width": head_width,
        "head_depth": num_blocks - depth,
        "head_num_heads": head_width // head_dim,
        "base_depth": (base_depth or BASE_DEPTH) if "base_final_layer.linear.weight" in tensors else 0,
        "time_tokens": time_tokens,
        "condition_tokens": condition_tokens,
        "patch_size": patch_size,
        "mlp_ratio": lightning_dit.mlp_ratio(hidden, swiglu=True),
        "alignment_depth": (alignment_depth or ALIGNMENT_DEPTH) if aligned else 0,
        "alignment_features": tensors["repa_projector.weight"].shape[0] if aligned else 0,
        "flow_map": False,
    }


def block_rules(official: str, ours: str, num_heads: int) -> list[Rule]:
    """One block, whose queries, keys and values are three matrices, but for its modulation."""
    projections = [f"{official}attn.{part}" for part in "qkv"]
    heads = to_heads(num_heads, rotary=True)
    result = [
        Rule(tuple(f"{p}.weight" for p in projections), f"{ours}/attention/qkv/kernel", heads),
        Rule(tuple(f"{p}.bias" for p in projections), f"{ours}/attention/qkv/bias", heads),
        Rule(f"{official}attn.q_norm.weight", f"{ours}/attention/query_norm/scale", ROTARY),
        Rule(f"{official}attn.k_norm.weight", f"{ours}/attention/key_norm/scale", ROTARY),
        *linear(f"{official}attn.proj", f"{ours}/attention/out"),
        Rule(f"{official}norm1.weight", f"{ours}/attention_norm/scale", IDENTITY),
        Rule(f"{official}norm2.weight", f"{ours}/mlp_norm/scale", IDENTITY),
    ]
    for part, name in (("w1", "gate"), ("w2", "up"), ("w3", "down")):
        result += linear(f"{official}mlp.{part}", f"{ours}/mlp/{name}")
    return result


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one model; `architecture` as from the function of that name."""
    depth, patch_size = architecture["depth"], architecture["patch_size"]
    result = [
        Rule("t_embedder.W", "time_embedding/frequencies", IDENTITY),
        *linear("t_embedder.mlp.0", "time_embedding/hidden"),
        *linear("t_embedder.mlp.2", "time_embedding/out"),
        Rule("t_embedder.learnable_tokens", "time_tokens/tokens", IDENTITY),
        *patches("s_embedder", "patch_embedding", patch_size),
        *patches("x_embedder", "head_patch_embedding", patch_size),
    ]
    if architecture["context_width"]:
        result.append(Rule("ctx_embedder.norm.weight", "context_norm/scale", IDENTITY))
        result += linear("ctx_embedder.proj", "context_projection")
    else:
        result.append(Rule("ctx_embedder.embedding_table.weight", "label_embedding/table/embedding", IDENTITY))
        result.append(Rule("ctx_embedder.learnable_tokens", "class_tokens/tokens", IDENTITY))
    if architecture["width"] != architecture["head_width"]:
        result += linear("s_projector", "head_projection")
    for i in range(depth):
        result += block_rules(f"blocks.{i}.", f"blocks_{i}", architecture["num_heads"])
    for i in range(architecture["head_depth"]):
        official, ours = f"blocks.{depth + i}.", f"head_blocks_{i}"
        result += block_rules(official, ours, architecture["head_num_heads"])
        result += modulation(f"{official}adaln_modulation.1", f"{ours}/modulation", BLOCK_MODULATION)
    outputs = {"final_layer": "final"} | ({"base_final_layer": "base_final"} if architecture["base_depth"] else {})
    for official, ours in outputs.items():
        result += modulation(f"{official}.adaln_modulation.1", f"{ours}/modulation", FINAL_MODULATION)
        result.append(Rule(f"{official}.norm.weight", f"{ours}/norm/scale", IDENTITY))
        result += linear(f"{official}.linear", f"{ours}/linear")
    if architecture["alignment_features"]:
        result += linear("repa_projector", "alignment_projection")
    return result


def tables(architecture: Mapping[str, Any]) -> Tensors:
    """The fixed tables of the official file; tokens of conditions, after those of the image, do not turn."""
    side = architecture["grid_size"] // architecture["patch_size"]
    told = architecture["time_tokens"] + architecture["condition_tokens"]
    backbone = lightning_dit.official_rotary_table(
        BACKBONE_TABLE, side, architecture["width"] // architecture["num_heads"]
    )
    still = {"freqs_cos": np.ones, "freqs_sin": np.zeros}
    for name, table in backbone.items():
        rows = still[name.rpartition(".")[2]]((told, table.shape[1]), np.float32)
        backbone[name] = np.concatenate([table, rows])
    head_dim = architecture["head_width"] // architecture["head_num_heads"]
    return backbone | lightning_dit.official_rotary_table(HEAD_TABLE, side, head_dim)


def read(tensors: Mapping[str, np.ndarray], base_depth: int | None = None, alignment_depth: int | None = None) -> Model:
    """The generator in these tensors; arguments and errors as of `architecture` and `layout.import_params`."""
    found = architecture(tensors, base_depth, alignment_depth)
    params, carried = import_params(tensors, rules(found), [TABLES])
    lightning_dit.check_tables(carried, tables(found))
    return Model(found, params, carried)


def write(model: Model) -> Tensors:
    """The inverse of `read`.

    Raises:
      ValueError: the model is a flow map, which there is no official file of.
    """
    if model.architecture.get("flow_map"):
        raise ValueError("it is a flow map (flow_map=True), and no official file of this generator holds one")
    return export_params(model.params, rules(model.architecture), {**tables(model.architecture), **model.carried})
