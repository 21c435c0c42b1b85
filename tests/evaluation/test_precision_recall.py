import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case

from rae_jax.evaluation.precision_recall import inside_manifold, manifold_radii, precision, recall


def test_precision_and_recall_equal_the_reference_in_float32():
    case = load_case("metrics")
    reference, sample = case.io["ref"], case.io["sample"]
    case.assert_close([precision(reference, sample)], "precision_float32", atol=1e-6, rtol=0)
    case.assert_close([recall(reference, sample)], "recall_float32", atol=1e-6, rtol=0)


def test_precision_and_recall_are_within_a_few_samples_of_adms_float16():
    case = load_case("metrics")
    reference, sample = case.io["ref"], case.io["sample"]
    case.assert_close([precision(reference, sample)], "precision", atol=3 / len(sample), rtol=0)
    case.assert_close([recall(reference, sample)], "recall", atol=3 / len(reference), rtol=0)


@pytest.mark.parametrize("features", ["ref", "sample"])
def test_radii_equal_the_reference_up_to_float16(features):
    case = load_case("metrics")
    case.assert_close(manifold_radii(case.io[features]), f"radii_{features}", rtol=5e-3)


def test_radius_is_the_squared_distance_to_the_kth_other_point():
    points = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(manifold_radii(points, k=1), [1, 1, 4, 16])
    np.testing.assert_allclose(manifold_radii(points, k=3), [49, 36, 16, 49])


def test_a_point_on_the_boundary_is_inside():
    inside = inside_manifold(jnp.array([[2.0], [2.5], [9.0]]), jnp.array([[0.0], [10.0]]), jnp.array([4.0, 1.0]))
    np.testing.assert_array_equal(inside, [True, False, True])


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_block_size_does_not_change_the_result(block):
    case = load_case("metrics")
    reference, sample = case.io["ref"][:50], case.io["sample"][:40]
    radii = manifold_radii(reference)
    np.testing.assert_allclose(manifold_radii(reference, block=block), radii, rtol=1e-5)
    np.testing.assert_array_equal(
        inside_manifold(sample, reference, radii, block=block), inside_manifold(sample, reference, radii)
    )


def test_a_collapsed_sample_has_precision_but_no_recall():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(100, 4)).astype(np.float32)
    sample = 1e-3 * rng.normal(size=(20, 4)).astype(np.float32)
    assert precision(reference, sample) == 1 and recall(reference, sample) == 0


@pytest.mark.parametrize(
    ("reference", "sample", "message"),
    [((3, 2), (9, 2), r"reference .*N > k = 3"), ((9, 2), (3, 2), r"sample .*N > k = 3"), ((9, 2), (9, 3), "sample 3")],
)
def test_sets_without_neighbours_or_of_different_features_are_refused(reference, sample, message):
    with pytest.raises(ValueError, match=message):
        precision(np.zeros(reference), np.zeros(sample))
    with pytest.raises(ValueError, match=message):
        recall(np.zeros(reference), np.zeros(sample))
