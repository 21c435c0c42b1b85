"""Velocity: flow matching in latent space, which makes the generator (RAE, Section 4).

`x_t = (1 - t) z + t eps`; the network predicts `v = eps - z` and the loss is the mean squared error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import sample_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.objectives.objective import Batch, Metrics, Objective, Params, single_network, stage_key, to_float
from rae_jax.objectives.sample_quality import sample_evaluation
from rae_jax.sampling.generator import class_samples, generator


def drop_labels(key: jax.Array, labels: jax.Array, probability: float, null_label: int) -> jax.Array:
    """Labels `[B]` with each replaced by `null_label` with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability, labels.shape), null_label, labels)


def latent_encoder(config: ConfigDict) -> Callable[[dict[str, Params], Batch], jax.Array]:
    """`(components' parameters, batch) -> z [B, N, C]`, the normalised latents of a batch.

    The batch has an "image" to encode, or the "latent" that encoding it would give.
    """
    space = components.latent_space(config)

    def encode(frozen: dict[str, Params], batch: Batch) -> jax.Array:
        latents = batch["latent"].astype(jnp.float32) if "latent" in batch else space.encode(frozen, to_float(batch))
        return LatentStatistics(**frozen["stats"]).normalise(latents)

    return encode


def encoding_parts(config: ConfigDict) -> dict[str, Callable[[jax.Array], Params]]:
    """The components that `latent_encoder` needs for the batches of training: none if these are of cached latents."""
    encoding = {} if config.data.latents else components.latent_space(config).encoding
    return encoding | {"stats": components.stats_init(config)}


class TrainingPoint(NamedTuple):
    """What the network sees of a batch of latents, and the velocity that it is to predict; arrays are `[B, ...]`."""

    z_t: jax.Array
    t: jax.Array
    labels: jax.Array
    target: jax.Array


def training_point(config: ConfigDict, stage: str, z: jax.Array, labels: jax.Array, key: jax.Array) -> TrainingPoint:
    """Draws times, noise and dropped labels for the latents `z: [B, N, C]`, as the section of `stage` says."""
    section = config[stage]
    time_key, noise_key, label_key = jax.random.split(key, 3)
    t = sample_times(
        time_key,
        z.shape[0],
        section.time_distribution,
        mean=section.logit_normal_mean,
        std=section.logit_normal_std,
        shift=components.time_shift(config),
    )
    eps = jax.random.normal(noise_key, z.shape)
    labels = drop_labels(label_key, labels, section.label_dropout, config.flow.num_classes)
    return TrainingPoint(interpolate(z, eps, t), t, labels, velocity_target(z, eps))


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, the section of a velocity network."""
    section = config[stage]
    encode, space = latent_encoder(config), components.latent_space(config)
    model = components.velocity_model(config, stage)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        point = training_point(config, stage, encode(frozen, batch), batch["label"], key)
        v = model.apply({"params": params}, point.z_t, point.t, point.labels)
        return jnp.mean(jnp.square(v - point.target)), {}

    generate = generator(config, stage) if config.sampling.num_steps else None
    return single_network(
        model_init=components.flow_init(config, stage),
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=encoding_parts(config),
        wanted=space.decoding,
        reads_latents=bool(config.data.latents),
        pictures=class_samples(config, generate) if generate else None,
        evaluation=sample_evaluation(config, stage, generate) if generate else None,
    )
