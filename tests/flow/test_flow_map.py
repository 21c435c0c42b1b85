"""Few-step sampling with a flow map against the reference's samples."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from golden_modules import network

from rae_jax.flow import flow_map
from rae_jax.flow.times import sampling_times


@cases("mf_dit_dh")
def test_few_step_samples_are_the_references(case):
    model = network(case)

    def sample(noise, labels, times):
        def u(z, r, t):
            return model.apply({"params": model.params}, z, t, labels, r)

        return flow_map.sample(u, tokens(noise), times, trajectory=True)

    for call in case.calls(r"\d+-step sampling"):
        times = sampling_times(len(call.inputs["times"]) - 1)
        np.testing.assert_allclose(times, call.inputs["times"], rtol=1e-6)
        states = sample(call.inputs["noise"], call.inputs["y"], times)
        case.assert_close(states[-1], tokens(call.outputs["sample"]))
        if "middle" in call.outputs:
            case.assert_close(states[1], tokens(call.outputs["middle"]))


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
