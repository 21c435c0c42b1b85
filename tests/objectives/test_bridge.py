"""The bridge's stage: what its halves are given, and what they are asked for, written out."""

import functools

import jax
import numpy as np
import pytest
from losses import images_of, loss_of
from random_params import random_params

from configs import architectures, digits_rpiae
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from rae_jax.objectives import bridge

KEY, BATCH = jax.random.key(6), images_of(2, 8)
WIDTH, TOKENS = 8, 16


@functools.cache
def prepared():
    """A config of 4 x 4 tokens, its models by name, and parameters."""
    config = digits_rpiae.get_config("tiny")
    config.data.image_size = config.encoder.input_size = 8
    config.encoder.model = architectures.vision_transformer(
        image_size=8, patch_size=2, width=WIDTH, depth=1, num_heads=2
    )
    config.decoder.model = architectures.vit_decoder(patch_size=2, width=WIDTH, depth=1, num_heads=2, mlp_dim=8)
    config.bridge_encoder.model.update(latent_channels=2, num_heads=2, mlp_dim=8)
    config.bridge_decoder.model.update(width=WIDTH, num_heads=2)
    config.bridge.update(noise_tau=0.5, feature_weight=2.0, kl_weight=0.3, pixel_weight=0.7)
    models = {
        "encoder": VisionTransformer(**config.encoder.model.to_dict()),
        "decoder": ViTDecoder(**config.decoder.model.to_dict() | {"grid_size": 4}),
        "bridge_encoder": BridgeEncoder(**config.bridge_encoder.model.to_dict()),
        "bridge_decoder": BridgeDecoder(**config.bridge_decoder.model.to_dict()),
    }
    tokens, latents = np.zeros((2, TOKENS, WIDTH), np.float32), np.zeros((2, TOKENS, 2), np.float32)
    arguments = {"encoder": np.zeros((2, 8, 8, 3), np.float32), "decoder": tokens, "bridge_encoder": tokens,
                 "bridge_decoder": latents}  # fmt: skip
    params = {name: random_params(model, arguments[name], std=0.3) for name, model in models.items()}
    return config, models, params


@pytest.mark.parametrize("latent", ["sample", "mode"])
def test_the_loss_compares_with_clean_tokens_and_images_what_is_restored_of_noisy_ones(latent, monkeypatch):
    config, models, params = prepared()
    config.bridge.latent = latent
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(TOKENS, WIDTH)), rng.uniform(0.5, 2, (TOKENS, WIDTH))
    mean, variance = mean.astype(np.float32), variance.astype(np.float32)
    frozen = {name: params[name] for name in ("encoder", "decoder")}
    frozen["feature_stats"] = {"mean": mean, "variance": variance}
    trained = {name: params[name] for name in ("bridge_encoder", "bridge_decoder")}
    loss, terms = loss_of(bridge, config, "bridge", monkeypatch)(trained, frozen, BATCH, KEY)

    def apply(name, x):
        return jax.jit(models[name].apply)({"params": params[name]}, np.asarray(x, np.float32))

    noise_key, latent_key = jax.random.split(KEY)
    sigma_key, normal_key = jax.random.split(noise_key)
    std, image_mean, image_std = (
        np.sqrt(variance + 1e-5),
        *map(np.asarray, (config.encoder.image_mean, config.encoder.image_std)),
    )
    images = BATCH["image"] / np.float32(255)
    tokens = np.asarray(apply("encoder", (images - image_mean) / image_std))
    sigma = 0.5 * np.asarray(jax.random.uniform(sigma_key, (2, 1, 1)))
    noisy = tokens + sigma * np.asarray(jax.random.normal(normal_key, tokens.shape))
    posterior = apply("bridge_encoder", (noisy - mean) / std)
    mu, logvar = np.asarray(posterior.mean), np.asarray(posterior.logvar)
    draw = np.asarray(jax.random.normal(latent_key, mu.shape)) if latent == "sample" else 0
    restored = np.asarray(apply("bridge_decoder", mu + np.exp(logvar / 2) * draw))
    pixels = np.asarray(apply("decoder", restored * std + mean)) * image_std + image_mean

    expected = {
        "feature_mse": np.mean((restored - (tokens - mean) / std) ** 2),
        "kl": np.mean(mu**2 + np.exp(logvar) - 1 - logvar),
        "l1": np.mean(np.abs(pixels - images)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
    total = 2.0 * expected["feature_mse"] + 0.3 * expected["kl"] + 0.7 * expected["l1"]
    np.testing.assert_allclose(loss, total, rtol=1e-4)
