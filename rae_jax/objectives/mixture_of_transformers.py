"""Mixture of transformers: flow matching of the noised images in packs, and next tokens where a text is to be learned.

Bagel's training, on the latents of any autoencoder. `data/pack_batches.py` makes the batches; the conditions have been
left out there. The first loss is the mean over the noised tokens of all devices, the second over their labelled ones.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import time_shift, velocity_network
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.data.packing import NO_LABEL
from rae_jax.flow.path import velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.models.mixture_of_transformers import Images, Texts
from rae_jax.models.pack import Places
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key

LIKELY_CAUSE = "A pack without noised tokens gives a loss of nothing"


def velocity_loss(velocity: jax.Array, target: jax.Array, counted: jax.Array) -> jax.Array:
    """The squared error `[B, N, C]`, mean over channels and the `counted: [B, N]` tokens."""
    error = jnp.mean(jnp.square(velocity - target), axis=-1)
    return jnp.sum(jnp.where(counted, error, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def text_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy `[B, T]` of `logits: [B, T, V]`; 0 where there is no label."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels == NO_LABEL, 0.0, -of_label)


def text_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The mean cross-entropy of the labelled tokens, or their mean by `weights: [B, T]`."""
    weights = (labels != NO_LABEL).astype(jnp.float32) if weights is None else weights
    total = jnp.sum(weights)
    return jnp.sum(text_losses(logits, labels) * weights) / jnp.where(total > 0, total, 1.0)


def noised_times(key: jax.Array, shape: tuple[int, ...], shift: float) -> jax.Array:
    """A time for each image: the sigmoid of a normal number, shifted."""
    return shift_times(jax.nn.sigmoid(jax.random.normal(key, shape)), shift)
