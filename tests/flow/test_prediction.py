"""Velocities from predictions of the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from rae_jax.flow.path import interpolate
from rae_jax.flow.prediction import check_prediction, held_velocity_target, velocity_of

T_EPS = 0.05


def points():
    rng = np.random.default_rng(0)
    z, eps = rng.normal(size=(2, 5, 3, 2))
    return z, eps, np.array([0.0, 0.01, 0.05, 0.4, 1.0])


def test_the_target_is_noise_minus_data_from_t_eps_on_and_shrinks_before():
    z, eps, t = points()
    z_t = (1 - t)[:, None, None] * z + t[:, None, None] * eps
    expected = (z_t - z) / np.maximum(t, T_EPS)[:, None, None]
    np.testing.assert_allclose(held_velocity_target(z, eps, jnp.asarray(t), T_EPS), expected, atol=1e-6)
    np.testing.assert_array_equal(held_velocity_target(z, eps, jnp.asarray(t), 0.0), eps - z)
    np.testing.assert_allclose(expected[2:], (eps - z)[2:], atol=1e-12)


def test_the_true_data_mean_the_target_and_a_velocity_itself():
    z, eps, t = map(jnp.asarray, points())
    z_t = interpolate(z, eps, t)
    np.testing.assert_allclose(velocity_of("x", z, z_t, t, T_EPS), held_velocity_target(z, eps, t, T_EPS), atol=1e-5)
    np.testing.assert_array_equal(velocity_of("velocity", z, z_t, t, T_EPS), z)


@pytest.mark.parametrize(
    ("prediction", "t_eps", "message"),
    [("z", 0.1, r"flow\.prediction='z' is not one of"), ("x", 0.0, r"flow\.t_eps=0\.0.*RAEv2 has 0\.05"),
     ("velocity", 1.0, r"flow\.t_eps=1\.0")],
)  # fmt: skip
def test_what_cannot_be_predicted_is_refused(prediction, t_eps, message):
    with pytest.raises(ValueError, match=message):
        check_prediction(prediction, t_eps, "flow")
