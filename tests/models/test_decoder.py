"""The pixel decoder against the golden outputs and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from golden import cases, nhwc
from random_params import random_params

from rae_jax.interop.decoder import import_decoder
from rae_jax.interop.layout import unstack_blocks
from rae_jax.models.decoder import ViTDecoder

TINY = {"grid_size": 3, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, count, 12)).astype(np.float32)


@cases("rae_decoder")
def test_images_equal_the_reference(case):
    config = case.constructor["config"]
    architecture, params, _ = import_decoder(case.weights, num_heads=config["decoder_num_attention_heads"])
    model, patch = ViTDecoder(**architecture, norm_epsilon=config["layer_norm_eps"]), config["patch_size"]
    apply, unpatchify, compared = jax.jit(model.apply), case.call("unpatchify"), False
    for call in case.calls("forward"):
        # The reference drops the class token after the embedding, which acts on each token alone; and it resamples the
        # position table to the very grid it has.
        z = call.inputs["hidden_states"][:, int(call.inputs["drop_cls_token"]) :]
        images, expected = apply({"params": params}, z), call.outputs["logits"]
        case.assert_close(rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch), expected)
        if expected is unpatchify.inputs["patchified_pixel_values"]:
            case.assert_close(images, nhwc(unpatchify.outputs["image"]))
            compared = True
    assert compared


def test_scanned_blocks_compute_what_unrolled_blocks_do():
    z = tokens_of(9)
    scanned = ViTDecoder(**TINY, scan=True)
    params = random_params(scanned, z)
    expected = jax.jit(ViTDecoder(**TINY).apply)({"params": unstack_blocks(params)}, z)
    np.testing.assert_allclose(jax.jit(scanned.apply)({"params": params}, z), expected, atol=1e-5)


def test_bfloat16_stays_finite_and_near_float32_and_returns_float32():
    z = tokens_of(9)
    params = random_params(ViTDecoder(**TINY), z)
    exact = jax.jit(ViTDecoder(**TINY).apply)({"params": params}, z)
    rounded = jax.jit(ViTDecoder(**TINY, dtype=jnp.bfloat16).apply)({"params": params}, z)
    assert rounded.dtype == jnp.float32
    assert np.isfinite(rounded).all()
    assert 0 < np.abs(exact - rounded).max() < 0.1
    # The last product is float32: its values are not those that bfloat16 can hold.
    assert (rounded != rounded.astype(jnp.bfloat16)).mean() > 0.9


def test_equal_tokens_stay_finite_forwards_and_backwards_in_spite_of_the_tiny_epsilon():
    z = np.zeros((1, 9, 12), np.float32)
    params = random_params(ViTDecoder(**TINY), z)
    params["embedding"]["bias"] = np.zeros(16, np.float32)
    params["cls_token"] = np.zeros((1, 16), np.float32)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(ViTDecoder(**TINY).apply({"params": params}, z))))(z)
    assert np.isfinite(gradient).all()


def test_a_number_of_tokens_that_is_no_square_is_an_error():
    with pytest.raises(ValueError, match="10 tokens"):
        jax.eval_shape(ViTDecoder(**TINY).init, jax.random.key(0), tokens_of(10))
