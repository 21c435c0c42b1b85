"""The whole autoencoder against the golden outputs, and its small functions against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, nhwc, tokens
from golden_modules import autoencoder

from rae_jax.interop.statistics import import_diffusers_statistics, import_statistics
from rae_jax.models.autoencoder import (
    EPSILON,
    LatentStatistics,
    noise_augmentation,
    to_uint8,
)


def compiled(model):
    return jax.jit(model.apply, static_argnames="method")


@cases("rae_dinov2", "rae_siglip2", "rae_mae")
def test_encode_and_decode_equal_the_reference(case):
    model, params, _ = autoencoder(case)
    assert case.constructor["eps"] == EPSILON
    encode, train, decode = case.call(r"encode \(eval\)"), case.call(r"encode \(training.*"), case.call("decode")
    statistics = import_statistics({moment: encode.inputs[f"latent_{moment}"] for moment in ("mean", "var")})
    images, latent = nhwc(encode.inputs["x"]), tokens(encode.outputs["latent"])
    noise = case.constructor["noise_tau"] * train.inputs["uniform"] * train.inputs["normal"]
    # Each method is given no more than the parameters that it uses.
    apply = compiled(model)
    encoder, decoder = ({"params": {part: params[part]}} for part in ("encoder", "decoder"))
    resize = case.call("bicubic resize.*")
    case.assert_close(
        apply({}, nhwc(resize.inputs["x"]), method="preprocess"), nhwc(resize.outputs["normalised"]), part=1 / 3
    )
    case.assert_close(apply(encoder, images, method="tokens"), case.call("encoder").outputs["tokens"])
    case.assert_close(apply(encoder, images, statistics, method="encode"), latent)
    noisy = apply(encoder, nhwc(train.inputs["x"]), statistics, noise, method="encode")
    case.assert_close(noisy, tokens(train.outputs["latent"]))
    reconstruction = nhwc(decode.outputs["image"])
    case.assert_close(apply(decoder, tokens(decode.inputs["z"]), statistics, method="decode"), reconstruction)
    case.assert_close(apply({"params": params}, images, statistics), reconstruction)


@cases("diffusers_rae")
def test_encode_and_decode_equal_diffusers(case):
    model, params, _ = autoencoder(case)
    encode, decode, apply = case.call("encode"), case.call("decode"), compiled(model)
    statistics, variables = import_diffusers_statistics(case.weights), {"params": params}
    latent = apply(variables, nhwc(encode.inputs["x"]), statistics, method="encode")
    case.assert_close(latent, tokens(encode.outputs["latent"]))
    reconstruction = apply(variables, tokens(decode.inputs["z"]), statistics, method="decode")
    case.assert_close(reconstruction, nhwc(decode.outputs["image"]))


def test_statistics_divide_by_the_root_of_variance_plus_epsilon_and_back():
    z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    variance = np.array([[0.0, 1.0, 4.0]], np.float32)
    mean = np.arange(12, dtype=np.float32).reshape(4, 3)
    statistics = LatentStatistics(mean=mean, variance=variance)
    np.testing.assert_allclose(statistics.normalise(z), (z - mean) / np.sqrt(variance + EPSILON), rtol=1e-6)
    np.testing.assert_allclose(statistics.denormalise(statistics.normalise(z)), z, atol=1e-5)


def test_statistics_without_a_mean_only_scale():
    z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    statistics = LatentStatistics(mean=None, variance=np.full((1, 3), 4 - EPSILON, np.float32))
    np.testing.assert_allclose(statistics.normalise(z), z / 2, rtol=1e-6)
    np.testing.assert_allclose(statistics.denormalise(z), z * 2, rtol=1e-6)


def test_statistics_of_another_grid_are_an_error_that_gives_both_shapes():
    statistics = LatentStatistics(mean=None, variance=np.ones((9, 3), np.float32))
    with pytest.raises(ValueError, match=r"variance has shape \(9, 3\).*\(2, 4, 3\)"):
        statistics.normalise(np.zeros((2, 4, 3), np.float32))


@pytest.mark.parametrize(
    ("distribution", "mean_sigma", "mean_square"),
    # uniform on [0, tau]: tau / 2, tau^2 / 3; |N(0, tau^2)|: tau sqrt(2 / pi), tau^2.
    [("uniform", 0.4, 0.64 / 3), ("half_normal", 0.8 * np.sqrt(2 / np.pi), 0.64)],
)
def test_noise_augmentation_has_one_sigma_an_image_of_the_given_distribution(distribution, mean_sigma, mean_square):
    clean = np.full((4000, 64, 4), 5, np.float32)
    noise = np.asarray(jax.jit(noise_augmentation, static_argnums=3)(jax.random.key(0), clean, 0.8, distribution)) - 5
    sigma = noise.std(axis=(1, 2))
    assert sigma.mean() == pytest.approx(mean_sigma, rel=0.04)
    assert np.square(sigma).mean() == pytest.approx(mean_square, rel=0.06)
    standard = noise / sigma[:, None, None]
    assert standard.mean() == pytest.approx(0, abs=0.01)
    # Within an image it is one Gaussian: kurtosis 3 (a sigma for each element would give more).
    assert (standard**4).mean() == pytest.approx(3, abs=0.1)


def test_an_unknown_noise_distribution_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="half_normal"):
        noise_augmentation(jax.random.key(0), jnp.zeros((1, 1, 1)), 0.8, "normal")


@cases("center_crop")
def test_8_bit_samples_equal_the_reference(case):
    call = case.call("decoded sample to 8 bits")
    np.testing.assert_array_equal(to_uint8(nhwc(call.inputs["x"])), call.outputs["image NHWC"])


def test_8_bit_conversion_clamps_and_truncates():
    values = np.array([-0.5, 0.0, 0.999 / 255, 1.0 / 255, 254.9 / 255, 1.0, 1.5], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 0, 1, 254, 255, 255])
