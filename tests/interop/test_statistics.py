"""Latent statistics from and to the official files and diffusers' tensors."""

import numpy as np
import pytest

from rae_jax.interop.statistics import (
    export_diffusers_statistics,
    export_statistics,
    import_diffusers_statistics,
    import_statistics,
)


def feature_map(side: int) -> np.ndarray:
    return np.random.default_rng(side).uniform(0.5, 2, size=(3, side, side)).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("with_mean", [True, False])
def test_official_statistics_come_back_bit_for_bit(side, with_mean):
    tensors = {"var": feature_map(side)} | ({"mean": -feature_map(side)} if with_mean else {})
    statistics = import_statistics(tensors)
    assert statistics.variance.shape == (side * side, 3)
    assert (statistics.mean is not None) == with_mean
    exported = export_statistics(statistics)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value)


def test_tokens_are_the_grid_row_by_row():
    variance = feature_map(2)
    np.testing.assert_array_equal(import_statistics({"var": variance}).variance[1], variance[:, 0, 1])


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_diffusers_statistics_divide_by_std_plus_epsilon(scale):
    mean, std = feature_map(2), feature_map(2) * np.float32(scale)
    statistics = import_diffusers_statistics({"_latents_mean": mean, "_latents_std": std})
    z = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    expected = (z - mean.reshape(3, 4).T) / (std.reshape(3, 4).T + 1e-5)
    np.testing.assert_allclose(statistics.normalise(z), expected, rtol=1e-5, atol=1e-5)
    exported = export_diffusers_statistics(statistics)
    np.testing.assert_allclose(exported["_latents_std"], std, rtol=1e-5)
    np.testing.assert_array_equal(exported["_latents_mean"], mean)


def test_a_file_without_variance_and_arrays_of_other_rank_are_refused():
    with pytest.raises(ValueError, match="'var'"):
        import_statistics({"mean": feature_map(1)})
    with pytest.raises(ValueError, match=r"expected \[C, h, w\]"):
        import_statistics({"var": np.ones(3)})
