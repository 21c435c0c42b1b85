"""Flow maps that are told prompts: what they are told of conversations, whose loss counts, and how they are sampled."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_state, random_weights

from configs import digits_text, t2i_one_step
from rae_jax.components.catalogue import component
from rae_jax.components.conditions import condition, embedding
from rae_jax.components.generators import flow_map_teacher
from rae_jax.components.latent_spaces import latent_space
from rae_jax.components.telling import telling
from rae_jax.data.conversations import caption_of
from rae_jax.experiment.configuration import check
from rae_jax.experiment.stages import conversations, open_batches
from rae_jax.experiment.workdir import ConfigError
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.objectives.catalogue import objective_of
from rae_jax.sampling.generator import flow_map_generator, sample_keys

STAGES = ("mid_training", "flow_map")


def config_of(**changes):
    config = digits_text.get_config("tiny-few_steps")
    for stage in STAGES:
        config[stage].train.batch_size = 8
        config[stage].update(changes)
    return config


def batch_of(config, stage):
    objective = objective_of(config, stage)
    with contextlib.closing(open_batches(config, stage, objective, None)) as batches:
        return objective, jax.tree.map(jnp.asarray, next(batches))


@functools.cache
def frozen():
    config = config_of()
    return {name: random_weights(component(config, name)) for name in ("encoder", "language_model", "adapters")}


def test_a_conversation_tells_what_its_prompt_does():
    config = config_of()
    (source, _), *none = conversations(config, "flow_map")
    assert not none and source.question_share == 0
    _, batch = batch_of(config, "flow_map")
    how = telling(config)
    told = jax.jit(lambda frozen, batch: how.condition(frozen, how.seen(frozen, batch)))(frozen(), batch)
    words = [config_words(config, ids) for ids in np.asarray(batch["input_ids"])]
    asked = condition(config).asked(words)
    expected = jax.jit(embedding(config)[1])(frozen(), asked)
    np.testing.assert_allclose(told.tokens, expected.tokens, atol=1e-5)
    assert np.std(told.tokens, axis=0).min() > 0 and not np.any(told.dropped)
    null = how.null(told)
    assert np.all(null.dropped)


def config_words(config, ids):
    """The prompt in the ids of a conversation that asks for an image."""
    return caption_of([{"value": condition(config).words({"ids": ids[None], "length": [np.argmax(ids < 0)]})[0]}])


@pytest.mark.parametrize("stage", STAGES)
def test_answers_alone_count(stage):
    config = config_of(question_share=0.5)
    config.flow_map.adaptive_power = 0.0  # or the loss is 1, whatever the error
    objective, batch = batch_of(config, stage)
    answers = np.asarray(batch["answer_img_mask"])[:, 0].astype(bool)
    assert 0 < answers.sum() < len(answers)
    step, state = jax.jit(objective.train_step), random_state(objective)

    def loss(**changes):
        return float(step(state, batch | changes)[1]["loss"])

    same, image, ids = pytest.approx(loss(), rel=1e-5), np.asarray(batch["image"]), np.asarray(batch["input_ids"])
    assert loss(image=np.where(answers[:, None, None, None, None], image, 255 - image)) == same
    assert loss(input_ids=np.where(answers[:, None] | (ids < 0), ids, 7)) == same
    assert loss(input_ids=np.where(ids < 0, ids, 7)) != same
    if stage == "flow_map":  # whose points are between noise and images; mid-training's are the teacher's own
        assert loss(image=255 - image) != same


def test_shares_are_of_all_answers_of_a_batch():
    told = telling(config_of())
    batch = told.whole({"answer_img_mask": jnp.array([[1, 0], [0, 0], [1, 1]])})
    np.testing.assert_allclose(told.shares(batch), [2, 0, 0, 0, 2, 2], rtol=1e-6)
    none = told.whole({"answer_img_mask": jnp.zeros((2, 1), int)})
    assert not np.any(told.shares(none))


def test_one_step_from_a_prompt_is_noise_less_the_mean_velocity_that_it_tells():
    config = config_of()
    config.sampling.guidance_scale, config.sampling.guidance_interval = 3.0, (0.2, 0.8)
    parts = {n: random_weights(component(config, n)) for n in ("flow_map", "language_model", "adapters", "decoder")}
    space = latent_space(config)
    parts |= {"stats": {"mean": jnp.zeros(space.shape), "variance": jnp.ones(space.shape)}}
    asked, keys = condition(config).asked(["a red two", ""]), sample_keys(0, jnp.arange(2))
    images = jax.jit(flow_map_generator(config, (1.0, 0.0)))(parts["flow_map"], parts, keys, asked)

    noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], space.shape))(keys)
    told, one = embedding(config)[1](parts, asked), jnp.ones(2)
    assert told.dropped.tolist() == [False, True]
    guidance = jnp.tile(jnp.array([[3.0, 0.2, 0.8]]), (2, 1))
    u = component(config, "flow_map").apply(parts["flow_map"], noise, one, told, 0 * one, guidance)
    decoded = space.decode(parts, LatentStatistics(**parts["stats"]).denormalise(noise - u))
    np.testing.assert_allclose(images, decoded, atol=1e-4)


def test_the_teacher_is_the_network_that_prompts_are_told_to():
    config = config_of()
    assert flow_map_teacher(config).name == "text_dit"
    for stage, initial in zip(STAGES, ("text_dit", "mid_training"), strict=True):
        objective = objective_of(config, stage)
        assert list(objective.initial) == [initial]
        assert {"text_dit", "language_model", "adapters", "encoder"} <= objective.frozen.keys()
        assert objective.reads_conversations and objective.evaluation is None
    config.mid_training.initial = "flow"
    with pytest.raises(ValueError, match=r"initial='flow' is not one of \['text_dit'\]"):
        objective_of(config, "mid_training")


def test_at_full_size_the_released_dit_is_distilled_as_mf_rae_does():
    config = t2i_one_step.get_config()
    assert config.stages == STAGES and t2i_one_step.get_config("mfd").stages == STAGES[1:]
    section = config.flow_map
    assert (section.eta, section.dt, section.derivative, section.unequal_share) == (
        1.0,
        0.005,
        "finite_difference",
        0.25,
    )
    assert (section.train.batch_size, config.mid_training.train.batch_size, config.mid_training.pairs) == (256, 8, 64)
    assert {config[name].dtype for name in ("text_dit", *STAGES)} == {"bfloat16_3x"}
    teacher, student = component(config, "text_dit").structure(), component(config, "flow_map").structure()
    more = {"duration_embedding", "scale_embedding", "t_min_embedding", "t_max_embedding"}
    assert student.keys() == teacher.keys() | more
    for stage in STAGES:  # not flipped: captions say where things are
        assert config[stage].train.transform == "resize" and config[stage].question_share == 0
    with pytest.raises(ValueError, match="has no variant 'mft'"):
        t2i_one_step.get_config("mft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__latents": "DIR"}, "flow_map is told texts, and data.latents='DIR' has none"),
        ({"flow_map__train__transform": "center_crop_flip"}, "mirrors images, of which words may tell left and right"),
        ({"flow_map__train__transform": "random_resized_crop"}, r"configs/x.py: flow_map\.train\.transform=.* mirrors"),
        ({"text_to_image__condition_dropout": 0.0, "sampling__guidance_scale": 1.0}, "never trains the null condition"),
        ({"flow_map__label_dropout": 0.0, "flow_map__eta": 0.5}, r"flow_map\.label_dropout=0\.0 never trains"),
        ({"sampling__guidance_scale": 5.0}, "the flow map learns scales from 1 to flow_map.largest_guidance_scale=4.0"),
    ],
)
def test_what_a_flow_map_of_prompts_cannot_learn_is_refused(changes, message):
    config = config_of()
    for name, value in changes.items():
        *above, field = name.split("__")
        section = config
        for part in above:
            section = section[part]
        section[field] = value
    with pytest.raises(ConfigError, match=message):
        check(config, file="configs/x.py", num_devices=1)


def test_a_crop_is_no_flip():
    config = config_of()
    config.flow_map.train.transform = "random_crop"
    check(config, file="configs/x.py", num_devices=1)


def test_words_that_exclude_each_other_are_named():
    with pytest.raises(ValueError, match="features and few_steps exclude each other"):
        digits_text.get_config("features-few_steps")
