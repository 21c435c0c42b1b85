"""Samplers against the reference's trajectories and, for Gaussian data, against the distribution they must reach."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import linear_velocity, network

from rae_jax.flow import samplers
from rae_jax.flow.guidance import classifier_free_guidance
from rae_jax.flow.times import dimension_shift, sampling_times

MEAN, STD = 1.5, 0.5


def gaussian_velocity(z, t):
    """The exact velocity where data is N(MEAN, STD^2): E[eps - z_0 | z_t = z]."""
    t = t.reshape(-1, *[1] * (z.ndim - 1))
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (z - (1 - t) * MEAN)


def released_times(call, base=4096):
    """The times that the reference's sampler visits in `call`; it counts points where we count steps."""
    shift = dimension_shift(call.inputs["shift_dim"], base)
    return sampling_times(call.inputs["num_steps"] - 1, shift=shift, grid="released")


@cases("transport")
def test_trajectories_are_the_references(case):
    calls = {call.inputs["sampling_method"]: call for call in case.calls("sample_ode")}
    for name, sampler in (("euler", samplers.euler), ("heun2", samplers.heun)):
        call = calls[name]
        velocity, noise = linear_velocity(case, call.inputs["y"]), call.inputs["x"]
        times = released_times(call, case.constructor["time_dist_shift_base"])
        states = sampler(velocity, noise, times, trajectory=True)
        case.assert_close(states, call.outputs["trajectory"])
        np.testing.assert_array_equal(sampler(velocity, noise, times), states[-1])


@cases("transport")
def test_small_steps_reach_the_trajectory_of_the_references_adaptive_solver(case):
    (call,) = (call for call in case.calls("sample_ode") if call.inputs["sampling_method"] == "dopri5")
    times = released_times(call, case.constructor["time_dist_shift_base"])
    fine = np.concatenate([np.linspace(a, b, 20, endpoint=False) for a, b in itertools.pairwise(times)])
    velocity = linear_velocity(case, call.inputs["y"])
    states = samplers.heun(velocity, call.inputs["x"], [*fine, times[-1]], trajectory=True)
    case.assert_close(states[::20], call.outputs["trajectory"], atol=case.noted("absolute"))


@cases("sample_euler_dit_dh")
def test_samples_of_a_network_are_the_references_with_and_without_guidance(case):
    model, _, params, architecture, _ = network(case)

    def velocity(z, t, y):
        return model.apply({"params": params}, z, t, y)

    for call in case.calls("sample_ode euler.*"):
        times, labels = released_times(call), jnp.asarray(call.inputs["y"])
        field = functools.partial(velocity, y=labels)
        if "with_cfg" in call.function:
            scale, interval = call.inputs["cfg_scale"], tuple(call.inputs["cfg_interval"])
            null = jnp.full_like(labels, architecture["num_classes"])
            field = classifier_free_guidance(velocity, labels, null, scale=scale, interval=interval)
        states = samplers.euler(field, tokens(call.inputs["x"]), times, trajectory=True)
        case.assert_close(states[-1], tokens(call.outputs["final"]))
        if "trajectory" in call.outputs:
            case.assert_close(times, call.outputs["times"])
            case.assert_close(states, tokens(call.outputs["trajectory"]))


@pytest.mark.parametrize(("sampler", "steps", "error"), [(samplers.euler, 400, 4e-3), (samplers.heun, 40, 2e-3)])
def test_deterministic_samplers_carry_a_gaussian_to_its_quantiles(sampler, steps, error):
    noise = jnp.array([[-2.0], [0.0], [1.0]])
    z = sampler(gaussian_velocity, noise, sampling_times(steps))
    np.testing.assert_allclose(z, MEAN + STD * noise, atol=error)


def test_heun_converges_at_second_order_and_euler_at_first():
    noise = jnp.array([[1.0]])

    def error(sampler, steps):
        return abs(float(sampler(gaussian_velocity, noise, sampling_times(steps))[0, 0]) - (MEAN + STD))

    assert error(samplers.euler, 16) / error(samplers.euler, 32) == pytest.approx(2, rel=0.2)
    assert error(samplers.heun, 16) / error(samplers.heun, 32) == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("form", samplers.DIFFUSIONS)
def test_the_stochastic_sampler_reaches_the_gaussian_whatever_the_diffusion(form):
    n, diffusion = 40_000, samplers.DIFFUSIONS[form]
    noise = jax.random.normal(jax.random.key(0), (4, n // 4))
    keys = jax.random.split(jax.random.key(1), 4)
    z = samplers.euler_maruyama(gaussian_velocity, noise, sampling_times(100), keys, diffusion=diffusion)
    assert np.mean(z) == pytest.approx(MEAN, abs=0.015)
    assert np.std(z) == pytest.approx(STD, abs=0.015)
    # It is stochastic: the noise it started from explains less than all of the sample.
    correlation = np.corrcoef(noise.ravel(), z.ravel())[0, 1]
    assert correlation < 0.95


def test_the_stochastic_samplers_last_step_adds_no_noise_and_samples_do_not_depend_on_their_batch():
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    keys = jax.random.split(jax.random.key(1), 3)
    times = sampling_times(5)
    states = samplers.euler_maruyama(gaussian_velocity, noise, times, keys, trajectory=True)
    t = jnp.full(3, times[-2])
    v = gaussian_velocity(states[-2], t)
    drift = v + (states[-2] + (1 - times[-2]) * v) / 2  # w(t) = t times half the score's opposite
    np.testing.assert_allclose(states[-1], states[-2] - times[-2] * drift, rtol=1e-5)
    alone = samplers.euler_maruyama(gaussian_velocity, noise[1:2], times, keys[1:2])
    np.testing.assert_allclose(alone[0], states[-1, 1], rtol=1e-6)
