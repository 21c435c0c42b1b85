"""FDr6 and MIND: how far two sets of images are apart in the six spaces of RAEv2's evaluator.

FDr is the Fréchet distance over a constant of the space, which is about the distance of two halves of real images; FDr6
is the mean over the six. MIND, a sliced Wasserstein distance on the scale of a Fréchet distance, is three times the
number of features times the mean, over 1,000 random directions, of the squared differences of sorted projections.
"""

from collections.abc import Mapping

import numpy as np

from rae_jax.evaluation.frechet import Gaussian, frechet_distance

# The quantity of each space, and the constant.
CONSTANTS = {
    "inception.pool": 1.68,
    "convnext_v2.vector": 56.87,
    "dinov2_l.vector": 14.19,
    "mae_l.vector": 0.04,
    "siglip2_so400m.vector": 0.60,
    "clip_l.vector": 5.60,
}
DIRECTIONS, SEED = 1000, 2020


def fdr(judged: Gaussian, reference: Gaussian, quantity: str) -> float:
    """The Fréchet distance of one of `CONSTANTS` over its constant."""
    return frechet_distance(judged, reference) / CONSTANTS[quantity]


def fdr6(judged: Mapping[str, Gaussian], reference: Mapping[str, Gaussian]) -> float:
    """The mean over the six spaces."""
    return float(np.mean([fdr(judged[quantity], reference[quantity], quantity) for quantity in CONSTANTS]))


def mind(judged: np.ndarray, reference: np.ndarray) -> float:
    """MIND of features `[N, D]` and `[M, D]`; of sets of two sizes, the larger is read at the smaller's quantiles."""
    features, count = judged.shape[1], min(len(judged), len(reference))
    directions = np.random.RandomState(SEED).randn(DIRECTIONS, features)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    total = 0.0
    for direction in directions:  # one at a time: all projections of 50,000 images would take 400 MB a set
        a, b = (_quantiles(np.sort(x.astype(np.float64) @ direction), count) for x in (judged, reference))
        total += np.mean(np.square(a - b))
    return 3 * features * total / DIRECTIONS


def _quantiles(ordered: np.ndarray, count: int) -> np.ndarray:
    if len(ordered) == count:
        return ordered
    return np.interp((np.arange(count) + 0.5) / count, (np.arange(len(ordered)) + 0.5) / len(ordered), ordered)
