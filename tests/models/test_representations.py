"""Networks of evaluations against timm's own outputs, recorded for small sizes, and their published sizes."""

import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from rae_jax.evaluation.representations import SPACES
from rae_jax.interop.timm import import_network
from rae_jax.models.representations import ConvNeXtV2, PooledVisionTransformer

# Of timm's VisionTransformer (dynamic_img_size, dynamic_img_pad) and ConvNeXt: names, shapes, and what they gave.
RECORDED = json.loads((Path(__file__).parent / "timm_outputs.json").read_text())
SMALL = dict(width=32, depth=2, num_heads=4, mlp_dim=128)
NETWORKS = {
    "dinov2": PooledVisionTransformer(35, 7, **SMALL, layer_scale=True),
    "mae": PooledVisionTransformer(28, 7, **SMALL),  # positions of a 4 x 4 grid on one of 5 x 5
    "siglip": PooledVisionTransformer(42, 7, **SMALL, cls_token=False, pooling="attention", activation="gelu_tanh"),
    "clip": PooledVisionTransformer(28, 7, **SMALL, pre_norm=True, norm_epsilon=1e-5),
    "convnext": ConvNeXtV2((8, 16, 24, 32), (1, 1, 2, 1)),
}


def weights(name):
    """The tensors with which the outputs were recorded: random numbers fixed by their names."""

    def draw(tensor, shape):
        spread = 0.2 if len(shape) > 1 else 0.3
        return (spread * np.random.RandomState(zlib.crc32(tensor.encode())).randn(*shape)).astype(np.float32)

    return {tensor: draw(tensor, shape) for tensor, shape in RECORDED[name]["shapes"].items()}


def structure(module, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_are_timms(name):
    module = NETWORKS[name]
    images = np.random.RandomState(0).randn(2, 32, 32, 3).astype(np.float32)
    params = import_network(module, weights(name), structure(module, 32))
    vectors = jax.jit(module.apply)({"params": params}, images)
    np.testing.assert_allclose(vectors, RECORDED[name]["vectors"], atol=2e-5, rtol=1e-5)


def test_what_is_not_the_networks_is_listed():
    module, tensors = NETWORKS["mae"], weights("mae")
    tensors["extra"] = tensors.pop("blocks.1.attn.qkv.bias")
    with pytest.raises(ValueError, match=r"(?s)missing .*blocks\.1\.attn\.qkv\.bias.*unexpected .*extra"):
        import_network(module, tensors, structure(module, 32))


@pytest.mark.parametrize(
    ("name", "parameters"),  # as timm counts them, without classifiers and with the bias that CLIP's patches lack
    [
        ("convnext_v2", 88_717_800 - 1_027_048),
        ("dinov2_l", 304_367_616),
        ("mae_l", 304_326_632 - 1_025_000),
        ("siglip2_so400m", 427_888_064),
        ("clip_l", 304_204_776 - 1_025_000 + 1024),
    ],
)
def test_published_networks_have_their_sizes(name, parameters):
    space = SPACES[name]

    def count(module):
        return sum(x.size for x in jax.tree.leaves(structure(module, space.size)))

    if name == "convnext_v2":
        assert count(space.module) == parameters
    else:  # blocks are alike
        one, two = (count(space.module.clone(depth=depth)) for depth in (1, 2))
        assert one + (space.module.depth - 1) * (two - one) == parameters
