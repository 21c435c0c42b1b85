"""MeanFlow's times, derivatives, targets and losses: the reference's, and what calculus says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import network
from official_gradients import assert_gradients_are_the_references
from random_params import random_params

from configs import digits
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import dimension_shift, sample_times, shift_times, uniform_times
from rae_jax.models.dit_dh import DiTDH
from rae_jax.objectives import meanflow
from rae_jax.objectives.meanflow import exact_derivative, finite_difference


@cases("mf_losses")
def test_intervals_are_the_references(case):
    call, transport = case.call("sample_mf"), case.description["transport"]
    shift = dimension_shift(transport["time_dist_shift_dim"], transport["time_dist_shift_base"])
    r, t = meanflow.intervals(
        shift_times(uniform_times(call.inputs["uniform"]), shift),
        call.inputs["uniform_equal"],
        unequal_share=call.inputs["ratio_r_not_equal_t"],
    )
    case.assert_close(r, call.outputs["r"], part=0.01)
    case.assert_close(t, call.outputs["t"], part=0.01)


def test_a_quarter_of_the_intervals_is_not_empty_and_all_lie_inside_the_shifted_range():
    keys = jax.random.split(jax.random.key(0))
    times, equal = sample_times(keys[0], 40_000, shift=3.0), jax.random.uniform(keys[1], (20_000,))
    r, t = meanflow.intervals(times.reshape(-1, 2), equal, unequal_share=0.25)
    assert np.mean(np.asarray(r) < np.asarray(t)) == pytest.approx(0.25, abs=0.01)
    assert np.all((r >= 0) & (r <= t) & (t <= 3 * 0.999 / (1 + 2 * 0.999) + 1e-6))


@pytest.mark.parametrize("kind", ["mft", "mfd"])
@cases("mf_losses")
def test_targets_losses_and_gradients_are_the_references(case, kind):
    call = case.call(f"training_losses_{kind}")
    student, labels = network(case, "model."), jnp.asarray(call.inputs["y"])
    data, noise = tokens(call.inputs["x1"]), tokens(call.inputs["noise"])
    r, t = (jnp.asarray(call.inputs[name]) for name in ("r", "t"))
    z_t = interpolate(data, noise, t)
    case.assert_close(z_t, tokens(case.io["z_t"]), part=0.01)
    if kind == "mft":
        v = velocity_target(data, noise)
    else:
        teacher = network(case, "teacher.")
        v = teacher.apply({"params": teacher.params}, z_t, t, labels)
    case.assert_close(v, tokens(call.outputs["velocity"]))

    def flow_map(params, z, r, t, labels):
        return student.model.apply({"params": params}, z, t, labels, r)

    def loss(params):
        u, dudt = finite_difference(flow_map, params, z_t, v, r, t, labels, call.inputs["delta_t"])
        target = meanflow.target(v, dudt, r, t)
        error = meanflow.squared_error(u, target)
        losses = meanflow.adaptive_loss(error, call.inputs["adaptive_p"])
        return jnp.mean(losses), (u, dudt, target, losses, error)

    (_, (u, dudt, target, losses, error)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(student.params)
    case.assert_close(u, tokens(call.outputs["u"]))
    case.assert_close(dudt, tokens(call.outputs["dudt"]), atol=case.noted("absolute"))
    case.assert_close(target, tokens(call.outputs["target"]), atol=case.noted("absolute"))
    case.assert_close(losses, call.outputs["loss"])
    case.assert_close(jnp.mean(error) / u[0].size, call.outputs["mean_squared_error"])
    assert_gradients_are_the_references(case, call, gradients, student)

    exact_u, exact = jax.jit(lambda p: exact_derivative(flow_map, p, z_t, v, r, t, labels))(student.params)
    case.assert_close(exact_u, tokens(call.outputs["u"]))
    case.assert_close(exact, tokens(case.io[f"exact_jvp_{kind}_dudt"]))


@pytest.fixture(scope="module")
def small():
    """A smooth float32 flow map `(params, z, r, t, labels) -> u` and arguments for it."""
    model = DiTDH(
        grid_size=2, in_channels=4, num_classes=3, width=16, depth=1, num_heads=2, head_width=16, head_depth=1,
        head_num_heads=2, flow_map=True,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    z, v = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    r, t, labels = np.float32([0.1, 0.3, 0.6]), np.float32([0.4, 0.9, 0.6]), np.arange(3)
    params = random_params(model, z, t, labels, r)
    # Frequencies of a time scale that the steps below resolve: with those of a trained model, drawn from N(0, 1), the
    # dt^2 range starts lower and rounding leaves little of it.
    params["time_embedding"]["frequencies"] *= 3

    def flow_map(params, z, r, t, labels):
        return model.apply({"params": params}, z, t, labels, r)

    return flow_map, params, (z, v, r, t, labels)


def test_the_finite_difference_converges_to_the_exact_derivative_as_dt_squared(small):
    flow_map, params, arguments = small
    _, exact = jax.jit(lambda *a: exact_derivative(flow_map, params, *a))(*arguments)
    difference = jax.jit(lambda dt: finite_difference(flow_map, params, *arguments, dt)[1])
    steps = np.geomspace(0.01, 0.08, 6)
    errors = [float(jnp.linalg.norm(difference(dt) - exact) / jnp.linalg.norm(exact)) for dt in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 1.8 < slope < 2.2
    rounding = float(jnp.linalg.norm(difference(1e-6) - exact) / jnp.linalg.norm(exact))
    assert rounding > errors[0]  # the floor is there, and rises as dt falls


@pytest.mark.parametrize("derivative", ["finite_difference", "exact"])
def test_only_the_middle_evaluation_gets_gradients(small, derivative):
    flow_map, params, (z, v, r, t, labels) = small

    def both(params):
        if derivative == "exact":
            return exact_derivative(flow_map, params, z, v, r, t, labels)
        return finite_difference(flow_map, params, z, v, r, t, labels, 0.005)

    through_u = jax.jit(jax.grad(lambda p: jnp.sum(both(p)[0] ** 2)))(params)
    alone = jax.jit(jax.grad(lambda p: jnp.sum(flow_map(p, z, r, t, labels) ** 2)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), through_u, alone)
    through_derivative = jax.jit(jax.grad(lambda p: jnp.sum(both(p)[1] ** 2)))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(through_derivative))


def test_the_finite_difference_is_that_of_each_sample_whatever_the_others():
    def flow_map(params, z, r, t, labels):
        return params * z * (t * (1 + labels) + r)[:, None]

    rng = np.random.default_rng(0)
    z, v = rng.normal(size=(2, 5, 3)).astype(np.float32)
    r, t, labels = rng.random(5, np.float32), rng.random(5, np.float32), np.arange(5)
    _, dudt = finite_difference(flow_map, 2.0, z, v, r, t, labels, 0.01)
    expected = 2 * (v * (t * (1 + labels) + r)[:, None] + z * (1 + labels)[:, None])
    np.testing.assert_allclose(dudt, expected, atol=2e-4)


def test_a_power_of_zero_leaves_the_squared_error_and_one_makes_every_gradient_equally_long():
    error = jnp.array([0.5, 20.0])
    np.testing.assert_allclose(meanflow.adaptive_loss(error, 0.0), error**2)
    slopes = jax.grad(lambda e: jnp.sum(meanflow.adaptive_loss(e, 1.0)))(error)
    np.testing.assert_allclose(slopes * error, 2.0, rtol=5e-3)


def test_a_flow_map_guided_by_itself_comes_to_classifier_free_guidance():
    v, v_null = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    scale = np.float32([1.0, 2.5, 8.0])
    own = np.zeros_like(v)
    for _ in range(200):  # each time it has learnt what it is shown
        own = meanflow.guided_by_itself(v, own, v_null, scale)
    np.testing.assert_allclose(own, v_null + scale[:, None, None] * (v - v_null), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eta", 1.5, "eta=1.5"),
        ("tangent", "sideways", "'sideways' is not one of"),
        ("derivative", "exact", "'exact'"),
        ("initial", "flwo", "'flwo' is not one of"),
    ],
)
def test_impossible_settings_are_named(field, value, message):
    config = digits.get_config("tiny")
    config.flow_map[field] = value
    with pytest.raises(ValueError, match=message):
        meanflow.make(config, "flow_map")


def test_training_without_a_teacher_needs_none_and_starting_without_mid_training_says_so_when_it_diverges():
    config = digits.get_config("tiny")
    assert "flow" in meanflow.make(config, "flow_map").frozen
    config.flow_map.eta = 0.0
    objective = meanflow.make(config, "flow_map")
    assert "flow" not in objective.frozen and objective.initial.keys() == {"mid_training"}
    assert not objective.likely_cause
    config.flow_map.initial = ""
    objective = meanflow.make(config, "flow_map")
    assert not objective.initial and "train the stage 'mid_training'" in objective.likely_cause
