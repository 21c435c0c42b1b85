"""How a stage is judged while it trains: by its reconstructions, or samples, of held-out images, in 8 bits.

The objectives hand it to the loop as their `Evaluation`; `evaluation/metrics.py` says what the numbers are.
"""

import functools
import operator
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from rae_jax.components.conditions import condition
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.evaluation.features import of_reconstructions, of_samples
from rae_jax.evaluation.metrics import JUDGED, REFERENCE
from rae_jax.models.autoencoder import to_uint8
from rae_jax.objectives.objective import Batch, Evaluation, to_float
from rae_jax.sampling.generator import Generator, sample_keys
from rae_jax.training.state import TrainState


def reconstruction_evaluation(
    config: ConfigDict,
    stage: str,
    reconstruct: Callable[[TrainState, jax.Array], jax.Array],
) -> Evaluation | None:
    """Reconstructions against their originals; None if `config` does not ask for it.

    Args:
      reconstruct: `(state, images [B, H, W, 3] in [0, 1]) -> images`, with averaged parameters; not clamped.

    Raises:
      ValueError: there are to be too few images for a covariance.
    """
    train = config[stage].train
    if not train.evaluate_every:
        return None
    instruments, count = functools.reduce(operator.or_, of_reconstructions(config)), train.evaluation_images
    instruments.check(judged=count, reference=count, where=f"{stage}.train.evaluation_images")

    def measure(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        decoded = to_uint8(reconstruct(state, to_float(batch)))
        return instruments.measure(state.frozen, {JUDGED: decoded, REFERENCE: batch["image"]})

    return Evaluation(instruments.metrics, measure, instruments.parts)


def sample_evaluation(config: ConfigDict, stage: str, generate: Generator) -> Evaluation | None:
    """A sample for each held-out image, of its condition and always from the same noise, against these images.

    FID may be to a file of statistics instead: `config.inception.reference`.

    None if `config` does not ask for it.

    Raises:
      ValueError: there are to be too few images for a covariance, or see `of_fid`.
    """
    space, train, told, seed = latent_space(config), config[stage].train, condition(config), config.seed
    if not train.evaluate_every:
        return None
    instruments, count = of_samples(config), train.evaluation_images
    instruments.check(judged=count, reference=count, where=f"{stage}.train.evaluation_images")

    def measure(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        asked = told.of_batch(batch)
        asked = told.null(asked) if told.unconditional else asked
        samples = generate(state.ema_params, state.frozen, sample_keys(seed, batch["index"]), asked)
        return instruments.measure(state.frozen, {JUDGED: to_uint8(samples), REFERENCE: batch["image"]})

    needs = instruments.parts | space.decoding | {"stats": stats(config)}
    return Evaluation(instruments.metrics, measure, needs)
