"""Mixtures of transformers: the network that reads texts and images and makes images, and what it is asked for."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params, architecture, extended, of_module, spec
from rae_jax.components.encoders import encoder, tokens_of, tokens_shape
from rae_jax.components.language import tokenizer_of
from rae_jax.components.latent_spaces import by_name, latent_space, stats
from rae_jax.components.remembered import Guidance, Remembered, guided_velocity, remember, rows_of, velocity_after
from rae_jax.data.pack_batches import Rows, markers_of
from rae_jax.data.tokenizer import Tokenizer
from rae_jax.data.told_images import TASKS
from rae_jax.flow.samplers import VelocityFunction
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts
from rae_jax.models.pack import Places


class Instruction(NamedTuple):
    """What images are asked for by, a row each.

    Attributes:
      ids: of the text, `[B, T]`, markers included.
      length: `[B]`, how many of them there are; 0: there is no text.
      source: normalised latents `[B, N, C]` of images to edit.
      semantic: `[B, N, S]`, the encoder's tokens of the same, where the mixture takes them.
    """

    ids: jax.Array
    length: jax.Array
    source: jax.Array | None = None
    semantic: jax.Array | None = None

    def null(self) -> "Instruction":
        """The same without the text."""
        return self._replace(length=jnp.zeros_like(self.length))


@dataclasses.dataclass(frozen=True)
class InstructedNetwork(Component):
    """A mixture as a network of velocities of images, each of which is asked for by an `Instruction`.

    Attributes:
      rows: arguments of `remembered.rows_of`.
    """

    rows: Mapping[str, Any] = dataclasses.field(hash=False)

    def read(self, params: Params, condition: Instruction, *, shown: bool = True) -> Remembered:
        """What `apply` takes of it; `shown`: whether the given images are."""
        told = condition._asdict()
        return remember(self, params, *rows_of(told.pop("ids"), told.pop("length"), shown=shown, **told, **self.rows))

    def apply(
        self, params: Params, z: jax.Array, t: jax.Array, read: Remembered, r: jax.Array | None = None
    ) -> jax.Array:
        """The velocity `[B, N, C]`; of a flow map, the mean one over `[r, t]`."""
        return velocity_after(self, params, read, z, t, r)


def instructed(config: ConfigDict, name: str = "mixture", *, flow_map: bool = False) -> InstructedNetwork:
    """The mixture as a network of velocities, or as the flow map of section `name`.

    Raises:
      ValueError: see `mixture`.
    """
    return extended(mixture(config, name, flow_map=flow_map), InstructedNetwork, rows=given_arguments(config))


def instruction_example(config: ConfigDict) -> Instruction:
    """The shapes of an `Instruction` of one row."""
    told = Instruction(spec(text_room(config), dtype=jnp.int32), spec(dtype=jnp.int32))
    if config.mixture.task != "edit":
        return told
    seen = spec(*tokens_shape(config)) if config.mixture.semantic else None
    return told._replace(source=spec(*latent_space(config).shape), semantic=seen)


def guidance_of(section: ConfigDict) -> Guidance:
    """The guidance that a section tells: `config.sampling`, or `config.flow_map.teacher`.

    Raises:
      ValueError: it makes no sense.
    """
    guidance = Guidance(
        section.guidance_scale,
        section.image_guidance_scale,
        tuple(section.guidance_interval),
        section.renormalisation,
        section.least_norm,
    )
    guided_velocity(lambda z, t: z, lambda z, t: z, lambda z, t: z, guidance)
    return guidance


def instructed_velocity(
    network: InstructedNetwork, params: Params, asked: Instruction, null: Instruction, guidance: Guidance
) -> VelocityFunction:
    """The guided velocity function of images that are `asked` for; `null` is the same without the texts."""

    def after(condition: Instruction, shown: bool = True) -> VelocityFunction:
        read = network.read(params, condition, shown=shown)
        return lambda z, t: network.apply(params, z, t, read)

    if not guidance.by_text:
        return after(asked)
    by_image = asked.source is not None and guidance.image_scale > 1
    return guided_velocity(after(asked), after(null), after(asked, shown=False) if by_image else None, guidance)


def instruction_embedding(
    config: ConfigDict,
) -> tuple[dict[str, Component], Callable[[dict[str, Params], Any], Instruction]]:
    """As `conditions.embedding`, for an `instruction_condition`: images to edit become latents, and tokens."""
    if config.mixture.task != "edit":
        return {}, lambda frozen, condition: Instruction(condition["ids"], condition["length"])
    space, semantic = latent_space(config), config.mixture.semantic
    see = tokens_of(config) if semantic else None

    def told(frozen: dict[str, Params], condition: dict[str, jax.Array]) -> Instruction:
        images = condition["source"].astype(jnp.float32) / 255.0
        source = LatentStatistics(**frozen["stats"]).normalise(space.encode(frozen, images))
        tokens = see(frozen["encoder"], images) if semantic else None
        return Instruction(condition["ids"], condition["length"], source, tokens)

    return {"stats": stats(config), **space.encoding, **(by_name(encoder(config)) if semantic else {})}, told


def mixture(config: ConfigDict, name: str = "mixture", *, flow_map: bool = False) -> Component:
    """The network; `MixtureOfTransformers` says what it is called with.

    Args:
      name: of its section.
      flow_map: whether it gives mean velocities.

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
        return Images(spec(tokens, width), spec(tokens, dtype=jnp.int32), places(tokens), spec(tokens))

    texts = Texts(spec(2, dtype=jnp.int32), places(2))
    noised = images(channels)._replace(r=spec(tokens) if flow_map else None)
    semantic = [images(features)] if section.semantic else []
    return of_module(
        config,
        name,
        lambda dtype: MixtureOfTransformers(**fields, flow_map=flow_map, dtype=dtype),
        texts,
        noised,
        images(channels),
        *semantic,
        kind="" if flow_map else "bagel",
        described_by="config.mixture.model",
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
    size, spell = config.data.image_size, spelling(config)
    for number, request in enumerate(requests):
        if not request.text.strip():
            raise ValueError(f"request {number} has no text; say what is wanted")
    words = [spell(request.text) for request in requests]
    told = {name: np.stack([each[name] for each in words]) for name in ("ids", "length")}
    if config.mixture.task != "edit":
        return told
    for request in requests:
        if request.image is None:
            raise ValueError(f"the instruction {request.text[:40]!r} comes without an image to edit")
        if request.image.shape != (size, size, 3):
            raise ValueError(f"an image to edit is of the shape {request.image.shape}, and not {(size, size, 3)}")
    return told | {"source": np.stack([request.image for request in requests])}


def spelling(config: ConfigDict) -> Callable[[str], dict[str, np.ndarray]]:
    """`text -> {"ids": [T], "length"}`, with the markers around the text; see `spelt` for its errors."""
    return functools.partial(spelt, tokenizer(config), text_room(config))


def spelt(spoken: Tokenizer, room: int, text: str) -> dict[str, np.ndarray]:
    """The ids of a text with its markers, int32 `[room]`, and their number.

    Raises:
      ValueError: it is too long.
    """
    markers = markers_of(spoken)
    words = [markers.text_start, *spoken.encode(text), markers.text_end]
    if len(words) > room:
        raise ValueError(
            f"the text {text[:40]!r}... has {len(words)} tokens with its markers, and room is for {room}; "
            "shorten it, or raise mixture.pack_texts"
        )
    ids = np.zeros(room, np.int32)
    ids[: len(words)] = words
    return {"ids": ids, "length": np.int32(len(words))}


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
