"""Every kind of official checkpoint under one interface: tensors -> `Model` -> the same tensors.

The modules beside this one know names and layouts; here they are gathered for `tools/convert.py` and for
`interop.weights`, which takes official files where a config names weights.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from rae_jax.interop import (
    bagel,
    bridge,
    decoder,
    diffusers_kl,
    diffusers_rae,
    dino_disc,
    dit_dh,
    dit_in_context,
    inception_fid,
    language_model,
    ldm_kl,
    lightning_dit,
    linear_head,
    lpips,
    rac_coder,
    rpiae,
    scale_rae,
    statistics,
    vit,
)
from rae_jax.interop.layout import Tensors
from rae_jax.interop.model import Model
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.coder import RectifiedCoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.discriminator import DinoFeatures
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.dit_in_context import DiTInContext
from rae_jax.models.inception import Inception
from rae_jax.models.kl_vae import KLVAE
from rae_jax.models.language_model import LanguageModel
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.models.linear_head import LinearHead
from rae_jax.models.lpips import LPIPS
from rae_jax.models.mixture_of_transformers import MixtureOfTransformers
from rae_jax.models.text_to_image import Adapters, PromptedDiT
from rae_jax.models.vit import VisionTransformer
from rae_jax.spelling import nearest


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of official checkpoint.

    Attributes:
      holds: what it is, in a line.
      signs: patterns, each of which is the whole name of some tensor in every file of the kind.
      read: `(tensors, **options) -> Model`.
      write: `Model -> tensors`.
      options: what tensors may not tell, and where it is in the architecture.
      modules: the module of each part, under "" where there is one part; None for latent statistics.
    """

    holds: str
    signs: tuple[str, ...]
    read: Callable[..., Model]
    write: Callable[[Model], Tensors]
    options: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    modules: Mapping[str, type[nn.Module] | None] = dataclasses.field(default_factory=dict)


def identify(tensors: Mapping[str, Any], module: type[nn.Module] | None = None) -> str:
    """The kind whose names these are; of several, one that holds a `module`.

    Raises:
      ValueError: none.
    """
    fitting = [name for name, kind in KINDS.items() if _has_signs(kind, tensors)]
    if fitting:
        return next((name for name in fitting if module in KINDS[name].modules.values()), fitting[0])
    raise ValueError(f"the tensors are of no kind known here ({', '.join(KINDS)}); first names: {sorted(tensors)[:5]}")


def import_model(name: str, tensors: Mapping[str, np.ndarray], **options: float) -> Model:
    """The model in the tensors of an official checkpoint of kind `name`; `options` as its kind lists them.

    Raises:
      ValueError: the kind or an option is unknown; or the tensors do not fit: all that are missing, unexpected or
        misshapen are listed.
    """
    kind = find(name)
    if unknown := options.keys() - kind.options.keys():
        raise ValueError(
            f"kind {name!r} takes no {', '.join(sorted(unknown))}; it takes {list(kind.options) or 'none'}"
        )
    for option, value in options.items():
        if value <= 0 and option != "shift_factor":
            raise ValueError(f"{option}={value}: it has to be above 0")
    try:
        return kind.read(tensors, **options)
    except KeyError as error:
        wanted = error.args[0]
        problem = f"missing    {wanted}{nearest(wanted, tensors)}; the architecture cannot be told without it"
    except ValueError as error:
        problem = str(error)
    other = next((other for other, its in KINDS.items() if _has_signs(its, tensors)), name)
    hint = f"\nThe names look like those of kind {other!r}." if other != name and not _has_signs(kind, tensors) else ""
    raise ValueError(f"not a checkpoint of kind {name!r}: {problem}{hint}")


def export_model(name: str, model: Model) -> Tensors:
    """The tensors of an official checkpoint of kind `name`: the inverse of `import_model`.

    Raises:
      ValueError: the kind is unknown, or its files cannot say what this model is.
    """
    kind = find(name)
    model = _as_written(name, model)
    try:
        tensors = kind.write(model)
    except KeyError as error:
        raise ValueError(f"these weights are of no model of kind {name!r}: they have no {error.args[0]!r}") from None
    # Whoever reads the file must find the architecture that was written: options that are not in it would be lost.
    options = {option: _at(model.architecture, path) for option, path in kind.options.items()}
    again = kind.read(tensors, **{option: value for option, value in options.items() if value})
    for part, module in kind.modules.items():
        ours, read = (_at(m.architecture, (part,) if part else ()) for m in (model, again))
        if module is not None and ours and (lost := differences(module, ours, read)):
            raise ValueError(
                f"a file of kind {name!r} cannot hold this model:\n  "
                + "\n  ".join(f"{field} is {here!r}, the file means {there!r}" for field, here, there in lost)
            )
    return tensors


def find(name: str) -> Kind:
    """The kind of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in KINDS:
        raise ValueError(f"kind {name!r} is unknown{nearest(name, KINDS)}; there are {', '.join(KINDS)}")
    return KINDS[name]


def settings(module: type[nn.Module], architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of `module` that changes what it computes, defaults included.

    Feed-forward ratios are left out: several give the same layer, whose shape tells. So is which of a network's
    features are handed out, whether frequencies that every file has get a gradient, and by what attention is computed.
    """
    elsewhere = {
        "parent", "name", "dtype", "scan", "remat", "fused_attention",
        "mlp_ratio", "key_depths", "trained_frequencies", "layers",
    }  # fmt: skip
    fields = {f.name: f.default for f in dataclasses.fields(module) if f.name not in elsewhere}
    return {name: _plain(architecture.get(name, default)) for name, default in fields.items()}


def differences(
    module: type[nn.Module], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """`(field, ours, theirs)` where two architectures of `module` differ."""
    here, there = settings(module, ours), settings(module, theirs)
    return [(field, here[field], there[field]) for field in here if here[field] != there[field]]


def _has_signs(kind: Kind, names: Mapping[str, Any]) -> bool:
    return all(any(re.fullmatch(sign, name) for name in names) for sign in kind.signs)


def _at(architecture: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = architecture
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_written(name: str, model: Model) -> Model:
    """`model`, or one that computes the same and has what every file of the kind has.

    `weights.load_weights` takes it out again where the module has no place for it.
    """
    part = next((part for part, module in KINDS[name].modules.items() if module is VisionTransformer), None)
    if name == "dinov2" and part == "":
        architecture, params = _with_layer_scales(model.architecture, model.params)
        return dataclasses.replace(model, params=params, architecture=architecture)
    if not part or part not in model.architecture or vit.kind_of(model.architecture[part]) != "dinov2":
        return model
    architecture, params = _with_layer_scales(model.architecture[part], model.params[part])
    return dataclasses.replace(
        model,
        params={**model.params, part: params},
        architecture={**model.architecture, part: architecture},
    )


def _with_layer_scales(
    architecture: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """An encoder with layer scales: its own, or ones, which change nothing."""
    if architecture.get("layer_scale"):
        return architecture, params
    unit = np.ones(architecture["width"], np.float32)
    scaled = {
        name: {**block, "attention_scale": unit, "mlp_scale": unit} if name.startswith("blocks_") else block
        for name, block in params.items()
    }
    return {**architecture, "layer_scale": True}, scaled


def _encoder(kind: str, holds: str, *signs: str) -> Kind:
    signs = tuple(f"(?:{re.escape(vit.PREFIXES.get(kind, ''))})?{sign}" for sign in signs)
    options = {"num_heads": ("num_heads",)}
    return Kind(holds, signs, vit.reader(kind), vit.writer(kind), options, {"": VisionTransformer})


HEADS = {"encoder_heads": ("encoder", "num_heads"), "decoder_heads": ("decoder", "num_heads")}
BRIDGE_HEADS = {"bridge_heads": ("bridge_encoder", "num_heads")}
TOKENIZER = {"encoder": VisionTransformer, "decoder": ViTDecoder}
BRIDGE = {"bridge_encoder": BridgeEncoder, "bridge_decoder": BridgeDecoder}

# In the order in which `identify` asks: a kind whose files look like those of another, and more, stands before it.
KINDS = {
    "rpiae": Kind(
        "RPiAE's tokenizer of stages II and III: encoder, bridge, decoder",
        (r"vb_feature_encoder\.to_moments\.weight", r"decoder\.decoder_pred\.weight"),
        rpiae.reader(with_bridge=True),
        rpiae.write,
        HEADS | BRIDGE_HEADS,
        TOKENIZER | BRIDGE,
    ),
    "rpiae_bridge": Kind(
        "RPiAE's variational bridge alone",
        (r"vb_feature_encoder\.to_moments\.weight",),
        bridge.read,
        bridge.write,
        {"num_heads": ("bridge_encoder", "num_heads")},
        BRIDGE,
    ),
    "diffusers_rae": Kind(
        "diffusers.AutoencoderRAE: encoder, decoder, latent statistics",
        (r"decoder\.decoder_layers\.0\.attention\.to_q\.weight",),
        diffusers_rae.read,
        diffusers_rae.write,
        HEADS | {"grid_size": ("decoder", "grid_size")},
        TOKENIZER | {"stats": None},
    ),
    "rpiae_stage1": Kind(
        "RPiAE's tokenizer of stage I (encoder, the frozen one it is pivoted on, decoder), or RAE's (encoder, decoder)",
        (r"encoder\.(encoder|model)\..*", r"decoder\.decoder_pred\.weight"),
        rpiae.reader(with_bridge=False),
        rpiae.write,
        HEADS,
        TOKENIZER,
    ),
    "rae_decoder": Kind(
        "RAE's ViT decoder",
        (r"decoder_pred\.weight",),
        decoder.read,
        decoder.write,
        {"num_heads": ("num_heads",), "grid_size": ("grid_size",)},
        {"": ViTDecoder},
    ),
    "latent_stats": Kind(
        "RAE's latent statistics: mean, var [C, h, w]", (r"var",), statistics.read, statistics.write, {}, {"": None}
    ),
    "mf_dit_dh": Kind(
        "MF-RAE's flow-map DiT^DH, with a second time embedder",
        (r"s_embedder\.proj\.weight", r"r_embedder\.W"),
        dit_dh.read_flow_map,
        dit_dh.write,
        {"head_depth": ("head_depth",)},
        {"": DiTDH},
    ),
    "dit_in_context": Kind(
        "RAEv2's DiT^DH with in-context conditions and an early output",
        (r"s_embedder\.proj\.weight", r"t_embedder\.learnable_tokens"),
        dit_in_context.read,
        dit_in_context.write,
        {"base_depth": ("base_depth",), "alignment_depth": ("alignment_depth",)},
        {"": DiTInContext},
    ),
    "dit_dh": Kind(
        "RAE's DiT^DH, AutoGuidance's small model too",
        (r"s_embedder\.proj\.weight",),
        dit_dh.read,
        dit_dh.write,
        {"head_depth": ("head_depth",)},
        {"": DiTDH},
    ),
    "lightning_dit": Kind(
        "LightningDiT as RAE and RPiAE train it",
        (r"x_embedder\.proj\.weight", r"y_embedder\.embedding_table\.weight"),
        lightning_dit.read,
        lightning_dit.write,
        {"num_heads": ("num_heads",)},
        {"": LightningDiT},
    ),
    "bagel": Kind(
        "Bagel's mixture of transformers, with its vision encoder or without",
        (r"language_model\.model\.layers\.\d+\.self_attn\.q_proj_moe_gen\.weight", r"vae2llm\.weight"),
        bagel.read,
        bagel.write,
        {name: (name,) for name in ("num_heads", "rope_theta", "norm_epsilon")}
        | {"vision_heads": ("vision", "num_heads")},
        {"": MixtureOfTransformers},
    ),
    "scale_rae": Kind(
        "Scale-RAE's text-to-image system: language model, adapters, DiT",
        (r"model\.latent_queries", r"diff_head\.model\.dit_blocks\..*"),
        scale_rae.read,
        scale_rae.write,
        {name: ("language_model", name) for name in ("num_heads", "rope_theta", "norm_epsilon")}
        | {"text_dit_heads": ("text_dit", "num_heads"), "spatial_merge": ("adapters", "spatial_merge")},
        {"language_model": LanguageModel, "adapters": Adapters, "text_dit": PromptedDiT},
    ),
    "qwen": Kind(
        "Qwen2.5 or Qwen3, Hugging Face",
        (r"(model\.)?embed_tokens\.weight", r"(model\.)?layers\.\d+\.self_attn\.q_proj\.weight"),
        language_model.read,
        language_model.write,
        {name: (name,) for name in ("num_heads", "rope_theta", "norm_epsilon")},
        {"": LanguageModel},
    ),
    "dinov2_head": Kind(
        "DINOv2 with its linear classifier: Hugging Face's, or Meta's encoder and head together",
        (r"(classifier\.)?weight", r"dinov2(_with_registers)?\.layernorm\.weight|blocks\.\d+\.ls1\.gamma"),
        linear_head.read,
        linear_head.write,
        {"num_heads": ("encoder", "num_heads")},
        {"encoder": VisionTransformer, "linear_head": LinearHead},
    ),
    "dinov3_meta": _encoder("dinov3_meta", "DINOv3 ViT, Meta's own file", r"rope_embed\.periods"),
    "dinov2_timm": _encoder("dinov2_timm", "DINOv2 with registers, timm", r"reg_token", r"blocks\.\d+\.ls1\.gamma"),
    "dinov3_timm": _encoder("dinov3_timm", "DINOv3 ViT, timm", r"reg_token", r"blocks\.\d+\.gamma_1"),
    "siglip_timm": _encoder(
        "siglip_timm", "SigLIP's or SigLIP 2's vision tower, timm or OpenCLIP", r"attn_pool\.latent"
    ),
    "dinov2_meta": _encoder(
        "dinov2_meta", "DINOv2, Meta's own file, or timm's without registers", r"blocks\.\d+\.ls1\.gamma"
    ),
    "dinov3": _encoder("dinov3", "DINOv3 ViT, Hugging Face", r"(model\.)?layer\.\d+\.attention\.q_proj\.weight"),
    "dinov2": _encoder(
        "dinov2", "DINOv2 with registers or without, Hugging Face", r"encoder\.layer\.\d+\.layer_scale1\.lambda1"
    ),
    "siglip": _encoder(
        "siglip", "vision tower of SigLIP or SigLIP 2, Hugging Face", r"encoder\.layers\.\d+\.layer_norm1\.weight"
    ),
    "mae": _encoder(
        "mae", "encoder of ViTMAE, Hugging Face", r"(encoder\.layer|layers)\.\d+\.layernorm_before\.weight"
    ),
    "dino_disc": Kind(
        "the DINO ViT-S/8 under RAE's discriminator, or the discriminator's heads, or both",
        (r"(dino\.)?patch_embed\.proj\.weight|heads\..*",),
        dino_disc.read,
        dino_disc.write,
        {"num_heads": ("dino", "num_heads")},
        {"dino": DinoFeatures},
    ),
    # After DINO, whose names are the same: it is an encoder for who asks for one.
    "mae_meta": _encoder(
        "mae_meta", "MAE's encoder, Meta's own file or timm's; its decoder is carried", r"blocks\.\d+\.norm1\.weight"
    ),
    "diffusers_kl": Kind(
        "diffusers.AutoencoderKL",
        (r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight",),
        diffusers_kl.read,
        diffusers_kl.write,
        {name: (name,) for name in ("num_groups", "scaling_factor", "shift_factor")},
        {"": KLVAE},
    ),
    "ldm_kl": Kind(
        "the same in the names of latent diffusion's own code: VA-VAE, IN-VAE",
        (r"encoder\.down\.0\.block\.0\.conv1\.weight",),
        ldm_kl.read,
        ldm_kl.write,
        {name: (name,) for name in ("num_groups", "scaling_factor", "shift_factor")},
        {"": KLVAE},
    ),
    "rac_coder": Kind(
        "RAC's rectified coder, named as diffusers would; nothing official is published",
        (r"decoder\.up_blocks\.0\.resnets\.0\.conv1\.weight", r"decoder\.conv_in\.weight"),
        rac_coder.read,
        rac_coder.write,
        {name: (name,) for name in ("state_channels", "num_groups", "latent_channels", "scale")},
        {"": RectifiedCoder},
    ),
    "lpips": Kind(
        "LPIPS, VGG16 or AlexNet: whole, the heads, or the heads with torchvision's file",
        (r"lin0\.model\.1\.weight",),
        lpips.read,
        lpips.write,
        {},
        {"": LPIPS},
    ),
    "inception_fid": Kind(
        "Inception-v3 of FID, pt_inception-2015-12-05",
        (r"Conv2d_1a_3x3\.conv\.weight",),
        inception_fid.read,
        inception_fid.write,
        {},
        {"": Inception},
    ),
}
