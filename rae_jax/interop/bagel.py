"""Bagel's mixture of transformers from and to its official checkpoints, and its start from Qwen2.5.

The names are those of `model.safetensors` and `ema.safetensors`. Both sine-cosine tables are in the files, and computed
here. A file may also hold the decoder alone, under names without `language_model.`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import language_model, vit
from rae_jax.interop.layout import (
    IDENTITY,
    Rule,
    Tensors,
    count_blocks,
    export_params,
    import_params,
    require,
)
from rae_jax.interop.lightning_dit import check_tables, linear
from rae_jax.interop.model import Model
from rae_jax.interop.vit_names import NAMES, published_heads
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.mixture_of_transformers import EXPERTS

DECODER = "language_model."
GENERATION = "_moe_gen"  # what the name of a module of the generation expert ends with
LATENT_TABLE, SEMANTIC_TABLE = "latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"
VISION = "vit_model.vision_model."
PATCH = f"{VISION}embeddings.patch_embedding"
POSITIONS = f"{VISION}embeddings.position_embedding.weight"


def architecture(
    tensors: Mapping[str, np.ndarray],
    num_heads: int | None = None,
    vision_heads: int | None = None,
    rope_theta: float = 1e6,
    norm_epsilon: float = 1e-6,
) -> dict[str, Any]:
    """Arguments of `MixtureOfTransformers` for these tensors; the last two are in no tensor.

    `num_heads` is needed where no query norm tells the width of a head and no published model has the width;
    `vision_heads` where no published vision encoder has its width.

    Raises:
      KeyError: a tensor that tells the architecture is missing.
      ValueError: heads are missing, or do not divide.
    """
    require(tensors, "vae2llm.weight", LATENT_TABLE)
    decoder = language_model.architecture(tensors, f"{DECODER}model.", num_heads, rope_theta, norm_epsilon)
    decoder.pop("tied")
    head, table = f"{DECODER}{language_model.HEAD}", f"{DECODER}model.{language_model.TABLE}"
    own = head in tensors and not np.array_equal(tensors[head], tensors[table])
    found = decoder | {
        "latent_channels": np.shape(tensors["vae2llm.weight"])[1],
        "latent_capacity": math.isqrt(np.shape(tensors[LATENT_TABLE])[0]),
        "language_head": "own" if own else "tied" if head in tensors else "",
    }
    if SEMANTIC_TABLE in tensors:
        require(tensors, PATCH + ".weight", POSITIONS, f"{VISION}encoder.layers.0.mlp.fc1.weight")
        width = np.shape(tensors[PATCH + ".weight"])[0]
        vision_heads = vision_heads or published_heads("siglip", width)
        if vision_heads is None:
            raise ValueError(f"the tensors do not tell the number of heads of the vision encoder of width {width}; "
                             "give vision_heads")  # fmt: skip
        found["semantic_capacity"] = math.isqrt(np.shape(tensors[SEMANTIC_TABLE])[0])
        found["semantic_channels"] = math.prod(np.shape(tensors[PATCH + ".weight"])[1:])
        found["vision"] = {
            "positions": np.shape(tensors[POSITIONS])[0],
            "width": width,
            "depth": count_blocks(tensors, f"{VISION}encoder.layers.{{}}."),
            "num_heads": vision_heads,
            "mlp_dim": np.shape(tensors[f"{VISION}encoder.layers.0.mlp.fc1.weight"])[0],
        }
    return found


def moved(name: str) -> str:
    """The generation expert's name of a tensor of Qwen2.5, inside a layer or the final norm."""
    if name.startswith("mlp."):
        return f"mlp{GENERATION}." + name.removeprefix("mlp.")
    module, _, leaf = name.rpartition(".")
    return f"{module}{GENERATION}.{leaf}"


def layer_rules(architecture: Mapping[str, Any], official: str = "", ours: str = "") -> list[Rule]:
    """The rules of one layer, whose tensors' names start with `official` and whose parameters' paths with `ours`."""
    told = {name: architecture[name] for name in ("qk_norm", "qkv_bias")} | {"tied": True, "depth": 1}
    result = []
    for rule in language_model.rules(told, ""):
        if rule.official.startswith("layers.0."):
            name, path = rule.official.removeprefix("layers.0."), rule.ours.removeprefix("blocks_0/")
            path = path.removeprefix("attention/")
            for expert, of in zip(EXPERTS, (name, moved(name)), strict=True):
                result.append(Rule(f"{official}{of}", f"{ours}{expert}/{path}", rule.layout))
    return result


def decoder_rules(architecture: Mapping[str, Any], official: str = "model.", ours: str = "") -> list[Rule]:
    """The rules of all layers and the final norms."""
    names = dict(zip(EXPERTS, ("norm.weight", moved("norm.weight")), strict=True))
    result = [Rule(f"{official}{name}", f"{ours}{expert}_norm/scale", IDENTITY) for expert, name in names.items()]
    for i in range(architecture["depth"]):
        result += layer_rules(architecture, f"{official}layers.{i}.", f"{ours}blocks_{i}/")
    return result


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of a whole model; `architecture` as from the function of that name."""
    result = decoder_rules(architecture, f"{DECODER}model.", "decoder/")
    result.append(Rule(f"{DECODER}model.{language_model.TABLE}", "embedding", IDENTITY))
    if architecture["language_head"] == "own":
        result.append(Rule(f"{DECODER}{language_model.HEAD}", "head", IDENTITY))
    result += linear("vae2llm", "from_latent")
    result += linear("llm2vae", "to_latent")
    result += linear("time_embedder.mlp.0", "time_embedding/hidden") + linear(
        "time_embedder.mlp.2", "time_embedding/out"
    )
    if architecture.get("semantic_capacity"):
        result += linear("connector.fc1", "connector_in") + linear("connector.fc2", "connector_out")
    if vision := architecture.get("vision"):
        result += linear(PATCH, "vision/patch")
        result.append(Rule(POSITIONS, "vision/position_embedding", IDENTITY))
        for i in range(vision["depth"]):
            official = f"{VISION}encoder.layers.{i}."
            result += vit.block_rules(official, f"vision/blocks_{i}", NAMES["siglip", 4], vision["num_heads"], True)
        for leaf, parameter in (("weight", "scale"), ("bias", "bias")):
            result.append(Rule(f"{VISION}post_layernorm.{leaf}", f"vision/norm/{parameter}", IDENTITY))
    return result


def tables(architecture: Mapping[str, Any]) -> Tensors:
    """The sine-cosine tables of the file."""
    width = architecture["width"]
    result = {LATENT_TABLE: sincos_table(architecture["latent_capacity"], width)}
    if architecture.get("vision"):
        result[SEMANTIC_TABLE] = sincos_table(architecture["semantic_capacity"], width)
    return result


def read(tensors: Mapping[str, np.ndarray], **options: float) -> Model:
    """A file of Bagel; options as `architecture`'s.

    Raises:
      ValueError: as `layout.import_params` does; or a table is another than the one that is computed.
    """
    found = architecture(tensors, **options)
    head = f"{DECODER}{language_model.HEAD}"
    kept = {name: tensor for name, tensor in tensors.items() if found["language_head"] != "tied" or name != head}
    params, carried = import_params(kept, rules(found), [LATENT_TABLE, SEMANTIC_TABLE])
    check_tables(carried, tables(found))
    return Model(found, params, carried)


def write(model: Model) -> Tensors:
    """The inverse of `read`.

    Raises:
      ValueError: the model has a head or semantic tokens of which Bagel's files know nothing.
    """
    if model.architecture.get("head_grid"):
        raise ValueError("Bagel's files have a linear layer to the velocity; this model has a wide head")
    if model.architecture.get("semantic_channels") and not model.architecture.get("vision"):
        raise ValueError("Bagel's files have no semantic tokens but those of their own vision encoder")
    tensors = export_params(model.params, rules(model.architecture), {**tables(model.architecture), **model.carried})
    if model.architecture["language_head"] == "tied":
        tensors[f"{DECODER}{language_model.HEAD}"] = tensors[f"{DECODER}model.{language_model.TABLE}"]
    return tensors


def from_language_model(params: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters `like` those of a mixture, with a language model's in both experts.

    What the language model has not stays as it is in `like`: the norms of queries and keys, which are new in Bagel, and
    all that has to do with images. Trees with unrolled or stacked blocks alike, in both the same.
    """

    def placed(there: Any, here: Any) -> Any:
        if not isinstance(there, Mapping):
            return here
        return {name: placed(value, here[name]) if name in here else value for name, value in there.items()}

    decoder = {}
    for name, value in like["decoder"].items():
        if name.startswith("blocks"):
            source = dict(params[name])
            source |= source.pop("attention")
            decoder[name] = {expert: placed(weights, source) for expert, weights in value.items()}
        else:  # the final norms
            decoder[name] = params["norm"]
    result = {**like, "decoder": decoder, "embedding": params["embedding"]}
    if "head" in like and "head" in params:
        result["head"] = params["head"]
    return result
