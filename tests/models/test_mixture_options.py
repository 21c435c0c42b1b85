"""What Bagel's code has not: the wide head, and the tokenizer's own semantic tokens; and what gets no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from random_params import random_params

from rae_jax.components.component import Component
from rae_jax.components.remembered import remember, rows_of, velocity_after
from rae_jax.data.packing import QWEN
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts, joined

SIZES = {"vocabulary": 20, "width": 16, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden": 24}
HEAD = {"head_grid": 2, "head_width": 24, "head_depth": 1, "head_num_heads": 2}
MARKERS = QWEN._replace(text_start=16, text_end=17, image_start=18, image_end=19)
ROWS = functools.partial(rows_of, grid=2, capacity=3, markers=MARKERS)


def rng(seed=0):
    return np.random.default_rng(seed)


def given(batch=2):
    """Ids, their lengths, and sources as latents and as semantic tokens."""
    random = rng(1)
    source, semantic = (random.normal(size=(batch, 4, n)).astype(np.float32) for n in (3, 5))
    return random.integers(0, 16, (batch, 6)), np.array([6, 4][:batch]), source, semantic


def model_of(semantic, **options):
    told = {"semantic_channels": 5, "semantic_capacity": 2} if semantic else {}
    model = MixtureOfTransformers(**SIZES, latent_channels=3, latent_capacity=3, **told, **options)
    z, t = np.zeros((2, 4, 3), np.float32), np.zeros(2, np.float32)
    arguments = jax.jit(functools.partial(whole, semantic))(z, t)
    return model, random_params(model, *arguments, std=0.3)


def whole(semantic, z, t, rows=None):
    """The arguments of the model for everything in one piece."""
    ids, length, source, tokens = given()
    there, wanted = ROWS(ids, length, source=source, semantic=tokens if semantic else None) if rows is None else rows
    texts = Texts(
        jnp.concatenate([there.texts.ids, wanted.markers.ids], axis=1),
        joined([there.texts.places, wanted.markers.places]),
    )
    noised = Images(z, wanted.position, wanted.places, jnp.broadcast_to(t[:, None], z.shape[:2]))
    return texts, noised, there.clean, there.semantic


@pytest.mark.parametrize("options", [HEAD, {}], ids=["head", "linear"])
def test_with_semantic_tokens_and_either_head_what_is_remembered_changes_nothing(options):
    model, params = model_of(True, **options)
    ids, length, source, semantic = given()
    z, t = rng(2).normal(size=(2, 4, 3)).astype(np.float32), np.float32([0.3, 0.8])
    part = Component("mixture", model, None, "float32", "", "", "this test")

    @jax.jit
    def both(params, semantic):
        packed = model.apply({"params": params}, *whole(True, z, t))[0]
        rows = ROWS(ids, length, source=source, semantic=semantic)
        return packed, velocity_after(part, params, remember(part, params, *rows), z, t)

    packed, after = both(params, semantic)
    assert np.isfinite(packed).all()
    np.testing.assert_allclose(after, packed, atol=3e-6 * np.abs(packed).max())
    assert np.abs(both(params, semantic + 1.0)[1] - after).max() > 1e-3  # they are looked at


def test_the_wide_head_sees_its_own_image_and_starts_at_nothing():
    model, params = model_of(False, **HEAD)
    z, t = rng(2).normal(size=(2, 4, 3)).astype(np.float32), np.float32([0.3, 0.8])
    run = jax.jit(lambda params, z, t: model.apply({"params": params}, *whole(False, z, t))[0])
    v, other = run(params, z, t), run(params, z + np.float32([0, 1])[:, None, None], t)
    np.testing.assert_allclose(v[0], other[0], atol=1e-6)
    assert np.abs(v[1] - other[1]).max() > 1e-3
    assert v.shape == z.shape and v.dtype == jnp.float32
    assert "to_latent" not in params and "head_of_velocity" in params
    fresh = jax.jit(lambda key, z, t: meta.unbox(model.init(key, *whole(False, z, t))["params"]))
    assert not np.any(run(fresh(jax.random.key(0), z, t), z, t))


def test_frozen_understanding_gets_no_gradient():
    z, t = rng(2).normal(size=(2, 4, 3)).astype(np.float32), np.float32([0.3, 0.8])
    gradients = {}
    for frozen in (False, True):
        model, params = model_of(False, freeze_understanding=frozen)
        loss = lambda p, model=model: jnp.sum(model.apply({"params": p}, *whole(False, z, t))[0] ** 2)  # noqa: E731
        gradients[frozen] = jax.jit(lambda p, loss=loss: jax.grad(loss)(p)["decoder"]["blocks_0"])(params)
    norm = lambda tree: float(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))  # noqa: E731
    assert norm(gradients[True]["understanding"]) == 0 < norm(gradients[True]["generation"])
    assert norm(gradients[False]["understanding"]) > 0  # through attention


def test_without_a_language_head_there_are_no_scores():
    model, params = model_of(False)
    with pytest.raises(ValueError, match="without a language head"):
        model.apply({"params": params}, np.zeros((1, 16), np.float32), method="logits")
