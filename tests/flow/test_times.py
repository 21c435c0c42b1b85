"""Times of training and of sampling against the reference's values and SciPy's distributions."""

import jax
import numpy as np
import pytest
import scipy.stats
from golden import load_case

from rae_jax.flow.times import (
    dimension_shift,
    logit_normal_times,
    sample_times,
    sampling_times,
    shift_times,
    uniform_times,
)


@pytest.mark.parametrize("dimension", [4096, 16384, 196608, 786432])
def test_the_shift_and_the_released_grid_are_the_references(dimension):
    case = load_case("transport")
    shift = dimension_shift(dimension)
    case.assert_close(shift_times(case.io["shift_t"], shift), f"shift_dim_{dimension}", atol=1e-6, rtol=1e-6)
    for points in (10, 50):
        times = sampling_times(points - 1, shift=shift, grid="released")
        case.assert_close(times, f"ode_times_{points}_dim_{dimension}", atol=1e-6, rtol=1e-6)


def test_training_times_from_given_draws_are_the_references():
    case = load_case("transport")
    uniform = case.io["grid_uniform"]
    case.assert_close(uniform_times(uniform), "grid_t_uniform", atol=1e-6, rtol=1e-6)
    case.assert_close(logit_normal_times(uniform), "grid_t_logit-normal_0_1", atol=2e-6, rtol=1e-5)
    case.assert_close(logit_normal_times(uniform, -0.4, 1.2), "grid_t_logit-normal_-0.4_1.2", atol=2e-6, rtol=1e-5)
    shift = dimension_shift(case.description["constructor"]["time_dist_shift_dim"])
    case.assert_close(shift_times(logit_normal_times(case.io["uniform"]), shift), "t", atol=2e-6, rtol=1e-5)


def test_the_extreme_draws_give_the_ends_of_the_range():
    ends = np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(uniform_times(ends), [0, 0.999])
    np.testing.assert_allclose(logit_normal_times(ends, 0.5, 2.0), [0, 0.999], atol=1e-6)


def test_truncation_cuts_the_distribution_rather_than_heaping_it_at_the_end():
    uniform, mean, std = np.array([0.2, 0.5, 0.9], np.float32), 6.0, 1.5
    high = (np.log(0.999 / 0.001) - mean) / std
    logits = mean + std * scipy.stats.truncnorm(-np.inf, high).ppf(uniform)
    np.testing.assert_allclose(logit_normal_times(uniform, mean, std), 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("uniform", scipy.stats.uniform(0, 0.999).cdf),
        ("logit_normal", lambda t: scipy.stats.norm(-0.4, 1.2).cdf(np.log(t / (1 - t)))),
    ],
)
def test_drawn_times_have_their_distribution_and_are_shifted_afterwards(distribution, expected):
    key = jax.random.key(0)
    t = sample_times(key, 4000, distribution, mean=-0.4, std=1.2)
    assert scipy.stats.kstest(t, expected).pvalue > 0.01
    shifted = sample_times(key, 4000, distribution, mean=-0.4, std=1.2, shift=3.0)
    np.testing.assert_allclose(shifted, 3 * t / (1 + 2 * t), rtol=1e-6)


def test_the_full_grid_goes_from_noise_to_data_in_as_many_steps_as_asked():
    assert dimension_shift(256 * 768) == pytest.approx(6.928, abs=1e-3)
    times = sampling_times(4, shift=2.0)
    assert times.dtype == np.float32
    np.testing.assert_allclose(times, [1, 6 / 7, 2 / 3, 2 / 5, 0], rtol=1e-6)
    np.testing.assert_array_equal(sampling_times(2), [1, 0.5, 0])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'gaussian' is not one of"):
        sample_times(jax.random.key(0), 2, "gaussian")
    with pytest.raises(ValueError, match="'linear' is not one of"):
        sampling_times(2, grid="linear")
    with pytest.raises(ValueError, match="at least one step"):
        sampling_times(0)
