"""The KL-VAE from and to checkpoints in the names of latent diffusion's own code: VA-VAE, IN-VAE and their likes.

The layers are diffusers'; only names differ, and attention is made of 1 x 1 convolutions. Tensors are renamed to the
ones of `diffusers_kl`, whose rules then hold.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop import diffusers_kl
from rae_jax.interop.layout import Tensors
from rae_jax.interop.model import Model

# What such checkpoints also hold, and no model uses: losses, discriminators, and what VA-VAE aligns its latent with.
UNUSED = r"(loss|foundation_model|linear_proj|model_ema)\..*"
# Names in latent diffusion's code and in diffusers', after `encoder.` or `decoder.`; levels are numbered apart.
ENDS = {
    r"norm_out\.(\w+)": r"conv_norm_out.\1",
    r"(conv_in|conv_out)\.(\w+)": r"\1.\2",
    r"mid\.block_1\.(.+)": r"mid_block.resnets.0.\1",
    r"mid\.block_2\.(.+)": r"mid_block.resnets.1.\1",
    r"mid\.attn_1\.(.+)": r"mid_block.attentions.0.\1",
}
LEVEL = {"block": "resnets", "attn": "attentions"}
SAMPLERS = {"downsample.conv": "downsamplers.0.conv", "upsample.conv": "upsamplers.0.conv"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_name(name: str, levels: int) -> str:
    """The name that diffusers gives the tensor `name` of a KL-VAE with so many levels.

    Raises:
      ValueError: it is none of a KL-VAE's.
    """
    if re.fullmatch(r"(post_)?quant_conv\.(weight|bias)", name):
        return name
    half, _, rest = name.partition(".")
    if half in ("encoder", "decoder"):
        for pattern, replacement in ENDS.items():
            if re.fullmatch(pattern, rest):
                return f"{half}.{_layer(re.sub(pattern, replacement, rest))}"
        if found := re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)", rest):
            way, level, what, number, layer = found.groups()
            return f"{half}.{_blocks(way, int(level), levels)}.{_layer(f'{LEVEL[what]}.{number}.{layer}')}"
        if found := re.fullmatch(r"(down|up)\.(\d+)\.(downsample\.conv|upsample\.conv)\.(\w+)", rest):
            way, level, sampler, leaf = found.groups()
            return f"{half}.{_blocks(way, int(level), levels)}.{SAMPLERS[sampler]}.{leaf}"
    raise ValueError(f"{name} is no tensor of a KL-VAE in latent diffusion's names")


def _blocks(way: str, level: int, levels: int) -> str:
    """diffusers counts the decoder's levels from the lowest resolution, latent diffusion from the highest."""
    return f"down_blocks.{level}" if way == "down" else f"up_blocks.{levels - 1 - level}"


def _layer(name: str) -> str:
    """A layer's name within a block."""
    if "attentions." in name:
        head, layer, leaf = name.rsplit(".", 2)
        return f"{head}.{ATTENTION.get(layer, layer)}.{leaf}"
    return name.replace(".nin_shortcut.", ".conv_shortcut.")


def _levels(tensors: Mapping[str, np.ndarray]) -> int:
    return len({match[1] for name in tensors if (match := re.match(r"encoder\.down\.(\d+)\.", name))})


def _is_projection(name: str) -> bool:
    return re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", name) is not None


def read(
    tensors: Mapping[str, np.ndarray], num_groups: int = 32, scaling_factor: float = 1.0, shift_factor: float = 0.0
) -> Model:
    """A checkpoint in latent diffusion's names.

    Raises:
      ValueError: a tensor is none of a KL-VAE's, or as `diffusers_kl.read`.
    """
    carried = {name: np.asarray(value) for name, value in tensors.items() if re.fullmatch(UNUSED, name)}
    renamed, levels = {}, _levels(tensors)
    for name in tensors.keys() - carried.keys():
        value = np.asarray(tensors[name])
        renamed[diffusers_name(name, levels)] = value.squeeze((2, 3)) if _is_projection(name) else value
    model = diffusers_kl.read(renamed, num_groups, scaling_factor, shift_factor)
    return Model(model.architecture, model.params, carried, {})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    levels = len(model.architecture["channels"])
    names = {diffusers_name(name, levels): name for name in _every_name(model.architecture)}
    tensors = {
        names[name]: value for name, value in diffusers_kl.export_kl_vae(model.params, model.architecture).items()
    }
    convolutions = {name: value[:, :, None, None] for name, value in tensors.items() if _is_projection(name)}
    return tensors | convolutions | dict(model.carried)


def _every_name(architecture: Mapping[str, Any]) -> list[str]:
    """The names of all layers that a KL-VAE of this architecture can have."""
    levels, blocks = len(architecture["channels"]), architecture["blocks_per_level"]
    residual = [f"{layer}{n}" for layer in ("norm", "conv") for n in (1, 2)] + ["nin_shortcut"]
    layers = ["quant_conv", "post_quant_conv"]
    ways = (("encoder", "down", blocks, "downsample"), ("decoder", "up", blocks + 1, "upsample"))
    for half, way, count, sampler in ways:
        layers += [f"{half}.{layer}" for layer in ("conv_in", "norm_out", "conv_out")]
        layers += [f"{half}.mid.block_{n}.{layer}" for n in (1, 2) for layer in residual]
        layers += [f"{half}.mid.attn_1.{layer}" for layer in ATTENTION]
        for level in range(levels):
            layers.append(f"{half}.{way}.{level}.{sampler}.conv")
            for j in range(count):
                layers += [f"{half}.{way}.{level}.block.{j}.{layer}" for layer in residual]
                layers += [f"{half}.{way}.{level}.attn.{j}.{layer}" for layer in ATTENTION]
    return [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
