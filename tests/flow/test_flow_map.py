"""Few-step sampling with a flow map against the reference's samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case, tokens

from rae_jax.flow import flow_map
from rae_jax.flow.times import sampling_times
from rae_jax.interop.dit_dh import import_dit_dh
from rae_jax.models.dit_dh import DiTDH


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_step_samples_are_the_references(steps):
    case = load_case("mf_dit_dh")
    architecture, params, _ = import_dit_dh(case.weights)
    model, labels = DiTDH(**architecture), case.io["noise_y"]

    def u(z, r, t):
        return model.apply({"params": params}, z, t, labels, r)

    times = sampling_times(steps)
    states = jax.jit(lambda z: flow_map.sample(u, z, times, trajectory=True))(tokens(case.io["noise"]))
    np.testing.assert_allclose(states[-1], tokens(case.io[f"sample_{steps}_step"]), atol=5e-5, rtol=5e-4)
    if steps == 2:
        np.testing.assert_allclose(states[1], tokens(case.io["state_after_first_of_2"]), atol=5e-5, rtol=5e-4)


def test_the_exact_flow_map_of_a_gaussian_reaches_the_same_point_in_any_number_of_jumps():
    mean, std = 1.5, 0.5

    def spread(t):
        return jnp.sqrt((1 - t) ** 2 * std**2 + t**2)

    def u(z, r, t):
        r, t = r[:, None], t[:, None]
        z_r = (1 - r) * mean + spread(r) / spread(t) * (z - (1 - t) * mean)
        return (z - z_r) / (t - r)

    noise = jnp.array([[-1.0], [0.3]])
    for times in ([1, 0], [1, 0.5, 0], [1, 0.9, 0.2, 0.1, 0]):
        np.testing.assert_allclose(flow_map.sample(u, noise, np.array(times)), mean + std * noise, rtol=1e-5)


@pytest.mark.parametrize("times", [(1.0,), (0.9, 0.0), (1.0, 0.5), (1.0, 0.5, 0.5, 0.0), (1.0, 0.2, 0.6, 0.0)])
def test_times_that_do_not_fall_from_one_to_zero_are_refused(times):
    with pytest.raises(ValueError, match=r"fall from 1\.0 to 0\.0"):
        flow_map.jump_times(times)
