"""Our modules, built for a golden case from the official arguments and weights in it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from golden import Case

from rae_jax.interop import diffusers_rae, dit_in_context
from rae_jax.interop.dit_dh import export_dit_dh, import_dit_dh
from rae_jax.interop.layout import Tensors
from rae_jax.interop.lightning_dit import export_lightning_dit, import_lightning_dit
from rae_jax.interop.rpiae import import_rpiae
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.dit_in_context import DiTInContext
from rae_jax.models.lightning_dit import LightningDiT
from rae_jax.models.vit import VisionTransformer


class Format(NamedTuple):
    """How one kind of diffusion transformer is read, written and built."""

    read: Callable[..., tuple[dict[str, Any], dict[str, Any], Tensors]]
    write: Callable[..., Tensors]
    module: type[nn.Module]


DIT_DH = Format(import_dit_dh, export_dit_dh, DiTDH)
LIGHTNING_DIT = Format(import_lightning_dit, export_lightning_dit, LightningDiT)


class Network(NamedTuple):
    """A diffusion transformer: its module, `(variables, z, t, labels[, r]) -> v`, compiled, and what was imported."""

    model: nn.Module
    apply: Callable[..., jax.Array]
    params: Any
    architecture: dict[str, Any]
    carried: Tensors


def format_of(constructor: dict[str, Any]) -> Format:
    """DiT^DH is given two widths, LightningDiT one."""
    return DIT_DH if isinstance(constructor["hidden_size"], list) else LIGHTNING_DIT


def untold(constructor: dict[str, Any]) -> dict[str, int]:
    """What an import has to be told of a diffusion transformer, because no tensor's shape tells it."""
    width, heads, qk_norm = constructor["hidden_size"], constructor["num_heads"], constructor["use_qknorm"]
    if format_of(constructor) is LIGHTNING_DIT:
        return {} if qk_norm or constructor["use_rope"] else {"num_heads": heads}
    told = width[0] != width[1] or (qk_norm and heads[0] != heads[1])
    return {} if told else {"head_depth": constructor["depth"][1]}


@functools.cache
def network(case: Case, prefix: str | None = None) -> Network:
    """The diffusion transformer whose weights are under `prefix`, or the main one."""
    prefix = next(iter(case.networks)) if prefix is None else prefix
    constructor = case.networks[prefix]
    architecture, params, carried = format_of(constructor).read(case.weights_under(prefix), **untold(constructor))
    model = format_of(constructor).module(**architecture)
    return Network(model, jax.jit(model.apply), params, architecture, carried)


# Official arguments of RAEv2's generator that say nothing of what it computes, without guidance scales as conditions
# (`use_cfg_conds`) and without actions.
UNUSED_IN_CONTEXT = {"num_cfg_omega_tokens", "n_action_tokens"}


def told_in_context(case: Case) -> dict[str, int]:
    """What an import has to be told of RAEv2's generator."""
    told = {"base_depth": case.constructor["base_model_depth"]}
    return told | ({"alignment_depth": case.constructor["repa_layer_depth"]} if case.constructor["enable_repa"] else {})


def architecture_in_context(case: Case) -> dict[str, Any]:
    """Our arguments of RAEv2's generator, from the official ones: each is read, and those that are not said to be."""
    rest = dict(case.constructor)
    (width, head_width), (depth, head_depth), (heads, head_heads) = (
        rest.pop(name) for name in ("hidden_size", "depth", "num_heads")
    )
    patch, head_patch = rest.pop("patch_size")
    tokens = rest.pop("cond_arch")
    text, aligned = rest.pop("condition_type") == "text", rest.pop("enable_repa")
    assert patch == head_patch and tokens.keys() == {"num_t_tokens", "num_c_tokens", *UNUSED_IN_CONTEXT}
    ours = {
        "grid_size": rest.pop("input_size"), "in_channels": rest.pop("in_channels"), "patch_size": patch,
        "width": width, "head_width": head_width, "depth": depth, "head_depth": head_depth,
        "num_heads": heads, "head_num_heads": head_heads, "mlp_ratio": rest.pop("mlp_ratio"),
        "num_classes": 0 if text else rest.pop("num_classes"), "base_depth": rest.pop("base_model_depth") or 0,
        "context_width": rest.pop("context_dim") or 0,
        "time_tokens": tokens["num_t_tokens"], "condition_tokens": tokens["num_c_tokens"],
        "alignment_depth": rest.pop("repa_layer_depth") if aligned else 0,
        "alignment_features": rest.pop("z_dim") if aligned else 0, "flow_map": False,
    }  # fmt: skip
    assert not rest.pop("use_cfg_conds") and rest.keys() <= {"num_classes", "repa_layer_depth", "z_dim"}, rest
    return ours


@functools.cache
def in_context(case: Case, **changes: Any) -> Network:
    """RAEv2's generator, the main network of a case; `changes` are to our arguments."""
    prefix = "model." if any(name.startswith("model.") for name in case.weights) else ""
    model = dit_in_context.read(case.weights_under(prefix), **told_in_context(case))
    module = DiTInContext(**model.architecture | changes)
    return Network(module, jax.jit(module.apply), model.params, model.architecture, model.carried)


def linear_velocity(case: Case, labels: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The velocity model of the cases `transport`, linear in `x: [B, C, h, w]`, t and a vector of the label."""
    w = case.weights

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        bias = w["mix.bias"] + t[:, None] * w["tvec"] + w["label.weight"][labels]
        return jnp.einsum("nchw,dc->ndhw", x, w["mix.weight"]) + bias[:, :, None, None]

    return velocity


def heads(case: Case) -> dict[str, int]:
    """The numbers of attention heads in a representation autoencoder, as imports take them."""
    constructor = case.constructor
    found = {
        "encoder_heads": case.description["encoder_config"]["num_attention_heads"],
        "decoder_heads": constructor.get("decoder_config", constructor)["decoder_num_attention_heads"],
    }
    return found | ({"bridge_heads": constructor["vb_heads"]} if "vb_heads" in constructor else {})


def decoder_grid(case: Case) -> int:
    """The side of the decoder's grid in a representation autoencoder of diffusers, whose file does not tell."""
    return case.constructor["encoder_input_size"] // case.constructor["encoder_patch_size"]


@functools.cache
def autoencoder(case: Case) -> tuple[RepresentationAutoencoder, dict[str, Any], dict[str, dict[str, Any]]]:
    """The representation autoencoder, the parameters of all parts in the file, and their architectures."""
    constructor, encoder_config = case.constructor, case.description["encoder_config"]
    if "decoder_config" in constructor:
        architecture, params, _ = import_rpiae(case.weights, **heads(case))
        mean, std = constructor["image_mean"], constructor["image_std"]
        epsilon = constructor["decoder_config"]["layer_norm_eps"]
    else:
        model = diffusers_rae.read(case.weights, **heads(case), grid_size=decoder_grid(case))
        architecture, params = model.architecture, model.params
        mean, std = (case.weights[f"encoder_{moment}"].ravel().tolist() for moment in ("mean", "std"))
        epsilon = ViTDecoder.norm_epsilon
    encoder = architecture["encoder"] | {"norm_epsilon": encoder_config["layer_norm_eps"]}
    return (
        RepresentationAutoencoder(
            VisionTransformer(**encoder),
            ViTDecoder(**architecture["decoder"], norm_epsilon=epsilon),
            encoder_input_size=constructor["encoder_input_size"],
            image_mean=tuple(mean),
            image_std=tuple(std),
        ),
        params,
        architecture,
    )
