"""Scale-RAE's checkpoints: a language model, its adapters and a DiT under one roof.

The frozen encoder is not in them. Neither are the frequencies of the DiT's time embedding, which follow from a seed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import language_model, lightning_dit
from rae_jax.interop.layout import (
    IDENTITY,
    Rule,
    Tensors,
    export_params,
    import_params,
    require,
    under,
)
from rae_jax.interop.lightning_dit import linear
from rae_jax.interop.model import Model
from rae_jax.models.embeddings import torch_normal
from rae_jax.models.text_to_image import FREQUENCIES_SEED

DIT = "diff_head.model."
NULL = "y_embedder.dropout_embedding"
FREQUENCIES = "t_embedder.W"
ADAPTERS = {
    "model.mm_projector.0": "project_hidden",
    "model.mm_projector.2": "project_out",
    "diff_head_projector": "to_condition",
}
QUERIES = "model.latent_queries"


def dit_architecture(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of `PromptedDiT` for the tensors of one; `num_heads` only where no rotary table or norm tells it.

    Raises:
      ValueError: it is missing, or the tensors are of another model.
    """
    tensors = _plain_blocks(tensors)
    lightning_dit.require(tensors, lightning_dit.POSITIONS, "x_embedder.proj.weight", NULL, "final_layer.linear.weight")
    width, in_channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
    table = lightning_dit.ROTARY_TABLE
    return {
        "grid_size": round(tensors[lightning_dit.POSITIONS].shape[1] ** 0.5) * patch_size,
        "in_channels": in_channels,
        "condition_width": tensors[NULL].shape[0],
        "width": width,
        "depth": lightning_dit.count_blocks(tensors),
        "num_heads": num_heads or width // lightning_dit.head_width(tensors, "blocks.0.", table, width),
        "patch_size": patch_size,
        "rope": any(name.startswith(f"{table}.") for name in tensors),
        "trained_tables": lightning_dit.trained_tables(tensors, width),
        **lightning_dit.block_options(tensors, {"blocks.0.": width}),
    }


def dit_rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of the DiT alone."""
    options = {name: architecture[name] for name in ("rope", "qk_norm", "swiglu", "rms_norm")}
    result = [Rule(NULL, "null_condition", IDENTITY), Rule(FREQUENCIES, "time_embedding/frequencies", IDENTITY)]
    result += linear("t_embedder.mlp.0", "time_embedding/hidden") + linear("t_embedder.mlp.2", "time_embedding/out")
    result += lightning_dit.position_rules(architecture)
    result += lightning_dit.patches("x_embedder", "patch_embedding", architecture["patch_size"])
    for i in range(architecture["depth"]):
        result += lightning_dit.block_rules(f"dit_blocks.{i}.", f"blocks_{i}", architecture["num_heads"], **options)
    return result + lightning_dit.final_rules(architecture["rms_norm"])


def import_dit(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of PromptedDiT, its parameters with unrolled blocks, carried tensors)`.

    Frequencies that are not there are the published ones.

    Raises:
      ValueError: as `dit_architecture` and `layout.import_params` do; or a fixed table is not what the model computes.
    """
    found = dit_architecture(tensors, num_heads)
    whole = {FREQUENCIES: torch_normal(FREQUENCIES_SEED, 256), **tensors}
    params, carried = import_params(whole, dit_rules(found), lightning_dit.carried_names(found["trained_tables"]))
    lightning_dit.check_tables(carried, lightning_dit.tables(found))
    return found, params, carried


def export_dit(params: Any, architecture: Mapping[str, Any], frequencies: bool) -> Tensors:
    """The inverse of `import_dit`; `frequencies`: whether they are in the file."""
    tensors = export_params(params, dit_rules(architecture), lightning_dit.tables(architecture))
    return tensors if frequencies else {name: value for name, value in tensors.items() if name != FREQUENCIES}


def adapter_rules() -> list[Rule]:
    """The rules of the adapters."""
    rules = [Rule(QUERIES, "queries", IDENTITY)]
    return rules + [rule for official, ours in ADAPTERS.items() for rule in linear(official, ours)]


def adapter_architecture(tensors: Mapping[str, np.ndarray], spatial_merge: int = 1) -> dict[str, Any]:
    """Arguments of `Adapters`; the published ones merge no tokens, and no tensor tells whether others do.

    Raises:
      KeyError: a tensor that tells them is missing.
      ValueError: the projector does not read whole squares of tokens.
    """
    first, last = "model.mm_projector.0.weight", "diff_head_projector.weight"
    require(tensors, first, last, QUERIES)
    num_queries, width = np.shape(tensors[QUERIES])
    channels = np.shape(tensors[first])[1]
    if channels % spatial_merge**2:
        raise ValueError(f"{first} reads {channels} channels, which are not {spatial_merge} x {spatial_merge} tokens'")
    return {
        "features": channels // spatial_merge**2,
        "width": width,
        "num_queries": num_queries,
        "condition_width": np.shape(tensors[last])[0],
        "spatial_merge": spatial_merge,
    }


def is_adapter(name: str) -> bool:
    """Whether a tensor of that name is the adapters'."""
    return name == QUERIES or any(name.startswith(f"{official}.") for official in ADAPTERS)


def read(
    tensors: Mapping[str, np.ndarray], text_dit_heads: int | None = None, spatial_merge: int = 1, **options: float
) -> Model:
    """A checkpoint of Scale-RAE as the parts `language_model`, `adapters` and `text_dit`.

    Args:
      text_dit_heads: as `num_heads` of `dit_architecture`.
      spatial_merge: as of `adapter_architecture`.
      options: of `language_model.architecture`.
    """
    of_dit = under(tensors, DIT)
    of_adapters = {name: value for name, value in tensors.items() if is_adapter(name)}
    rest = {n: v for n, v in tensors.items() if not n.startswith(DIT) and n not in of_adapters}
    adapters = adapter_architecture(tensors, spatial_merge)
    text_dit, dit_params, carried = import_dit(of_dit, text_dit_heads)
    adapter_params, _ = import_params(of_adapters, adapter_rules())
    language = language_model.read(rest, **options)
    return Model(
        {"language_model": language.architecture, "adapters": adapters, "text_dit": text_dit},
        {"language_model": language.params, "adapters": adapter_params, "text_dit": dit_params},
        language.carried | {f"{DIT}{name}": value for name, value in carried.items()},
        language.names | {"frequencies": FREQUENCIES in of_dit},
    )


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    parts, names = model.params, model.names
    of_language = Model(model.architecture["language_model"], parts["language_model"], {}, names)
    tensors = language_model.write(of_language) | export_params(parts["adapters"], adapter_rules())
    of_dit = export_dit(parts["text_dit"], model.architecture["text_dit"], names.get("frequencies", False))
    return tensors | {f"{DIT}{name}": value for name, value in of_dit.items()} | model.carried


def _plain_blocks(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors with their blocks named as LightningDiT's."""
    return {re.sub("^dit_blocks", "blocks", name): value for name, value in tensors.items()}
