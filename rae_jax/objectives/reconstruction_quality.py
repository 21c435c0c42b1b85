"""How a decoder is judged while it trains: its reconstructions of held-out images, in 8 bits as published numbers are.

The objectives of decoders hand it to the loop as their `Evaluation`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
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
    lpips, autoencoder = components.lpips(config), components.autoencoder(config)
    needs = {"lpips": components.lpips_init(config)}
    if config.inception.weights:
        distance, size = "rfid", INCEPTION_FEATURES
        needs["inception"] = components.inception_init(config)
    else:
        distance, size = "frechet_encoder", components.encoder_shape(config)[1]
        needs["encoder"] = components.encoder_init(config)
    require_samples(train.evaluation_images, size, f"{stage}.train.evaluation_images: {distance}")

    def features(state: TrainState, images: jax.Array) -> jax.Array:
        if config.inception.weights:
            return components.inception(config).apply({"params": state.frozen["inception"]}, images).pool
        encoder = {"params": {"encoder": state.frozen["encoder"]}}
        return jnp.mean(autoencoder.apply(encoder, images.astype(jnp.float32) / 255.0, method="tokens"), axis=1)

    def measure(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        original = batch["image"]
        decoded = to_uint8(reconstruct(state, to_float(batch)))
        pair = (x / 127.5 - 1.0 for x in (original, decoded))
        return {
            "psnr": psnr(original, decoded),
            "ssim": ssim(original, decoded),
            "lpips": lpips.apply({"params": state.frozen["lpips"]}, *pair),
            "of_originals": features(state, original),
            "of_decoded": features(state, decoded),
        }

    def summarise(rows: dict[str, np.ndarray]) -> dict[str, float]:
        means = {name: float(np.mean(rows[name])) for name in ("psnr", "ssim", "lpips")}
        decoded, originals = (Moments.of(rows[name]).gaussian() for name in ("of_decoded", "of_originals"))
        return means | {distance: frechet_distance(decoded, originals)}

    better = {"psnr": "higher", "ssim": "higher", "lpips": "lower", distance: "lower"}
    return Evaluation(better=better, measure=measure, summarise=summarise, needs=needs)
