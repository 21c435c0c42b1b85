"""What flow maps are told while they learn: the conditions of a batch, as the networks take them.

A class comes with each image. A prompt stands in a conversation, which a frozen language model reads; of such a batch
only the images that answer count.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import Condition, condition
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.language import embedding, language_model, reader, speaks
from rae_jax.models.text_to_image import TokenCondition

Batch = dict[str, jax.Array]
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
      reads_conversations: whether batches are of conversations.
    """

    parts: dict[str, Component]
    seen: Callable[[dict[str, Params], Batch], Batch]
    condition: Callable[[dict[str, Params], Batch], Condition]
    null: Callable[[Condition], Condition]
    whole: Callable[[Batch], Batch]
    shares: Callable[[Batch], Any]
    reads_conversations: bool


def telling(config: ConfigDict) -> Telling:
    """How the config's flow maps are told."""
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
        reads_conversations=False,
    )


def _of_conversations(config: ConfigDict) -> Telling:
    read, model, encode = reader(config), language_model(config), tokens_of(config)
    tokens_are_latents = config.autoencoder == "rae"

    def seen(frozen: dict[str, Params], batch: Batch) -> Batch:
        images = batch["image"].reshape(-1, *batch["image"].shape[2:])
        features = encode(frozen["encoder"], images.astype(jnp.float32) / 255.0)
        # Tokens that are the latents need not be made again.
        return batch | {"image": images, "features": features} | ({"latent": features} if tokens_are_latents else {})

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
        reads_conversations=True,
    )
