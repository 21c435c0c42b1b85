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
    bridge,
    decoder,
    diffusers_kl,
    dino_disc,
    dinov3,
    dit_dh,
    inception_fid,
    lightning_dit,
    lpips,
    rpiae,
    statistics,
    vit,
)
from rae_jax.interop.layout import Rule, Tensors, count_blocks, export_params, import_params, nearest_names
from rae_jax.interop.rpiae import prefixed, under
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.dinov3 import DinoV3
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.kl_vae import KLVAE
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.models.lpips import SCALE, SHIFT
from rae_jax.models.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class Model:
    """What one official checkpoint holds.

    Attributes:
      architecture: arguments of our module, or of several by part (`encoder`, `decoder`, ...).
      params: parameters with unrolled blocks, by part where there are several.
      carried: tensors that are no parameters of ours, by official name; an export puts them back, or computes them
        where there are none.
      names: which of several spellings the file has, for the export to use the same.
    """

    architecture: dict[str, Any]
    params: dict[str, Any]
    carried: Tensors = dataclasses.field(default_factory=dict)
    names: dict[str, Any] = dataclasses.field(default_factory=dict)


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


def identify(tensors: Mapping[str, Any]) -> str:
    """The kind whose names these are.

    Raises:
      ValueError: none.
    """
    for name, kind in KINDS.items():
        if _has_signs(kind, tensors):
            return name
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
    try:
        return kind.read(tensors, **options)
    except KeyError as error:
        wanted = error.args[0]
        problem = f"missing    {wanted}{nearest_names(wanted, tensors)}; the architecture cannot be told without it"
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
    again = kind.read(tensors, **{option: value for option, value in options.items() if value is not None})
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
        raise ValueError(f"kind {name!r} is unknown{nearest_names(name, KINDS)}; there are {', '.join(KINDS)}")
    return KINDS[name]


def settings(module: type[nn.Module], architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of `module` that changes what it computes, defaults included.

    Feed-forward ratios are left out: several give the same layer, whose shape tells.
    """
    elsewhere = {"parent", "name", "dtype", "scan", "remat", "mlp_ratio"}
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


def _require(tensors: Mapping[str, Any], *names: str) -> None:
    """Raises a KeyError for the first of `names`, without which the architecture cannot be told, that is not there."""
    for name in names:
        if name not in tensors:
            raise KeyError(name)


def _at(architecture: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = architecture
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_written(name: str, model: Model) -> Model:
    """`model`, or one that computes the same and has what every file of the kind has."""
    if name != "dinov2" or model.architecture.get("layer_scale"):
        return model
    params, unit = dict(model.params), np.ones(model.architecture["width"], np.float32)
    for block in (key for key in model.params if key.startswith("blocks_")):
        params[block] = {**params[block], "attention_scale": unit, "mlp_scale": unit}
    return dataclasses.replace(model, params=params, architecture={**model.architecture, "layer_scale": True})


# Vision encoders: prefix in published files, and what is beside the encoder in them.
ENCODER_PREFIXES = {"siglip": "vision_model.", "mae": "vit."}
BESIDE_ENCODER = {"siglip": (r"text_model\..*", r"logit_scale", r"logit_bias"), "mae": (r"decoder\..*",)}


def _read_encoder(kind: str) -> Callable[..., Model]:
    def read(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
        prefix = ENCODER_PREFIXES.get(kind, "")
        prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
        encoder = under(tensors, prefix)
        family, version = vit.identify(encoder)
        if family.removesuffix("_swiglu") != kind:
            raise ValueError(f"the encoder is a {family}")
        architecture = vit.architecture(encoder, num_heads)
        rules = prefixed(vit.rules(family, version, architecture), prefix, "")
        carried = [re.escape(prefix) + f"(?:{pattern})" for pattern in vit.NAMES[family, version].carried]
        params, unused = import_params(tensors, rules, [*carried, *BESIDE_ENCODER.get(kind, ())])
        return Model(architecture, params, unused, {"prefix": prefix, "version": version})

    return read


def _write_encoder(kind: str) -> Callable[[Model], Tensors]:
    def write(model: Model) -> Tensors:
        family = "dinov2_swiglu" if kind == "dinov2" and model.architecture.get("activation") == "swiglu" else kind
        prefix = model.names.get("prefix", ENCODER_PREFIXES["siglip"] if kind == "siglip" else "")
        rules = prefixed(vit.rules(family, model.names.get("version", 4), model.architecture), prefix, "")
        width = model.architecture["width"]
        unused = _unit_norm(prefix + ("post_layernorm" if kind == "siglip" else "layernorm"), width)
        if kind == "dinov2":
            unused["embeddings.mask_token"] = np.zeros((1, width), np.float32)
        return export_params(model.params, rules, model.carried if model.names else unused)

    return write


def _read_dinov3(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    found, params, carried = dinov3.import_encoder(tensors, num_heads)
    return Model(found, params, carried, {"version": dinov3.identify(tensors)})


def _write_dinov3(model: Model) -> Tensors:
    width = model.architecture["width"]
    unused = _unit_norm("norm", width) | {"embeddings.mask_token": np.zeros((1, 1, width), np.float32)}
    carried = model.carried if model.names else unused
    return dinov3.export_encoder(model.params, model.architecture, carried, model.names.get("version", 4))


def _unit_norm(name: str, width: int) -> Tensors:
    """The norm that RAE replaces the encoder's last one by, as a file must have it."""
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}


def _read_dino_disc(tensors: Mapping[str, np.ndarray], num_heads: int = 6) -> Model:
    """The DINO ViT alone, under its own names; or the heads, and perhaps the ViT, of a discriminator."""
    prefix = "" if "patch_embed.proj.weight" in tensors else "dino."
    architecture: dict[str, Any] = {}
    if any(name.startswith(f"{prefix}blocks.") for name in tensors):
        kernel = tensors[f"{prefix}patch_embed.proj.weight"]
        depth = count_blocks(tensors, f"{prefix}blocks.{{}}.")
        architecture = {"dino": {"depth": depth, "num_heads": num_heads, "patch_size": kernel.shape[-1]}}
    if heads := under(tensors, "heads."):
        spectral_norm = any(name.endswith(".weight_orig") for name in heads)
        residual = tensors[f"heads.0.1.fn.0.{'weight_orig' if spectral_norm else 'weight'}"]
        architecture["heads"] = {
            "num_heads": count_blocks(heads, "{}."),
            "kernel_size": residual.shape[-1],
            "spectral_norm": spectral_norm,
        }
    carried = [re.escape(prefix) + f"(?:{pattern})" for pattern in dino_disc.DINO_CARRIED]
    params, unused = import_params(tensors, _dino_disc_rules(architecture, prefix), carried)
    return Model(architecture, params, unused, {"prefix": prefix})


def _write_dino_disc(model: Model) -> Tensors:
    rules = _dino_disc_rules(model.architecture, model.names["prefix"])
    return export_params(model.params, rules, model.carried)


def _dino_disc_rules(architecture: Mapping[str, Mapping[str, Any]], prefix: str) -> list[Rule]:
    rules = []
    if dino := architecture.get("dino"):
        rules += prefixed(dino_disc.dino_rules(**dino), prefix, "dino/")
    if heads := architecture.get("heads"):
        rules += prefixed(dino_disc.heads_rules(**heads), "heads.", "heads/")
    return rules


def _read_decoder(
    tensors: Mapping[str, np.ndarray], num_heads: int | None = None, grid_size: int | None = None
) -> Model:
    source = decoder.identify(tensors)
    if source == "official":
        _require(tensors, decoder.POSITIONS)
    return Model(*decoder.import_decoder(tensors, grid_size, num_heads), {"source": source})


def _write_decoder(model: Model) -> Tensors:
    return decoder.export_decoder(
        model.params, model.architecture, model.carried, model.names.get("source", "official")
    )


def _read_statistics(tensors: Mapping[str, np.ndarray]) -> Model:
    if unexpected := sorted(tensors.keys() - {"mean", "var"}):
        raise ValueError(f"unexpected {', '.join(unexpected)}; latent statistics are 'var' and perhaps 'mean'")
    return Model({}, _statistics_params(statistics.import_statistics(tensors)))


def _statistics_params(found: LatentStatistics) -> dict[str, np.ndarray]:
    mean = {} if found.mean is None else {"mean": found.mean}
    return {**mean, "variance": found.variance}


def _write_statistics(model: Model) -> Tensors:
    return statistics.export_statistics(LatentStatistics(model.params.get("mean"), model.params["variance"]))


def _read_dit_dh(flow_map: bool) -> Callable[..., Model]:
    def read(tensors: Mapping[str, np.ndarray], head_depth: int | None = None) -> Model:
        if flow_map:
            _require(tensors, "r_embedder.W")
        if not flow_map and any(name.startswith("r_embedder.") for name in tensors):
            raise ValueError("it has a second time embedder, r_embedder: the kind is 'mf_dit_dh'")
        return Model(*dit_dh.import_dit_dh(tensors, head_depth))

    return read


def _write_dit_dh(model: Model) -> Tensors:
    return dit_dh.export_dit_dh(model.params, model.architecture, model.carried)


def _read_lightning_dit(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    return Model(*lightning_dit.import_lightning_dit(tensors, num_heads))


def _write_lightning_dit(model: Model) -> Tensors:
    return lightning_dit.export_lightning_dit(model.params, model.architecture, model.carried)


def _read_tokenizer(with_bridge: bool) -> Callable[..., Model]:
    def read(tensors: Mapping[str, np.ndarray], **heads: int) -> Model:
        _require(tensors, rpiae.DECODER + decoder.POSITIONS)
        found, params, carried = rpiae.import_rpiae(tensors, **heads)
        if ("bridge_encoder" in found) != with_bridge:
            raise ValueError(f"there is {'no' if with_bridge else 'a'} variational bridge in it")
        family, version = rpiae.identify(tensors)
        return Model(found, params, carried, {"family": family, "version": version})

    return read


def _write_tokenizer(model: Model) -> Tensors:
    return rpiae.export_rpiae(model.params, model.architecture, model.carried, **model.names)


def _read_bridge(tensors: Mapping[str, np.ndarray], num_heads: int | None = None) -> Model:
    return Model(*bridge.import_bridge(tensors, num_heads))


def _write_bridge(model: Model) -> Tensors:
    return bridge.export_bridge(model.params, model.architecture)


# In `diffusers.AutoencoderRAE`, beside `encoder.` and `decoder.`.
DIFFUSERS_STATISTICS = ("_latents_mean", "_latents_std")
DIFFUSERS_CARRIED = (*DIFFUSERS_STATISTICS, "encoder_mean", "encoder_std")


def _read_diffusers_rae(
    tensors: Mapping[str, np.ndarray],
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    grid_size: int | None = None,
) -> Model:
    encoder, pixels = under(tensors, "encoder."), under(tensors, "decoder.")
    measured = {name: tensors[name] for name in DIFFUSERS_STATISTICS if name in tensors}
    if grid_size is None and measured and measured["_latents_std"].shape[-1] > 1:
        grid_size = measured["_latents_std"].shape[-1]
    family, version = vit.identify(encoder)
    architecture = {
        "encoder": vit.architecture(encoder, encoder_heads),
        "decoder": decoder.architecture(pixels, grid_size, decoder_heads),
    }
    unused = [rf"encoder\.(?:{pattern})" for pattern in vit.NAMES[family, version].carried]
    rules = _diffusers_rae_rules(architecture, family, version)
    params, carried = import_params(tensors, rules, [*unused, *DIFFUSERS_CARRIED])
    if measured:
        params["stats"] = _statistics_params(statistics.import_diffusers_statistics(measured))
    return Model(architecture, params, carried, {"family": family, "version": version})


def _write_diffusers_rae(model: Model) -> Tensors:
    params, carried, computed = dict(model.params), dict(model.carried), {}
    if measured := params.pop("stats", None):
        computed = statistics.export_diffusers_statistics(LatentStatistics(measured.get("mean"), measured["variance"]))
        # Variance and deviation differ in rounding: the file's own are kept as long as they say the same.
        own = {name: carried.pop(name) for name in DIFFUSERS_STATISTICS if name in carried}
        if own and np.array_equal(statistics.import_diffusers_statistics(own).variance, measured["variance"]):
            computed["_latents_std"] = own["_latents_std"]
    rules = _diffusers_rae_rules(model.architecture, **model.names)
    return export_params(params, rules, carried | computed)


def _diffusers_rae_rules(architecture: Mapping[str, Any], family: str, version: int) -> list[Rule]:
    rules = prefixed(vit.rules(family, version, architecture["encoder"]), "encoder.", "encoder/")
    return rules + prefixed(decoder.rules("diffusers", architecture["decoder"]), "decoder.", "decoder/")


def _read_kl_vae(tensors: Mapping[str, np.ndarray], num_groups: int = 32, scaling_factor: float = 1.0) -> Model:
    ends = ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    _require(tensors, *ends)
    found, params = diffusers_kl.import_kl_vae(tensors, num_groups)
    return Model({**found, "scaling_factor": scaling_factor}, params, {}, {"names": diffusers_kl.identify(tensors)})


def _write_kl_vae(model: Model) -> Tensors:
    return diffusers_kl.export_kl_vae(model.params, model.architecture, **model.names)


def _read_lpips(tensors: Mapping[str, np.ndarray]) -> Model:
    torchvision = any(name.startswith("features.") for name in tensors)
    network = "vgg16" if tensors["lin1.model.1.weight"].shape[1] == 128 else "alexnet"
    whole = any(name.startswith("net.slice") for name in tensors)
    form = "torchvision" if torchvision else "module" if whole else "heads"
    params, carried = import_params(tensors, _lpips_rules(network, form), [*lpips.CARRIED, r"classifier\..*"])
    return Model({"network": network}, params, carried, {"form": form})


def _write_lpips(model: Model) -> Tensors:
    scaling = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}
    constants = {name: np.reshape(np.asarray(value, np.float32), (1, 3, 1, 1)) for name, value in scaling.items()}
    form = model.names.get("form", "module")
    carried = model.carried if model.names else constants
    return export_params(model.params, _lpips_rules(model.architecture["network"], form), carried)


def _lpips_rules(network: str, form: str) -> list[Rule]:
    """`form`: the `heads` alone, the official `module`, or heads and a file of `torchvision`."""
    if form == "heads":
        return lpips.HEAD_RULES
    rules = lpips.rules(network)
    if form == "module":
        return rules
    return [dataclasses.replace(rule, official=re.sub(r"net\.slice\d\.", "features.", rule.official)) for rule in rules]


def _read_inception(tensors: Mapping[str, np.ndarray]) -> Model:
    rules, carried = inception_fid.INCEPTION_RULES, inception_fid.INCEPTION_CARRIED
    return Model({}, *import_params(tensors, rules, carried))


def _write_inception(model: Model) -> Tensors:
    return export_params(model.params, inception_fid.INCEPTION_RULES, model.carried)


def _encoder(kind: str, holds: str, sign: str) -> Kind:
    signs = (f"(?:{re.escape(ENCODER_PREFIXES.get(kind, ''))})?{sign}",)
    read, write = _read_encoder(kind), _write_encoder(kind)
    return Kind(holds, signs, read, write, {"num_heads": ("num_heads",)}, {"": VisionTransformer})


HEADS = {"encoder_heads": ("encoder", "num_heads"), "decoder_heads": ("decoder", "num_heads")}
BRIDGE_HEADS = {"bridge_heads": ("bridge_encoder", "num_heads")}
TOKENIZER = {"encoder": VisionTransformer, "decoder": ViTDecoder}
BRIDGE = {"bridge_encoder": BridgeEncoder, "bridge_decoder": BridgeDecoder}

# In the order in which `identify` asks: a kind whose files look like those of another, and more, stands before it.
KINDS = {
    "rpiae": Kind(
        "RPiAE's tokenizer of stages II and III: encoder, bridge, decoder",
        (r"vb_feature_encoder\.to_moments\.weight", r"decoder\.decoder_pred\.weight"),
        _read_tokenizer(with_bridge=True),
        _write_tokenizer,
        HEADS | BRIDGE_HEADS,
        TOKENIZER | BRIDGE,
    ),
    "rpiae_bridge": Kind(
        "RPiAE's variational bridge alone",
        (r"vb_feature_encoder\.to_moments\.weight",),
        _read_bridge,
        _write_bridge,
        {"num_heads": ("bridge_encoder", "num_heads")},
        BRIDGE,
    ),
    "diffusers_rae": Kind(
        "diffusers.AutoencoderRAE: encoder, decoder, latent statistics",
        (r"decoder\.decoder_layers\.0\.attention\.to_q\.weight",),
        _read_diffusers_rae,
        _write_diffusers_rae,
        HEADS | {"grid_size": ("decoder", "grid_size")},
        TOKENIZER | {"stats": None},
    ),
    "rpiae_stage1": Kind(
        "RPiAE's tokenizer of stage I (encoder, the frozen one it is pivoted on, decoder), or RAE's (encoder, decoder)",
        (r"encoder\.(encoder|model)\..*", r"decoder\.decoder_pred\.weight"),
        _read_tokenizer(with_bridge=False),
        _write_tokenizer,
        HEADS,
        TOKENIZER,
    ),
    "rae_decoder": Kind(
        "RAE's ViT decoder",
        (r"decoder_pred\.weight",),
        _read_decoder,
        _write_decoder,
        {"num_heads": ("num_heads",), "grid_size": ("grid_size",)},
        {"": ViTDecoder},
    ),
    "latent_stats": Kind(
        "RAE's latent statistics: mean, var [C, h, w]", (r"var",), _read_statistics, _write_statistics, {}, {"": None}
    ),
    "mf_dit_dh": Kind(
        "MF-RAE's flow-map DiT^DH, with a second time embedder",
        (r"s_embedder\.proj\.weight", r"r_embedder\.W"),
        _read_dit_dh(flow_map=True),
        _write_dit_dh,
        {"head_depth": ("head_depth",)},
        {"": DiTDH},
    ),
    "dit_dh": Kind(
        "RAE's DiT^DH, AutoGuidance's small model too",
        (r"s_embedder\.proj\.weight",),
        _read_dit_dh(flow_map=False),
        _write_dit_dh,
        {"head_depth": ("head_depth",)},
        {"": DiTDH},
    ),
    "lightning_dit": Kind(
        "LightningDiT as RAE and RPiAE train it",
        (r"x_embedder\.proj\.weight", r"y_embedder\.embedding_table\.weight"),
        _read_lightning_dit,
        _write_lightning_dit,
        {"num_heads": ("num_heads",)},
        {"": LightningDiT},
    ),
    "dinov3": Kind(
        "DINOv3 ViT, Hugging Face",
        (r"(model\.)?layer\.\d+\.attention\.q_proj\.weight",),
        _read_dinov3,
        _write_dinov3,
        {"num_heads": ("num_heads",)},
        {"": DinoV3},
    ),
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
        _read_dino_disc,
        _write_dino_disc,
        {"num_heads": ("dino", "num_heads")},
    ),
    "diffusers_kl": Kind(
        "diffusers.AutoencoderKL",
        (r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight",),
        _read_kl_vae,
        _write_kl_vae,
        {"num_groups": ("num_groups",), "scaling_factor": ("scaling_factor",)},
        {"": KLVAE},
    ),
    "lpips": Kind(
        "LPIPS, VGG16 or AlexNet: whole, the heads, or the heads with torchvision's file",
        (r"lin0\.model\.1\.weight",),
        _read_lpips,
        _write_lpips,
    ),
    "inception_fid": Kind(
        "Inception-v3 of FID, pt_inception-2015-12-05",
        (r"Conv2d_1a_3x3\.conv\.weight",),
        _read_inception,
        _write_inception,
    ),
}
