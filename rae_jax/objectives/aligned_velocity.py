"""Aligned velocity: flow matching whose network also agrees, halfway through, with a frozen encoder (REPA).

Yu et al., "Representation Alignment for Generation" (2025): beside the loss of `velocity`, `alignment_weight` times the
alignment of the tokens after `alignment_depth` blocks, projected, with the encoder's tokens of the clean image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.conditions import condition
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.generators import alignment_projector, velocity_network
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.models.alignment import alignment_loss, with_tokens_after
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.objectives.velocity import TrainingPoint, latent_encoder, sampled, training_points


def velocity_and_alignment(
    config: ConfigDict,
) -> Callable[[dict[str, Params], Params, jax.Array, TrainingPoint], tuple[jax.Array, jax.Array]]:
    """`({"flow", "alignment"}, encoder's parameters, images, training point) -> (velocity loss, alignment loss)`."""
    network, projector, depth = velocity_network(config), alignment_projector(config), config.flow.alignment_depth
    if config.flow.family == "dit_in_context":
        raise ValueError(
            "flow.objective='aligned_velocity' is for networks without a projection of their own; flow.family="
            "'dit_in_context' has one: set flow.objective='velocity', and flow.model.alignment_features"
        )
    to_tokens = tokens_of(config)

    def losses(
        params: dict[str, Params], encoder: Params, images: jax.Array, point: TrainingPoint
    ) -> tuple[jax.Array, jax.Array]:
        tokens = to_tokens(encoder, images)
        with network.precise():
            predicted, halfway = with_tokens_after(
                network.module, params["flow"], depth, point.z_t, point.t, point.condition
            )
        v = network.velocity(predicted, point.z_t, point.t)
        projected = projector.apply(params["alignment"], halfway)
        return jnp.mean(jnp.square(v - point.target)), alignment_loss(projected, tokens)

    return losses


def model_init(config: ConfigDict) -> Callable[[jax.Array], dict[str, Params]]:
    """Initializer of the generator and the projector."""
    network, projector = velocity_network(config), alignment_projector(config)

    def init(key: jax.Array) -> dict[str, Params]:
        flow_key, alignment_key = jax.random.split(key)
        return {"flow": network.init(flow_key), "alignment": projector.init(alignment_key)}

    return init


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, which leaves the velocity network; the projector is dropped."""
    section = config[stage]
    encode, draw, told = latent_encoder(config), training_points(config, stage), condition(config)
    losses, weight = velocity_and_alignment(config), section.alignment_weight

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        point = draw(encode(frozen, batch), told.of_batch(batch), key)
        velocity, alignment = losses(params, frozen["encoder"], to_float(batch), point)
        return velocity + weight * alignment, {"velocity": velocity, "alignment": alignment}

    return single_network(
        model_init=model_init(config),
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen=latent_space(config).encoding | {"encoder": encoder(config), "stats": stats(config)},
        within="flow",
        **sampled(config, stage, "flow"),
    )
