"""Consistency mid-training's trajectories, pairs, targets and losses: the reference's, and those of a known teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import network
from official_gradients import assert_gradients_are_the_references

from configs import digits
from rae_jax.flow import samplers
from rae_jax.flow.times import dimension_shift, sampling_times
from rae_jax.objectives import cmt


@cases("mf_losses")
def test_trajectory_targets_losses_and_gradients_are_the_references(case):
    call = case.call("training_losses_cmt")
    inputs, expected, labels = call.inputs, call.outputs, jnp.asarray(call.inputs["y"])
    teacher, student = network(case, "teacher."), network(case, "model.")

    shift = dimension_shift(inputs["shift_dim"], case.description["transport"]["time_dist_shift_base"])
    times = sampling_times(inputs["num_steps"] - 1, shift=shift, grid="released")
    case.assert_close(times, expected["trajectory_times"])
    labelled = cmt.label_times(times, "released")
    case.assert_close(labelled[::-1], expected["label_times"], part=0.01)

    def velocity(z, t):
        return teacher.apply({"params": teacher.params}, z, t, labels)

    @jax.jit
    def trajectories(noise):
        states = samplers.euler(velocity, noise, times, trajectory=True)
        pairs = cmt.draw_pairs(jax.random.key(0), len(labels), len(times), 0)
        return states, pairs, cmt.pairs_of(states, labelled, pairs)

    states, pairs, (z, r, t, target) = trajectories(tokens(inputs["noise"]))
    case.assert_close(states, tokens(expected["teacher_trajectory"]))
    # The reference numbers all examples pair by pair; here those of a trajectory follow each other.
    pair, trajectory = np.divmod(inputs["pair_index"], len(labels))
    rows = trajectory * pairs.shape[1] + pair
    z, r, t, target = (np.asarray(x) for x in (z, r, t, target))
    case.assert_close(z[rows], tokens(expected["x"]))
    case.assert_close(r[rows], expected["r"], part=0.01)
    case.assert_close(t[rows], expected["t"], part=0.01)
    case.assert_close(target[rows], tokens(expected["target"]), atol=case.noted("absolute"))
    np.testing.assert_array_equal(labels[trajectory], expected["y"])

    def loss(params):
        def flow_map(z, r, t, labels):
            return student.model.apply({"params": params}, z, t, labels, r)

        errors = cmt.errors(flow_map, states, labelled, pairs, labels)[trajectory, pair]
        return jnp.mean(errors), errors

    (mean, errors), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(student.params)
    case.assert_close(errors, expected["loss"])
    case.assert_close(mean, expected["mean_squared_error"])
    assert_gradients_are_the_references(case, call, gradients, student)


def test_pairs_are_numbered_as_the_reference_does():
    np.testing.assert_array_equal(cmt.all_pairs(4), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])


def test_pairs_are_drawn_with_replacement_all_equally_often():
    pairs = np.asarray(cmt.draw_pairs(jax.random.key(0), 1000, 4, 8))  # of 6 that there are
    assert pairs.shape == (1000, 8, 2) and np.all(pairs[..., 0] > pairs[..., 1])
    number = pairs[..., 0] * 4 + pairs[..., 1]
    _, counts = np.unique(number, return_counts=True)
    assert len(counts) == 6 and np.all(np.abs(counts * 6 / 8000 - 1) < 0.1)
    assert 0.1 < np.mean(number[:, 0] == number[:, 1]) < 0.23  # a sixth


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_straight_trajectory_has_its_velocity_as_every_target_by_true_times(shift):
    noise = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    constant = 2 * noise + 1
    times = sampling_times(5, shift=shift)

    @jax.jit
    def with_labels(labelled):
        states = samplers.euler(lambda z, t: constant, noise, times, trajectory=True)
        return cmt.pairs_of(states, labelled, cmt.draw_pairs(jax.random.key(0), 3, 6, 0))

    _, r, t, target = with_labels(cmt.label_times(times, "true"))
    np.testing.assert_allclose(target, np.repeat(constant, 15, axis=0), atol=1e-4)
    assert np.all(np.asarray(r) < np.asarray(t)) and float(r.min()) == 0 and float(t.max()) == 1
    _, _, _, released = with_labels(cmt.label_times(times, "released"))
    assert np.allclose(released, target, atol=1e-4) == (shift == 1.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trajectory_method", "rk4", "trajectory_method='rk4'"), ("time_labels", "even", "'even' are not one of"),
        ("initial", "mid_training", "'mid_training' is not one of"), ("trajectory_grid", "fine", "'fine'"),
        ("pairs", -1, "pairs=-1"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(field, value, message):
    config = digits.get_config("tiny")
    config.mid_training[field] = value
    with pytest.raises(ValueError, match=message):
        cmt.make(config, "mid_training")


def test_nothing_goes_back_into_the_trajectory():
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32))
    times, pairs, labels = sampling_times(3), cmt.draw_pairs(jax.random.key(0), 2, 4, 0), jnp.arange(2)

    def loss(weight, noise):
        states = samplers.euler(lambda z, t: jnp.sin(z), noise, times, trajectory=True)
        return jnp.sum(cmt.errors(lambda z, r, t, y: weight * z, states, times, pairs, labels))

    of_weight, of_noise = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.5, noise)
    assert of_weight != 0 and not np.any(of_noise)
