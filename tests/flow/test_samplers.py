"""Samplers against the reference's trajectories and, for Gaussian data, against the distribution they must reach."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
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
def test_the_adaptive_solver_is_the_references(case):
    """And small steps of another method arrive where it does."""
    (call,) = (call for call in case.calls("sample_ode") if call.inputs["sampling_method"] == "dopri5")
    times = released_times(call, case.constructor["time_dist_shift_base"])
    velocity, noise = linear_velocity(case, call.inputs["y"]), call.inputs["x"]
    tolerances = {name: call.inputs[name] for name in ("rtol", "atol") if name in call.inputs}
    states = samplers.dopri5(velocity, noise, times, **tolerances, trajectory=True)
    case.assert_close(states, call.outputs["trajectory"], atol=case.noted("absolute"))
    np.testing.assert_allclose(samplers.dopri5(velocity, noise, times, **tolerances), states[-1], atol=1e-4)
    fine = np.concatenate([np.linspace(a, b, 20, endpoint=False) for a, b in itertools.pairwise(times)])
    small = samplers.heun(velocity, noise, [*fine, times[-1]], trajectory=True)[::20]
    case.assert_close(small, call.outputs["trajectory"], atol=case.noted("absolute"))


def test_the_adaptive_solver_is_scipys_and_as_exact_as_it_is_asked_to_be():
    noise = np.array([[-2.0], [0.0], [1.0]], np.float32)

    def backwards(done, z):
        return -np.asarray(gaussian_velocity(jnp.asarray(z, jnp.float32)[:, None], jnp.full(3, 1 - done)))[:, 0]

    for tolerance in (1e-2, 1e-4):
        z = samplers.dopri5(gaussian_velocity, noise, sampling_times(2), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(z, MEAN + STD * noise, atol=5 * tolerance)
        theirs = scipy.integrate.solve_ivp(backwards, (0, 1), noise[:, 0], rtol=tolerance, atol=tolerance).y[:, -1:]
        np.testing.assert_allclose(z, theirs, atol=5 * tolerance)


def test_the_adaptive_solver_stays_within_its_times_and_ends_where_a_velocity_is_no_number():
    looked_at = []

    def watched(z, t):
        jax.debug.callback(lambda t: looked_at.append(float(t[0])), t)
        return gaussian_velocity(z, t)

    jax.block_until_ready(samplers.dopri5(watched, jnp.ones((1, 1)), sampling_times(3, grid="released")))
    jax.effects_barrier()
    assert max(looked_at) == 1 and min(looked_at) == pytest.approx(1e-3, abs=1e-6)
    assert jnp.isnan(samplers.dopri5(lambda z, t: z * jnp.nan, jnp.ones((1, 1)), sampling_times(3))).all()


@pytest.mark.parametrize(("last", "shift"), [("mean", 1.0), ("tweedie", 1.0), ("tweedie", 2.0)])
def test_the_last_step_of_the_sde(last, shift):
    """Against SiT's formulas in NumPy, from the state before the last step."""
    noise, keys = jnp.array([[-2.0], [0.0], [1.0]]), jax.random.split(jax.random.key(0), 3)
    times = sampling_times(5, last_step=0.1, shift=shift)
    states = samplers.euler_maruyama(gaussian_velocity, noise, times, keys, last=last, trajectory=True)
    z, t = np.asarray(states[-2]), times[-2]
    v = np.asarray(gaussian_velocity(z, jnp.full(3, t)))
    score = -(z + (1 - t) * v) / t
    expected = {"mean": z - t * (v - t * score / 2), "tweedie": (z + t**2 * score) / (1 - t)}[last]
    np.testing.assert_allclose(states[-1], expected, atol=1e-5)


def test_an_unknown_last_step():
    with pytest.raises(ValueError, match="'euler' is not one of"):
        samplers.euler_maruyama(
            gaussian_velocity, jnp.zeros((1, 1)), [1.0, 0.0], jax.random.split(jax.random.key(0), 1), last="euler"
        )


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
