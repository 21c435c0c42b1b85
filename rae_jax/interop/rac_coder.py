"""The rectified coder as a PyTorch file. Its paper released none: the names are those of `diffusers`' decoder.

The velocity field is under `decoder.`, named as in `diffusers.AutoencoderKL`; the projector to latents is a linear
layer, `projector`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rae_jax.interop.diffusers_kl import decoder_rules
from rae_jax.interop.layout import IDENTITY, LINEAR, Rule, Tensors, export_params, import_params, require
from rae_jax.interop.model import Model


def architecture(
    tensors: Mapping[str, np.ndarray],
    state_channels: int = 4,
    num_groups: int = 32,
    latent_channels: int | None = None,
    scale: int | None = None,
) -> dict[str, Any]:
    """Arguments of `RectifiedCoder`. Tensors do not tell the state's channels, nor the groups of the norms.

    Without a learned projector they do not tell the latent either: its channels and the pixels of a position.

    Raises:
      ValueError: the tensors are no coder's, or an argument is missing or does not fit.
    """
    levels = 0
    while f"decoder.up_blocks.{levels}.resnets.0.conv1.weight" in tensors:
        levels += 1
    channels = tuple(
        tensors[f"decoder.up_blocks.{levels - 1 - i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)
    )
    blocks = 0
    while f"decoder.up_blocks.0.resnets.{blocks + 1}.conv1.weight" in tensors:
        blocks += 1
    seen, made = tensors["decoder.conv_in.weight"].shape[1], tensors["decoder.conv_out.weight"].shape[0]
    beside = seen - made * 4 ** (levels - 1)  # the time, and perhaps row and column
    patch_size = math.isqrt(made // state_channels)
    if beside not in (1, 3) or patch_size**2 * state_channels != made:
        raise ValueError(
            f"the field sees {seen} channels and makes {made}, which is no coder of {levels} levels with "
            f"{state_channels} state channels; give state_channels"
        )
    if any(size % num_groups for size in channels):
        raise ValueError(f"{num_groups} groups do not divide channels {channels}; give num_groups")
    learned = "projector.weight" in tensors
    if learned:
        latent_channels, folded = tensors["projector.weight"].shape
        scale = math.isqrt(folded // state_channels)
    if latent_channels is None or scale is None:
        raise ValueError("without a learned projector, latent_channels and scale are needed")
    return {
        "latent_channels": latent_channels,
        "scale": scale,
        "channels": channels,
        "state_channels": state_channels,
        "learned_projector": learned,
        "patch_size": patch_size,
        "positions": beside == 3,
        "blocks_per_level": blocks,
        "middle_attention": "decoder.mid_block.attentions.0.group_norm.weight" in tensors,
        "num_groups": num_groups,
    }


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The rules of one coder."""
    field = decoder_rules(
        architecture["channels"], architecture["blocks_per_level"], (), architecture["middle_attention"]
    )
    result = [Rule(rule.official, rule.ours.replace("decoder/", "field/", 1), rule.layout) for rule in field]
    if architecture["learned_projector"]:
        result.append(Rule("projector.weight", "projector/kernel", LINEAR))
        result.append(Rule("projector.bias", "projector/bias", IDENTITY))
    return result


def read(tensors: Mapping[str, np.ndarray], **options: int) -> Model:
    """A file of a coder; options as of `architecture`."""
    require(tensors, "decoder.conv_in.weight", "decoder.conv_out.weight", "decoder.up_blocks.0.resnets.0.conv1.weight")
    found = architecture(tensors, **options)
    params, _ = import_params(tensors, rules(found))
    return Model(found, params)


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_params(model.params, rules(model.architecture))
