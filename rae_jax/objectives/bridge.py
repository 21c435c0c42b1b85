"""Variational bridge: RPiAE's stage II, which trains the bridge alone between the frozen encoder and decoder.

The bridge compresses the encoder's normalised tokens, made noisy, into a narrow latent, and restores the clean ones.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.decoders import images_of
from rae_jax.components.encoders import tokens_of
from rae_jax.components.latent_spaces import bridge_decoder, bridge_encoder, by_name, latent_space
from rae_jax.models.autoencoder import LatentStatistics, noise_augmentation
from rae_jax.models.posterior import DiagonalGaussian
from rae_jax.objectives.bridge_loss import bridge_loss
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
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
    space, to_tokens, to_images = latent_space(config), tokens_of(config), images_of(config)
    compress, restore = bridge_encoder(config), bridge_decoder(config)
    trained = by_name(compress, restore)
    latent, tau, distribution = section.latent, section.noise_tau, section.noise_distribution
    weights = {name: section[name] for name in ("feature_weight", "kl_weight", "pixel_weight")}

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        noise_key, latent_key = jax.random.split(key)
        images, statistics = to_float(batch), LatentStatistics(**frozen["feature_stats"])
        tokens = to_tokens(frozen["encoder"], images)
        noisy = noise_augmentation(noise_key, tokens, tau, distribution)
        posterior = compress.apply(params["bridge_encoder"], statistics.normalise(noisy))
        z = latent_of(posterior, latent, latent_key)
        decoded = restore.apply(params["bridge_decoder"], z)
        value, terms = bridge_loss(
            decoded=decoded,
            clean=statistics.normalise(tokens),
            posterior=posterior,
            reconstruction=to_images(frozen["decoder"], decoded, statistics),
            images=images,
            **weights,
        )
        return value, terms | {"latent_std": jnp.std(posterior.mean), "posterior_std": jnp.mean(posterior.std)}

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images, parts = to_float(batch), {**state.frozen, **state.ema_params}
        return {"original": images, "reconstruction": space.decode(parts, space.encode(parts, images))}

    return single_network(
        model_init=lambda key: {
            name: part.init(k) for (name, part), k in zip(trained.items(), jax.random.split(key, 2), strict=True)
        },
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={name: part for name, part in {**space.encoding, **space.decoding}.items() if name not in trained},
        pictures=pictures,
    )
