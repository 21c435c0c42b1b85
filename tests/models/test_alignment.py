"""Representation alignment: the captured tokens, and the loss in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from rae_jax.interop.layout import stack_blocks, unstack_blocks
from rae_jax.models.alignment import AlignmentProjector, alignment_loss, with_tokens_after
from rae_jax.models.lightning_dit import LightningDiT

RNG = np.random.default_rng(0)
TINY = {"grid_size": 4, "in_channels": 2, "num_classes": 3, "width": 8, "depth": 3, "num_heads": 2, "patch_size": 2}


def test_the_loss_is_zero_for_parallel_one_for_orthogonal_and_two_for_opposite_tokens():
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    orthogonal = np.stack([-x[..., 1], x[..., 0], -x[..., 3], x[..., 2]], axis=-1)
    for tokens, expected in ((3 * x, 0), (orthogonal, 1), (-x, 2)):
        np.testing.assert_allclose(alignment_loss(x, tokens), expected, atol=1e-5)


def test_grids_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"aligned tokens have shape \(1, 4, 8\), the encoder's \(1, 16, 8\)"):
        alignment_loss(jnp.zeros((1, 4, 8)), jnp.zeros((1, 16, 8)))


def test_the_tokens_after_a_block_are_those_of_a_model_cut_there_scanned_recomputed_or_not():
    z, t = RNG.normal(size=(2, 16, 2)).astype(np.float32), np.array([0.2, 0.7], np.float32)
    labels = np.array([0, 2])
    model = LightningDiT(**TINY)
    params = random_params(model, z, t, labels)
    velocity, tokens = with_tokens_after(model, params, 2, z, t, labels)
    assert tokens.shape == (2, 4, 8)
    np.testing.assert_allclose(velocity, model.apply({"params": params}, z, t, labels), atol=1e-6)

    # A third block whose gates are zero changes nothing, so that the last tokens are the second block's.
    cut = jax.tree.map(lambda x: x, params)
    cut["blocks_2"]["modulation"] = jax.tree.map(np.zeros_like, cut["blocks_2"]["modulation"])
    _, last = with_tokens_after(model, cut, 3, z, t, labels)
    np.testing.assert_allclose(tokens, last, atol=1e-5)
    assert np.abs(with_tokens_after(model, params, 3, z, t, labels)[1] - tokens).max() > 1e-3

    scanned = LightningDiT(**TINY, scan=True, remat="full")
    structure = jax.eval_shape(scanned.init, jax.random.key(0), z, t, labels)["params"]
    stacked = stack_blocks(unstack_blocks(params), structure)
    again = with_tokens_after(scanned, stacked, 2, z, t, labels)
    np.testing.assert_allclose(again[0], velocity, atol=1e-5)
    np.testing.assert_allclose(again[1], tokens, atol=1e-5)
    with pytest.raises(ValueError, match="alignment after block 4: the model has 3 blocks"):
        with_tokens_after(model, params, 4, z, t, labels)


def test_the_projector_is_three_linear_layers_with_silu_between():
    x = RNG.normal(size=(1, 2, 4)).astype(np.float32)
    model = AlignmentProjector(features=3, hidden=5)
    params = random_params(model, x)
    y = x
    for i in range(3):
        y = y @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
        y = y / (1 + np.exp(-y)) if i < 2 else y
    np.testing.assert_allclose(model.apply({"params": params}, x), y, rtol=1e-5, atol=1e-6)
