"""Mixtures of transformers: the network that reads texts and images and makes images, and what it is asked for."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component, of_module
from rae_jax.components.encoders import tokens_shape
from rae_jax.components.language import opened
from rae_jax.components.latent_spaces import LatentSpace, latent_space
from rae_jax.data.pack_batches import Rows, markers_of
from rae_jax.data.tokenizer import Tokenizer
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts
from rae_jax.models.pack import Places

TASKS = ("caption", "edit")


def mixture(config: ConfigDict) -> Component:
    """The network; `MixtureOfTransformers` says what it is called with.

    Raises:
      ValueError: no architecture, fewer tokens in its table than the tokenizer has, or too few positions.
    """
    section = config.mixture
    if not section.model:
        raise ValueError("mixture.model is empty; it is to be what mixture_of_transformers of configs/base.py returns")
    fields = section.model.to_dict()
    side, (tokens, channels) = grid(config), latent_space(config).shape
    if side > fields["latent_capacity"]:
        raise ValueError(
            f"images have {side} x {side} latents, and mixture.model.latent_capacity={fields['latent_capacity']} "
            "is less"
        )
    size = tokenizer(config).size
    if size > fields["vocabulary"]:
        raise ValueError(f"the tokenizer has {size} tokens, and mixture.model.vocabulary={fields['vocabulary']} is "
                         "less: it is not the tokenizer of these weights")  # fmt: skip
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
        return Places(*(jax.ShapeDtypeStruct((1, count), jnp.int32) for _ in Places._fields))

    def images(width: int) -> Images:
        return Images(
            jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
            jax.ShapeDtypeStruct((1, tokens), jnp.int32),
            places(tokens),
            jax.ShapeDtypeStruct((1, tokens), jnp.float32),
        )

    texts = Texts(jax.ShapeDtypeStruct((1, 2), jnp.int32), places(2))
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
    """The tokenizer of its texts."""
    return opened(config.mixture.tokenizer)


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
    )


def given_space(config: ConfigDict) -> LatentSpace | None:
    """The latent space whose encoding parts a sampler needs, because images are given to it; None for text alone."""
    return latent_space(config) if config.mixture.task == "edit" else None


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sample is asked for: a text, and for an edit an image, uint8 `[S, S, 3]`."""

    text: str
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class InstructionCondition:
    """Told a text, and perhaps an image: `{"ids": [B, T], "length": [B]}` and `"source"`, uint8 `[B, S, S, 3]`.

    The ids have the markers around the text; a length of 0 says that there is none.

    Attributes:
      requests: what samples are asked for, one after the other, and over again.
      tokenizer: of the texts.
      room: T.
      image_size: S; 0 if no image is given.
    """

    requests: tuple[Request, ...]
    tokenizer: Tokenizer
    room: int
    image_size: int = 0

    unconditional = False

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The condition of a batch of one."""
        told = {"ids": jax.ShapeDtypeStruct((1, self.room), jnp.int32), "length": jax.ShapeDtypeStruct((1,), jnp.int32)}
        size = (1, self.image_size, self.image_size, 3)
        return told | ({"source": jax.ShapeDtypeStruct(size, jnp.uint8)} if self.image_size else {})

    def null(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The same without the texts."""
        return condition | {"length": jnp.zeros_like(condition["length"])}

    def of(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        """The condition of requests.

        Raises:
          ValueError: a text is too long, or there is none; or an image is missing or of another size.
        """
        markers, ids = markers_of(self.tokenizer), np.zeros((len(requests), self.room), np.int32)
        lengths = np.zeros(len(requests), np.int32)
        for number, request in enumerate(requests):
            if not request.text.strip():
                raise ValueError(f"request {number} has no text; say what is wanted")
            words = [markers.text_start, *self.tokenizer.encode(request.text), markers.text_end]
            if len(words) > self.room:
                raise ValueError(
                    f"the text {request.text[:40]!r}... has {len(words)} tokens with its markers, and room is for "
                    f"{self.room}; shorten it, or raise mixture.pack_texts"
                )
            ids[number, : len(words)], lengths[number] = words, len(words)
        condition = {"ids": ids, "length": lengths}
        if not self.image_size:
            return condition
        size = (self.image_size, self.image_size, 3)
        for request in requests:
            if request.image is None:
                raise ValueError(f"the instruction {request.text[:40]!r} comes without an image to edit")
            if request.image.shape != size:
                raise ValueError(f"an image to edit is of the shape {request.image.shape}, and not {size}")
        return condition | {"source": np.stack([request.image for request in requests])}

    def chosen(self, num_samples: int) -> dict[str, np.ndarray]:
        """What samples are asked for, on the host."""
        return self.of([self.requests[i % len(self.requests)] for i in range(num_samples)])

    def asked(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of a user's prompts; edits need images too."""
        return self.of([Request(name) for name in names])

    def shown(self) -> dict[str, np.ndarray]:
        """A few, for pictures that are taken while a stage trains."""
        return self.chosen(min(SHOWN, len(self.requests)))

    def groups(self, condition: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """How a picture is laid out: a row for each text."""
        words = np.array(self.words(condition))
        return [(str(text), np.flatnonzero(words == text)) for text in dict.fromkeys(words)]

    def words(self, condition: dict[str, np.ndarray]) -> list[str]:
        """The texts of a condition."""
        pairs = zip(condition["ids"], condition["length"], strict=True)
        return [self.tokenizer.decode(ids[1 : length - 1]) for ids, length in pairs]

    def arrays(self, condition: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file of samples says of what was asked for, by name."""
        return {"prompts": np.array(self.words(condition))}


SHOWN = 16


def text_room(config: ConfigDict) -> int:
    """Tokens of one text with its markers, the most that samples are asked for by."""
    around = 2 * config.mixture.pack_images + (2 + 2 * config.mixture.semantic) * config.mixture.pack_sources
    return (config.mixture.pack_texts - around) // config.mixture.pack_images


def instruction_condition(config: ConfigDict, requests: Sequence[Request] = (Request(" "),)) -> InstructionCondition:
    """What its samples are told; `requests` come from the data or a user."""
    size = config.data.image_size if config.mixture.task == "edit" else 0
    return InstructionCondition(tuple(requests), tokenizer(config), text_room(config), size)


def given_arguments(config: ConfigDict) -> dict[str, Any]:
    """What `remembered.rows_of` has to know of the rows beside the condition."""
    return {
        "grid": grid(config),
        "capacity": config.mixture.model.latent_capacity,
        "markers": markers_of(tokenizer(config)),
    }
