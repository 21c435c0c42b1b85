"""KL autoencoding: trains the small KL-VAE of the laptop experiment, where no published one can serve as the teacher.

Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), with the mean absolute error as reconstruction loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.latent_spaces import teacher
from rae_jax.models.posterior import DiagonalGaussian
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.training.state import TrainState


def autoencoder_loss(config: ConfigDict) -> Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Metrics]]:
    """`(parameters, images [B, H, W, 3], key) -> (scalar, its terms)`.

    It is the mean absolute error from a drawn latent, plus `config.teacher.kl_weight` times the posterior's KL.
    """
    model, kl_weight = teacher(config), config.teacher.kl_weight

    def loss(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        posterior: DiagonalGaussian = model.apply(params, images, method="encode")
        decoded = model.apply(params, posterior.sample(key), method="decode")
        reconstruction, kl = jnp.mean(jnp.abs(decoded - images)), posterior.kl_mean()
        return reconstruction + kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}

    return loss


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`: `autoencoder_loss`."""
    section, model, of_images = config[stage], teacher(config), autoencoder_loss(config)

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del frozen
        return of_images(params, to_float(batch), key)

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        images = to_float(batch)
        return {"original": images, "reconstruction": model.apply(state.ema_params, images)}

    return single_network(
        model_init=model.init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={},
        pictures=pictures,
    )
