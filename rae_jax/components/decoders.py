"""Pixel decoders: what turns tokens into images."""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params, architecture, of_module, spec
from rae_jax.components.encoders import around, grid, tokens_shape
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.kl_vae import ConvDecoder

FAMILIES = ("vit", "conv")
Images = Callable[..., jax.Array]


def decoder(config: ConfigDict) -> Component:
    """The pixel decoder, of the family that `config.decoder.family` names.

    Raises:
      ValueError: unknown family, or no architecture.
    """
    section = config.decoder
    if section.family not in FAMILIES:
        raise ValueError(f"decoder.family={section.family!r} is not one of {list(FAMILIES)}")
    fields = architecture(section, "decoder", "vit_decoder")
    make, kind = ConvDecoder, ""
    if section.family == "vit":
        make, kind = ViTDecoder, "rae_decoder"
        fields["grid_size"] = fields["grid_size"] or grid(config)
    return of_module(
        config, "decoder", lambda dtype: make(**fields, dtype=dtype), spec(*tokens_shape(config)), kind=kind
    )


def masked_autoencoding_head(config: ConfigDict, stage: str) -> Component:
    """What predicts hidden patches from the encoder's tokens while `stage` pretrains it; dropped afterwards."""
    fields = config[stage].head.to_dict() | {"grid_size": grid(config), "patch_size": config.encoder.model.patch_size}
    return of_module(
        config,
        stage,
        lambda dtype: ViTDecoder(**fields, dtype=dtype),
        spec(*tokens_shape(config)),
        kind="",
        described_by=f"config.{stage}.head",
    )


def decoded_size(config: ConfigDict) -> int:
    """Side of the decoded images in pixels."""
    model = decoder(config).module
    if isinstance(model, ViTDecoder):
        return model.grid_size * model.patch_size
    return grid(config) * model.upsampling


def last_kernel(decoder: Component, params: Params) -> jax.Array:
    """The kernel of the decoder's last layer, in its parameters or in their gradient."""
    return params[decoder.module.last_layer]["kernel"]


def images_of(config: ConfigDict) -> Images:
    """`(decoder's parameters, tokens [B, N, D], statistics=None) -> images [B, H, W, 3]`, not clamped to [0, 1].

    Tokens that `LatentStatistics` have normalised are given with them.
    """
    part = decoder(config)
    model = around(config, decoder=part)

    def images(params: Params, tokens: jax.Array, statistics: LatentStatistics | None = None) -> jax.Array:
        with part.precise():
            return model.apply({"params": {"decoder": params}}, tokens, statistics, method="decode")

    return images
