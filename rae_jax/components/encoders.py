"""Vision encoders: what turns images into tokens."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params, of_module, spec
from rae_jax.interop import vit
from rae_jax.models.autoencoder import RepresentationAutoencoder
from rae_jax.models.linear_head import LinearHead
from rae_jax.models.vit import VisionTransformer

Tokens = Callable[..., jax.Array]


def encoder(config: ConfigDict) -> Component:
    """The vision encoder, on images in its own normalisation."""
    fields, size = config.encoder.model.to_dict(), config.encoder.input_size
    return of_module(
        config,
        "encoder",
        lambda dtype: VisionTransformer(**fields, dtype=dtype),
        spec(size, size, 3),
        kind=vit.kind_of(fields),
    )


def linear_head(config: ConfigDict) -> Component:
    """The published classifier of the encoder's tokens, the class token among them (RPiAE, Table 9).

    Raises:
      ValueError: it has no architecture.
    """
    if not config.linear_head.model:
        raise ValueError(
            "linear_head.model is empty; it is to be {'num_classes': 1000} for a head of ImageNet's classes"
        )
    fields, (tokens, width) = config.linear_head.model.to_dict(), tokens_shape(config)
    return of_module(
        config,
        "linear_head",
        lambda dtype: LinearHead(**fields, dtype=dtype),
        spec(1 + tokens, width),
        kind="dinov2_head",
    )


def grid(config: ConfigDict) -> int:
    """Side of the square grid of the encoder's tokens."""
    return config.encoder.input_size // config.encoder.model.patch_size


def tokens_shape(config: ConfigDict) -> tuple[int, int]:
    """Shape `(N, D)` of the encoder's tokens."""
    return grid(config) ** 2, config.encoder.model.width


def tokens_of(config: ConfigDict) -> Tokens:
    """`(encoder's parameters, images [B, H, W, 3] in [0, 1]) -> tokens [B, N, D]`, float32.

    Keywords are those of the encoder.
    """
    part = encoder(config)
    model = around(config, encoder=part)

    def tokens(params: Params, images: jax.Array, **options: Any) -> jax.Array:
        with part.precise():
            return model.apply({"params": {"encoder": params}}, images, **options, method="tokens")

    return tokens


def around(
    config: ConfigDict, *, encoder: Component | None = None, decoder: Component | None = None
) -> RepresentationAutoencoder:
    """The autoencoder's frame, which resizes and normalises pixels, around what there is of the two."""
    return RepresentationAutoencoder(
        encoder=encoder and encoder.module,
        decoder=decoder and decoder.module,
        encoder_input_size=config.encoder.input_size,
        image_mean=tuple(config.encoder.image_mean),
        image_std=tuple(config.encoder.image_std),
        plain_pixels=config.decoder.plain_pixels,
    )
