import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from rae_jax.evaluation.precision_recall import inside_manifold, manifold_radii, precision, recall


@cases("metrics")
def test_precision_and_recall_equal_the_reference_in_float32_and_adms_float16_within_a_few_samples(case):
    adm, float32 = case.call("compute_prec_recall.*"), case.call("the same with float32 distances")
    reference, sample = adm.inputs["reference"], adm.inputs["sample"]
    inside, covered = precision(reference, sample), recall(reference, sample)
    for call, samples in ((adm, 3), (float32, 1e-3)):
        case.assert_close([inside], call.outputs["precision"], atol=samples / len(sample), rtol=0)
        case.assert_close([covered], call.outputs["recall"], atol=samples / len(reference), rtol=0)


@cases("metrics")
def test_radii_equal_the_reference_up_to_the_rounding_of_its_distances_to_float16(case):
    call = case.call("compute_prec_recall.*")
    for features, name in (("reference", "ref"), ("sample", "sample")):
        x = call.inputs[features]
        # It adds |a|^2, |b|^2 and -2ab, each rounded: the spacing of float16 at the largest of them is the error.
        rounding = np.finfo(np.float16).eps * np.square(x).sum(1).max()
        case.assert_close(manifold_radii(x), call.outputs[f"squared radii of {name}"], atol=rounding)


def test_radius_is_the_squared_distance_to_the_kth_other_point():
    points = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(manifold_radii(points, k=1), [1, 1, 4, 16])
    np.testing.assert_allclose(manifold_radii(points, k=3), [49, 36, 16, 49])


def test_a_point_on_the_boundary_is_inside():
    inside = inside_manifold(jnp.array([[2.0], [2.5], [9.0]]), jnp.array([[0.0], [10.0]]), jnp.array([4.0, 1.0]))
    np.testing.assert_array_equal(inside, [True, False, True])


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_block_size_does_not_change_the_result(block):
    rng = np.random.default_rng(0)
    reference, sample = (rng.normal(size=(count, 64)).astype(np.float32) for count in (50, 40))
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
