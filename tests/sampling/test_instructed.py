"""Generation from instructions: what the sampler shows the network is what training has shown it."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params, random_weights

from configs import digits_edit
from rae_jax.components.mixtures import Request, given_arguments, instruction_condition, mixture, tokenizer
from rae_jax.components.remembered import remember, rows_of, velocity_after
from rae_jax.data.scenes import SceneSource
from rae_jax.data.told_images import ToldScenes
from rae_jax.experiment.pack_source import pack_batches
from rae_jax.models.mixture_of_transformers import Images, Texts
from rae_jax.models.pack import Places
from rae_jax.sampling.generator import parts_beside
from rae_jax.sampling.instructed import instructed_generator


def config_of(task):
    config = digits_edit.get_config("tiny")
    section = config.mixture
    section.task, section.pack_images, section.pack_sources = task, 1, int(task == "edit")
    section.text_dropout = section.source_dropout = 0.0
    section.train.batch_size = 2
    return config


EDITS = [("edit", text_first, dropped) for text_first in (False, True) for dropped in ("", "text", "source")]
SEMANTIC = [("semantic", text_first, dropped) for text_first in (False, True) for dropped in ("", "source")]


@pytest.mark.parametrize(("task", "text_first", "dropped"), [("caption", False, ""), *EDITS, *SEMANTIC])
def test_the_sampler_shows_the_network_what_training_has_shown_it(task, text_first, dropped):
    semantic, task = task == "semantic", "caption" if task == "caption" else "edit"
    config, source = config_of(task), SceneSource("train")
    config.mixture.text_first, config.mixture.semantic = text_first, semantic
    config.mixture.semantic_dropout = float(semantic and dropped == "source")
    config.mixture.pack_texts += 2
    with contextlib.closing(pack_batches(config, "mixture", source)) as batches:
        planned = [batches._planned(position) for position in range(2)]
    if dropped:
        config.mixture[f"{dropped}_dropout"] = 1.0
    with contextlib.closing(pack_batches(config, "mixture", source)) as batches:
        batch = next(batches)
    part, rng = mixture(config), np.random.default_rng(0)
    tokens, channels = 16, part.module.latent_channels
    z, clean = (rng.normal(size=(2, tokens, channels)).astype(np.float32) for _ in range(2))
    t, position = jnp.array([0.2, 0.7]), jnp.broadcast_to(jnp.arange(tokens), (2, tokens))  # a table of the grid's size

    def places(kind):
        return Places(*np.moveaxis(batch[f"{kind}_places"], -1, 0))

    def images(kind, values, t):
        return Images(values, position, places(kind), jnp.broadcast_to(t[:, None], (2, tokens)))

    texts = Texts(batch["text_ids"], places("text"))
    noised = images("noised", z, t)
    given = images("clean", clean, jnp.zeros(2)) if task == "edit" else None
    features = rng.normal(size=(2, tokens, part.module.semantic_channels)).astype(np.float32) if semantic else None
    seen = Images(features, position, places("semantic")) if semantic else None
    params = random_params(part.module, texts, noised, given, seen, std=0.2)

    words = [next(split.item.ids for split in each.splits if split.item.kind == "text") for each in planned]
    spoken = [tokenizer(config).decode(ids) for ids in words]
    assert len(set(spoken)) == 2 and all(len(text) > 8 for text in spoken)
    requests = [Request(text, np.zeros((32, 32, 3), np.uint8)) for text in spoken]
    asked = instruction_condition(config, requests)

    @jax.jit
    def both(params):
        trained = part.apply(params, texts, noised, given, seen)[0]
        length = asked["length"] * (dropped != "text")
        rows = rows_of(
            asked["ids"],
            length,
            source=clean if task == "edit" else None,
            semantic=features,
            shown=dropped != "source",
            **given_arguments(config),
        )
        return trained, velocity_after(part, params, remember(part, params, *rows), z, t)

    trained, sampled = both(params)
    assert np.isfinite(trained).all() and np.abs(trained).max() > 0.1
    np.testing.assert_allclose(sampled, trained, atol=1e-5 * np.abs(trained).max())


def test_images_follow_the_text_and_the_source_whatever_the_batch_is():
    config = config_of("edit")
    config.sampling.num_steps, config.sampling.guidance_scale, config.sampling.image_guidance_scale = 2, 3.0, 1.5
    part, generate = mixture(config), instructed_generator(config)
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: rng.normal(path[-1].key == "scale", 0.1, x.shape).astype(np.float32), part.structure()
    )
    frozen = {name: random_weights(each, seed=1) for name, each in parts_beside(config).items()}
    scenes = ToldScenes(SceneSource("test"), "edit")
    shown = [scenes.image(scenes.edit(i, 0)[0]) for i in range(2)]
    texts = ("make the red two blue", "remove the five")
    requests = [Request(texts[0], shown[0]), Request(texts[1], shown[0]), Request(texts[0], shown[1])]
    asked = instruction_condition(config, requests)
    keys = jnp.stack([jax.random.key(3)] * 3)
    run = jax.jit(generate)
    images = np.asarray(run(params, frozen, keys, asked))
    assert images.shape == (3, 32, 32, 3) and np.isfinite(images).all()
    assert np.abs(images[0] - images[1]).max() > 1e-4 and np.abs(images[0] - images[2]).max() > 1e-4
    order = np.array([2, 0, 1])
    again = run(params, frozen, keys, jax.tree.map(lambda x: x[order], asked))
    np.testing.assert_allclose(again, images[order], atol=1e-4)


@pytest.mark.parametrize(("task", "semantic", "around"), [("edit", False, 4), ("edit", True, 6), ("caption", False, 2)])
def test_a_text_may_be_as_long_as_in_a_row_of_its_own(task, semantic, around):
    config = config_of("edit")
    config.mixture.task, config.mixture.semantic, config.mixture.pack_texts = task, semantic, 60
    if task == "caption":
        config.mixture.pack_sources = 0
    told = instruction_condition(config, [Request("make it red", np.zeros((32, 32, 3), np.uint8))])
    assert told["ids"].shape == (1, 60 - around)


def test_requests_that_say_too_much_or_too_little_are_named():
    config = config_of("edit")
    image = np.zeros((32, 32, 3), np.uint8)
    wrong = {
        "request 1 has no text": [Request("make it red", image), Request(" ", image)],
        "comes without an image to edit": [Request("make it red")],
        r"an image to edit is of the shape \(30, 32, 3\)": [Request("make it red", image[:30])],
        "tokens with its markers, and room is for": [Request("red " * 80, image)],
    }
    for said, requests in wrong.items():
        with pytest.raises(ValueError, match=said):
            instruction_condition(config, requests)
