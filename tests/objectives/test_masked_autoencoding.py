"""Masked autoencoding: what is hidden, and that it alone is asked for."""

import jax
import numpy as np
from losses import images_of, loss_of
from random_params import random_params

from configs import architectures, digits
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from rae_jax.objectives import masked_autoencoding

KEY, BATCH = jax.random.key(4), images_of(3, 8)


def prepared(monkeypatch):
    """The loss with three quarters of 16 patches of 2 x 2 pixels hidden, and parameters."""
    config = digits.get_config("tiny")
    config.data.image_size = config.encoder.input_size = 8
    config.encoder.model = architectures.vision_transformer(image_size=8, patch_size=2, width=8, depth=1, num_heads=2)
    config.encoder.head.width, config.encoder.head.mlp_dim, config.encoder.mask_ratio = 8, 8, 0.75
    encoder = VisionTransformer(**config.encoder.model.to_dict())
    head = ViTDecoder(grid_size=4, patch_size=2, **config.encoder.head.to_dict())
    params = {
        "encoder": random_params(encoder, np.zeros((1, 8, 8, 3), np.float32)),
        "head": random_params(head, np.zeros((1, 16, 8), np.float32)),
        "mask_token": np.linspace(-1, 1, 8, dtype=np.float32),
    }
    loss = loss_of(masked_autoencoding, config, "encoder", monkeypatch)
    return config, params, lambda params, batch: float(loss(params, {}, batch, KEY)[0])


def hidden_patches():
    """Which of the 16 patches of each image are hidden, from the draws by hand: the last three quarters in order."""
    order = np.argsort(np.asarray(jax.random.uniform(KEY, (3, 16))), axis=1)
    hidden = np.zeros((3, 16), bool)
    np.put_along_axis(hidden, order[:, 4:], True, axis=1)
    return hidden


def changed(image, patch, by):
    """The batch with the pixels of one patch changed."""
    pixels = BATCH["image"].copy()
    row, column = 2 * (patch // 4), 2 * (patch % 4)
    pixels[image, row : row + 2, column : column + 2] = by
    return BATCH | {"image": pixels}


def test_masking_hides_a_share_of_each_images_patches_and_keeps_the_others():
    keep, hidden = masked_autoencoding.random_masking(KEY, 3, 16, 0.75)
    np.testing.assert_array_equal(hidden, hidden_patches())
    assert keep.shape == (3, 4) and not np.take_along_axis(np.asarray(hidden), np.asarray(keep), axis=1).any()


def test_the_loss_is_the_mean_squared_error_over_the_hidden_patches_alone(monkeypatch):
    config, params, loss = prepared(monkeypatch)
    constant = jax.tree.map(np.zeros_like, params)  # a head of zeros predicts the mean colour everywhere
    pixels = (BATCH["image"] / 255 - config.encoder.image_mean) / np.asarray(config.encoder.image_std)
    patches = pixels.reshape(3, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 12)
    np.testing.assert_allclose(loss(constant, BATCH), np.mean(patches[hidden_patches()] ** 2), rtol=1e-5)


def test_predictions_are_made_from_the_visible_patches_only(monkeypatch):
    """As a function of a hidden pixel the loss is a square: its second difference is that of the target alone."""
    config, params, loss = prepared(monkeypatch)
    hidden = hidden_patches()
    image, patch = np.argwhere(hidden)[5]
    values = [loss(params, changed(image, patch, by)) for by in (0, 100, 200)]
    expected = 2 * np.mean((100 / 255 / np.asarray(config.encoder.image_std)) ** 2) / hidden.sum()
    np.testing.assert_allclose(values[0] - 2 * values[1] + values[2], expected, rtol=1e-3)
    image, patch = np.argwhere(~hidden)[5]
    assert abs(loss(params, changed(image, patch, 0)) - loss(params, changed(image, patch, 255))) > 1e-5


def test_the_covariance_of_the_visible_tokens_is_kept_near_the_identity_where_that_has_a_weight(monkeypatch):
    config, params, plain = prepared(monkeypatch)
    config.encoder.covariance_weight = 0.5
    loss = loss_of(masked_autoencoding, config, "encoder", monkeypatch)
    value, metrics = loss(params, {}, BATCH, KEY)
    keep, _ = masked_autoencoding.random_masking(KEY, 3, 16, 0.75)
    pixels = (BATCH["image"] / 255 - config.encoder.image_mean) / np.asarray(config.encoder.image_std)
    encoder = VisionTransformer(**config.encoder.model.to_dict())
    tokens = np.asarray(encoder.apply({"params": params["encoder"]}, np.float32(pixels), keep=keep)).reshape(-1, 8)
    error = np.sum((np.cov(tokens.T, bias=True) - np.eye(8)) ** 2) / 8
    assert error > 0.1
    np.testing.assert_allclose(metrics["covariance_error"], error, rtol=1e-4)
    np.testing.assert_allclose(metrics["masked_loss"], plain(params, BATCH), rtol=1e-6)
    np.testing.assert_allclose(value, plain(params, BATCH) + 0.5 * error, rtol=1e-5)


def test_the_covariance_s_error_is_none_of_white_tokens_and_d_less_one_where_all_channels_say_the_same():
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T  # every corner of a cube
    np.testing.assert_allclose(masked_autoencoding.covariance_error(signs[None] + 5.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(masked_autoencoding.covariance_error(np.tile(signs[:, :1], 3)), 2.0, rtol=1e-5)
