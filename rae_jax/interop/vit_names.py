"""Where the tensors of vision encoders are: names and options of each family, as data that `interop/vit.py` reads.

Families are those of Hugging Face (`dinov2`, `dinov3`, `siglip`, `mae`), Meta (`_meta`) and timm (`_timm`).
"""

import dataclasses
from typing import Any

from rae_jax.interop.layout import IDENTITY, Layout, without_leading

PERIODS = "rope_embed.periods"
# The checkpoints do not hold the number of heads; these are the published encoders', by width.
NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1536: 24}
# Where a family has another number than the others of its width.
OTHER_HEADS = {("dinov3", 1280): 20, ("dinov3", 4096): 32, ("siglip", 1536): 16}


@dataclasses.dataclass(frozen=True)
class Names:
    """Where the tensors of one kind of encoder are. Block tensors stand after `block` with the block's number in it."""

    patch: str
    position: str  # "": there is no table
    position_layout: Layout
    block: str
    attention_norm: str
    query: str
    key: str
    value: str
    out: str
    mlp_norm: str
    up: str
    down: str
    gate: str = ""
    cls_token: str = "embeddings.cls_token"
    registers: str = "embeddings.register_tokens"
    scales: tuple[str, str] = ("layer_scale1.lambda1", "layer_scale2.lambda1")
    # Of attention in one matrix: the biases of queries and values where they are tensors of their own.
    biases: tuple[str, ...] = ()
    mark: str = ""  # a tensor that tells the kind from another with the same names
    class_position_within: bool = False  # the class token's position is part of the token
    last_norm: str = "layernorm"  # which RAE replaces by one without parameters
    # Further tensors that RAE has no use for: masking, pooling.
    carried: tuple[str, ...] = ()


_DINOV2 = Names(
    patch="embeddings.patch_embeddings.projection",
    position="embeddings.position_embeddings",
    position_layout=without_leading(1),
    block="encoder.layer.{}.",
    attention_norm="norm1",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    out="attention.output.dense",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    carried=(r"embeddings\.mask_token",),
)
_MAE = dataclasses.replace(
    _DINOV2,
    attention_norm="layernorm_before",
    mlp_norm="layernorm_after",
    up="intermediate.dense",
    down="output.dense",
    carried=(),
)
_SIGLIP = Names(
    patch="embeddings.patch_embedding",
    position="embeddings.position_embedding.weight",
    position_layout=IDENTITY,
    block="encoder.layers.{}.",
    attention_norm="layer_norm1",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.out_proj",
    mlp_norm="layer_norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    last_norm="post_layernorm",
    carried=(
        r"head\.probe",
        r"head\.attention\.(in_proj_|out_proj\.)(weight|bias)",
        r"head\.(layernorm|mlp\.fc1|mlp\.fc2)\.(weight|bias)",
    ),
)
_DINOV3 = Names(
    patch="embeddings.patch_embeddings",
    position="",
    position_layout=IDENTITY,
    block="layer.{}.",
    attention_norm="norm1",
    # Rotary halves are paired there as they are here.
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    out="attention.o_proj",
    mlp_norm="norm2",
    up="mlp.up_proj",
    down="mlp.down_proj",
    last_norm="norm",
    carried=(r"embeddings\.mask_token",),
)
# Meta's own files: queries, keys and values in one matrix.
_META = Names(
    patch="patch_embed.proj",
    position="pos_embed",
    position_layout=without_leading(1),
    block="blocks.{}.",
    attention_norm="norm1",
    query="attn.qkv",
    key="attn.qkv",
    value="attn.qkv",
    out="attn.proj",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    cls_token="cls_token",
    registers="register_tokens",
    scales=("ls1.gamma", "ls2.gamma"),
    last_norm="norm",
    carried=("mask_token",),
)
# timm's.
_DINOV2_TIMM = dataclasses.replace(_META, registers="reg_token", mark="reg_token", class_position_within=True)
_DINOV3_TIMM = dataclasses.replace(
    _META,
    position="",
    registers="reg_token",
    scales=("gamma_1", "gamma_2"),
    biases=("attn.q_bias", "attn.v_bias"),
)
_SIGLIP_TIMM = dataclasses.replace(_META, mark="attn_pool.latent", carried=(r"attn_pool\..*",))
_META_SWIGLU = dict(up="mlp.w12", down="mlp.w3")
_DINOV3_META_SWIGLU = dict(gate="mlp.w1", up="mlp.w2", down="mlp.w3")
_DINOV3_META = dataclasses.replace(_META, position="", registers="storage_tokens", mark=PERIODS)
_MAE_META = dataclasses.replace(_META, carried=("mask_token", r"decoder_.*"))
_PROJECTIONS_5 = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.o_proj",
}
# By family and major version of transformers; a family with gates stands before the one without.
NAMES = {
    ("dinov2", 4): _DINOV2,
    ("dinov2", 5): dataclasses.replace(_DINOV2, **_PROJECTIONS_5),
    ("dinov2_swiglu", 4): dataclasses.replace(_DINOV2, up="mlp.weights_in", down="mlp.weights_out"),
    ("dinov2_swiglu", 5): dataclasses.replace(
        _DINOV2, **_PROJECTIONS_5, gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"
    ),
    ("dinov3_swiglu", 4): dataclasses.replace(_DINOV3, gate="mlp.gate_proj"),
    ("dinov3_swiglu", 5): dataclasses.replace(_DINOV3, gate="mlp.gate_proj", block="model.layer.{}."),
    ("dinov3", 4): _DINOV3,
    ("dinov3", 5): dataclasses.replace(_DINOV3, block="model.layer.{}."),
    ("dinov3_meta_swiglu", 4): dataclasses.replace(_DINOV3_META, **_DINOV3_META_SWIGLU),
    ("dinov3_meta", 4): _DINOV3_META,
    ("dinov2_meta_swiglu", 4): dataclasses.replace(_META, **_META_SWIGLU),
    ("dinov2_timm", 4): _DINOV2_TIMM,
    ("dinov2_meta", 4): _META,
    ("dinov3_timm_swiglu", 4): dataclasses.replace(_DINOV3_TIMM, gate="mlp.fc1_g", up="mlp.fc1_x"),
    ("dinov3_timm", 4): _DINOV3_TIMM,
    ("siglip_timm", 4): _SIGLIP_TIMM,
    ("mae_meta", 4): _MAE_META,
    ("siglip", 4): _SIGLIP,
    ("siglip", 5): _SIGLIP,
    ("mae", 4): _MAE,
    ("mae", 5): dataclasses.replace(_MAE, **_PROJECTIONS_5, block="layers.{}.", up="mlp.fc1", down="mlp.fc2"),
}
_ROTARY = {"layer_scale": True, "positions": "rotary", "norm_epsilon": 1e-5}
# By family, gated or not.
OPTIONS = {
    "dinov2": {"layer_scale": True},
    "dinov3": _ROTARY,
    "dinov2_meta": {"layer_scale": True},
    "dinov3_meta": _ROTARY | {"stored_periods": True},
    "dinov2_timm": {"layer_scale": True},
    "dinov3_timm": _ROTARY,
    "siglip": {"cls_token": False, "activation": "gelu_tanh"},
    "siglip_timm": {"cls_token": False, "activation": "gelu_tanh"},
    "mae": {"positions": "sincos", "norm_epsilon": 1e-12},
    "mae_meta": {"positions": "sincos", "norm_epsilon": 1e-12},  # Meta's code has 1e-6; RAE's is Hugging Face's
}


def published_heads(family: str, width: int) -> int | None:
    """How many heads the published encoder of a family of `NAMES` and a width has; None where there is none."""
    return OTHER_HEADS.get((family.split("_")[0], width), NUM_HEADS.get(width))


def options_of(family: str) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that a family has in common."""
    return OPTIONS[family.removesuffix("_swiglu")]
