"""Velocity: flow matching in latent space, which makes the generator (RAE, Section 4).

`x_t = (1 - t) z + t eps`; the network predicts `v = eps - z`, or z and so v, and the loss is the mean squared error of
the velocity. An early output has the same loss (RAEv2), and tokens that the network projects are to be the encoder's of
the clean image (REPA, in RAEv2's form: their mean squared error).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.conditions import condition, drop, embedding
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import VelocityNetwork, time_shift, velocity_network
from rae_jax.components.latent_spaces import IDENTITY, latent_space, stats
from rae_jax.flow.path import interpolate
from rae_jax.flow.prediction import held_velocity_target
from rae_jax.flow.times import sample_times
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.objectives.quality import sample_evaluation
from rae_jax.sampling.generator import generator, shown_samples

# Where mean and deviation of a batch of normalised latents lie; those of statistics of other latents are far outside.
NORMALISED = {"latent_mean": (-0.5, 0.5), "latent_deviation": (0.5, 2.0)}


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
    distribution, dropout, t_eps = section.time_distribution, section.label_dropout, section.t_eps
    of_times = dict(mean=section.logit_normal_mean, std=section.logit_normal_std, largest=section.largest_time)

    def draw(z: jax.Array, asked: Any, key: jax.Array) -> TrainingPoint:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = sample_times(time_key, z.shape[0], distribution, **of_times, shift=shift)
        eps = jax.random.normal(noise_key, z.shape)
        asked = drop(drop_key, asked, told.null(asked), dropout)
        return TrainingPoint(interpolate(z, eps, t), t, asked, held_velocity_target(z, eps, t, t_eps))

    return draw


def velocity_loss(
    network: VelocityNetwork, *, base_coefficient: float, alignment_weight: float
) -> Callable[[Params, TrainingPoint, jax.Array | None], tuple[jax.Array, Metrics]]:
    """`(parameters, training point, the encoder's tokens or None) -> (loss, metrics)`: see above.

    Args:
      base_coefficient: of the early output's loss.
      alignment_weight: of the projected tokens'.
    """

    def loss(params: Params, point: TrainingPoint, tokens: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        out = network.outputs(params, point.z_t, point.t, point.condition)
        total, metrics = mean_squared(out.full, point.target), {}
        if out.base is not None:
            metrics["base"] = mean_squared(out.base, point.target)
            total += base_coefficient * metrics["base"]
        if out.aligned is not None:
            metrics["alignment"] = mean_squared(out.aligned, tokens)
            total += alignment_weight * metrics["alignment"]
        return total, metrics

    return loss


def mean_squared(actual: jax.Array, expected: jax.Array) -> jax.Array:
    """The mean squared error over all elements.

    Raises:
      ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(
            f"the network gives {actual.shape} where {expected.shape} is wanted; flow.model.alignment_features is the "
            "width of the encoder's tokens, of which there have to be as many as the network's"
        )
    return jnp.mean(jnp.square(actual - expected))


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, the section of a velocity network.

    Raises:
      ValueError: the network aligns its tokens with those of images, and the batches have none.
    """
    encode, draw, told = latent_encoder(config), training_points(config, stage), condition(config)
    network, (reading, embed) = velocity_network(config, stage), embedding(config)
    if reading and config.data.latents:
        raise ValueError(f"{stage} is told captions, and data.latents={config.data.latents!r} has none; set it to ''")
    frozen_parts = encoding_parts(config) | reading
    losses = velocity_loss(
        network, base_coefficient=config[stage].base_coefficient, alignment_weight=config.flow.alignment_weight
    )
    if network.aligns:
        to_tokens, frozen_parts = tokens_of(config), frozen_parts | {"encoder": encoder(config)}
        if config.data.latents:
            raise ValueError(
                f"{stage}.model.alignment_features={network.module.alignment_features} aligns tokens with the "
                "encoder's of each image, and data.latents has no images; set it to 0, or data.latents=''"
            )

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        z = encode(frozen, batch)
        point = draw(z, told.of_batch(batch), key)
        point = point._replace(condition=embed(frozen, point.condition))
        tokens = to_tokens(frozen["encoder"], to_float(batch)) if network.aligns else None
        value, metrics = losses(params, point, tokens)
        return value, metrics | {"latent_mean": jnp.mean(z), "latent_deviation": jnp.std(z)}

    return single_network(
        model_init=network.init,
        loss=loss,
        train=config[stage].train,
        key=stage_key(config.seed, stage),
        frozen=frozen_parts,
        reads_latents=bool(config.data.latents),
        reads_conversations=bool(reading),
        expected={} if config.stats.weights == IDENTITY else NORMALISED,
        unexpected=(
            "the latents are not normalised. Are the statistics those of this encoder, at this size, of these images? "
            f"config.stats.weights={config.stats.weights!r}"
        ),
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
