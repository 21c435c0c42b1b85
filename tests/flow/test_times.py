"""Times of training and of sampling against the reference's values and SciPy's distributions."""

import jax
import numpy as np
import pytest
import scipy.stats
from golden import cases

from rae_jax.flow.times import (
    dimension_shift,
    logit_normal_times,
    sample_times,
    sampling_times,
    shift_times,
    uniform_times,
)

LOGIT_NORMAL = jax.jit(logit_normal_times)


@cases("transport")
def test_the_shift_and_the_released_grid_are_the_references(case):
    for call in case.calls("time shift"):
        shift = dimension_shift(call.inputs["shift_dim"], call.inputs["shift_base"])
        assert shift == pytest.approx(call.inputs["shift"])
        case.assert_close(shift_times(call.inputs["t"], shift), call.outputs["t"], part=0.01)
    base = case.constructor["time_dist_shift_base"]
    for call in case.calls("ODE time points"):
        shift = dimension_shift(call.inputs["shift_dim"], base)
        times = sampling_times(call.inputs["num_steps"] - 1, shift=shift, grid="released")
        case.assert_close(times, call.outputs["t"], part=0.01)


@cases("transport")
def test_training_times_from_given_draws_are_the_references(case):
    def times(distribution, uniform):
        """`distribution` is `uniform` or `logit-normal_<mean>_<std>`."""
        _, *moments = distribution.split("_")
        return LOGIT_NORMAL(uniform, *map(float, moments)) if moments else uniform_times(uniform)

    for call in case.calls("Transport.sample with time_dist_shift 1"):
        unshifted = times(call.inputs["time_dist_type"], call.inputs["uniform"])
        case.assert_close(unshifted, call.outputs["t"], part=0.1)
    constructor, call = case.constructor, case.call("Transport.sample")
    shift = dimension_shift(constructor["time_dist_shift_dim"], constructor["time_dist_shift_base"])
    unshifted = times(constructor["time_dist_type"], call.inputs["uniform"])
    case.assert_close(shift_times(unshifted, shift), call.outputs["t"], part=0.1)


def test_the_extreme_draws_give_the_ends_of_the_range():
    ends = np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(uniform_times(ends), [0, 0.999])
    np.testing.assert_allclose(LOGIT_NORMAL(ends, 0.5, 2.0), [0, 0.999], atol=1e-6)


def test_truncation_cuts_the_distribution_rather_than_heaping_it_at_the_end():
    uniform, mean, std = np.array([0.2, 0.5, 0.9], np.float32), 6.0, 1.5
    high = (np.log(0.999 / 0.001) - mean) / std
    logits = mean + std * scipy.stats.truncnorm(-np.inf, high).ppf(uniform)
    np.testing.assert_allclose(LOGIT_NORMAL(uniform, mean, std), 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("uniform", scipy.stats.uniform(0, 0.999).cdf),
        ("logit_normal", lambda t: scipy.stats.norm(-0.4, 1.2).cdf(np.log(t / (1 - t)))),
    ],
)
def test_drawn_times_have_their_distribution_and_are_shifted_afterwards(distribution, expected):
    key, sample = jax.random.key(0), jax.jit(sample_times, static_argnums=(1, 2))
    t = np.asarray(sample(key, 4000, distribution, mean=-0.4, std=1.2, shift=1.0))
    assert scipy.stats.kstest(t, expected).pvalue > 0.01
    shifted = sample(key, 4000, distribution, mean=-0.4, std=1.2, shift=3.0)
    np.testing.assert_allclose(shifted, 3 * t / (1 + 2 * t), rtol=1e-6)


def test_the_full_grid_goes_from_noise_to_data_in_as_many_steps_as_asked():
    assert dimension_shift(256 * 768) == pytest.approx(6.928, abs=1e-3)
    times = sampling_times(4, shift=2.0)
    assert times.dtype == np.float32
    np.testing.assert_allclose(times, [1, 6 / 7, 2 / 3, 2 / 5, 0], rtol=1e-6)
    np.testing.assert_array_equal(sampling_times(2), [1, 0.5, 0])


def test_the_last_step_can_be_smaller_than_the_others():
    np.testing.assert_allclose(sampling_times(4, last_step=0.04), [1, 0.68, 0.36, 0.04, 0], atol=1e-6)
    shifted = sampling_times(4, last_step=0.04, shift=2.0)
    np.testing.assert_allclose(shifted[-2:], [0.08 / 1.04, 0], rtol=1e-6)
    for wrong in (dict(last_step=1.0), dict(last_step=0.04, grid="released")):
        with pytest.raises(ValueError, match="last_step="):
            sampling_times(4, **wrong)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'gaussian' is not one of"):
        sample_times(jax.random.key(0), 2, "gaussian")
    with pytest.raises(ValueError, match="'linear' is not one of"):
        sampling_times(2, grid="linear")
    with pytest.raises(ValueError, match="at least one step"):
        sampling_times(0)
