import numpy as np
import pytest
from golden import load_case

from rae_jax.evaluation.inception_score import inception_score


@pytest.mark.parametrize(("split_size", "expected"), [(5000, "inception_score"), (100, "inception_score_split100")])
def test_score_is_the_one_adm_reports(split_size, expected):
    case = load_case("metrics")
    case.assert_close([inception_score(case.io["logits"], split_size=split_size)], expected, atol=1e-5, rtol=1e-5)


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
