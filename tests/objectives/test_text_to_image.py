"""The joint objective of text and images: what its loss is a mean over, and who is trained how."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params, random_state

from configs import digits_text
from rae_jax.components.language import adapters, language_model
from rae_jax.experiment.stages import open_batches
from rae_jax.models.language_model import LanguageModel, token_losses
from rae_jax.models.text_to_image import Adapters, Reader
from rae_jax.objectives import text_to_image


def config_of(variant="tiny-understanding"):
    config = digits_text.get_config(variant)
    config.text_to_image.train.batch_size = 8
    return config


def batch_of(config):
    objective = text_to_image.make(config, "text_to_image")
    with contextlib.closing(open_batches(config, "text_to_image", objective, None)) as batches:
        return next(batches)


def prepared(config):
    """`batch -> ` the metrics of one step from random parameters, and the parameters after it."""
    objective = text_to_image.make(config, "text_to_image")
    return functools.partial(jax.jit(objective.train_step), random_state(objective))


@functools.cache
def of_text_and_images():
    """The same for both losses."""
    return prepared(config_of("tiny"))


def test_losses_of_positions_do_not_depend_on_how_many_are_computed_at_a_time():
    model = LanguageModel(vocabulary=11, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden=8)
    params = {"language_model": random_params(model, jnp.zeros((1, 2), jnp.int32), std=0.5)}
    read, rng = Reader(model, Adapters(2, 8, 4, 8)), np.random.default_rng(0)
    hidden, labels = rng.normal(size=(3, 12, 8)).astype(np.float32), rng.integers(0, 11, (3, 12))
    labels[1, 4:] = -100

    @jax.jit
    def losses(params, hidden, labels):
        in_chunks = [text_to_image.chunked_losses(read, params, hidden, labels, chunk) for chunk in (3, 12)]
        return in_chunks, token_losses(read.logits(params, hidden), labels)

    in_chunks, expected = losses(params, hidden, labels)
    for found in in_chunks:
        np.testing.assert_allclose(found[:, :-1], expected, rtol=1e-5, atol=1e-6)
        assert not np.any(found[:, -1])


def test_every_label_counts_the_same_whatever_part_of_the_batch_it_is_in():
    config = config_of()
    batch = batch_of(config)
    few = np.array(batch["labels"])
    few[::2, 20:] = -100  # parts of very different numbers of labels
    batch = batch | {"labels": few}
    whole, metrics = prepared(config)(batch)
    config.text_to_image.train.gradient_accumulation = 2
    parts, metrics_of_parts = prepared(config)(batch)
    np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_without_an_answer_that_is_an_image_there_is_no_image_loss():
    config = config_of("tiny")
    config.text_to_image.question_share = 1.0
    batch = batch_of(config)
    assert not np.any(batch["answer_img_mask"])
    _, metrics = of_text_and_images()(batch)
    assert metrics["image_loss"] == 0 and metrics["loss"] == metrics["language_loss"]


def test_the_image_loss_is_weighed_and_answers_alone_count():
    batch = batch_of(config_of("tiny"))
    mask = batch["answer_img_mask"]
    assert 0 < np.sum(mask) < len(mask)
    _, metrics = of_text_and_images()(batch)
    np.testing.assert_allclose(metrics["loss"], metrics["language_loss"] + 2 * metrics["image_loss"], rtol=1e-6)
    others = np.where(np.asarray(mask)[..., None, None, None] == 1, batch["image"], 255 - batch["image"])
    _, changed = of_text_and_images()(batch | {"image": others})
    np.testing.assert_allclose(changed["image_loss"], metrics["image_loss"], rtol=1e-5)
    assert changed["language_loss"] != metrics["language_loss"]  # questions see their images


def test_the_generator_and_its_condition_have_the_second_optimizer():
    paths = {
        ("language_model", "embedding"): "",
        ("adapters", "queries"): "",
        ("adapters", "project_out", "kernel"): "",
        ("adapters", "to_condition", "bias"): "image",
        ("text_dit", "null_condition"): "image",
    }
    assert {path: text_to_image.group_of(path) for path in paths} == paths


def test_what_cannot_be_trained_is_said():
    config = config_of("tiny")
    config.text_to_image.trains = ("language_model",)
    with pytest.raises(ValueError, match="is neither"):
        text_to_image.make(config, "text_to_image")
    config = config_of("tiny")
    config.text_to_image.loss_chunk = 32
    with pytest.raises(ValueError, match="does not divide"):
        text_to_image.make(config, "text_to_image")
    config = config_of("tiny")
    config.language_model.model.vocabulary = 100
    with pytest.raises(ValueError, match="is not the tokenizer of these weights"):
        text_to_image.make(config, "text_to_image")
    config = config_of("tiny")
    config.adapters.spatial_merge = 3
    with pytest.raises(ValueError, match="spatial_merge=3 does not divide the encoder's 4 x 4 tokens"):
        adapters(config)
    config.adapters.spatial_merge, config.text_dit.model.patch_size = 1, 2
    with pytest.raises(ValueError, match="reads 16 tokens of an image, and the generator makes images of 4"):
        adapters(config)
    config.language_model.model = {}
    with pytest.raises(ValueError, match="is empty"):
        language_model(config)
