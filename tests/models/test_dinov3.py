"""DINOv3 encoders against Hugging Face's PyTorch model, and against themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from rae_jax.interop.layout import unstack_blocks
from rae_jax.interop.vit import import_encoder
from rae_jax.models.vit import PRETRAINED, VisionTransformer, rotary_periods, rotary_positions
from rae_jax.training.sharding import make_mesh, shardings_of

TINY = {
    **{"image_size": 0, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_registers": 2},
    **{"layer_scale": True, "key_bias": False, "positions": "rotary", "norm_epsilon": 1e-5},
}


def images_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"num_register_tokens": 4, "hidden_size": 32, "num_attention_heads": 4}, 4),
        (
            {
                "use_gated_mlp": True,
                "hidden_act": "silu",
                "key_bias": True,
                "rope_theta": 50.0,
                "hidden_size": 24,
                "num_attention_heads": 1,
            },
            1,
        ),
    ],
)
def test_tokens_equal_hugging_face_at_several_image_sizes(options, heads):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        patch_size=4, num_hidden_layers=2, intermediate_size=48, image_size=12, **options
    )
    reference = transformers.DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if not name.startswith("norm."):  # RAE has the last norm without scale and bias
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    architecture, params, _ = import_encoder(tensors, num_heads=heads)
    model = VisionTransformer(**architecture, rope_theta=config.rope_theta)
    apply = jax.jit(model.apply)
    for size in ((12, 12), (8, 20)):
        images = images_of(*size)
        with torch.no_grad():
            expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state
        expected = expected[:, 1 + config.num_register_tokens :]
        np.testing.assert_allclose(apply({"params": params}, images), expected, atol=1e-4, rtol=1e-4)


def test_the_class_token_and_registers_do_not_turn_and_patches_turn_by_their_place_in_the_image():
    cos, sin = jax.jit(lambda: rotary_positions((1, 2), rotary_periods(8, 100.0), num_prefix=3))()
    assert cos.shape == sin.shape == (5, 4)
    np.testing.assert_array_equal(cos[:3], 1)
    np.testing.assert_array_equal(sin[:3], 0)
    # One row, in the middle; two columns, a quarter and three quarters along: coordinates -1/2 and 1/2.
    angle = 2 * np.pi * 0.5 * np.array([1, 100**-0.5])
    np.testing.assert_allclose(sin[3:], [[0, 0, *np.sin(-angle)], [0, 0, *np.sin(angle)]], atol=1e-6)
    np.testing.assert_allclose(cos[3:], [[1, 1, *np.cos(angle)]] * 2, atol=1e-6)


def test_scanned_and_rematerialised_blocks_compute_what_unrolled_blocks_do():
    images = images_of(8, 8)
    scanned = VisionTransformer(**TINY, scan=True, remat="full")
    params = random_params(scanned, images)
    expected = jax.jit(VisionTransformer(**TINY).apply)({"params": unstack_blocks(params)}, images)
    np.testing.assert_allclose(jax.jit(scanned.apply)({"params": params}, images), expected, atol=1e-5)


def test_bfloat16_stays_near_float32_and_returns_float32():
    images = images_of(8, 8)
    params = {"params": random_params(VisionTransformer(**TINY), images)}
    exact = jax.jit(VisionTransformer(**TINY).apply)(params, images)
    rounded = jax.jit(VisionTransformer(**TINY, dtype=jnp.bfloat16).apply)(params, images)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.15


def test_images_that_do_not_divide_into_patches_and_odd_heads_are_errors():
    with pytest.raises(ValueError, match="multiple of 4"):
        jax.eval_shape(VisionTransformer(**TINY).init, jax.random.key(0), images_of(8, 10))
    with pytest.raises(ValueError, match="divisible by 4, got 2"):
        jax.eval_shape(VisionTransformer(**{**TINY, "num_heads": 8}).init, jax.random.key(0), images_of(8, 8))
    with pytest.raises(ValueError, match="takes all patches"):
        init = functools.partial(VisionTransformer(**TINY).init, keep=np.zeros((2, 1), np.int32))
        jax.eval_shape(init, jax.random.key(0), images_of(8, 8))


@pytest.mark.parametrize(("name", "millions"), [("dinov3_s", 21.6), ("dinov3_b", 85.7), ("dinov3_l", 303.1)])
def test_published_encoders_have_their_published_size_and_every_parameter_has_a_place_on_the_mesh(name, millions):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    encoder = PRETRAINED[name]
    sizes = encoder.architecture
    image = jax.ShapeDtypeStruct((1, encoder.input_size, encoder.input_size, 3), jnp.float32)
    boxed = jax.eval_shape(VisionTransformer(**sizes, scan=True).init, jax.random.key(0), image)["params"]
    shardings_of(boxed, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    # The published files also hold a mask token and the last norm's scale and bias.
    count = sum(leaf.value.size for leaf in leaves) + 3 * sizes["width"]
    assert round(count / 1e6, 1) == millions
    config = transformers.DINOv3ViTConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_dim"],
        num_register_tokens=4,
    )
    with torch.device("meta"):
        reference = transformers.DINOv3ViTModel(config)
    assert count == sum(parameter.numel() for parameter in reference.parameters())
