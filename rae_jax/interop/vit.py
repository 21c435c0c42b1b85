"""Vision encoders from and to checkpoints: Hugging Face's of DINOv2 (with registers or not), DINOv3, SigLIP, SigLIP 2
(NaFlex too, on square grids), MAE; Meta's own of DINOv2, DINOv3 and MAE; timm's of all of these.

Names are those inside the vision model (`embeddings.cls_token`); what stands before them in a larger file, such as
`vision_model.` of SigLIP, `vit.` of MAE or `encoder.encoder.` of RAE, is the caller's to strip and to put back.
Published files use the names of transformers 4; those that transformers 5 keeps in memory are read and written too.
"""

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
from rae_jax.interop.vit_names import NAMES, PERIODS, Names, options_of, published_heads

FLEXIBLE = "bilinear_antialias"  # how SigLIP 2 NaFlex, alone of these, resamples its positions


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
        if options_of(key[0]).get("layer_scale"):
            signs.add(candidate.block + candidate.scales[0])
        if signs <= anywhere:
            return key
    raise ValueError(
        "the tensors are of no known encoder (DINOv2, DINOv3, SigLIP, MAE with Hugging Face's or timm's names, and all "
        "but SigLIP with Meta's, without prefix); "
        f"the first names are {sorted(names)[:5]}"
    )


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
    options = options_of(family)
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
    official: str, ours: str, names: Names, num_heads: int, qkv_bias: bool, key_bias: bool = True, gated: bool = False
) -> list[Rule]:
    """Norms, attention and feed-forward of one block."""
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
