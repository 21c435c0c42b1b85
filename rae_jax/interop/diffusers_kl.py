"""The KL-VAE from and to `diffusers.AutoencoderKL`, with the attention's names of today or those of older files."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rae_jax.interop.layout import (
    CONV,
    LINEAR,
    Layout,
    Rule,
    Tensors,
    affine,
    export_params,
    import_params,
    require,
    to_heads,
)
from rae_jax.interop.model import Model

# The attention's projections, by the age of their names.
PROJECTIONS = {
    "current": {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    "deprecated": {"query": "query", "key": "key", "value": "value", "out": "proj_attn"},
}
# Convolution [out, in, 1, 1] <-> Dense kernel [in, out].
POINTWISE = Layout(lambda w: w.squeeze((2, 3)).transpose(1, 0), lambda w: w.transpose(1, 0)[:, :, None, None])


def identify(names: Iterable[str]) -> str:
    """`current` or `deprecated`: which names the attention has; `current` where there is none."""
    return "deprecated" if any(name.endswith(".proj_attn.weight") for name in names) else "current"


def architecture(tensors: Mapping[str, np.ndarray], num_groups: int = 32) -> dict[str, Any]:
    """Arguments of `KLVAE` for these tensors, which do not tell `num_groups`, nor the scaling factor.

    Raises:
      ValueError: the tensors are no AutoencoderKL's, or the groups do not divide its channels.
    """
    channels: list[int] = []
    while (name := f"encoder.down_blocks.{len(channels)}.resnets.0.conv1.weight") in tensors:
        channels.append(tensors[name].shape[0])
    ends = ("decoder.conv_in.weight", "decoder.conv_out.weight")
    if not channels or any(name not in tensors for name in ends):
        raise ValueError(
            f"the tensors are of no AutoencoderKL as diffusers names it; the first names are {sorted(tensors)[:5]}"
        )
    if any(size % num_groups for size in channels):
        raise ValueError(f"{num_groups} groups do not divide channels {tuple(channels)}; give num_groups")
    blocks = 1
    while f"encoder.down_blocks.0.resnets.{blocks}.conv1.weight" in tensors:
        blocks += 1

    def with_attention(stack: str, order: Iterable[int]) -> tuple[int, ...]:
        found = (f"{stack}.{number}.attentions.0.group_norm.weight" in tensors for number in order)
        return tuple(level for level, present in enumerate(found) if present)

    levels = range(len(channels))
    return {
        "channels": tuple(channels),
        "latent_channels": tensors[ends[0]].shape[1],
        "blocks_per_level": blocks,
        "encoder_attention_levels": with_attention("encoder.down_blocks", levels),
        "decoder_attention_levels": with_attention("decoder.up_blocks", reversed(levels)),
        "middle_attention": "encoder.mid_block.attentions.0.group_norm.weight" in tensors,
        "num_groups": num_groups,
        "out_channels": tensors[ends[1]].shape[0],
        "quant": "quant_conv.weight" in tensors,
        "post_quant": "post_quant_conv.weight" in tensors,
    }


def rules(architecture: Mapping[str, Any], names: str = "current") -> list[Rule]:
    """The rules of one model; `architecture` as from the function of that name, `names` a key of `PROJECTIONS`."""
    channels, blocks = architecture["channels"], architecture["blocks_per_level"]
    last, projections = len(channels) - 1, PROJECTIONS[names]
    result = _ends("encoder", architecture["middle_attention"], projections)
    for i, size in enumerate(channels):
        down = f"encoder.down_blocks.{i}"
        result += _level(down, f"encoder/level_{i}", blocks, channels[max(i - 1, 0)] != size)
        if i in architecture["encoder_attention_levels"]:
            for j in range(blocks):
                result += _attention(f"{down}.attentions.{j}", f"encoder/level_{i}_attention_{j}", projections)
        if i < last:
            result += affine(f"{down}.downsamplers.0.conv", f"encoder/level_{i}_down", CONV)
    result += decoder_rules(
        channels, blocks, architecture["decoder_attention_levels"], architecture["middle_attention"], projections
    )
    if architecture["quant"]:
        result += affine("quant_conv", "quant_linear", POINTWISE)
    if architecture["post_quant"]:
        result += affine("post_quant_conv", "post_quant_linear", POINTWISE)
    return result


def decoder_rules(
    channels: tuple[int, ...],
    blocks_per_level: int,
    attention_levels: Iterable[int],
    middle_attention: bool,
    projections: Mapping[str, str] = PROJECTIONS["current"],
) -> list[Rule]:
    """The rules of a `ConvDecoder`, under `decoder.` there and `decoder/` here."""
    last = len(channels) - 1
    result = _ends("decoder", middle_attention, projections)
    for i, size in enumerate(channels):
        up = f"decoder.up_blocks.{last - i}"
        result += _level(up, f"decoder/level_{i}", blocks_per_level + 1, channels[min(i + 1, last)] != size)
        if i in attention_levels:
            for j in range(blocks_per_level + 1):
                result += _attention(f"{up}.attentions.{j}", f"decoder/level_{i}_attention_{j}", projections)
        if i > 0:
            result += affine(f"{up}.upsamplers.0.conv", f"decoder/level_{i}_up", CONV)
    return result


def _ends(half: str, middle_attention: bool, projections: Mapping[str, str]) -> list[Rule]:
    """The first, middle and last layers of encoder or decoder."""
    result = affine(f"{half}.conv_in", f"{half}/conv_in", CONV)
    result += affine(f"{half}.conv_norm_out", f"{half}/norm_out")
    result += affine(f"{half}.conv_out", f"{half}/conv_out", CONV)
    for i in range(2):
        result += _residual(f"{half}.mid_block.resnets.{i}", f"{half}/middle_residual_{i}", shortcut=False)
    if middle_attention:
        result += _attention(f"{half}.mid_block.attentions.0", f"{half}/middle_attention", projections)
    return result


def _level(official: str, ours: str, count: int, shortcut: bool) -> list[Rule]:
    """The residual blocks of one level, the first of which may change the number of channels."""
    result = []
    for j in range(count):
        result += _residual(f"{official}.resnets.{j}", f"{ours}_residual_{j}", shortcut and j == 0)
    return result


def _residual(official: str, ours: str, shortcut: bool) -> list[Rule]:
    result = affine(f"{official}.conv_shortcut", f"{ours}/shortcut", POINTWISE) if shortcut else []
    for i in range(2):
        result += affine(f"{official}.norm{i + 1}", f"{ours}/norm_{i}")
        result += affine(f"{official}.conv{i + 1}", f"{ours}/conv_{i}", CONV)
    return result


def _attention(official: str, ours: str, projections: Mapping[str, str]) -> list[Rule]:
    result = affine(f"{official}.group_norm", f"{ours}/norm")
    qkv = [f"{official}.{projections[name]}" for name in ("query", "key", "value")]
    for leaf, our_leaf in (("weight", "kernel"), ("bias", "bias")):
        sources = tuple(f"{projection}.{leaf}" for projection in qkv)
        result.append(Rule(sources, f"{ours}/attention/qkv/{our_leaf}", to_heads(1)))
    result += affine(f"{official}.{projections['out']}", f"{ours}/attention/out", LINEAR)
    return result


def import_kl_vae(
    tensors: Mapping[str, np.ndarray], num_groups: int = 32, like: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(arguments of KLVAE, its parameters)`; the scaling factor, in the model's configuration, is the caller's to add.

    Raises:
      ValueError: as `architecture` and `layout.import_params` do.
    """
    found = architecture(tensors, num_groups)
    params, _ = import_params(tensors, rules(found, identify(tensors)), like=like)
    return found, params


def export_kl_vae(params: Any, architecture: Mapping[str, Any], names: str = "current") -> Tensors:
    """The inverse of `import_kl_vae`."""
    return export_params(params, rules(architecture, names))


def read(
    tensors: Mapping[str, np.ndarray], num_groups: int = 32, scaling_factor: float = 1.0, shift_factor: float = 0.0
) -> Model:
    """A file of `AutoencoderKL`."""
    ends = ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    require(tensors, *ends)
    found, params = import_kl_vae(tensors, num_groups)
    fields = {**found, "scaling_factor": scaling_factor, "shift_factor": shift_factor}
    return Model(fields, params, {}, {"names": identify(tensors)})


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_kl_vae(model.params, model.architecture, **model.names)
