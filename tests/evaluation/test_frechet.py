import numpy as np
import pytest
from golden import cases
from scipy import linalg

from rae_jax.evaluation.frechet import Gaussian, Moments, frechet_distance, require_samples


def moments_in_batches(features: np.ndarray, size: int) -> Moments:
    batches = [Moments.of(features[i : i + size]) for i in range(0, len(features), size)]
    total = batches[0]
    for batch in batches[1:]:
        total = total.merge(batch)
    return total


@cases("metrics")
def test_distance_of_streamed_features_is_the_one_adm_reports(case):
    for call in case.calls("frechet_distance.*"):
        a, b = (moments_in_batches(features, 64).gaussian() for features in call.inputs.values())
        distances = [value for name, value in call.outputs.items() if "fid" in name]  # FID in two precisions, or sFID
        assert distances
        for expected in distances:
            case.assert_close([frechet_distance(a, b)], expected)


@cases("metrics")
def test_streamed_mean_and_covariance_are_the_reference_ones(case):
    call = case.call(r"frechet_distance \(FID\)")
    gaussian = moments_in_batches(call.inputs["reference activations"], 7).gaussian()
    case.assert_close(gaussian.mean, call.outputs["mean of ref"], part=0.001)
    case.assert_close(gaussian.covariance, call.outputs["covariance of ref"], part=0.001)


def test_merging_keeps_its_digits_when_the_mean_dwarfs_the_spread():
    features = np.random.default_rng(0).normal(size=(300, 3)) + 1e7
    gaussian = moments_in_batches(features, 1).gaussian()
    np.testing.assert_allclose(gaussian.covariance, np.cov(features, rowvar=False), atol=1e-8)


def test_distance_is_symmetric_and_equals_the_matrix_square_root_formula():
    rng = np.random.default_rng(1)
    a, b = (Moments.of(rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))).gaussian() for _ in range(2))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-10)


def test_commuting_gaussians_have_the_closed_form_distance_also_when_singular():
    a = Gaussian(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 0.0, 1.0]))
    b = Gaussian(np.array([0.0, 0.0, 0.0]), np.diag([1.0, 9.0, 0.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + 3**2 + 1**2)


def test_a_set_is_at_distance_zero_from_itself_even_with_fewer_samples_than_features():
    gaussian = Moments.of(np.random.default_rng(2).normal(size=(10, 40))).gaussian()
    assert 0 <= frechet_distance(gaussian, gaussian) < 1e-5


def test_full_rank_needs_one_sample_more_than_features():
    require_samples(2049, 2048, "FID")
    with pytest.raises(ValueError, match=r"FID over 2048 features .* got 2048; evaluate at least 2049"):
        require_samples(2048, 2048, "FID")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros(3), "at least one row"),
        (np.array([[1.0, np.nan]]), "NaN"),
    ],
)
def test_features_without_moments_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        Moments.of(features)


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 samples"):
        Moments.of(np.ones((1, 3))).gaussian()


def test_features_of_two_networks_cannot_be_compared():
    a, b = (Moments.of(np.eye(n)).gaussian() for n in (3, 4))
    with pytest.raises(ValueError, match="cannot compare 3 features with 4"):
        frechet_distance(a, b)
