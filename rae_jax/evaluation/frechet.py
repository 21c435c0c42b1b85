"""Fréchet distance between feature sets, the number behind FID and sFID, from moments gathered batch by batch."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """Mean `[D]` and unbiased covariance `[D, D]` of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Moments:
    """Running count, mean `[D]` and scatter `[D, D]` (summed outer products of deviations) of features, in float64.

    Batches and partial results combine in any order (Chan, Golub & LeVeque, 1983), so that memory is that of one
    covariance however many samples there are, and no large sums of squares cancel.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of `features: [B, D]`, B >= 1."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"features have shape {x.shape}; moments need [B, D] with at least one row")
        if not np.isfinite(x).all():
            raise ValueError("features contain NaN or infinity; look for non-finite images or network outputs")
        mean = x.mean(axis=0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count),
        )

    def gaussian(self) -> Gaussian:
        """Mean and covariance with N - 1 in the denominator, as ADM's evaluator computes them."""
        if self.count < 2:
            raise ValueError("a covariance needs at least 2 samples, got 1")
        return Gaussian(self.mean, self.scatter / (self.count - 1))


def require_samples(count: int, features: int, metric: str) -> None:
    """Raises ValueError unless `count` samples give a covariance over `features` features full rank.

    For a tool to call before it samples anything: with fewer, the number is a property of the sample size.
    """
    if count <= features:
        raise ValueError(
            f"{metric} over {features} features needs more than {features} samples for a covariance of full rank, "
            f"got {count}; evaluate at least {features + 1} (50000 for published numbers)"
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """`|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` in float64 (Heusel et al., 2017, Eq. 6).

    The trace of the root is the sum of the root eigenvalues of `S_a^(1/2) S_b S_a^(1/2)`, which is symmetric: the
    result is real, and exact for singular covariances too.
    """
    mean_a, covariance_a = (np.asarray(x, np.float64) for x in a)
    mean_b, covariance_b = (np.asarray(x, np.float64) for x in b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"cannot compare {mean_a.shape[0]} features with {mean_b.shape[0]}: different feature networks"
        )
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_root
    return max(float(distance), 0.0)  # rounding can leave a distance of zero slightly negative
