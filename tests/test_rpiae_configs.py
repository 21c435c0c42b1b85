"""RPiAE's full-size configs: what they describe; tests/test_documents.py traces their steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rpiae_dinov2b_vitxl, rpiae_xl
from rae_jax.components.catalogue import component
from rae_jax.components.decoders import decoded_size
from rae_jax.components.generators import time_shift
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.experiment.weights import Weights
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.training import sharding
from rae_jax.training.durations import resolve


@pytest.mark.parametrize(("variant", "width"), [("", 64), ("width32", 32), ("conv-width128", 128)])
def test_the_latent_has_the_width_asked_for_and_the_decoder_makes_256_pixels(variant, width):
    config = rpiae_dinov2b_vitxl.get_config(variant)
    assert latent_space(config).shape == (256, width)
    assert decoded_size(config) == 256


def test_the_flow_on_64_channels_has_a_time_shift_of_two():
    assert time_shift(rpiae_xl.get_config("80")) == pytest.approx(2.0)


def test_epochs_and_points_of_the_grid_are_those_asked_for():
    for epochs in (60, 80, 800):
        config = resolve(rpiae_xl.get_config(f"{epochs}-250"), IMAGENET_TRAIN_IMAGES)
        assert config.flow.train.steps == epochs * 1251
        assert config.sampling.num_steps == rpiae_xl.get_config(f"{epochs}").sampling.num_steps == 249
        assert config.guide.weights == f"{{workdir}}/flow/checkpoints/{config.flow.train.keep_every_steps}"
    assert rpiae_xl.get_config("50").sampling.num_steps == 49


@pytest.mark.parametrize("variant", ["60-80", "50-250", "dith-60", "conv"])
def test_words_that_contradict_each_other_are_refused(variant):
    with pytest.raises(ValueError, match=r"exclude each other|conv is for dith"):
        rpiae_xl.get_config(variant)


def test_identity_statistics_leave_a_latent_as_it_is(tmp_path):
    config, mesh = rpiae_xl.get_config(), sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    loaded = Weights(config, {}, tmp_path, mesh, warn=print).load(component(config, "stats"))
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 256, 64)), jnp.float32)
    np.testing.assert_allclose(LatentStatistics(**loaded).normalise(z), z, rtol=2e-7)
    np.testing.assert_allclose(LatentStatistics(**loaded).denormalise(z), z, rtol=2e-7)


@pytest.mark.parametrize("module", [rpiae_dinov2b_vitxl, rpiae_xl])
def test_an_unknown_variant_is_an_error_that_lists_them(module):
    with pytest.raises(ValueError, match=r"has no variant 'wide'; there are"):
        module.get_config("wide")
