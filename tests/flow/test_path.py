"""The path and its velocity against the reference's, and what is read off them."""

import jax.numpy as jnp
import numpy as np
from golden import cases
from golden_modules import linear_velocity

from rae_jax.flow.path import data_from_velocity, interpolate, noise_from_velocity, velocity_target


@cases("transport")
def test_the_path_and_its_velocity_are_the_references(case):
    plan = case.call("path_sampler.plan")
    data, noise, t = (plan.inputs[name] for name in ("x1", "x0", "t"))
    case.assert_close(interpolate(data, noise, t), plan.outputs["x_t"], part=0.05)
    np.testing.assert_array_equal(velocity_target(data, noise), plan.outputs["u_t"])


@cases("transport")
def test_the_loss_is_the_references(case):
    drawn, losses = case.call("Transport.sample"), case.call("training_losses")
    data, noise, t = losses.inputs["x1"], drawn.inputs["noise"], drawn.outputs["t"]
    pred = linear_velocity(case, losses.inputs["y"])(interpolate(data, noise, t), t)
    case.assert_close(pred, losses.outputs["pred"])
    case.assert_close(jnp.mean((pred - velocity_target(data, noise)) ** 2, axis=(1, 2, 3)), losses.outputs["loss"])


def test_data_and_noise_follow_from_a_point_and_its_velocity():
    z, eps = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    t = np.array([0.0, 0.4, 1.0])
    z_t, v = interpolate(z, eps, t), velocity_target(z, eps)
    np.testing.assert_allclose(data_from_velocity(z_t, v, t), z, atol=1e-6)
    np.testing.assert_allclose(noise_from_velocity(z_t, v, t), eps, atol=1e-6)
    np.testing.assert_array_equal(interpolate(z, eps, np.zeros(3)), z)
    np.testing.assert_array_equal(interpolate(z, eps, np.ones(3)), eps)
