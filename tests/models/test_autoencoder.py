"""The whole autoencoder against the golden outputs, and its small functions against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load_case, nhwc, tokens

from rae_jax.interop.decoder import import_decoder
from rae_jax.interop.statistics import import_diffusers_statistics, import_statistics
from rae_jax.interop.vit import import_encoder
from rae_jax.models.autoencoder import (
    EPSILON,
    LatentStatistics,
    RepresentationAutoencoder,
    noise_augmentation,
    to_uint8,
)
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer

PREFIXES = {"rae_dinov2": "encoder.encoder.", "rae_siglip2": "encoder.model.", "rae_mae": "encoder.model."}


def compiled(model):
    return jax.jit(model.apply, static_argnames="method")


@pytest.mark.parametrize("name", PREFIXES)
def test_encode_and_decode_equal_the_reference(name):
    case = load_case(name)
    constructor, encoder_config = case.description["constructor"], case.description["encoder_config"]
    encoder, encoder_params, _ = import_encoder(
        case.weights_under(PREFIXES[name]), num_heads=encoder_config["num_attention_heads"]
    )
    decoder, decoder_params, _ = import_decoder(
        case.weights_under("decoder."), num_heads=constructor["decoder_config"]["decoder_num_attention_heads"]
    )
    model = RepresentationAutoencoder(
        VisionTransformer(**encoder),
        ViTDecoder(**decoder),
        encoder_input_size=constructor["encoder_input_size"],
        image_mean=tuple(constructor["image_mean"]),
        image_std=tuple(constructor["image_std"]),
    )
    statistics = import_statistics({"mean": case.io["latent_mean"], "var": case.io["latent_var"]})
    images, latent = nhwc(case.io["image"]), tokens(case.io["latent"])
    noise = 0.8 * case.io["noise_uniform"] * case.io["noise_normal"]
    close = {"atol": 3e-5, "rtol": 3e-4}
    # Each method is given no more than the parameters that it uses.
    apply = compiled(model)
    only_encoder, only_decoder = {"params": {"encoder": encoder_params}}, {"params": {"decoder": decoder_params}}
    np.testing.assert_allclose(
        apply({}, images, method="preprocess"), nhwc(case.io["image_normalised"]), atol=1e-5, rtol=1e-4
    )
    case.assert_close(apply(only_encoder, images, method="tokens"), "tokens")
    np.testing.assert_allclose(apply(only_encoder, images, statistics, method="encode"), latent, **close)
    np.testing.assert_allclose(
        apply(only_encoder, images, statistics, noise, method="encode"), tokens(case.io["latent_train_mode"]), **close
    )
    reconstruction = nhwc(case.io["reconstruction"])
    np.testing.assert_allclose(apply(only_decoder, latent, statistics, method="decode"), reconstruction, **close)
    everything = {"params": {"encoder": encoder_params, "decoder": decoder_params}}
    np.testing.assert_allclose(apply(everything, images, statistics), reconstruction, **close)


def test_encode_and_decode_equal_diffusers():
    case = load_case("diffusers_rae")
    constructor = case.description["constructor"]
    encoder, encoder_params, _ = import_encoder(
        case.weights_under("encoder."), num_heads=case.description["encoder_config"]["num_attention_heads"]
    )
    decoder, decoder_params, _ = import_decoder(
        case.weights_under("decoder."), grid_size=3, num_heads=constructor["decoder_num_attention_heads"]
    )
    model = RepresentationAutoencoder(
        VisionTransformer(**encoder),
        ViTDecoder(**decoder),
        encoder_input_size=constructor["encoder_input_size"],
        image_mean=tuple(case.weights["encoder_mean"].ravel().tolist()),
        image_std=tuple(case.weights["encoder_std"].ravel().tolist()),
    )
    statistics = import_diffusers_statistics(case.weights)
    variables = {"params": {"encoder": encoder_params, "decoder": decoder_params}}
    apply, latent = compiled(model), tokens(case.io["latent"])
    close = {"atol": 5e-5, "rtol": 5e-4}
    np.testing.assert_allclose(apply(variables, nhwc(case.io["image"]), statistics, method="encode"), latent, **close)
    np.testing.assert_allclose(
        apply(variables, latent, statistics, method="decode"), nhwc(case.io["reconstruction"]), **close
    )


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
    clean = jnp.full((4000, 64, 4), 5.0)
    noise = np.asarray(noise_augmentation(jax.random.key(0), clean, 0.8, distribution)) - 5.0
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


def test_8_bit_samples_equal_the_reference():
    case = load_case("center_crop")
    np.testing.assert_array_equal(to_uint8(nhwc(case.io["float_image"])), case.io["uint8_image"])


def test_8_bit_conversion_clamps_and_truncates():
    values = np.array([-0.5, 0.0, 0.999 / 255, 1.0 / 255, 254.9 / 255, 1.0, 1.5], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 0, 1, 254, 255, 255])
