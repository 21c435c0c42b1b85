"""A generator that is told the features of captions: batches, one step, and samples that the words decide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_state

from configs import digits_text, raev2_t2i
from rae_jax.components.catalogue import component
from rae_jax.components.conditions import condition
from rae_jax.components.language import layout, tokenizer
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.conversation_batches import row
from rae_jax.data.conversations import CaptionLayout, UnusableError, caption_ids, request
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives import velocity
from rae_jax.sampling.generator import generator, sample_keys

CAPTIONS = ["a red two at the top left", "a blue five", ""]


def a_config(**sampling):
    """The scenes' laptop experiment with RAEv2's generator in place of Scale-RAE's."""
    config = digits_text.get_config("tiny-features")
    config.flow.train.batch_size = len(CAPTIONS)
    config.sampling.guidance_scale = 1.0
    config.sampling.update(sampling)
    return config


def rows(config):
    """A batch of conversations as the stage reads them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(CAPTIONS), 32, 32, 3), dtype=np.uint8)
    made = [
        row([image], request(text), rng, tokenizer(config), layout(config), lambda image, rng: image, 32)
        for image, text in zip(images, CAPTIONS, strict=True)
    ]
    return {name: np.stack([each[name] for each in made]) for name in made[0]}


@functools.cache
def weights():
    rng = np.random.default_rng(0)
    config = a_config()
    shapes = {n: component(config, n).structure() for n in ("flow", "language_model", "encoder", "decoder")}
    drawn = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    shape = latent_space(config).shape
    return drawn | {"stats": {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)}}


def test_captions_are_raw_padded_on_the_right_and_cut_off():
    config = a_config()
    batch, shapes = rows(config), example_batch(config, "flow", velocity.make(config, "flow"))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (s.shape, s.dtype) for n, s in shapes.items()}
    words = tokenizer(config)
    lengths = [len(words.encode(text)) for text in CAPTIONS]
    assert batch["mask"].sum(axis=1).tolist() == lengths and lengths[-1] == 0
    for ids, text, length in zip(batch["ids"], CAPTIONS, lengths, strict=True):
        assert ids[:length].tolist() == words.encode(text) and set(ids[length:].tolist()) <= {words.padding}
    short = caption_ids(words, CAPTIONS[0], CaptionLayout(2))
    assert short["ids"].tolist() == words.encode(CAPTIONS[0])[:2] and short["mask"].tolist() == [1, 1]
    with pytest.raises(UnusableError, match="none or several images"):
        row([], request("x"), None, words, layout(config), lambda image, rng: image, 32)
    told = condition(config)
    assert told.words(told.asked(CAPTIONS)) == [words.decode(words.encode(text)) for text in CAPTIONS]


def test_a_step_trains_the_generator_and_leaves_the_language_model():
    config = a_config()
    objective = velocity.make(config, "flow")
    assert objective.reads_conversations and set(objective.frozen) == {"encoder", "stats", "language_model"}
    batch = rows(config)
    state = random_state(objective)
    new, metrics = jax.jit(objective.train_step)(state, batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["base"])
    jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)
    assert np.any(new.params["context_projection"]["bias"] != state.params["context_projection"]["bias"])


def test_words_decide_a_sample_and_the_null_is_the_empty_text():
    config = a_config(num_steps=2)
    told, keys = condition(config), sample_keys(0, np.zeros(3, np.int32))  # the same noise
    asked = jax.tree.map(jnp.asarray, told.asked(CAPTIONS))
    unguided, with_guidance = generator(config), generator(a_config(num_steps=2, guidance_scale=3.0))
    plain, guided = jax.device_get(
        jax.jit(lambda *given: (unguided(*given), with_guidance(*given)))(weights()["flow"], weights(), keys, asked)
    )
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    assert np.abs(guided[0] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(guided[2], plain[2], atol=1e-4)  # pushed away from itself
    null = told.null(asked)
    assert not np.any(null["mask"]) and null["ids"].shape == asked["ids"].shape


def test_mistakes_are_refused_by_name():
    config = a_config()
    config.flow.model.context_width = 17
    with pytest.raises(ValueError, match=r"context_width=17, but language_model\.model has features of width 16"):
        velocity.make(config, "flow")
    with pytest.raises(ValueError, match="flow maps are told classes"):
        component(a_config(), "flow_map")


def test_the_config_is_the_released_one():
    config = raev2_t2i.get_config()
    assert (config.flow.model.condition_tokens, config.flow.model.context_width) == (256, 1024)
    assert (config.sampling.guidance_scale, config.sampling.internal_guidance_scale) == (6.0, 1.0)
    config.flow.model.scan = True
    parameters = component(config, "flow").structure()
    assert {"context_norm", "context_projection"} < parameters.keys() and "label_embedding" not in parameters
