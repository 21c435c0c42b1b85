"""Variational bridge: RPiAE's stage II, which trains the bridge alone between the frozen encoder and decoder.

The bridge compresses the encoder's normalised tokens, made noisy, into a narrow latent, and restores the clean ones.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.models.autoencoder import LatentStatistics, noise_augmentation
from rae_jax.models.posterior import DiagonalGaussian
from rae_jax.objectives.bridge_loss import bridge_loss
from rae_jax.objectives.objective import Batch, Metrics, Objective, Params, single_network, stage_key, to_float
from rae_jax.training.state import TrainState

LATENTS = ("sample", "mode")


def latent_of(posterior: DiagonalGaussian, latent: str, key: jax.Array) -> jax.Array:
    """What is decoded in training: a `sample` of the posterior (paper), or its `mode` (released)."""
    return posterior.sample(key) if latent == "sample" else posterior.mode()


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`: features, KL divergence and lightly weighted pixels (`bridge_loss`).

    Raises:
      ValueError: the section's `latent` is neither "sample" nor "mode".
    """
    section = config[stage]
    if section.latent not in LATENTS:
        raise ValueError(f"{stage}.latent={section.latent!r} is not one of {list(LATENTS)}")
    space = components.latent_space(config)
    autoencoder = components.autoencoder(config)
    bridge_encoder, bridge_decoder = components.bridge_encoder(config), components.bridge_decoder(config)
    inits = components.bridge_inits(config)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        noise_key, latent_key = jax.random.split(key)
        images, statistics = to_float(batch), LatentStatistics(**frozen["feature_stats"])
        tokens = autoencoder.apply({"params": {"encoder": frozen["encoder"]}}, images, method="tokens")
        noisy = noise_augmentation(noise_key, tokens, section.noise_tau, section.noise_distribution)
        posterior = bridge_encoder.apply({"params": params["bridge_encoder"]}, statistics.normalise(noisy))
        z = latent_of(posterior, section.latent, latent_key)
        decoded = bridge_decoder.apply({"params": params["bridge_decoder"]}, z)
        value, terms = bridge_loss(
            decoded=decoded,
            clean=statistics.normalise(tokens),
            posterior=posterior,
            reconstruction=autoencoder.apply(
                {"params": {"decoder": frozen["decoder"]}}, decoded, statistics, method="decode"
            ),
            images=images,
            feature_weight=section.feature_weight,
            kl_weight=section.kl_weight,
            pixel_weight=section.pixel_weight,
        )
        return value, terms | {"latent_std": jnp.std(posterior.mean), "posterior_std": jnp.mean(posterior.std)}

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images, parts = to_float(batch), {**state.frozen, **state.ema_params}
        return {"original": images, "reconstruction": space.decode(parts, space.encode(parts, images))}

    return single_network(
        model_init=lambda key: {
            name: init(k) for (name, init), k in zip(inits.items(), jax.random.split(key, 2), strict=True)
        },
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={name: init for name, init in {**space.encoding, **space.decoding}.items() if name not in inits},
        pictures=pictures,
    )
