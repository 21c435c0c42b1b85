"""SigLIP's two towers from Hugging Face's files: the whole model, of which `vit.py` reads the image tower alone."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Layout,
    Rule,
    affine,
    count_blocks,
    import_params,
    patch_embedding,
    without_leading,
)
from rae_jax.interop.vit import block_rules
from rae_jax.interop.vit_names import NAMES, published_heads
from rae_jax.models.image_text import ImageTextModel, TextTower
from rae_jax.models.representations import PooledVisionTransformer

_NAMES = NAMES["siglip", 4]
_VISION, _TEXT = "vision_model.", "text_model."
_THIRDS = ("pool/query", "pool/key", "pool/value")


def architecture(tensors: Mapping[str, np.ndarray], heads: Mapping[str, int] | None = None) -> ImageTextModel:
    """The module of these tensors.

    Args:
      heads: of the towers "image" and "text"; by default as many as published towers of their widths have.

    Raises:
      ValueError: they are of no such model, or of widths that no published one has, without `heads`.
    """
    needed = (f"{_VISION}head.probe", f"{_TEXT}head.weight", "logit_scale", "logit_bias")
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(f"no SigLIP of images and texts: there is no {', '.join(missing)}")
    embeddings = tensors[f"{_VISION}{_NAMES.patch}.weight"]
    if embeddings.ndim == 2:
        raise ValueError("a SigLIP 2 NaFlex, whose images may be of any shape; take a SigLIP of one size")
    words, places = (tensors[f"{_TEXT}embeddings.{name}_embedding.weight"] for name in ("token", "position"))
    side = math.isqrt(len(tensors[f"{_VISION}{_NAMES.position}"]))
    found = {"image": embeddings.shape[0], "text": words.shape[1]} if heads is None else {}
    heads = heads or {tower: published_heads("siglip", width) for tower, width in found.items()}
    if unknown := [width for tower, width in found.items() if heads[tower] is None]:
        raise ValueError(f"no published tower has width {unknown[0]}; give the numbers of heads")

    def sizes(prefix: str, tower: str) -> dict[str, int]:
        up = tensors[f"{prefix}{_NAMES.block.format(0)}{_NAMES.up}.weight"]
        depth = count_blocks(tensors, prefix + _NAMES.block)
        return dict(width=up.shape[1], depth=depth, num_heads=heads[tower], mlp_dim=up.shape[0])

    patch, options = embeddings.shape[-1], dict(cls_token=False, pooling="attention", activation="gelu_tanh")
    image = PooledVisionTransformer(side * patch, patch, **sizes(_VISION, "image"), **options)
    features = len(tensors[f"{_TEXT}head.weight"])
    return ImageTextModel(
        image, TextTower(*words.shape[:1], *places.shape[:1], **sizes(_TEXT, "text"), features=features)
    )


def rules(model: ImageTextModel) -> list[Rule]:
    """The rules of both towers."""
    result = [
        Rule("logit_scale", "scale", IDENTITY),
        Rule("logit_bias", "bias", IDENTITY),
        *affine(f"{_VISION}{_NAMES.patch}", "image/embedding/patch", patch_embedding(model.image.patch_size)),
        Rule(f"{_VISION}{_NAMES.position}", "image/embedding/position_embedding", IDENTITY),
        *affine(f"{_VISION}post_layernorm", "image/norm"),
        Rule(f"{_TEXT}embeddings.token_embedding.weight", "text/token_embedding", IDENTITY),
        Rule(f"{_TEXT}embeddings.position_embedding.weight", "text/position_embedding", IDENTITY),
        *affine(f"{_TEXT}final_layer_norm", "text/norm"),
        *affine(f"{_TEXT}head", "text/out", LINEAR),
    ]
    for prefix, ours, tower in ((_VISION, "image", model.image), (_TEXT, "text", model.text)):
        for i in range(tower.depth):
            block = prefix + _NAMES.block.format(i)
            result += block_rules(block, f"{ours}/blocks_{i}", _NAMES, tower.num_heads, True)
    head = f"{_VISION}head."
    matrices = Layout(
        lambda w: tuple(part.T for part in np.split(w, 3)), lambda *parts: np.concatenate([part.T for part in parts])
    )
    biases = Layout(lambda w: tuple(np.split(w, 3)), lambda *parts: np.concatenate(parts))
    result += [
        Rule(f"{head}probe", "image/pool/latent", without_leading(1)),
        Rule(f"{head}attention.in_proj_weight", tuple(f"image/{part}/kernel" for part in _THIRDS), matrices),
        Rule(f"{head}attention.in_proj_bias", tuple(f"image/{part}/bias" for part in _THIRDS), biases),
        *affine(f"{head}attention.out_proj", "image/pool/out", LINEAR),
        *affine(f"{head}layernorm", "image/pool/norm"),
        *affine(f"{head}mlp.fc1", "image/pool/mlp/up", LINEAR),
        *affine(f"{head}mlp.fc2", "image/pool/mlp/down", LINEAR),
    ]
    return result


def import_pair(
    tensors: Mapping[str, np.ndarray], heads: Mapping[str, int] | None = None
) -> tuple[ImageTextModel, dict[str, Any]]:
    """`(module, parameters)`; errors as `architecture` and `layout.import_params`."""
    model = architecture(tensors, heads)
    return model, import_params(tensors, rules(model))[0]
