"""Vision encoders from and to checkpoints: Hugging Face's of DINOv2 (with registers or not), DINOv3, SigLIP, SigLIP 2
(NaFlex too, on square grids), MAE; Meta's own of DINOv2, DINOv3 and MAE; timm's of all of these.

Names are those inside the vision model (`embeddings.cls_token`); what stands before them in a larger file, such as
`vision_model.` of SigLIP, `vit.` of MAE or `encoder.encoder.` of RAE, is the caller's to strip and to put back.
Published files use the names of transformers 4; those that transformers 5 keeps in memory are read and written too.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    IDENTITY,
    LINEAR,
    Layout,
    Rule,
    Tensors,
    count_blocks,
    export_params,
    fused,
    import_params,
    patch_embedding,
    prefixed,
    stacked,
    to_heads,
    under,
    without_leading,
)
from rae_jax.interop.model import Model

PERIODS = "rope_embed.periods"
FLEXIBLE = "bilinear_antialias"  # how SigLIP 2 NaFlex, alone of these, resamples its positions
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
_OPTIONS = {
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


def identify(names: Iterable[str]) -> tuple[str, int]:
    """The family and the major version of transformers whose names these are, a key of `NAMES`.

    Raises:
      ValueError: they are of no encoder known here.
    """
    names = list(names)
    # Of any block: a file in which a tensor of one block is missing is still known for what it is.
    anywhere = {re.sub(r"\b\d+\b", "{}", name, count=1) for name in names}
    for key, candidate in NAMES.items():
        parts = (candidate.query, candidate.down, candidate.attention_norm, *filter(None, [candidate.gate]))
        signs = {f"{candidate.block}{part}.weight" for part in parts} | set(filter(None, [candidate.mark]))
        if _options(key[0]).get("layer_scale"):
            signs.add(candidate.block + candidate.scales[0])
        if signs <= anywhere:
            return key
    raise ValueError(
        "the tensors are of no known encoder (DINOv2, DINOv3, SigLIP, MAE with Hugging Face's or timm's names, and all "
        "but SigLIP with Meta's, without prefix); "
        f"the first names are {sorted(names)[:5]}"
    )


def _options(family: str) -> dict[str, Any]:
    return _OPTIONS[family.removesuffix("_swiglu")]


def architecture(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of `VisionTransformer` for these tensors; the number of heads is the published one unless given.

    Raises:
      ValueError: the encoder is unknown, or its width is no published one and `num_heads` is missing.
    """
    family, version = identify(tensors)
    tensors = unmasked(tensors)
    names = NAMES[family, version]
    patch = tensors[f"{names.patch}.weight"]
    flexible = patch.ndim == 2  # SigLIP 2 NaFlex: a linear layer on patches flattened as (p, p, C)
    width, patch_size = patch.shape[0], math.isqrt(patch.shape[1] // 3) if flexible else patch.shape[-1]
    num_heads = num_heads or published_heads(family, width)
    if num_heads is None:
        raise ValueError(f"no published encoder has width {width}; give num_heads")
    registers = tensors.get(names.registers)
    options = _options(family)
    image_size = 0
    if names.position:
        class_position = options.get("cls_token", True) and not names.class_position_within
        num_positions = tensors[names.position].shape[-2] - int(class_position)
        image_size = math.isqrt(num_positions) * patch_size
    if family.startswith("dinov2"):
        # Only the checkpoints with registers were made for antialiased positions.
        interpolation = "bicubic" if registers is None else "bicubic_antialias"
        options = {**options, "position_interpolation": interpolation}
    if flexible:
        options = {**options, "position_interpolation": FLEXIBLE}
    depth = count_blocks(tensors, names.block)
    first = names.block.format(0)
    query_biases = (f"{names.query}.bias", QUERIES_AND_VALUES, *names.biases[:1])
    qkv_bias = any(first + bias in tensors for bias in query_biases)
    up, down = (tensors[f"{first}{part}.weight"].shape for part in (names.up, names.down))
    if names.gate or up[0] == 2 * down[1]:  # the gate may be in one matrix with up, which the names need not say
        options = {**options, "activation": "swiglu"}
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": down[1],
        "num_registers": 0 if registers is None else registers.shape[1],
        "qkv_bias": qkv_bias,
        "key_bias": not qkv_bias or f"{first}{names.key}.bias" in tensors,
        **options,
    }


def rules(family: str, version: int, architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one encoder; `architecture` as from the function of that name."""
    names = NAMES[family, version]
    token = without_leading(1)
    flexible = architecture.get("position_interpolation") == FLEXIBLE
    patch = LINEAR if flexible else patch_embedding(architecture["patch_size"])
    result = [
        Rule(f"{names.patch}.weight", "embedding/patch/kernel", patch),
        Rule(f"{names.patch}.bias", "embedding/patch/bias", IDENTITY),
    ]
    position, cls_token = "embedding/position_embedding", "embedding/cls_token"
    if names.class_position_within:
        result.append(Rule((names.cls_token, names.position), (cls_token, position), CLASS_POSITION_WITHIN))
    else:
        if names.position:
            result.append(Rule(names.position, position, names.position_layout))
        if architecture.get("cls_token", True):
            result.append(Rule(names.cls_token, cls_token, token))
    if architecture.get("num_registers", 0):
        result.append(Rule(names.registers, "embedding/register_tokens", token))
    if architecture.get("stored_periods", False):
        result.append(Rule(PERIODS, "rope_periods", IDENTITY))
    for i in range(architecture["depth"]):
        official, ours = names.block.format(i), f"blocks_{i}"
        biases = (architecture.get("qkv_bias", True), architecture.get("key_bias", True))
        gated = architecture.get("activation") == "swiglu"
        result += block_rules(official, ours, names, architecture["num_heads"], *biases, gated=gated)
        if architecture.get("layer_scale", False):
            for scale, branch in zip(names.scales, ("attention", "mlp"), strict=True):
                result.append(Rule(f"{official}{scale}", f"{ours}/{branch}_scale", IDENTITY))
    return result


def block_rules(
    official: str, ours: str, names: Any, num_heads: int, qkv_bias: bool, key_bias: bool = True, gated: bool = False
) -> list[Rule]:
    """Norms, attention and feed-forward of one block; `names` has the fields of `Names` from `attention_norm` on."""
    projections = [f"{official}{name}" for name in (names.query, names.key, names.value)]
    in_one = names.query == names.key
    kernel = Rule(tuple(f"{p}.weight" for p in projections), f"{ours}/attention/qkv/kernel", to_heads(num_heads))
    if in_one:
        kernel = Rule(f"{projections[0]}.weight", f"{ours}/attention/qkv/kernel", stacked(to_heads(num_heads)))
    result = [
        kernel,
        Rule(f"{official}{names.out}.weight", f"{ours}/attention/out/kernel", LINEAR),
        Rule(f"{official}{names.out}.bias", f"{ours}/attention/out/bias", IDENTITY),
    ]
    if qkv_bias:
        biased = projections if key_bias else projections[::2]
        layout, official_biases = to_heads(num_heads, parts=len(biased)), tuple(f"{p}.bias" for p in biased)
        if in_one:
            layout = stacked(layout, parts=len(biased))
            official_biases = official_biases[0] if key_bias else f"{official}{QUERIES_AND_VALUES}"
        if in_one and not key_bias and names.biases:
            layout, official_biases = to_heads(num_heads, parts=2), tuple(official + bias for bias in names.biases)
        result.append(Rule(official_biases, f"{ours}/attention/qkv/bias", layout))
    for norm in ("attention_norm", "mlp_norm"):
        source = f"{official}{getattr(names, norm)}"
        result.append(Rule(f"{source}.weight", f"{ours}/{norm}/scale", IDENTITY))
        result.append(Rule(f"{source}.bias", f"{ours}/{norm}/bias", IDENTITY))
    linears = {"down": names.down, "up": names.up} | ({"gate": names.gate} if names.gate else {})
    for linear, source in linears.items():
        kernel, bias, layouts = f"{ours}/mlp/{linear}/kernel", f"{ours}/mlp/{linear}/bias", (LINEAR, IDENTITY)
        if gated and not names.gate and linear == "up":  # gate and up in one matrix
            kernel = (f"{ours}/mlp/gate/kernel", f"{ours}/mlp/up/kernel")
            bias = (f"{ours}/mlp/gate/bias", f"{ours}/mlp/up/bias")
            layouts = (fused(LINEAR, LINEAR), fused(IDENTITY, IDENTITY))
        result.append(Rule(f"{official}{source}.weight", kernel, layouts[0]))
        result.append(Rule(f"{official}{source}.bias", bias, layouts[1]))
    return result


def import_encoder(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """`(arguments of VisionTransformer, its parameters with unrolled blocks, carried tensors)`.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, num_heads)
    family, version = identify(tensors)
    unused = carried_names(family, version, found)
    params, carried = import_params(unmasked(tensors), rules(family, version, found), unused, like)
    return found, params, carried


def carried_names(family: str, version: int, architecture: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Patterns of the tensors of such an encoder, named after `prefix`, that are no parameters here."""
    names = NAMES[family, version]
    patterns = [rf"{names.last_norm}\.(weight|bias)", *names.carried, *MASKED]
    if not architecture["num_registers"]:
        patterns.append(r"embeddings\.register_tokens")  # DINOv3 without registers holds an empty tensor of them
    return [re.escape(prefix) + f"(?:{pattern})" for pattern in patterns]


def export_encoder(
    params: Any,
    family: str,
    architecture: Mapping[str, Any],
    carried: Mapping[str, np.ndarray] | None = None,
    version: int = 4,
) -> Tensors:
    """The inverse of `import_encoder`, for parameters with unrolled blocks."""
    return masked(export_params(params, rules(family, version, architecture), carried))


def _split_class_position(cls_token: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cls_token.squeeze(0), np.concatenate([np.zeros_like(patches[0, :1]), patches[0]])


# timm's class token, which its position is added to, `[1, 1, D]`, and the patches' positions `[1, N, D]` <-> a token
# `[1, D]` and a table `[1 + N, D]` that begins with zeros.
CLASS_POSITION_WITHIN = Layout(
    _split_class_position, lambda cls_token, table: ((cls_token + table[:1])[None], table[None, 1:])
)

# DINOv3's own files have a bias of queries, keys and values, and beside it a mask of ones, but zeros for the keys.
BIAS, MASK, QUERIES_AND_VALUES = "attn.qkv.bias", "attn.qkv.bias_mask", "attn.qkv.bias of queries and values"
KEPT = "attn.qkv.bias of keys"
MASKED = (rf"blocks\.\d+\.({re.escape(MASK)}|{KEPT})",)


def unmasked(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors with each bias that a mask is beside in two: what the mask leaves, and what it takes.

    Raises:
      ValueError: the mask is another than that of the keys.
    """
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith(MASK)]:
        stem = name.removesuffix(MASK)
        if stem + QUERIES_AND_VALUES in tensors:  # already in two
            continue
        kept = np.asarray(tensors[name]).reshape(3, -1)
        if (kept[0] != 1).any() or (kept[1] != 0).any() or (kept[2] != 1).any():
            raise ValueError(f"{name} masks others than the keys, which DINOv3's do not")
        query, key, value = np.split(result.pop(stem + BIAS), 3)
        result |= {stem + QUERIES_AND_VALUES: np.concatenate([query, value]), stem + KEPT: key}
    return result


def masked(tensors: Tensors) -> Tensors:
    """The inverse of `unmasked`; of keys that have no bias it is zero."""
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith(QUERIES_AND_VALUES)]:
        stem = name.removesuffix(QUERIES_AND_VALUES)
        query, value = np.split(result.pop(name), 2)
        key = result.pop(stem + KEPT, np.zeros_like(query))
        mask = np.concatenate([np.ones_like(query), np.zeros_like(key), np.ones_like(value)])
        result[stem + BIAS] = np.concatenate([query, key, value])
        result.setdefault(stem + MASK, mask)
    return result


# What stands before the names in published files, and what is beside the encoder in them.
PREFIXES = {"siglip": "vision_model.", "mae": "vit.", "siglip_timm": "visual.trunk."}  # the last: OpenCLIP's files
BESIDE = {
    "siglip": (r"text_model\..*", r"logit_scale", r"logit_bias"),
    "siglip_timm": (r"text\..*", r"logit_scale", r"logit_bias"),
    "mae": (r"decoder\..*",),
}


def kind_of(architecture: Mapping[str, Any]) -> str:
    """The kind whose files can hold an encoder of these arguments of `VisionTransformer`."""
    if architecture.get("stored_periods"):
        return "dinov3_meta"
    if architecture.get("positions", "learned") != "learned":
        return {"rotary": "dinov3", "sincos": "mae"}[architecture["positions"]]
    return "dinov2" if architecture.get("cls_token", True) else "siglip"


def reader(kind: str) -> Callable[..., Model]:
    """Reads files of an encoder of `kind`, a family of `NAMES`, gated or not."""

    def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
        tensors, prefix = unmasked(tensors), PREFIXES.get(kind, "")
        prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
        encoder = under(tensors, prefix)
        family, version = identify(encoder)
        if family.removesuffix("_swiglu") != kind:
            raise ValueError(f"the encoder is a {family}")
        found = architecture(encoder, num_heads)
        unused = [*carried_names(family, version, found, prefix), *BESIDE.get(kind, ())]
        params, carried = import_params(tensors, prefixed(rules(family, version, found), prefix, ""), unused)
        return Model(found, params, carried, {"prefix": prefix, "version": version, "family": family})

    return read


def writer(kind: str) -> Callable[[Model], Tensors]:
    """Writes what `reader` reads; an encoder that was not imported gets the tensors that it has not and a file must."""

    def write(model: Model) -> Tensors:
        gated = f"{kind}_swiglu" if model.architecture.get("activation") == "swiglu" else kind
        family = model.names.get("family", gated if (gated, 4) in NAMES else kind)
        prefix = model.names.get("prefix", PREFIXES["siglip"] if kind == "siglip" else "")
        every_rule = prefixed(rules(family, model.names.get("version", 4), model.architecture), prefix, "")
        carried = model.carried if model.names else computed(kind, model, prefix)
        return masked(export_params(model.params, every_rule, carried))

    return write


def computed(kind: str, model: Model, prefix: str) -> Tensors:
    """What a file of `kind` holds beside the parameters of an encoder: a unit norm, a mask token of zeros."""
    width = model.architecture["width"]
    norm = prefix + NAMES[kind, 4].last_norm
    tensors = {f"{norm}.weight": np.ones(width, np.float32), f"{norm}.bias": np.zeros(width, np.float32)}
    if kind in ("dinov2", "dinov3"):
        tensors["embeddings.mask_token"] = np.zeros((1,) * (kind == "dinov3") + (1, width), np.float32)
    if kind in ("dinov2_meta", "dinov3_meta"):
        tensors["mask_token"] = np.zeros((1, width), np.float32)
    if kind == "dinov3" and not model.architecture["num_registers"]:
        tensors["embeddings.register_tokens"] = np.zeros((1, 0, width), np.float32)
    return tensors
