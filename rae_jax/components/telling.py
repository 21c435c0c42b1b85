"""What flow maps are told while they learn: the conditions of a batch, as the networks take them.

A class comes with each image. A prompt stands in a conversation, which a frozen language model reads; of such a batch
only the images that answer count. A mixture of transformers reads the text by itself, and the image to edit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import Condition, condition, embedding
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import flow_map_teacher
from rae_jax.components.language import language_model, reader, speaks
from rae_jax.components.latent_spaces import tokens_are_latents
from rae_jax.components.mixtures import Instruction, guidance_of, instructed, instructed_velocity
from rae_jax.flow.guidance import guide
from rae_jax.flow.samplers import VelocityFunction
from rae_jax.models.text_to_image import TokenCondition

Batch = dict[str, jax.Array]
Scale = Callable[[jax.Array], jax.Array]
SMALL = 1e-8  # added to the number of answers in a batch, as upstream, whose batches may have none


class Telling(NamedTuple):
    """How networks are told of batches; n is the number of images in a batch.

    Attributes:
      parts: the frozen components that it takes.
      seen: `(their parameters, batch) -> ` the batch that the others take; what it has of images has n rows.
      condition: `(their parameters, batch seen) -> condition` of n rows.
      null: `condition -> as many nulls`.
      whole: the batch with what its parts have to know of all of it, for `objective.single_network`.
      shares: what each image counts for, 1, or `[n]` with the mean 1 over the whole batch; zeros where none answers.
      velocity: `(parameters of the parts and the teacher, condition, null, scale) -> ` the teacher's velocity function.
        `scale` gives that of guidance at times `t: [n]`, or is None. That of a mixture is guided as
        `config.flow_map.teacher` says.
      reads: what an `Objective` has to say of its batches, where they are not of images.
    """

    parts: dict[str, Component]
    seen: Callable[[dict[str, Params], Batch], Batch]
    condition: Callable[[dict[str, Params], Batch], Condition]
    null: Callable[[Condition], Condition]
    whole: Callable[[Batch], Batch]
    shares: Callable[[Batch], Any]
    velocity: Callable[[dict[str, Params], Condition, Condition, Scale | None], VelocityFunction]
    reads: dict[str, bool]


def telling(config: ConfigDict) -> Telling:
    """How the config's flow maps are told."""
    if config.mixture.model:
        return _of_instructions(config)
    if speaks(config):
        return _of_conversations(config)
    told = condition(config)
    return Telling(
        parts={},
        seen=lambda frozen, batch: batch,
        condition=lambda frozen, batch: told.of_batch(batch),
        null=told.null,
        whole=lambda batch: batch,
        shares=lambda batch: 1.0,
        velocity=_guided_teacher(config),
        reads={},
    )


def _guided_teacher(config: ConfigDict) -> Callable[..., VelocityFunction]:
    teacher = flow_map_teacher(config)

    def of(frozen: dict[str, Params], asked: Condition, null: Condition, scale: Scale | None) -> VelocityFunction:
        def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            v = teacher.apply(frozen[teacher.name], z, t, asked)
            if scale is None:
                return v
            return guide(v, teacher.apply(frozen[teacher.name], z, t, null), t, scale(t), (0.0, 1.0))

        return velocity

    return of


def _of_instructions(config: ConfigDict) -> Telling:
    parts, embed = embedding(config)
    teacher, guidance = instructed(config), guidance_of(config.flow_map.teacher)

    def velocity(
        frozen: dict[str, Params], asked: Instruction, null: Instruction, scale: Scale | None
    ) -> VelocityFunction:
        del scale  # its flow maps are told none
        return instructed_velocity(teacher, frozen[teacher.name], asked, null, guidance)

    return Telling(
        parts=parts,
        seen=lambda frozen, batch: batch,
        condition=embed,
        null=Instruction.null,
        whole=lambda batch: batch,
        shares=lambda batch: 1.0,
        velocity=velocity,
        reads={"reads_requests": True},
    )


def _of_conversations(config: ConfigDict) -> Telling:
    read, model, encode = reader(config), language_model(config), tokens_of(config)
    of_encoder = tokens_are_latents(config)

    def seen(frozen: dict[str, Params], batch: Batch) -> Batch:
        images = batch["image"].reshape(-1, *batch["image"].shape[2:])
        features = encode(frozen["encoder"], images.astype(jnp.float32) / 255.0)
        return batch | {"image": images, "features": features} | ({"latent": features} if of_encoder else {})

    def of_batch(frozen: dict[str, Params], batch: Batch) -> TokenCondition:
        with model.precise():
            hidden = read.hidden(frozen, read.input(frozen, batch["features"], batch))
            tokens = read.conditions(frozen, hidden, batch["reverse_vti"])
        return TokenCondition(tokens, jnp.zeros(len(tokens), bool))

    def whole(batch: Batch) -> Batch:
        answers = batch["answer_img_mask"]
        return batch | {"image_share": answers * (answers.size / (jnp.sum(answers) + SMALL))}

    return Telling(
        parts={"encoder": encoder(config)} | embedding(config)[0],
        seen=seen,
        condition=of_batch,
        null=TokenCondition.null,
        whole=whole,
        shares=lambda batch: batch["image_share"].reshape(-1),
        velocity=_guided_teacher(config),
        reads={"reads_conversations": True},
    )
