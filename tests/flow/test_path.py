"""The path and its velocity against the reference's, and what is read off them."""

import jax.numpy as jnp
import numpy as np
from golden import load_case

from rae_jax.flow.path import data_from_velocity, interpolate, noise_from_velocity, velocity_target


def test_the_path_and_its_velocity_are_the_references():
    io = load_case("transport").io
    np.testing.assert_allclose(interpolate(io["data"], io["noise"], io["t"]), io["x_t"], atol=1e-6)
    np.testing.assert_array_equal(velocity_target(io["data"], io["noise"]), io["target"])


def test_the_loss_is_the_references():
    case = load_case("transport")
    io, w = case.io, case.weights
    pred = jnp.einsum("nchw,dc->ndhw", interpolate(io["data"], io["noise"], io["t"]), w["mix.weight"])
    pred += (w["mix.bias"] + io["t"][:, None] * w["tvec"] + w["label.weight"][io["y"]])[:, :, None, None]
    case.assert_close(pred, "pred")
    loss = jnp.mean((pred - velocity_target(io["data"], io["noise"])) ** 2, axis=(1, 2, 3))
    case.assert_close(loss, "loss")


def test_data_and_noise_follow_from_a_point_and_its_velocity():
    z, eps = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    t = np.array([0.0, 0.4, 1.0])
    z_t, v = interpolate(z, eps, t), velocity_target(z, eps)
    np.testing.assert_allclose(data_from_velocity(z_t, v, t), z, atol=1e-6)
    np.testing.assert_allclose(noise_from_velocity(z_t, v, t), eps, atol=1e-6)
    np.testing.assert_array_equal(interpolate(z, eps, np.zeros(3)), z)
    np.testing.assert_array_equal(interpolate(z, eps, np.ones(3)), eps)
