"""RAEv2's configs: what they describe; tests/test_documents.py traces their steps, test_recipes.py has the rest."""

import jax
import jax.numpy as jnp
import pytest

from configs import raev2_dinov3l, raev2_one_step
from rae_jax.components.catalogue import component
from rae_jax.components.decoders import decoded_size
from rae_jax.components.generators import time_shift
from rae_jax.components.latent_spaces import latent_space
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training.durations import resolve


@pytest.mark.parametrize(("variant", "count"), [("k1", 0), ("k7", 7), ("k23", 23)])
def test_latents_are_means_of_so_many_layers_of_the_same_shape(variant, count):
    config = raev2_dinov3l.get_config(variant)
    assert len(config.encoder.model.layers) == count
    assert not count or max(config.encoder.model.layers) == config.encoder.model.depth - 1
    assert latent_space(config).shape == (256, 1024) and decoded_size(config) == 256
    assert time_shift(config) == pytest.approx(8.0)


def test_an_image_becomes_a_latent_and_an_image_again():
    config = raev2_dinov3l.get_config("k7")
    config.encoder.model.scan = True
    space, images = latent_space(config), jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    parts = {name: component(config, name).structure() for name in ("encoder", "decoder")}
    assert parts["encoder"]["rope_periods"].shape == (16,)
    z = jax.eval_shape(space.encode, parts, images)
    assert z.shape == (1, 256, 1024)
    assert jax.eval_shape(space.decode, parts, z).shape == images.shape


def test_one_step_starts_from_the_released_kind_of_generator_with_tokens_of_the_interval():
    config = raev2_one_step.get_config()
    assert config.stages == ("mid_training", "flow_map")
    assert raev2_one_step.get_config("mfd").stages == ("flow_map",)
    config.flow.model.scan = True
    teacher, student = component(config, "flow"), component(config, "flow_map")
    assert teacher.kind == "dit_in_context" and teacher.prediction == student.prediction == "x"
    more = student.structure().keys() - teacher.structure().keys()
    assert more == {"duration_embedding", "duration_tokens"} and teacher.structure().keys() < student.structure().keys()
    for stage in config.stages:
        objective = OBJECTIVES[config[stage].objective](config, stage)
        fresh, given = student.structure(), {n: part.structure() for n, part in objective.initial.items()}
        assert jax.eval_shape(objective.begin, fresh, given).keys() == fresh.keys()


def test_a_general_decoder_has_sources_of_its_own_and_epochs_of_their_mean_size():
    config, on_imagenet = raev2_dinov3l.get_config("k7-general"), raev2_dinov3l.get_config("k7")
    assert config.stages == ("decoder", "stats") and len(config.decoder.sources) == 4
    assert not on_imagenet.decoder.sources
    epoch = int((1.281167e6 + 31.97e6 + 12.04e6 + 24.39e6) / 4) // 512
    resolved, other = resolve(config, 1_281_167).decoder, resolve(on_imagenet, 1_281_167).decoder
    assert resolved.train.steps == 16 * epoch
    for section, field in (("train", "steps"), ("loss", "gan_from_step"), ("loss", "discriminator_from_step")):
        assert resolved[section][field] * 2502 == other[section][field] * epoch
    for ours, theirs in (
        (resolved.train.optimizer, other.train.optimizer),
        (resolved.loss.discriminator_optimizer, other.loss.discriminator_optimizer),
    ):
        assert ours.warmup_steps == epoch and ours.decay_end_step * 2502 == theirs.decay_end_step * epoch


@pytest.mark.parametrize("module", [raev2_dinov3l, raev2_one_step])
def test_an_unknown_variant_is_an_error_that_lists_them(module):
    with pytest.raises(ValueError, match=r"has no variant 'k9'; there are"):
        module.get_config("k9")
