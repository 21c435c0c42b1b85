"""Velocity: flow matching in latent space, which makes the generator (RAE, Section 4).

`x_t = (1 - t) z + t eps`; the network predicts `v = eps - z` and the loss is the mean squared error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import condition, drop
from rae_jax.components.generators import time_shift, velocity_network
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import sample_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.objectives.quality import sample_evaluation
from rae_jax.sampling.generator import generator, shown_samples


def latent_encoder(config: ConfigDict) -> Callable[[dict[str, Params], Batch], jax.Array]:
    """`(components' parameters, batch) -> z [B, N, C]`, the normalised latents of a batch.

    The batch has an "image" to encode, or the "latent" that encoding it would give.
    """
    space = latent_space(config)

    def encode(frozen: dict[str, Params], batch: Batch) -> jax.Array:
        latents = batch["latent"].astype(jnp.float32) if "latent" in batch else space.encode(frozen, to_float(batch))
        return LatentStatistics(**frozen["stats"]).normalise(latents)

    return encode


def encoding_parts(config: ConfigDict) -> dict[str, Component]:
    """The components that `latent_encoder` needs for the batches of training: none if these are of cached latents."""
    encoding = {} if config.data.latents else latent_space(config).encoding
    return encoding | {"stats": stats(config)}


class TrainingPoint(NamedTuple):
    """What the network sees of a batch of latents, and the velocity that it is to predict; arrays are `[B, ...]`."""

    z_t: jax.Array
    t: jax.Array
    condition: Any
    target: jax.Array


def training_points(config: ConfigDict, stage: str) -> Callable[[jax.Array, Any, jax.Array], TrainingPoint]:
    """`(latents z [B, N, C], condition, key) -> TrainingPoint`: times, noise and dropped conditions are drawn.

    They are drawn as the section of `stage` says.
    """
    section, told, shift = config[stage], condition(config), time_shift(config)
    distribution, dropout = section.time_distribution, section.label_dropout
    logit_normal = dict(mean=section.logit_normal_mean, std=section.logit_normal_std)

    def draw(z: jax.Array, asked: Any, key: jax.Array) -> TrainingPoint:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = sample_times(time_key, z.shape[0], distribution, **logit_normal, shift=shift)
        eps = jax.random.normal(noise_key, z.shape)
        asked = drop(drop_key, asked, told.null(asked), dropout)
        return TrainingPoint(interpolate(z, eps, t), t, asked, velocity_target(z, eps))

    return draw


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, the section of a velocity network."""
    encode, draw, told = latent_encoder(config), training_points(config, stage), condition(config)
    network = velocity_network(config, stage)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        point = draw(encode(frozen, batch), told.of_batch(batch), key)
        v = network.apply(params, point.z_t, point.t, point.condition)
        return jnp.mean(jnp.square(v - point.target)), {}

    return single_network(
        model_init=network.init,
        loss=loss,
        train=config[stage].train,
        key=stage_key(config.seed, stage),
        frozen=encoding_parts(config),
        reads_latents=bool(config.data.latents),
        **sampled(config, stage),
    )


def sampled(config: ConfigDict, stage: str, part: str = "") -> dict[str, Any]:
    """The fields of an `Objective` that say how samples of the velocity network of `stage` are shown and judged.

    Args:
      part: of the trained parameters, that are the network's; without it all of them are.
    """
    if not config.sampling.num_steps:
        return {}
    draw = generator(config, stage)

    def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, asked: Any) -> jax.Array:
        return draw(params[part] if part else params, frozen, keys, asked)

    return dict(
        wanted=latent_space(config).decoding,
        evaluation=sample_evaluation(config, stage, generate),
        **shown_samples(config, generate),
    )
