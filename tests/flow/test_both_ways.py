"""The coder's flow in both directions, in closed form."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from rae_jax.flow.both_ways import (
    decode,
    encode,
    mean_velocity_loss,
    path_loss,
    random_grid,
    straight_path,
    uniform_grid,
)

RNG = np.random.default_rng(0)
START, END = (RNG.normal(size=(3, 2, 2, 4)).astype(np.float32) for _ in range(2))
MATRIX = RNG.normal(size=(4, 4)).astype(np.float32) / 4


def straight(state, t):
    """The field of exactly straight paths, each at its constant speed."""
    return jnp.asarray(END - START)


def linear(state, t):
    """A field that is linear in the state."""
    return state @ MATRIX


def error(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@pytest.mark.parametrize("num_steps", [1, 4, 16])
def test_on_straight_paths_decoding_arrives_encoding_returns_and_the_path_loss_is_zero(num_steps):
    for times in (uniform_grid(num_steps), random_grid(jax.random.key(0), num_steps)):
        states = decode(straight, START, times, trajectory=True)
        assert states.shape == (num_steps + 1, *START.shape)
        assert error(states[-1], END) < 1e-5
        assert error(encode(straight, END, times), START) < 1e-5
        assert error(states, straight_path(START, END, times)) < 1e-5
        assert path_loss(states, END, times) < 1e-11


def test_the_path_loss_is_the_mean_squared_distance_of_the_inner_states():
    states = RNG.normal(size=(5, *START.shape)).astype(np.float32)
    expected = np.mean([(states[k] - (states[0] + k / 4 * (END - states[0]))) ** 2 for k in (1, 2, 3)])
    np.testing.assert_allclose(path_loss(states, END, uniform_grid(4)), expected, rtol=1e-5)


def test_decoding_and_encoding_are_eulers_steps_written_out():
    times = np.array([0.0, 0.3, 1.0], np.float32)
    field = lambda s, t: jnp.sin(s) + t.reshape(-1, 1, 1, 1)  # noqa: E731
    s = np.asarray(START)
    for t, t_next in ((0.0, 0.3), (0.3, 1.0)):
        s = s + (t_next - t) * (np.sin(s) + t)
    np.testing.assert_allclose(decode(field, START, times), s, rtol=1e-5, atol=1e-6)
    s = np.asarray(END)
    for t, t_next in ((0.3, 1.0), (0.0, 0.3)):
        s = s - (t_next - t) * (np.sin(s) + t)
    np.testing.assert_allclose(encode(field, END, times), s, rtol=1e-5, atol=1e-6)


def test_with_a_linear_field_both_ways_are_inverse_once_each_step_has_converged():
    times = uniform_grid(4)
    decoded = decode(linear, START, times)
    exact = START
    for _ in range(4):
        exact = exact @ (np.eye(4) + MATRIX / 4)
    assert error(decoded, exact) < 1e-5
    assert error(encode(linear, decoded, times, iterations=12), START) < 1e-5
    assert error(decode(linear, encode(linear, END, times, iterations=12), times), END) < 1e-5


def test_eulers_reversal_error_falls_in_proportion_to_the_number_of_steps():
    def reversal(num_steps: int) -> float:
        times = uniform_grid(num_steps)
        return error(encode(linear, decode(linear, START, times), times), START)

    errors = [reversal(num_steps) for num_steps in (4, 8, 16, 32)]
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_many_steps_approach_the_exact_solution():
    exact = START @ scipy.linalg.expm(MATRIX)
    assert error(decode(linear, START, uniform_grid(100)), exact) < 8e-3


def test_noise_enters_each_state_before_its_step():
    times = uniform_grid(2)
    noise = 0.05 * RNG.normal(size=(2, *START.shape)).astype(np.float32)
    s = START
    for k in range(2):
        s = s + noise[k]
        s = s + 0.5 * s @ MATRIX
    np.testing.assert_allclose(decode(linear, START, times, noise=noise), s, rtol=1e-5, atol=1e-6)
    s = END
    for k in range(2):
        s = s + noise[k]
        s = s - 0.5 * s @ MATRIX
    np.testing.assert_allclose(encode(linear, END, times, noise=noise), s, rtol=1e-5, atol=1e-6)


def test_random_grids_rise_from_zero_to_one_and_differ():
    grids = [np.asarray(random_grid(jax.random.key(seed), 4)) for seed in range(3)]
    for grid in grids:
        assert grid.shape == (5,) and grid[0] == 0 and grid[-1] == 1 and (np.diff(grid) >= 0).all()
    assert error(grids[0], grids[1]) > 1e-3
    np.testing.assert_array_equal(random_grid(jax.random.key(0), 1), [0, 1])


def test_the_mean_velocity_loss_is_of_the_velocity_and_t_times_its_derivative_along_the_straight_path():
    times, slope = np.float32([0.0, 0.25, 0.5]), END - START
    states = np.stack([START + t * slope for t in times])
    assert mean_velocity_loss(straight, states, times, START, END) == 0
    constant = mean_velocity_loss(lambda s, t: straight(s, t) + 0.5, states, times, START, END)
    np.testing.assert_allclose(constant, 0.25, rtol=1e-5)
    # d(t v)/dt of slope + t + 2 s, less the slope: t + 2 s + t (1 + 2 slope).
    moving = mean_velocity_loss(lambda s, t: straight(s, t) + t[:, None, None, None] + 2 * s, states, times, START, END)
    expected = [(2 * t + 2 * s + 2 * t * slope) ** 2 for s, t in zip(states, times, strict=True)]
    np.testing.assert_allclose(moving, np.mean(expected), rtol=1e-5)


def test_a_grid_without_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps=0: decoding and encoding need at least one step"):
        uniform_grid(0)
