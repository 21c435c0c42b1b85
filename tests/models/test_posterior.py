"""The diagonal Gaussian posterior against the golden outputs and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import cases, nhwc

from rae_jax.models.posterior import DiagonalGaussian


def gaussian(mean: float, std: float, shape=(2, 3, 4)) -> DiagonalGaussian:
    return DiagonalGaussian(jnp.full(shape, mean), jnp.full(shape, 2 * np.log(std)))


@cases("rpiae_bridge", "kl_vae")
def test_samples_and_divergences_equal_the_reference(case):
    encode, sample = case.call("(vb_)?encode"), case.call("sample")
    mean, logvar = (nhwc(encode.outputs[moment]) for moment in ("mean", "logvar"))
    posterior = DiagonalGaussian.from_moments(np.concatenate([mean, logvar], axis=-1))
    z = posterior.mean + posterior.std * nhwc(sample.inputs["epsilon"])
    case.assert_close(z, nhwc(sample.outputs["z"]), part=0.1)
    if "kl" in encode.outputs:
        case.assert_close(posterior.kl(), encode.outputs["kl"])
    else:
        losses = case.call("losses").outputs
        case.assert_close(posterior.kl(), losses["kl_sum_per_sample"])
        case.assert_close(posterior.kl_mean(), losses["kl_mean"])


@cases("rpiae_bridge")
def test_log_variances_are_clamped_as_in_the_reference(case):
    call = case.call("logvar clamp")
    logvar = nhwc(call.inputs["logvar"])
    posterior = DiagonalGaussian.from_moments(np.concatenate([np.zeros_like(logvar), logvar], axis=-1))
    np.testing.assert_array_equal(posterior.logvar, nhwc(call.outputs["logvar"]))
    assert {-30.0, 20.0} & set(np.unique(posterior.logvar).tolist())


def test_a_sample_is_the_mean_and_standard_normal_noise_times_the_deviation():
    key, posterior = jax.random.key(3), gaussian(5.0, 0.5)
    standard = (posterior.sample(key) - 5.0) / 0.5
    np.testing.assert_allclose(standard, jax.random.normal(key, (2, 3, 4)), atol=1e-5)
    np.testing.assert_array_equal(posterior.mode(), posterior.mean)


def test_the_divergence_of_known_gaussians_is_the_closed_form():
    np.testing.assert_allclose(gaussian(0.0, 1.0).kl(), [0, 0], atol=1e-6)
    # KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s for each of 12 elements.
    expected = 12 * ((9.0 + 0.25 - 1.0) / 2 - np.log(0.5))
    np.testing.assert_allclose(gaussian(3.0, 0.5).kl(), [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose(gaussian(3.0, 0.5).kl_mean(), 2 * expected / 12, rtol=1e-6)


def test_moments_in_bfloat16_become_float32():
    posterior = DiagonalGaussian.from_moments(jnp.ones((1, 2, 6), jnp.bfloat16))
    assert posterior.mean.dtype == posterior.logvar.dtype == jnp.float32
