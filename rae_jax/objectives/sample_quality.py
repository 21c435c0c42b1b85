"""How a generator is judged while it trains: a few samples against held-out images, in the autoencoder's own features.

The objectives of velocity networks and flow maps hand it to the loop as their `Evaluation`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.conditions import condition
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.evaluation.frechet import Moments, frechet_distance, require_samples
from rae_jax.models.autoencoder import to_uint8
from rae_jax.objectives.objective import Batch, Evaluation, to_float
from rae_jax.sampling.generator import Generator, sample_keys
from rae_jax.training.state import TrainState


def sample_evaluation(config: ConfigDict, stage: str, generate: Generator) -> Evaluation | None:
    """The Fréchet distance of samples to held-out images over the mean of their latents' tokens; None if not asked for.

    There is a sample for each held-out image, of its class, always from the same noise.

    Raises:
      ValueError: there are to be too few images for a covariance.
    """
    space, train, told, seed = latent_space(config), config[stage].train, condition(config), config.seed
    if not train.evaluate_every:
        return None
    require_samples(train.evaluation_images, space.shape[1], f"{stage}.train.evaluation_images: the Fréchet distance")

    def measure(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        asked = told.of_batch(batch)
        asked = told.null(asked) if told.unconditional else asked
        samples = generate(state.ema_params, state.frozen, sample_keys(seed, batch["index"]), asked)

        def feature(images: jax.Array) -> jax.Array:
            return jnp.mean(space.encode(state.frozen, images), axis=1)

        return {
            "of_samples": feature(to_uint8(samples).astype(jnp.float32) / 255.0),
            "of_images": feature(to_float(batch)),
        }

    def summarise(rows: dict[str, np.ndarray]) -> dict[str, float]:
        samples, images = (Moments.of(rows[name]).gaussian() for name in ("of_samples", "of_images"))
        return {"frechet": frechet_distance(samples, images)}

    needs = space.encoding | space.decoding | {"stats": stats(config)}
    return Evaluation(better={"frechet": "lower"}, measure=measure, summarise=summarise, needs=needs)
