"""Linear probing: how much of the class is linearly readable from an encoder's features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from rae_jax.sampling.samples import check_labels


def linear_probe(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Multinomial logistic regression of `labels: [N]` on standardised `features: [N, D]`, fitted.

    Raises:
      ValueError: the features are not `[N, D]`, or the labels do not belong to them.
    """
    _check(features, labels, "training")
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, labels)


def probe_accuracy(probe: Pipeline, features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy in [0, 1] of a fitted probe on other features, held-out ones or another encoder's.

    Raises:
      ValueError: as `linear_probe`.
    """
    _check(features, labels, "held-out")
    return float(probe.score(features, labels))


def _check(features: np.ndarray, labels: np.ndarray, name: str) -> None:
    if features.ndim != 2:
        raise ValueError(f"{name} features have shape {features.shape}, expected [N, D]; pool or flatten tokens first")
    check_labels(labels, len(features), f"{name} labels")
