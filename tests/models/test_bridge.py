"""The variational bridge against the golden outputs, its published size, and itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, tokens
from random_params import random_params

from rae_jax.interop.bridge import import_bridge
from rae_jax.interop.layout import unstack_blocks
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder, default_heads
from rae_jax.training.sharding import make_mesh, shardings_of


def features_of(width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 9, width)).astype(np.float32)


@cases("rpiae_bridge")
def test_both_halves_equal_the_reference(case):
    architecture, params = import_bridge(case.weights, num_heads=case.constructor["n_heads"])
    encoder, decoder = BridgeEncoder(**architecture["bridge_encoder"]), BridgeDecoder(**architecture["bridge_decoder"])
    call = case.call("vb_encode")
    posterior = jax.jit(encoder.apply)({"params": params["bridge_encoder"]}, tokens(call.inputs["features"]))
    moments = np.concatenate([posterior.mean, posterior.logvar], axis=-1)
    case.assert_close(moments, call.outputs["moments_tokens"])
    decode = jax.jit(decoder.apply)
    for call in case.calls("vb_decode"):
        decoded = decode({"params": params["bridge_decoder"]}, tokens(call.inputs["z"]))
        case.assert_close(decoded, tokens(call.outputs["features"]))


@pytest.mark.parametrize(("width", "heads"), [(48, 1), (384, 6), (768, 8), (1024, 8)])
def test_heads_are_one_for_64_channels_at_most_eight_and_at_least_one(width, heads):
    assert default_heads(width) == heads


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="5 attention heads do not divide features of width 48"):
        jax.eval_shape(BridgeEncoder(latent_channels=4, num_heads=5).init, jax.random.key(0), features_of(48))
    with pytest.raises(ValueError, match="width 200; give num_heads"):
        jax.eval_shape(BridgeDecoder(width=200).init, jax.random.key(0), features_of(4))


def test_the_feed_forward_branch_of_the_encoder_starts_at_zero():
    def start(key):  # what is not returned is not compiled
        params = BridgeEncoder(latent_channels=4).init(key, features_of(16))["params"]
        return params["down"]["kernel"].value, params["up"]["kernel"].value

    down, up = jax.jit(start)(jax.random.key(0))
    assert not down.any() and up.any()


@pytest.mark.parametrize("halves", ["mean", "decoded"])
def test_bfloat16_stays_near_float32_and_returns_float32(halves):
    def run(dtype):
        if halves == "mean":
            model, x = BridgeEncoder(latent_channels=4, dtype=dtype), features_of(16)
            return jax.jit(model.apply)({"params": random_params(model, x)}, x).mean
        model, x = BridgeDecoder(width=16, depth=1, dtype=dtype), features_of(4)
        return jax.jit(model.apply)({"params": random_params(model, x)}, x)

    exact, rounded = run(jnp.float32), run(jnp.bfloat16)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05
    # The last product is float32: its values are not those that bfloat16 can hold.
    assert (rounded != rounded.astype(jnp.bfloat16)).mean() > 0.9


def test_scanned_blocks_compute_what_unrolled_blocks_do():
    z = features_of(4)
    scanned = BridgeDecoder(width=16, depth=2, scan=True)
    params = random_params(scanned, z)
    expected = jax.jit(BridgeDecoder(width=16, depth=2).apply)({"params": unstack_blocks(params)}, z)
    np.testing.assert_allclose(jax.jit(scanned.apply)({"params": params}, z), expected, atol=1e-5)


def test_every_parameter_of_the_bridge_has_a_place_on_the_mesh():
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    for model, channels in ((BridgeEncoder(latent_channels=64), 768), (BridgeDecoder(width=768), 64)):
        x = jax.ShapeDtypeStruct((1, 256, channels), jnp.float32)
        boxed = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        shardings_of(boxed, mesh)
        leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
        assert all(hasattr(leaf, "names") for leaf in leaves)
