"""Reconstruction: trains the pixel decoder on the frozen encoder's latents (RAE, Section 3).

The latents are made noisy while the decoder trains, so that it forgives the errors of generated ones
(noise-augmented decoding, RAE Section 4.3).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.models.autoencoder import noise_augmentation
from rae_jax.objectives.objective import Batch, Metrics, Objective, Params, single_network, stage_key, to_float
from rae_jax.training import components
from rae_jax.training.state import TrainState


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`: mean absolute error of the reconstructed pixels."""
    section = config[stage]
    autoencoder = components.autoencoder(config)

    def reconstruct(decoder: Params, encoder: Params, images: jax.Array, key: jax.Array | None) -> jax.Array:
        tokens = autoencoder.apply({"params": {"encoder": encoder}}, images, method="tokens")
        if key is not None:
            tokens = noise_augmentation(key, tokens, section.noise_tau, section.noise_distribution)
        return autoencoder.apply({"params": {"decoder": decoder}}, tokens, method="decode")

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        images = to_float(batch)
        return jnp.mean(jnp.abs(reconstruct(params, frozen["encoder"], images, key) - images)), {}

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        reconstructed = reconstruct(state.ema_params, state.frozen["encoder"], images, None)
        return {"original": images, "reconstruction": reconstructed}

    return single_network(
        model_init=components.decoder_init(config),
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={"encoder": components.encoder_init(config)},
        pictures=pictures,
    )
