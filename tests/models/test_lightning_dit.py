"""LightningDiT against the reference's outputs, and what must hold of it whatever its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import official_dit
import pytest
import torch
from flax.core import meta
from golden import cases, tokens
from golden_modules import network
from random_params import random_params

from rae_jax.interop.layout import flatten, stack_blocks
from rae_jax.interop.lightning_dit import export_lightning_dit
from rae_jax.models.lightning_dit import LightningDiT

TINY = {"grid_size": 4, "in_channels": 4, "num_classes": 3, "width": 24, "depth": 2, "num_heads": 2}
FLAGS = {"patch_size": 1, "mlp_ratio": 4.0, "qk_norm": False, "swiglu": True, "rms_norm": True, "rope": True}
FLAGS |= {"learn_sigma": False, "flow_map": False}


def inputs(batch=2):
    z = np.random.default_rng(1).normal(size=(batch, TINY["grid_size"] ** 2, TINY["in_channels"])).astype(np.float32)
    labels = np.arange(batch, dtype=np.int32) % (TINY["num_classes"] + 1)
    return z, np.linspace(0.2, 0.9, batch, dtype=np.float32), labels


@cases("lightning_dit")
def test_velocity_is_the_references(case):
    model, call = network(case), case.call("forward")
    v = model.apply({"params": model.params}, tokens(call.inputs["x"]), call.inputs["t"], call.inputs["y"])
    case.assert_close(v, tokens(call.outputs["velocity"]), part=1 / 4)


@pytest.mark.parametrize(
    "flags",
    [
        {"rope": False},
        {"patch_size": 2, "learn_sigma": True},
        {"rms_norm": False, "mlp_ratio": 2.5},
        {"rms_norm": False, "qk_norm": True},
        {"swiglu": False, "qk_norm": True, "rope": False},
    ],
    ids=str,
)
def test_velocity_is_that_of_the_equations_in_pytorch_under_every_option(flags):
    architecture = TINY | FLAGS | {"depth": 1} | flags
    model = LightningDiT(**architecture)
    z, t, labels = inputs()
    params = random_params(model, z, t, labels)
    official = {name: torch.tensor(w) for name, w in export_lightning_dit(params, architecture).items()}
    side = TINY["grid_size"]
    expected = official_dit.lightning_dit(
        official,
        torch.tensor(z).transpose(1, 2).reshape(len(z), -1, side, side),
        torch.tensor(t),
        torch.tensor(labels),
        num_heads=architecture["num_heads"],
        depth=architecture["depth"],
    )
    v = jax.jit(model.apply)({"params": params}, z, t, labels)
    np.testing.assert_allclose(v, tokens(expected.numpy()), atol=2e-5, rtol=1e-4)


def test_a_scanned_rematerialised_stack_has_the_value_and_gradient_of_the_unrolled_one():
    z, t, labels = inputs()
    unrolled, scanned = LightningDiT(**TINY), LightningDiT(**TINY, scan=True, remat="full")
    params = random_params(unrolled, z, t, labels)
    structure = meta.unbox(jax.eval_shape(scanned.init, jax.random.key(0), z, t, labels)["params"])

    def loss(model):
        return lambda p: jnp.sum(model.apply({"params": p}, z, t, labels) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss(unrolled)))(params)
    stacked_value, stacked_gradient = jax.jit(jax.value_and_grad(loss(scanned)))(stack_blocks(params, structure))
    np.testing.assert_allclose(stacked_value, value, rtol=1e-6)
    expected = flatten(stack_blocks(gradient, structure))
    for path, leaf in flatten(stacked_gradient).items():
        np.testing.assert_allclose(
            leaf, expected[path], rtol=1e-3, atol=1e-4 * np.abs(expected[path]).max(), err_msg=path
        )


def test_bfloat16_leaves_parameters_and_output_float32_and_the_value_close():
    (z, t, labels), shallow = inputs(), TINY | {"depth": 1}
    model = LightningDiT(**shallow, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), z, t, labels)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    params = random_params(model, z, t, labels)
    v = jax.jit(model.apply)({"params": params}, z, t, labels)
    exact = jax.jit(LightningDiT(**shallow).apply)({"params": params}, z, t, labels)
    assert v.dtype == jnp.float32
    assert 0 < np.abs(v - exact).max() < 0.05 * np.abs(exact).max()


def test_every_parameter_names_its_axes_and_no_matrix_is_without_a_divisible_one():
    z, t, labels = inputs()
    model = LightningDiT(**TINY, qk_norm=True, flow_map=True, scan=True)
    boxed = jax.eval_shape(model.init, jax.random.key(0), z, t, labels, t)["params"]
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    for box in boxes:
        assert isinstance(box, meta.AxisMetadata)
        assert len(box.names) == box.value.ndim
        assert box.value.ndim < 2 + ("layers" in box.names) or set(box.names) - {None, "layers"}


def test_the_initial_velocity_is_zero_and_kernels_have_the_limits_of_the_fused_matrices():
    z, t, labels = inputs()
    model = LightningDiT(**TINY | {"width": 128, "num_heads": 4, "depth": 1})
    v, variables = jax.jit(model.init_with_output)(jax.random.key(0), z, t, labels)
    params = meta.unbox(variables["params"])
    assert not np.any(v)
    block, hidden = params["blocks_0"], int(2 / 3 * 512)
    limits = {  # sqrt(6 / (in + out)) of the matrix that the reference draws
        "attention/qkv/kernel": (6 / (128 + 3 * 128)) ** 0.5,
        "attention/out/kernel": (6 / (128 + 128)) ** 0.5,
        "mlp/gate/kernel": (6 / (128 + 2 * hidden)) ** 0.5,
        "mlp/down/kernel": (6 / (128 + hidden)) ** 0.5,
    }
    for path, limit in limits.items():
        largest = np.abs(flatten(block)[path]).max()
        assert 0.99 * limit < largest <= limit, path
    assert np.std(params["time_embedding"]["hidden"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert not any(np.any(w) for path, w in flatten(params).items() if path.endswith("bias"))


def test_mistaken_shapes_are_refused_by_name():
    z, t, labels = inputs()
    for change, message in [
        ({"grid_size": 5}, r"needs \[B, 25, C\]"),
        ({"patch_size": 3}, "does not divide into patches of side 3"),
        ({"num_heads": 5}, "width 24 does not divide over 5 heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(LightningDiT(**TINY | change).init, jax.random.key(0), z, t, labels)
