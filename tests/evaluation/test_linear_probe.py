import numpy as np
import pytest

from rae_jax.evaluation.linear_probe import linear_probe, probe_accuracy


def labelled_features(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes apart in one direction of tiny variance, amid others of large variance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    features = rng.normal(size=(count, 5)) * 100
    features[:, 2] = 1e-3 * (labels + 0.1 * rng.normal(size=count))
    return features, labels


def linear_probe_accuracy(features, labels, held_out, held_out_labels) -> float:
    return probe_accuracy(linear_probe(features, labels), held_out, held_out_labels)


def test_a_linearly_readable_class_is_found_whatever_the_scale_of_its_feature():
    assert linear_probe_accuracy(*labelled_features(300, 0), *labelled_features(200, 1)) > 0.98


def test_features_that_know_nothing_give_chance_accuracy():
    features, labels = labelled_features(300, 0)
    held_out, held_out_labels = labelled_features(300, 1)
    blind = np.delete(features, 2, axis=1), labels, np.delete(held_out, 2, axis=1), held_out_labels
    assert abs(linear_probe_accuracy(*blind) - 1 / 3) < 0.12


def test_accuracy_is_of_the_held_out_set():
    features, labels = labelled_features(300, 0)
    assert linear_probe_accuracy(features, labels, features, (labels + 1) % 3) < 0.02


def test_token_features_are_refused():
    with pytest.raises(ValueError, match=r"training features have shape \(4, 2, 3\), expected \[N, D\]"):
        linear_probe_accuracy(np.zeros((4, 2, 3)), np.zeros(4, int), np.zeros((4, 3)), np.zeros(4, int))


def test_a_head_stays_as_it_was_trained_when_the_features_change():
    (features, labels), (held_out, held_out_labels) = labelled_features(300, 0), labelled_features(200, 1)
    probe, order = linear_probe(features, labels), [2, 0, 1, 3, 4]
    assert probe_accuracy(probe, held_out, held_out_labels) > 0.98
    assert probe_accuracy(probe, held_out[:, order], held_out_labels) < 0.6
    again = linear_probe(features[:, order], labels)
    assert probe_accuracy(again, held_out[:, order], held_out_labels) > 0.98
