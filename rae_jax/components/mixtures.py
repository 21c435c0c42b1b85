"""Mixtures of transformers: the network that reads texts and images and makes images, and what it is asked for."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component, architecture, of_module, spec
from rae_jax.components.encoders import tokens_shape
from rae_jax.components.language import tokenizer_of
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.pack_batches import Rows, markers_of
from rae_jax.data.tokenizer import Tokenizer
from rae_jax.data.told_images import TASKS
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts
from rae_jax.models.pack import Places


def mixture(config: ConfigDict) -> Component:
    """The network; `MixtureOfTransformers` says what it is called with.

    Raises:
      ValueError: no architecture, fewer tokens in its table than the tokenizer has, or too few positions.
    """
    section = config.mixture
    fields = architecture(section, "mixture", "mixture_of_transformers")
    side, (tokens, channels) = grid(config), latent_space(config).shape
    if side > fields["latent_capacity"]:
        raise ValueError(
            f"images have {side} x {side} latents, and mixture.model.latent_capacity={fields['latent_capacity']} "
            "is less"
        )
    tokenizer(config)  # is another's, or there
    wide = fields.pop("wide_head")
    seen, features = tokens_shape(config) if section.semantic else (0, 0)
    if section.semantic and seen != tokens:
        raise ValueError(
            f"the encoder gives {seen} tokens, and latents have {tokens}; semantic tokens take the same grid"
        )
    fields |= {
        "latent_channels": channels,
        "head_grid": side if wide else 0,
        "semantic_channels": features,
        "semantic_capacity": side if section.semantic else 0,
    }

    def places(count: int) -> Places:
        return Places(*(spec(count, dtype=jnp.int32) for _ in Places._fields))

    def images(width: int) -> Images:
        return Images(
            spec(tokens, width),
            spec(tokens, dtype=jnp.int32),
            places(tokens),
            spec(tokens),
        )

    texts = Texts(spec(2, dtype=jnp.int32), places(2))
    semantic = [images(features)] if section.semantic else []
    return of_module(
        config,
        "mixture",
        lambda dtype: MixtureOfTransformers(**fields, dtype=dtype),
        texts,
        images(channels),
        images(channels),
        *semantic,
        kind="bagel",
    )


def grid(config: ConfigDict) -> int:
    """Rows and columns of an image's latents."""
    return math.isqrt(latent_space(config).shape[0])


def tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of its texts; see `tokenizer_of`."""
    return tokenizer_of(config.mixture, "mixture")


def rows(config: ConfigDict) -> Rows:
    """What a row of its batches has room for.

    Raises:
      ValueError: see `Rows`; or an unknown task, or one of edits without room for given images.
    """
    section = config.mixture
    if section.task not in TASKS:
        raise ValueError(f"mixture.task={section.task!r} is not one of {TASKS}")
    if section.task == "edit" and not section.pack_sources:
        raise ValueError("mixture.task='edit', but rows have no room for images to edit; set mixture.pack_sources")
    dropout = {"text": section.text_dropout, "clean": section.source_dropout, "semantic": section.semantic_dropout}
    return Rows(
        grid=grid(config),
        images=section.pack_images,
        sources=section.pack_sources,
        texts=section.pack_texts,
        semantic=section.semantic,
        dropout=dropout,
        labels=section.text_weight > 0,
        text_first=section.text_first,
    )


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sample is asked for: a text, and for an edit an image, uint8 `[S, S, 3]`."""

    text: str
    image: np.ndarray | None = None


def instruction_condition(config: ConfigDict, requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """What samples are told: `{"ids": [B, T], "length": [B]}`, and of edits `"source"`, uint8 `[B, S, S, 3]`.

    The ids have the markers around the text; a length of 0 would say that there is none.

    Raises:
      ValueError: a text is too long, or there is none; or an image is missing or of another size.
    """
    spoken, room, size = tokenizer(config), text_room(config), config.data.image_size
    markers, ids = markers_of(spoken), np.zeros((len(requests), room), np.int32)
    lengths = np.zeros(len(requests), np.int32)
    for number, request in enumerate(requests):
        if not request.text.strip():
            raise ValueError(f"request {number} has no text; say what is wanted")
        words = [markers.text_start, *spoken.encode(request.text), markers.text_end]
        if len(words) > room:
            raise ValueError(
                f"the text {request.text[:40]!r}... has {len(words)} tokens with its markers, and room is for {room}; "
                "shorten it, or raise mixture.pack_texts"
            )
        ids[number, : len(words)], lengths[number] = words, len(words)
    told = {"ids": ids, "length": lengths}
    if config.mixture.task != "edit":
        return told
    for request in requests:
        if request.image is None:
            raise ValueError(f"the instruction {request.text[:40]!r} comes without an image to edit")
        if request.image.shape != (size, size, 3):
            raise ValueError(f"an image to edit is of the shape {request.image.shape}, and not {(size, size, 3)}")
    return told | {"source": np.stack([request.image for request in requests])}


def text_room(config: ConfigDict) -> int:
    """Tokens of one text with its markers, the most that a sample is asked for by: what a row alone has for it."""
    around = 2 + (2 + 2 * config.mixture.semantic) * (config.mixture.pack_sources > 0)
    return config.mixture.pack_texts - around


def given_arguments(config: ConfigDict) -> dict[str, Any]:
    """What `remembered.rows_of` has to know of the rows beside the condition."""
    return {
        "grid": grid(config),
        "capacity": config.mixture.model.latent_capacity,
        "markers": markers_of(tokenizer(config)),
        "text_first": config.mixture.text_first,
    }
