"""How a decoder is judged while it trains: its reconstructions of held-out images, in 8 bits as published numbers are.

The objectives of decoders hand it to the loop as their `Evaluation`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import critics
from rae_jax.components.encoders import encoder, tokens_of, tokens_shape
from rae_jax.evaluation.frechet import Moments, frechet_distance, require_samples
from rae_jax.evaluation.image_quality import psnr, ssim
from rae_jax.models.autoencoder import to_uint8
from rae_jax.objectives.objective import Batch, Evaluation, to_float
from rae_jax.training.state import TrainState

INCEPTION_FEATURES = 2048


def reconstruction_evaluation(
    config: ConfigDict,
    stage: str,
    reconstruct: Callable[[TrainState, jax.Array], jax.Array],
) -> Evaluation | None:
    """PSNR (dB), SSIM, LPIPS, and a Fréchet distance of reconstructions to their originals; None if not asked for.

    The distance is `rfid` if `config.inception.weights` names the Inception network, otherwise `frechet_encoder`, over
    the mean of the tokens of the component "encoder".

    Args:
      reconstruct: `(state, images [B, H, W, 3] in [0, 1]) -> images`, with averaged parameters; not clamped.

    Raises:
      ValueError: there are to be too few images for a covariance.
    """
    train = config[stage].train
    if not train.evaluate_every:
        return None
    lpips, inception = critics.lpips(config), critics.inception(config) if config.inception.weights else None
    needs = {"lpips": lpips}
    if inception:
        distance, size, needs["inception"] = "rfid", INCEPTION_FEATURES, inception
    else:
        distance, size, needs["encoder"] = "frechet_encoder", tokens_shape(config)[1], encoder(config)
        to_tokens = tokens_of(config)
    require_samples(train.evaluation_images, size, f"{stage}.train.evaluation_images: {distance}")

    def features(state: TrainState, images: jax.Array) -> jax.Array:
        if inception:
            return inception.apply(state.frozen["inception"], images).pool
        return jnp.mean(to_tokens(state.frozen["encoder"], images.astype(jnp.float32) / 255.0), axis=1)

    def measure(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        original = batch["image"]
        decoded = to_uint8(reconstruct(state, to_float(batch)))
        pair = (x / 127.5 - 1.0 for x in (original, decoded))
        return {
            "psnr": psnr(original, decoded),
            "ssim": ssim(original, decoded),
            "lpips": lpips.apply(state.frozen["lpips"], *pair),
            "of_originals": features(state, original),
            "of_decoded": features(state, decoded),
        }

    def summarise(rows: dict[str, np.ndarray]) -> dict[str, float]:
        means = {name: float(np.mean(rows[name])) for name in ("psnr", "ssim", "lpips")}
        decoded, originals = (Moments.of(rows[name]).gaussian() for name in ("of_decoded", "of_originals"))
        return means | {distance: frechet_distance(decoded, originals)}

    better = {"psnr": "higher", "ssim": "higher", "lpips": "lower", distance: "lower"}
    return Evaluation(better=better, measure=measure, summarise=summarise, needs=needs)
