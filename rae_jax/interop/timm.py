"""Networks that evaluations look through, in the names of timm: pooled Vision Transformers and ConvNeXt V2."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    CONV,
    IDENTITY,
    LINEAR,
    Layout,
    Rule,
    affine,
    import_params,
    patch_embedding,
    stacked,
    to_heads,
    without_leading,
)
from rae_jax.models.representations import ConvNeXtV2, PooledVisionTransformer

# Classifiers and norms behind what is used here.
CARRIED = (r"head\..*", r"fc_norm\..*", r"mask_token")


def _transformer(module: PooledVisionTransformer) -> list[Rule]:
    heads = stacked(to_heads(module.num_heads))
    result = [
        *affine("patch_embed.proj", "embedding/patch", patch_embedding(module.patch_size)),
        Rule("pos_embed", "embedding/position_embedding", without_leading(1)),
        *affine("norm", "norm"),
    ]
    if module.cls_token:
        result.append(Rule("cls_token", "embedding/cls_token", without_leading(1)))
    if module.pre_norm:
        result += affine("norm_pre", "pre_norm")
    for i in range(module.depth):
        block, ours = f"blocks.{i}.", f"blocks_{i}/"
        result += [
            *affine(f"{block}norm1", f"{ours}attention_norm"),
            *affine(f"{block}norm2", f"{ours}mlp_norm"),
            Rule(f"{block}attn.qkv.weight", f"{ours}attention/qkv/kernel", heads),
            Rule(f"{block}attn.qkv.bias", f"{ours}attention/qkv/bias", heads),
            *affine(f"{block}attn.proj", f"{ours}attention/out", LINEAR),
            *affine(f"{block}mlp.fc1", f"{ours}mlp/up", LINEAR),
            *affine(f"{block}mlp.fc2", f"{ours}mlp/down", LINEAR),
        ]
        if module.layer_scale:
            result.append(Rule(f"{block}ls1.gamma", f"{ours}attention_scale", IDENTITY))
            result.append(Rule(f"{block}ls2.gamma", f"{ours}mlp_scale", IDENTITY))
    if module.pooling == "attention":
        halves = Layout(lambda w: tuple(np.split(w, 2)), lambda k, v: np.concatenate([k, v]))
        transposed = Layout(lambda w: tuple(h.T for h in np.split(w, 2)), lambda k, v: np.concatenate([k.T, v.T]))
        result += [
            Rule("attn_pool.latent", "pool/latent", without_leading(1)),
            *affine("attn_pool.q", "pool/query", LINEAR),
            Rule("attn_pool.kv.weight", ("pool/key/kernel", "pool/value/kernel"), transposed),
            Rule("attn_pool.kv.bias", ("pool/key/bias", "pool/value/bias"), halves),
            *affine("attn_pool.proj", "pool/out", LINEAR),
            *affine("attn_pool.norm", "pool/norm"),
            *affine("attn_pool.mlp.fc1", "pool/mlp/up", LINEAR),
            *affine("attn_pool.mlp.fc2", "pool/mlp/down", LINEAR),
        ]
    return result


def _convolutional(module: ConvNeXtV2) -> list[Rule]:
    result = [*affine("stem.0", "stem", CONV), *affine("stem.1", "stem_norm")]
    for stage, depth in enumerate(module.depths):
        if stage:
            result += affine(f"stages.{stage}.downsample.0", f"stages_{stage}_norm")
            result += affine(f"stages.{stage}.downsample.1", f"stages_{stage}_downsample", CONV)
        for i in range(depth):
            block, ours = f"stages.{stage}.blocks.{i}.", f"stages_{stage}_blocks_{i}/"
            result += [
                *affine(f"{block}conv_dw", f"{ours}depthwise", CONV),
                *affine(f"{block}norm", f"{ours}norm"),
                *affine(f"{block}mlp.fc1", f"{ours}up", LINEAR),
                Rule(f"{block}mlp.grn.weight", f"{ours}response_scale", IDENTITY),
                Rule(f"{block}mlp.grn.bias", f"{ours}response_bias", IDENTITY),
                *affine(f"{block}mlp.fc2", f"{ours}down", LINEAR),
            ]
    return result


def import_network(
    module: PooledVisionTransformer | ConvNeXtV2, tensors: Mapping[str, np.ndarray], like: Any
) -> dict[str, Any]:
    """The parameters of `module` from the tensors of timm's file; `like` as in `import_params`.

    Raises:
      ValueError: all tensors that are missing, unexpected or misshapen are listed.
    """
    tensors = dict(tensors)
    if isinstance(module, ConvNeXtV2):
        return import_params(tensors, _convolutional(module), CARRIED, like)[0]
    if module.pre_norm:  # CLIP's patches have no bias, since a norm follows them
        tensors.setdefault("patch_embed.proj.bias", np.zeros(module.width, np.float32))
    return import_params(tensors, _transformer(module), CARRIED, like)[0]
