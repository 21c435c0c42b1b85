"""The configs of RAE's stage 1 say what the paper and the two releases say."""

import jax
import jax.numpy as jnp
import pytest
from whole_autoencoder import autoencoder

from configs import rae_dinov2b_vitxl, rae_dinov2l_vitxl, rae_dinov2s_vitxl, rae_maeb_vitxl, rae_siglip2b_vitxl
from rae_jax.components.catalogue import component
from rae_jax.components.decoders import decoded_size
from rae_jax.components.encoders import grid as encoder_grid
from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.models.vit import PRETRAINED
from rae_jax.objectives.catalogue import objective_of
from rae_jax.training.durations import resolve


def test_the_schedule_is_the_published_one_in_epochs():
    config = resolve(rae_dinov2b_vitxl.get_config(), IMAGENET_TRAIN_IMAGES)
    train, loss = config.decoder.train, config.decoder.loss
    assert train.batch_size == 512 and train.ema_decay == 0.9978
    for steps, epochs in (
        (train.steps, 16), (train.optimizer.warmup_steps, 1), (train.optimizer.decay_end_step, 16),
        (loss.discriminator_from_step, 6), (loss.gan_from_step, 8), (loss.lpips_from_step, 0),
        (loss.discriminator_optimizer.warmup_steps, 1), (loss.discriminator_optimizer.decay_end_step, 16),
    ):  # fmt: skip
        assert steps == epochs * 2502
    assert (loss.lpips_weight, loss.gan_weight, config.decoder.noise_tau) == (1.0, 0.75, 0.8)


@pytest.mark.parametrize(
    ("words", "betas", "lpips_range", "fakes", "noise", "adaptive"),
    [
        ("", (0.9, 0.95), (-1, 1), "clean", "uniform", "last_layer"),
        ("december", (0.9, 0.95), (-1, 1), "clean", "uniform", "last_layer"),
        ("october", (0.5, 0.9), (0, 1), "noisy", "uniform", "last_layer"),
        ("paper", (0.5, 0.9), (-1, 1), "clean", "half_normal", "pixels"),
    ],
)
def test_each_preset_is_what_it_names(words, betas, lpips_range, fakes, noise, adaptive):
    config = rae_dinov2b_vitxl.get_config(words)
    for optimizer in (config.decoder.train.optimizer, config.decoder.loss.discriminator_optimizer):
        assert (optimizer.beta1, optimizer.beta2) == betas
    loss = config.decoder.loss
    assert tuple(loss.lpips_range) == lpips_range
    assert (loss.discriminator_fakes, loss.adaptive_weight) == (fakes, adaptive)
    assert config.decoder.noise_distribution == noise


@pytest.mark.parametrize(
    ("words", "pixels", "tokens", "patches"),
    [
        ("", 256, 256, 16),
        ("512", 512, 1024, 32),
        ("up512-vitb", 512, 256, 16),
        ("up378", 378, 256, 27),
        ("vitl", 256, 256, 16),
    ],
)
@pytest.mark.parametrize("module", [rae_dinov2b_vitxl, rae_siglip2b_vitxl, rae_maeb_vitxl])
def test_encoder_and_decoder_meet_at_the_image_size(module, words, pixels, tokens, patches):
    config = module.get_config(words)
    decoder = component(config, "decoder").module
    assert (config.data.image_size, encoder_grid(config) ** 2) == (pixels, tokens)
    assert decoder.grid_size == patches and decoded_size(config) == pixels
    space = autoencoder(config)
    image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    decoded = jax.eval_shape(lambda x: space.init_with_output(jax.random.key(0), x)[0], image)
    assert decoded.shape == image.shape
    assert config.decoder.model.width == {"vitb": 768, "vitl": 1024}.get(words[-4:], 1152)
    assert config.encoder.model.width == PRETRAINED["dinov2_b"].architecture["width"]


def test_the_smaller_and_the_larger_dinov2_have_the_same_decoder():
    for module, size in ((rae_dinov2s_vitxl, "dinov2_s"), (rae_dinov2l_vitxl, "dinov2_l")):
        config = module.get_config()
        assert config.encoder.model.width == PRETRAINED[size].architecture["width"]
        assert config.decoder == rae_dinov2b_vitxl.get_config().decoder


@pytest.mark.parametrize(("words", "text"), [("vitg", "no variant 'vitg'"), ("october-paper", "exclude each other")])
def test_words_that_mean_nothing_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        rae_dinov2b_vitxl.get_config(words)


def test_the_decoder_learns_from_a_frozen_encoder_lpips_and_a_discriminator():
    objective = objective_of(resolve(rae_dinov2b_vitxl.get_config(), IMAGENET_TRAIN_IMAGES), "decoder")
    assert objective.frozen.keys() == {"encoder", "lpips", "discriminator"}
