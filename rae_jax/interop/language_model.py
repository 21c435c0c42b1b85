"""Qwen2.5 and Qwen3 from and to Hugging Face's checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Rule,
    Tensors,
    count_blocks,
    export_params,
    import_params,
    prefixed,
    require,
)
from rae_jax.interop.model import Model
from rae_jax.models.language_model import SIZES, LanguageModel

HEAD = "lm_head.weight"
TABLE = "embed_tokens.weight"
MARKS = 2  # tokens that are added to a published tokenizer
CARRIED = r"(.*\.)?rotary_emb\.inv_freq"  # in files of old versions; computed here


def architecture(
    tensors: Mapping[str, np.ndarray],
    prefix: str = "model.",
    num_heads: int | None = None,
    rope_theta: float = LanguageModel.rope_theta,
    norm_epsilon: float = LanguageModel.norm_epsilon,
) -> dict[str, Any]:
    """Arguments of `LanguageModel` for these tensors; the last two are in no tensor.

    `num_heads` is needed where no query norm tells the width of a head, and the width is no published model's.

    Raises:
      ValueError: it is missing, or does not divide the queries.
      KeyError: a tensor that tells the architecture is missing.
    """
    first = f"{prefix}layers.0."
    query, key, norm = (f"{first}self_attn.{name}.weight" for name in ("q_proj", "k_proj", "q_norm"))
    gate = f"{first}mlp.gate_proj.weight"
    require(tensors, f"{prefix}{TABLE}", query, key, gate)
    vocabulary, width = np.shape(tensors[f"{prefix}{TABLE}"])
    queries, keys = np.shape(tensors[query])[0], np.shape(tensors[key])[0]
    if num_heads is None:
        head_dims = {size["width"]: size["head_dim"] for size in SIZES.values()}
        if norm not in tensors and width not in head_dims:
            raise ValueError(
                f"the tensors do not tell the number of heads, and no published model has width {width}; give num_heads"
            )
        head_dim = np.shape(tensors[norm])[0] if norm in tensors else head_dims[width]
    elif queries % num_heads:
        raise ValueError(f"{queries} channels of queries do not divide over num_heads={num_heads}")
    else:
        head_dim = queries // num_heads
    return {
        "vocabulary": vocabulary,
        "width": width,
        "depth": count_blocks(tensors, f"{prefix}layers.{{}}."),
        "num_heads": queries // head_dim,
        "num_kv_heads": keys // head_dim,
        "head_dim": head_dim,
        "hidden": np.shape(tensors[gate])[0],
        "qkv_bias": f"{first}self_attn.q_proj.bias" in tensors,
        "qk_norm": norm in tensors,
        "tied": tied(tensors, prefix),
        "rope_theta": rope_theta,
        "norm_epsilon": norm_epsilon,
    }


def tied(tensors: Mapping[str, np.ndarray], prefix: str) -> bool:
    """Whether the file has no head, or one that is the table."""
    return HEAD not in tensors or np.array_equal(tensors[HEAD], tensors[f"{prefix}{TABLE}"])


def rules(architecture: Mapping[str, Any], prefix: str = "model.") -> list[Rule]:
    """The rules of one model, its head's too where it has one; `architecture` as from the function of that name."""
    result = [
        Rule(f"{prefix}{TABLE}", "embedding", IDENTITY),
        Rule(f"{prefix}norm.weight", "norm/scale", IDENTITY),
    ]
    if not architecture["tied"]:
        result.append(Rule(HEAD, "head", IDENTITY))
    linears = {"self_attn.o_proj": "attention/out"}
    linears |= {f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")}
    heads = {f"self_attn.{name[0]}_proj": f"attention/qkv/{name}" for name in ("query", "key", "value")}
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    if architecture["qk_norm"]:
        norms |= {f"self_attn.{name[0]}_norm": f"attention/qkv/{name}_norm" for name in ("query", "key")}
    layer = [Rule(f"{official}.weight", f"{ours}/kernel", LINEAR) for official, ours in (linears | heads).items()]
    layer += [Rule(f"{official}.weight", f"{ours}/scale", IDENTITY) for official, ours in norms.items()]
    if architecture["qkv_bias"]:
        layer += [Rule(f"{official}.bias", f"{ours}/bias", IDENTITY) for official, ours in heads.items()]
    for i in range(architecture["depth"]):
        result += prefixed(layer, f"{prefix}layers.{i}.", f"blocks_{i}/")
    return result


def cut_to(
    rows: int, params: Mapping[str, np.ndarray], architecture: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Parameters by path with a table, and head, of the first `rows`, if they have more, and the architecture so.

    The last `MARKS` rows are new tokens then, the marks around an image, and the mean of the others, as Scale-RAE
    begins: published tables are longer than their tokenizers.
    """
    if architecture["vocabulary"] <= rows:
        return dict(params), dict(architecture)
    cut = dict(params)
    for name in {"embedding", "head"} & cut.keys():
        table = np.array(cut[name][:rows])
        table[-MARKS:] = np.mean(table[:-MARKS], axis=0, dtype=np.float32)
        cut[name] = table
    return cut, {**architecture, "vocabulary": rows}


def read(tensors: Mapping[str, np.ndarray], **options: float) -> Model:
    """A Qwen2.5 or Qwen3, with its head (`Qwen2ForCausalLM`) or without (`Qwen2Model`); options as `architecture`'s.

    A head that equals the table is a tied one, which some files hold twice.
    """
    prefix = "model." if f"model.{TABLE}" in tensors else ""
    found = architecture(tensors, prefix, **options)
    twice = found["tied"] and HEAD in tensors
    kept = {name: value for name, value in tensors.items() if not (twice and name == HEAD)}
    params, carried = import_params(kept, rules(found, prefix), [CARRIED])
    return Model(found, params, carried, {"prefix": prefix, "head_twice": twice})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    prefix = model.names.get("prefix", "model.")
    tensors = export_params(model.params, rules(model.architecture, prefix), model.carried)
    return tensors | ({HEAD: tensors[f"{prefix}{TABLE}"]} if model.names.get("head_twice") else {})
