"""Linear probing: how much of the class is linearly readable from an encoder's features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rae_jax.evaluation.samples import check_labels


def linear_probe_accuracy(
    features: np.ndarray, labels: np.ndarray, held_out_features: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Held-out accuracy in [0, 1] of multinomial logistic regression on standardised `features: [N, D]`."""
    for x, y, name in ((features, labels, "training"), (held_out_features, held_out_labels, "held-out")):
        if x.ndim != 2:
            raise ValueError(f"{name} features have shape {x.shape}, expected [N, D]; pool or flatten tokens first")
        check_labels(y, len(x), f"{name} labels")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, labels)
    return float(probe.score(held_out_features, held_out_labels))
