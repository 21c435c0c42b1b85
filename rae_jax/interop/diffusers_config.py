"""The `config.json` from which diffusers builds the class that reads an export, where it has one that can hold it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from rae_jax.interop.kinds import differences
from rae_jax.interop.statistics import export_diffusers_statistics
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.kl_vae import KLVAE
from rae_jax.models.vit import PRETRAINED, VisionTransformer

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
HEAD_WIDTH = 64  # of every encoder in AutoencoderRAE
# The encoders that AutoencoderRAE knows, by the kind of their files; what it is not told is as in these published ones.
ENCODERS = {"dinov2": ("dinov2", "dinov2_b"), "siglip": ("siglip2", "siglip2_b"), "mae": ("mae", "mae_b")}


def autoencoder_rae(
    kind: str,
    encoder: VisionTransformer,
    decoder: ViTDecoder,
    statistics: LatentStatistics,
    *,
    input_size: int,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
) -> dict[str, Any]:
    """Of `diffusers.AutoencoderRAE`.

    Args:
      kind: of the encoder's files.
      statistics: of the latents, `[N, C]` on a square grid.
      input_size, image_mean, image_std: what the encoder is given.

    Raises:
      ValueError: the class has no such encoder or decoder; every difference is listed.
    """
    if kind not in ENCODERS:
        raise ValueError(f"diffusers.AutoencoderRAE has no encoder of kind {kind!r}; it has {', '.join(ENCODERS)}")
    name, published = ENCODERS[kind]
    width, depth, patch = encoder.width, encoder.depth, encoder.patch_size
    sizes = {"width": width, "depth": depth, "patch_size": patch, "num_heads": width // HEAD_WIDTH}
    its = PRETRAINED[published].architecture | sizes | ({"mlp_dim": 4 * width} if kind == "dinov2" else {})
    _check("encoder", encoder, its)
    if encoder.layers:
        raise ValueError("diffusers.AutoencoderRAE has no mean of several layers")
    grid = input_size // patch
    fixed = {"grid_size": grid, "norm_epsilon": 1e-12, "trained_tables": False}
    _check("decoder", decoder, vars(decoder) | fixed)
    measured = export_diffusers_statistics(statistics)
    return {
        "_class_name": "AutoencoderRAE",
        "encoder_type": name,
        "encoder_hidden_size": width,
        "encoder_patch_size": patch,
        "encoder_num_hidden_layers": depth,
        "encoder_input_size": input_size,
        "encoder_norm_mean": list(image_mean),
        "encoder_norm_std": list(image_std),
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": decoder.mlp_dim,
        "patch_size": decoder.patch_size,
        "image_size": grid * decoder.patch_size,
        "latents_mean": measured["_latents_mean"].tolist(),
        "latents_std": measured["_latents_std"].tolist(),
    }


def beside_autoencoder_rae(
    kind: str, encoder: VisionTransformer, image_mean: tuple[float, ...], image_std: tuple[float, ...]
) -> dict[str, np.ndarray]:
    """Tensors that `diffusers.AutoencoderRAE` wants beside those of the model: the pixels' mean and deviation, and what
    it does not use, a mask token and SigLIP's pooling.
    """
    width, values = encoder.width, {"encoder_mean": image_mean, "encoder_std": image_std}
    tensors = {name: np.asarray(value, np.float32).reshape(1, 3, 1, 1) for name, value in values.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "dinov2":
        shapes = {"embeddings.mask_token": (1, width)}
    if kind == "siglip":
        linears = {"attention.out_proj": (width, width)}
        linears |= {"mlp.fc1": (encoder.mlp_dim, width), "mlp.fc2": (width, encoder.mlp_dim)}
        shapes = {f"{layer}.weight": shape for layer, shape in linears.items()}
        shapes |= {f"{layer}.bias": shape[:1] for layer, shape in linears.items()}
        shapes |= {"attention.in_proj_weight": (3 * width, width), "attention.in_proj_bias": (3 * width,)}
        shapes |= {"layernorm.weight": (width,), "layernorm.bias": (width,), "probe": (1, 1, width)}
        shapes = {f"vision_model.head.{name}": shape for name, shape in shapes.items()}
    return tensors | {f"encoder.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def autoencoder_kl(model: KLVAE) -> dict[str, Any]:
    """Of `diffusers.AutoencoderKL`."""
    levels, down, up = range(len(model.channels)), model.encoder_attention_levels, model.decoder_attention_levels
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": model.out_channels,
        "block_out_channels": list(model.channels),
        "layers_per_block": model.blocks_per_level,
        "latent_channels": model.latent_channels,
        "norm_num_groups": model.num_groups,
        "down_block_types": [f"{'Attn' if i in down else ''}DownEncoderBlock2D" for i in levels],
        "up_block_types": [f"{'Attn' if i in up else ''}UpDecoderBlock2D" for i in reversed(levels)],
        "mid_block_add_attention": model.middle_attention,
        "use_quant_conv": model.quant,
        "use_post_quant_conv": model.post_quant,
        "scaling_factor": model.scaling_factor,
        "shift_factor": model.shift_factor or None,
    }


def _check(part: str, module: nn.Module, its: Mapping[str, Any]) -> None:
    if lost := differences(type(module), vars(module), its):
        raise ValueError(
            f"diffusers.AutoencoderRAE has no such {part}: "
            + ", ".join(f"{field} is {here!r}, its is {there!r}" for field, here, there in lost)
        )
