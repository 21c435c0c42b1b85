"""Aligned velocity: flow matching whose network also agrees, halfway through, with a frozen encoder (REPA).

Yu et al., "Representation Alignment for Generation" (2025): beside the loss of `velocity`, `alignment_weight` times the
alignment of the tokens after `alignment_depth` blocks, projected, with the encoder's tokens of the clean image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.models.alignment import alignment_loss, with_tokens_after
from rae_jax.objectives.objective import Batch, Metrics, Objective, Params, single_network, stage_key, to_float
from rae_jax.objectives.sample_quality import sample_evaluation
from rae_jax.objectives.velocity import TrainingPoint, latent_encoder, training_point
from rae_jax.sampling.generator import class_samples, generator


def velocity_and_alignment(
    config: ConfigDict,
) -> Callable[[dict[str, Params], Params, jax.Array, TrainingPoint], tuple[jax.Array, jax.Array]]:
    """`({"flow", "alignment"}, encoder's parameters, images, training point) -> (velocity loss, alignment loss)`."""
    model, projector = components.velocity_model(config), components.alignment_projector(config)
    autoencoder = components.autoencoder(config)

    def losses(
        params: dict[str, Params], encoder: Params, images: jax.Array, point: TrainingPoint
    ) -> tuple[jax.Array, jax.Array]:
        tokens = autoencoder.apply({"params": {"encoder": encoder}}, images, method="tokens")
        v, halfway = with_tokens_after(
            model, params["flow"], config.flow.alignment_depth, point.z_t, point.t, point.labels
        )
        projected = projector.apply({"params": params["alignment"]}, halfway)
        return jnp.mean(jnp.square(v - point.target)), alignment_loss(projected, tokens)

    return losses


def model_init(config: ConfigDict) -> Callable[[jax.Array], dict[str, Params]]:
    """Initializer of the generator and the projector."""
    flow_init, alignment_init = components.flow_init(config), components.alignment_init(config)

    def init(key: jax.Array) -> dict[str, Params]:
        flow_key, alignment_key = jax.random.split(key)
        return {"flow": flow_init(flow_key), "alignment": alignment_init(alignment_key)}

    return init


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, which leaves the velocity network; the projector is dropped."""
    section = config[stage]
    encode, space = latent_encoder(config), components.latent_space(config)
    losses = velocity_and_alignment(config)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        point = training_point(config, stage, encode(frozen, batch), batch["label"], key)
        velocity, alignment = losses(params, frozen["encoder"], to_float(batch), point)
        return velocity + section.alignment_weight * alignment, {"velocity": velocity, "alignment": alignment}

    draw = generator(config) if config.sampling.num_steps else None

    def generate(params: Params, frozen: dict[str, Params], keys: jax.Array, labels: jax.Array) -> jax.Array:
        return draw(params["flow"], frozen, keys, labels)

    return single_network(
        model_init=model_init(config),
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=space.encoding | {"encoder": components.encoder_init(config), "stats": components.stats_init(config)},
        wanted=space.decoding,
        result=lambda state: state.ema_params["flow"],
        pictures=class_samples(config, generate) if draw else None,
        evaluation=sample_evaluation(config, stage, generate) if draw else None,
    )
