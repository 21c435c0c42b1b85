import jax
import jax.numpy as jnp
import pytest

from configs import dith_xl
from rae_jax.costs import model_flops
from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.models.vit import Block
from rae_jax.training import sharding
from rae_jax.training.durations import resolve


def test_dit_dh_xl_takes_three_passes_of_161_6_billion_multiplications_an_image():
    config = resolve(dith_xl.get_config(), IMAGENET_TRAIN_IMAGES)
    config.flow.model.scan = True  # is traced in a tenth of the time
    flops = model_flops.model_flops(config, "flow", latents=True)
    assert flops == pytest.approx(2 * 3 * 161.6e9 * 1024, rel=0.01)


def test_how_blocks_are_computed_does_not_change_the_models_operations():
    config = resolve(dith_xl.get_config(), IMAGENET_TRAIN_IMAGES)
    config.flow.model.depth = 2
    flops = model_flops.model_flops(config, "flow", latents=True)
    config.flow.model.remat, config.flow.model.fused_attention, config.flow.model.scan = "full", False, True
    assert model_flops.model_flops(config, "flow", latents=True) == flops


def test_a_kernel_that_fills_tokens_up_does_not_change_a_transformers_operations():
    """257 tokens of width 128, two heads: projections and feed-forward, and two products of attention."""
    tokens, width, hidden = 257, 128, 512
    x = jnp.zeros((1, tokens, width))
    for dtype in (jnp.float32, jnp.bfloat16):
        block = Block(num_heads=2, mlp_dim=hidden, dtype=dtype)
        cost = model_flops.cost_of(lambda key, block=block: block.init(key, x), block.apply, x)
        assert cost.without_attention == tokens * (4 * width**2 + 2 * width * hidden)
        assert cost.multiply_adds - cost.without_attention == 2 * tokens**2 * width

        def loss(params, block=block):
            return block.apply(params, x).sum()

        params = jax.eval_shape(lambda key, block=block: block.init(key, x), jax.random.key(0))
        both_ways = model_flops.matrix_flops(jax.value_and_grad(loss), params)
        assert both_ways == pytest.approx(2 * 3 * cost.multiply_adds, rel=0.15)  # no gradient of x is wanted


def test_the_time_at_peak_is_known_for_the_devices_in_the_table_only(monkeypatch):
    config = resolve(dith_xl.get_config("S"), IMAGENET_TRAIN_IMAGES)
    config.flow.model.depth, config.encoder.model.depth = 1, 1
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    assert model_flops.seconds_at_peak(config, "flow", mesh) is None
    monkeypatch.setitem(model_flops.PEAK_FLOPS, jax.devices()[0].device_kind, 1e12)
    flops = model_flops.model_flops(config, "flow")
    assert model_flops.seconds_at_peak(config, "flow", mesh) == pytest.approx(flops / 1e12)
