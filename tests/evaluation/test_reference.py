import numpy as np
import pytest
from golden import cases

from rae_jax.evaluation.evaluator import Summary
from rae_jax.evaluation.frechet import Moments
from rae_jax.evaluation.metrics import METRICS, computed
from rae_jax.evaluation.reference import read_statistics


@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
@cases("metrics")
def test_fid_to_stored_statistics_is_the_one_adm_reports(case, names, tmp_path):
    call = case.call(r"frechet_distance \(FID\)")
    reference = Moments.of(call.inputs["reference activations"]).gaussian()
    np.savez(tmp_path / "statistics.npz", **dict(zip(names, reference, strict=True)))
    stored = read_statistics(tmp_path / "statistics.npz")
    assert stored.keys() == {"inception.pool"}
    judged = Summary(
        count=50_000, gaussians={"inception.pool": Moments.of(call.inputs["sample activations"]).gaussian()}
    )
    found = computed([METRICS["fid"]], judged, Summary(gaussians=stored))
    case.assert_close([found["fid"]], call.outputs["fid"])


def test_adms_files_have_statistics_for_sfid_too_and_images_alone_have_none(tmp_path):
    mean, covariance = np.zeros(3), np.eye(3)
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=mean + 1, sigma_s=2 * covariance)
    stored = read_statistics(tmp_path / "adm.npz")
    assert stored.keys() == {"inception.pool", "inception.spatial"}
    np.testing.assert_array_equal(stored["inception.spatial"].mean, mean + 1)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert read_statistics(tmp_path / "images.npz") == {}


@pytest.mark.parametrize("covariance", [np.eye(4), np.ones(3), np.full((3, 3), np.nan)])
def test_statistics_that_do_not_fit_each_other_are_refused_by_name(covariance, tmp_path):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=covariance)
    with pytest.raises(ValueError, match=r"odd\.npz: .*inception\.pool"):
        read_statistics(tmp_path / "odd.npz")
