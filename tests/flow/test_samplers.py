"""Samplers against the reference's trajectories and, for Gaussian data, against the distribution they must reach."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case, tokens

from rae_jax.flow import samplers
from rae_jax.flow.guidance import classifier_free_guidance
from rae_jax.flow.times import dimension_shift, sampling_times
from rae_jax.interop.dit_dh import import_dit_dh
from rae_jax.models.dit_dh import DiTDH

MEAN, STD = 1.5, 0.5


def gaussian_velocity(z, t):
    """The exact velocity where data is N(MEAN, STD^2): E[eps - z_0 | z_t = z]."""
    t = t.reshape(-1, *[1] * (z.ndim - 1))
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (z - (1 - t) * MEAN)


def linear_case(name):
    """The golden case, its linear velocity and the times of its trajectory by the solver `name`."""
    case = load_case("transport")
    w = case.weights
    call = next(c for c in case.description["calls"] if c["inputs"].get("sampling_method") == name)
    shift = dimension_shift(call["inputs"]["shift_dim"])
    times = sampling_times(call["inputs"]["num_steps"] - 1, shift=shift, grid="released")

    def velocity(x, t):
        bias = w["mix.bias"] + t[:, None] * w["tvec"] + w["label.weight"][case.io["ode_y"]]
        return jnp.einsum("nchw,dc->ndhw", x, w["mix.weight"]) + bias[:, :, None, None]

    return case, velocity, times


@pytest.mark.parametrize(("sampler", "name"), [(samplers.euler, "euler"), (samplers.heun, "heun2")])
def test_trajectories_are_the_references(sampler, name):
    case, velocity, times = linear_case(name)
    states = sampler(velocity, case.io["ode_noise"], times, trajectory=True)
    case.assert_close(states, f"ode_{name}_trajectory")
    np.testing.assert_array_equal(sampler(velocity, case.io["ode_noise"], times), states[-1])


def test_small_steps_reach_the_trajectory_of_the_references_adaptive_solver():
    case, velocity, times = linear_case("dopri5")
    fine = np.concatenate([np.linspace(a, b, 20, endpoint=False) for a, b in itertools.pairwise(times)])
    states = samplers.heun(velocity, case.io["ode_noise"], [*fine, times[-1]], trajectory=True)
    case.assert_close(states[::20], "ode_dopri5_trajectory", atol=1e-3)


@pytest.mark.parametrize("name", ["sample_euler_dit_dh", "sample_euler_dit_dh_10_steps"])
def test_samples_of_a_network_are_the_references_with_and_without_guidance(name):
    case = load_case(name)
    plain, guided = (call["inputs"] for call in case.description["calls"])
    architecture, params, _ = import_dit_dh(case.weights)
    model, noise, labels = DiTDH(**architecture), tokens(case.io["noise"]), jnp.asarray(case.io["y"])
    times = sampling_times(plain["num_steps"] - 1, shift=dimension_shift(plain["shift_dim"]), grid="released")
    case.assert_close(times, "times")

    def velocity(z, t, y):
        return model.apply({"params": params}, z, t, y)

    states = jax.jit(lambda z: samplers.euler(lambda z, t: velocity(z, t, labels), z, times, trajectory=True))(noise)
    np.testing.assert_allclose(states, tokens(case.io["trajectory"]), atol=1e-4, rtol=1e-3)
    np.testing.assert_array_equal(tokens(case.io["trajectory"])[-1], tokens(case.io["final"]))

    interval = tuple(guided["cfg_interval"])
    field = classifier_free_guidance(
        velocity,
        labels,
        np.full_like(labels, architecture["num_classes"]),
        scale=guided["cfg_scale"],
        interval=interval,
    )
    final = jax.jit(lambda z: samplers.euler(field, z, times))(noise)
    np.testing.assert_allclose(final, tokens(case.io["cfg_final"]), atol=1e-4, rtol=1e-3)


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


@pytest.mark.parametrize("diffusion", [lambda t: t, lambda t: 0.5 * jnp.sin(jnp.pi * t) ** 2])
def test_the_stochastic_sampler_reaches_the_gaussian_whatever_the_diffusion(diffusion):
    n = 40_000
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
