"""DiT^DH against the reference's outputs, and what must hold of it whatever its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import official_dit
import pytest
import torch
from flax.core import meta
from flax.traverse_util import unflatten_dict
from golden import cases, networks, tokens
from golden_modules import network
from random_params import random_params

from rae_jax.interop.dit_dh import export_dit_dh
from rae_jax.interop.layout import flatten, stack_blocks
from rae_jax.models.dit_dh import DiTDH

TINY = {"grid_size": 4, "in_channels": 4, "num_classes": 3, "width": 24, "depth": 2, "num_heads": 2}
TINY |= {"head_width": 32, "head_depth": 1, "head_num_heads": 4}
FLAGS = {"patch_size": 1, "mlp_ratio": 4.0, "qk_norm": False, "swiglu": True, "rms_norm": True}
FLAGS |= {"absolute_positions": True, "flow_map": False}


def inputs(batch=2, flow_map=False):
    z = np.random.default_rng(1).normal(size=(batch, TINY["grid_size"] ** 2, TINY["in_channels"])).astype(np.float32)
    t = np.linspace(0.2, 0.9, batch, dtype=np.float32)
    return z, t, np.arange(batch, dtype=np.int32) % (TINY["num_classes"] + 1), *((t / 3,) if flow_map else ())


@networks("dit_dh")
def test_velocity_is_the_references(case, prefix):
    _, apply, params, _, _ = network(case, prefix)
    call, output = case.call("forward"), "velocity"
    if prefix == "guidance_model.":
        call, output = case.calls("forward_with_autoguidance")[0], "guidance_model_velocity"
    v = apply({"params": params}, tokens(call.inputs["x"]), call.inputs["t"], call.inputs["y"])
    case.assert_close(v, tokens(call.outputs[output]), part=1 / 4)


@cases("mf_dit_dh")
def test_mean_velocity_of_a_flow_map_is_the_references(case):
    _, apply, params, architecture, _ = network(case)
    assert architecture["flow_map"]
    for call in case.calls("forward( with r = None)?"):
        z, t, labels = tokens(call.inputs["x"]), call.inputs["t"], call.inputs["y"]
        u = apply({"params": params}, z, t, labels, call.inputs.get("r", np.zeros_like(t)))
        case.assert_close(u, tokens(call.outputs["u"]), part=1 / 4)


@pytest.mark.parametrize(
    "flags",
    [
        {"absolute_positions": False, "mlp_ratio": 3.0},
        {"rms_norm": False},
        {"swiglu": False, "qk_norm": True, "head_width": 24, "head_num_heads": 2},
        {"rms_norm": False, "qk_norm": True, "swiglu": False, "flow_map": True},
        {"swiglu": False, "flow_map": True, "absolute_positions": False},
    ],
    ids=str,
)
def test_velocity_is_that_of_the_equations_in_pytorch_under_every_option(flags):
    architecture = TINY | FLAGS | {"depth": 1} | flags
    model = DiTDH(**architecture)
    z, *rest = inputs(flow_map=architecture["flow_map"])
    params = random_params(model, z, *rest)
    official = {name: torch.tensor(w) for name, w in export_dit_dh(params, architecture).items()}
    side = TINY["grid_size"]
    expected = official_dit.dit_dh(
        official,
        torch.tensor(z).transpose(1, 2).reshape(len(z), -1, side, side),
        *map(torch.tensor, rest),
        num_heads=(architecture["num_heads"], architecture["head_num_heads"]),
        depth=(architecture["depth"], architecture["head_depth"]),
    )
    v = jax.jit(model.apply)({"params": params}, z, *rest)
    np.testing.assert_allclose(v, tokens(expected.numpy()), atol=2e-5, rtol=1e-4)


def test_scanned_stacks_have_the_value_and_gradient_of_the_unrolled_ones():
    arguments = inputs(flow_map=True)
    deep = TINY | {"head_depth": 2, "flow_map": True}
    unrolled, scanned = DiTDH(**deep), DiTDH(**deep, scan=True, remat="dots")
    params = random_params(unrolled, *arguments)
    structure = meta.unbox(jax.eval_shape(scanned.init, jax.random.key(0), *arguments)["params"])
    assert {"blocks", "head_blocks"} <= structure.keys()

    def loss(model):
        return lambda p: jnp.sum(model.apply({"params": p}, *arguments) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss(unrolled)))(params)
    stacked_value, stacked_gradient = jax.jit(jax.value_and_grad(loss(scanned)))(stack_blocks(params, structure))
    np.testing.assert_allclose(stacked_value, value, rtol=1e-6)
    expected = flatten(stack_blocks(gradient, structure))
    for path, leaf in flatten(stacked_gradient).items():
        np.testing.assert_allclose(
            leaf, expected[path], rtol=1e-3, atol=1e-4 * np.abs(expected[path]).max(), err_msg=path
        )


def test_bfloat16_leaves_parameters_and_output_float32_and_the_value_close():
    arguments, shallow = inputs(), TINY | {"depth": 1}
    model = DiTDH(**shallow, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    params = random_params(model, *arguments)
    v = jax.jit(model.apply)({"params": params}, *arguments)
    exact = jax.jit(DiTDH(**shallow).apply)({"params": params}, *arguments)
    assert v.dtype == jnp.float32
    assert 0 < np.abs(v - exact).max() < 0.05 * np.abs(exact).max()


def test_every_parameter_names_its_axes_and_no_matrix_is_without_a_divisible_one():
    arguments = inputs(flow_map=True)
    model = DiTDH(**TINY, qk_norm=True, flow_map=True, scan=True)
    boxed = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)):
        assert isinstance(box, meta.AxisMetadata)
        assert len(box.names) == box.value.ndim
        assert box.value.ndim < 2 + ("layers" in box.names) or set(box.names) - {None, "layers"}


def test_the_initial_velocity_is_zero_and_kernels_start_as_the_references():
    arguments = inputs(flow_map=True)
    model = DiTDH(**TINY | {"width": 128, "depth": 1}, flow_map=True)
    limits = {
        "blocks_0/attention/qkv/kernel": 128**-0.5,
        "blocks_0/mlp/gate/kernel": 128**-0.5,
        "blocks_0/mlp/down/kernel": int(2 / 3 * 512) ** -0.5,
        "head_projection/kernel": 128**-0.5,
        "duration_embedding/hidden/kernel": 512**-0.5,
        "patch_embedding/kernel": (6 / (4 + 128)) ** 0.5,
    }

    @jax.jit
    def start(key, others):  # the others are not zero, and of their start, which is not returned, nothing is compiled
        flat = flatten(model.init(key, *arguments)["params"])
        mine = {path: w for path, w in flat.items() if path in limits or path.startswith(("final/", "time_embedding/"))}
        return mine, model.apply({"params": unflatten_dict(others | mine, sep="/")}, *arguments)

    flat, v = start(jax.random.key(0), flatten(random_params(model, *arguments)))
    assert not np.any(v)
    for path, limit in limits.items():
        largest = np.abs(flat[path]).max()
        assert 0.97 * limit < largest <= limit, path
    assert np.std(flat["time_embedding/hidden/kernel"]) == pytest.approx(0.02, rel=0.05)


def test_with_patches_of_two_the_head_still_answers_for_every_token():
    arguments = inputs()
    model = DiTDH(**TINY | {"depth": 1}, patch_size=2)
    params = random_params(model, *arguments)
    assert params["patch_embedding"]["kernel"].shape == (2 * 2 * TINY["in_channels"], TINY["width"])
    v = jax.jit(model.apply)({"params": params}, *arguments)
    assert v.shape == arguments[0].shape
    assert len(np.unique(np.asarray(v[0, :, 0]))) == v.shape[1]


def test_a_flow_map_without_r_is_refused():
    arguments = inputs()
    with pytest.raises(ValueError, match="r is missing"):
        jax.eval_shape(DiTDH(**TINY, flow_map=True).init, jax.random.key(0), *arguments)
