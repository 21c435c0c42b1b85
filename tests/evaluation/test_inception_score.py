import numpy as np
import pytest
from golden import cases

from rae_jax.evaluation.evaluator import Summary
from rae_jax.evaluation.inception_score import inception_score
from rae_jax.evaluation.metrics import METRICS, computed


@cases("metrics")
def test_score_is_the_one_adm_reports(case):
    for call in case.calls("compute_inception_score.*"):
        score = inception_score(call.inputs["logits"], split_size=call.inputs["split_size"])
        case.assert_close([score], call.outputs["inception score"], part=0.01)


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    assert inception_score(1e4 * np.eye(10)) == pytest.approx(10)


def test_predictions_that_never_change_score_one():
    assert inception_score(np.tile(np.arange(10.0), (7, 1))) == pytest.approx(1)


def test_no_samples_have_no_score():
    with pytest.raises(ValueError, match="at least one row"):
        inception_score(np.zeros((0, 10)))


def test_a_class_that_is_never_predicted_does_not_change_the_score():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    never = np.full((50, 1), -1e4)
    assert inception_score(np.hstack([logits, never])) == pytest.approx(inception_score(logits))


def test_splits_are_of_5000_unless_asked_otherwise():
    logits = np.random.default_rng(0).normal(size=(7000, 4)) * np.linspace(0, 3, 7000)[:, None]
    parts = [inception_score(logits[:5000], split_size=7000), inception_score(logits[5000:], split_size=7000)]
    assert inception_score(logits) == pytest.approx(np.mean(parts), rel=1e-12)
    assert abs(inception_score(logits, split_size=7000) / np.mean(parts) - 1) > 1e-3


def test_the_metric_is_that_of_permuted_labels_in_whatever_order_the_samples_come():
    """In order of class a split sees a tenth of the classes, and the score of the file as it is shows that."""
    rng, classes, count = np.random.default_rng(0), 200, 50_000
    labels = np.repeat(np.arange(classes), count // classes)
    logits = 2 * rng.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 9

    def by_numpy(rows):
        p = np.exp(rows.astype(np.float64)) / np.exp(rows.astype(np.float64)).sum(1, keepdims=True)
        return np.mean([np.exp(np.mean(np.sum(q * np.log(q / q.mean(0)), 1))) for q in np.split(p, 10)])

    permuted = logits[rng.permutation(count)]
    expected = by_numpy(permuted)
    for rows in (logits, permuted):
        found = computed([METRICS["is"]], Summary(count=count, rows={"inception.logits": rows}), Summary())
        assert found["is"] == pytest.approx(expected, rel=5e-3)
    assert inception_score(logits) == pytest.approx(by_numpy(logits)) and by_numpy(logits) < 0.3 * expected
    assert inception_score(permuted) == pytest.approx(expected)  # of the same order, ADM's number exactly
