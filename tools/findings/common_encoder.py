"""One encoder by which digits of runs with latents of their own are compared: that of the plain digits run."""

from typing import Any

import jax
import numpy as np

from configs import digits
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.evaluation.frechet import Moments, frechet_distance


class CommonEncoder:
    """Fréchet distances to held-out digits in an encoder's mean tokens; a run's own would have units of its own.

    Args:
      weights: of the encoder of `configs/digits.py`.
      held_out: digits uint8 `[M, 32, 32, 3]`.
    """

    def __init__(self, weights: str, held_out: np.ndarray):
        config = digits.get_config()
        params, to_tokens = encoder(config).load(weights), tokens_of(config)
        self._features = jax.jit(lambda images: to_tokens(params, images / 255.0).mean(axis=1))
        self._reference = self._gaussian(held_out)

    def _gaussian(self, images: np.ndarray) -> Any:
        return Moments.of(np.asarray(self._features(images.astype(np.float32)))).gaussian()

    def distance(self, images: np.ndarray) -> float:
        """Of generated images, uint8 `[N, 32, 32, 3]`."""
        return frechet_distance(self._gaussian(images), self._reference)
