"""Inception score: how confident a classifier is about each sample, and how varied it finds them all."""

import numpy as np


def in_random_order(rows: np.ndarray) -> np.ndarray:
    """The rows of `[N, ...]` in an order that only N decides, so that consecutive ones are not of one class.

    Published scores are of samples whose labels were permuted. In order of class each split of 5,000 would see 100 of
    ImageNet's 1,000 classes, and its score would be of those.
    """
    return rows[np.random.RandomState(0).permutation(len(rows))]


def inception_score(logits: np.ndarray, *, split_size: int = 5000) -> float:
    """`exp(E_x KL(p(y|x) || p(y)))` of `logits: [N, C]`, averaged over consecutive splits (Salimans et al., 2016).

    As ADM's evaluator: splits of `split_size`, the last one possibly smaller, all of equal weight. The order of the
    rows counts, see `in_random_order`.
    """
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"logits have shape {logits.shape}; the inception score needs [N, C] with at least one row")
    scores = []
    for start in range(0, len(logits), split_size):
        part = np.asarray(logits[start : start + split_size], np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # A class that underflows in every sample contributes nothing, rather than 0 * -inf.
        log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp(np.sum(p * (log_p - log_marginal), axis=1).mean()))
    return float(np.mean(scores))
