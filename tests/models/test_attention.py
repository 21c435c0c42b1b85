"""Attention: both ways of computing it against PyTorch in float64, the kernel as a TPU's interpreter runs it."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from rae_jax.costs.compile_report import mesh_over
from rae_jax.models.attention import attend, fused_attention, plain_attention
from rae_jax.training import sharding


def draw(batch: int, heads: int, head_dim: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values, the gradient of the result, and the angles `[E / 2, N]` of the positions."""
    rng = np.random.default_rng(0)
    qkv, cotangent = (
        rng.normal(size=(batch, heads, 3, head_dim, tokens)),
        rng.normal(size=(batch, heads, head_dim, tokens)),
    )
    return qkv.astype(np.float32), cotangent.astype(np.float32), rng.uniform(0, 6, size=(head_dim // 2, tokens))


def torch_attention(
    qkv: np.ndarray, cotangent: np.ndarray, angles: np.ndarray | None, scales: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """The result and the gradients, by PyTorch's own norm, and attention on complex numbers turned by the angles."""
    leaf = torch.tensor(qkv, dtype=torch.float64, requires_grad=True)
    leaves = [leaf]
    query, key, value = leaf.unbind(2)
    if scales is not None:
        leaves.append(torch.tensor(scales, dtype=torch.float64, requires_grad=True))
        query, key = (
            torch.nn.functional.rms_norm(x.mT, x.shape[-2:-1], scale, eps=1e-6).mT
            for x, scale in zip((query, key), leaves[1], strict=True)
        )
    if angles is not None:

        def turned(x: torch.Tensor) -> torch.Tensor:
            x = torch.complex(*x.chunk(2, dim=-2)) * torch.polar(torch.ones(()).double(), torch.tensor(angles))
            return torch.cat([x.real, x.imag], dim=-2)

        query, key = turned(query), turned(key)
    out = torch.nn.functional.scaled_dot_product_attention(*(x.mT for x in (query, key, value))).mT
    out.backward(torch.tensor(cotangent, dtype=torch.float64))
    return out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


def tokens_and_kernel(
    batch: int, tokens: int, heads: int, head_dim: int, dtype: str
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    width = heads * head_dim
    return jax.ShapeDtypeStruct((batch, tokens, width), dtype), jax.ShapeDtypeStruct((3 * width, width), dtype)


@functools.partial(jax.jit, static_argnums=0)
def both_ways(attention, *arguments: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """The result and the gradients."""
    out, pull = jax.vjp(attention, *arguments)
    return out, *pull(cotangent)


@pytest.mark.parametrize("attention", [plain_attention, fused_attention])
@pytest.mark.parametrize(
    "shape, turned",
    [
        ((2, 4, 8, 256), True),
        ((1, 6, 72, 128), False),
        ((1, 1, 16, 1024), True),
        ((1, 1, 16, 640), True),
        ((1, 2, 72, 268), True),  # the rest: filled up inside the kernel, with what is not a number by the interpreter
        ((1, 4, 8, 257), False),
        ((1, 1, 16, 785), True),
    ],
)
def test_attention_and_its_gradient_are_pytorchs(attention, shape, turned):
    qkv, cotangent, angles = draw(*shape)
    expected = torch_attention(qkv, cotangent, angles if turned else None)
    rotary = (jnp.cos(angles), jnp.sin(angles)) if turned else None
    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        out, gradient = both_ways(lambda x: attention(x, rotary), jnp.asarray(qkv), cotangent=jnp.asarray(cotangent))
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-5)


@pytest.mark.parametrize("attention", [plain_attention, fused_attention])
@pytest.mark.parametrize("shape, turned", [((2, 4, 8, 256), True), ((2, 2, 72, 268), True), ((1, 3, 8, 257), False)])
def test_queries_and_keys_are_normalised_first_and_the_scales_have_their_gradient(attention, shape, turned):
    qkv, cotangent, angles = draw(*shape)
    qkv[:, :, :2] *= 3.0
    scales = np.random.default_rng(1).uniform(0.5, 2.0, size=(2, shape[2])).astype(np.float32)
    expected = torch_attention(qkv, cotangent, angles if turned else None, scales)
    rotary = (jnp.cos(angles), jnp.sin(angles)) if turned else None
    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        found = both_ways(
            lambda x, scales: attention(x, rotary, scales),
            jnp.asarray(qkv), jnp.asarray(scales), cotangent=jnp.asarray(cotangent),
        )  # fmt: skip
    for x, y, atol in zip(found, expected, (2e-6, 1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


def test_tokens_filled_up_before_the_kernel_change_nothing_and_the_bias_has_its_gradient():
    qkv, cotangent, angles = draw(2, 2, 8, 130)
    bias = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    expected = torch_attention(qkv + bias[..., None], cotangent, angles)
    rotary = jnp.cos(angles), jnp.sin(angles)

    def attention(qkv: jax.Array, bias: jax.Array) -> jax.Array:
        filled_up = jnp.pad(qkv, ((0, 0),) * 4 + ((0, 126),)) + jax.lax.stop_gradient(bias)[..., None]
        return fused_attention(filled_up, rotary, None, bias, 130)

    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        found = both_ways(attention, jnp.asarray(qkv), jnp.asarray(bias), cotangent=jnp.asarray(cotangent))
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(found[2], expected[1].sum((0, -1)), atol=1e-4)


def test_the_way_through_the_kernel_is_as_near_as_the_plain_one_from_tokens_on(monkeypatch):
    """Values and gradients of all that attention reads, beside those in float32."""
    rng = np.random.default_rng(0)
    draws = {"x": (2, 130, 32), "kernel": (96, 32), "bias": (4, 3, 8), "scales": (2, 8)}
    told = {name: jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for name, shape in draws.items()}
    told["kernel"], told["bias"] = told["kernel"] / 8, told["bias"] / 8
    angles = rng.uniform(0, 6, (130, 4))
    rotary = jnp.cos(angles), jnp.sin(angles)
    cotangent = jnp.asarray(rng.normal(size=(2, 4, 8, 130)), jnp.bfloat16)

    def found(way: str, dtype: str) -> list[np.ndarray]:
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, **ways: ways[way](*arguments))
        arguments, of_out = jax.tree.map(lambda x: x.astype(dtype), (told, cotangent))
        out, pull = jax.vjp(lambda told: attend(**told, rotary=rotary, num_heads=4, fused=True), arguments)
        return [np.asarray(x, np.float32) for x in jax.tree.leaves((out, pull(of_out)))]

    with jax.default_matmul_precision("highest"):
        expected = found("default", "float32")
    with pltpu.force_tpu_interpret_mode():
        ways = [found(way, "bfloat16") for way in ("default", "tpu")]
    for y, plain, fused in zip(expected, *ways, strict=True):
        assert fused.shape == y.shape and np.std(fused - y) < 1.2 * np.std(plain - y) < 0.1 * np.std(y)


def test_what_fills_tokens_up_counts_for_nothing_where_all_logits_are_far_below_zero():
    """Their own logits are zero."""
    qkv, cotangent, _ = draw(1, 1, 16, 130)
    qkv[:, :, 0], qkv[:, :, 1] = -10, 10 + 0.1 * qkv[:, :, 1]  # all logits are near -400
    expected = torch_attention(qkv, cotangent, None)
    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        found = both_ways(lambda x: fused_attention(x, None), jnp.asarray(qkv), cotangent=jnp.asarray(cotangent))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)


def test_the_kernel_in_bfloat16_is_as_near_as_plain_operations_in_bfloat16():
    qkv, cotangent, angles = draw(2, 2, 64, 256)
    qkv, cotangent = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (qkv, cotangent))
    expected = torch_attention(qkv, cotangent, angles)
    rotary, errors = (jnp.cos(angles), jnp.sin(angles)), {}
    for attention in (plain_attention, fused_attention):
        with pltpu.force_tpu_interpret_mode():
            attention_of = functools.partial(attention, rotary=rotary)
            found = both_ways(
                attention_of, jnp.asarray(qkv, jnp.bfloat16), cotangent=jnp.asarray(cotangent, jnp.bfloat16)
            )
        errors[attention] = [np.std(np.asarray(x, np.float32) - y) for x, y in zip(found, expected, strict=True)]
    for plain, fused in zip(*errors.values(), strict=True):
        assert fused < 1.2 * plain


def test_off_a_tpu_attention_is_plain_operations_whatever_was_asked_for():
    shapes = tokens_and_kernel(1, 130, 2, 64, "bfloat16")
    x, kernel = (jax.random.normal(jax.random.key(i), shape.shape, shape.dtype) for i, shape in enumerate(shapes))
    angles = np.random.default_rng(0).uniform(0, 6, (130, 32))
    rotary = jnp.cos(angles), jnp.sin(angles)
    results = [
        jax.jit(functools.partial(attend, num_heads=2, fused=fused))(x, kernel, rotary=rotary)
        for fused in (True, False)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "tokens, dtype, normed, kernels",
    [
        (256, "bfloat16", False, 2),
        (256, "float32", False, 0),
        (268, "bfloat16", True, 2),
        (785, "bfloat16", False, 2),
        (1024, "bfloat16", True, 2),
        (100, "bfloat16", False, 0),
        (1152, "bfloat16", False, 0),
    ],
)
def test_a_tpu_runs_the_kernel_on_the_images_and_heads_that_each_chip_has(tokens, dtype, normed, kernels):
    pytest.importorskip("libtpu")
    config = base.get_config()
    config.mesh.data, config.mesh.tensor = 2, 2
    mesh = mesh_over(config, "v5p:2x2x1")
    axes = {"x": ("data",), "kernel": ("tensor",), "bias": ("tensor",), "scales": ()}
    x, kernel = tokens_and_kernel(4, tokens, 4, 64, dtype)
    shapes = {"x": x, "kernel": kernel, "bias": jax.ShapeDtypeStruct((4, 3, 64), dtype)}
    if normed:
        shapes["scales"] = jax.ShapeDtypeStruct((2, 64), "float32")
    arguments = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes[name])))
        for name, shape in shapes.items()
    }

    def loss(learned: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.sum(attend(x, **learned, num_heads=4, fused=True).astype(jnp.float32))

    with sharding.use(mesh):
        x = arguments.pop("x")
        program = jax.jit(jax.grad(loss)).lower(arguments, x).compile().as_text()
    calls = re.findall(r"= (.*) custom-call\(.*tpu_custom_call", program)
    assert len(calls) == kernels and all("[2,2," in outputs for outputs in calls)
    # Nothing of images and heads moves: gradients of what is learned are summed over the images.
    moved = re.findall(r"(?:bf16|f32)(\[[\d,]+\])\S* (?:all-(?:gather|reduce|to-all)|collective-permute)\(", program)
    assert set(moved) == {"[384,256]"} | ({"[2,3,64]"} if kernels else set()) | ({"[2,64]"} if normed else set())


def test_on_a_tpu_only_plain_operations_have_a_forward_mode_derivative():
    x = jnp.ones((1, 128, 8), jnp.bfloat16)
    kernel = jnp.concatenate([jnp.zeros((16, 8)), jnp.eye(8)]).astype(x.dtype)
    ways = {fused: functools.partial(attend, kernel=kernel, num_heads=1, fused=fused) for fused in (True, False)}
    derivative = {
        fused: jax.jit(lambda x, way=way: jax.jvp(way, (x,), (x,))[1]).trace(x) for fused, way in ways.items()
    }
    derivative[False].lower(lowering_platforms=("tpu",))
    with pytest.raises(TypeError, match="custom_vjp"):
        derivative[True].lower(lowering_platforms=("tpu",))
    np.testing.assert_allclose(derivative[True].lower().compile()(x), 1.0)  # of equal keys: of the values alone


@pytest.mark.parametrize(
    "capability, tokens, dtype, calls",
    [
        ("9.0", 256, "bfloat16", 2),
        ("8.0", 100, "bfloat16", 2),
        ("7.5", 256, "bfloat16", 0),
        ("gfx90a", 256, "bfloat16", 0),
        ("9.0", 197, "bfloat16", 0),
        ("9.0", 256, "float32", 0),
    ],
)
def test_gpus_that_have_cudnns_attention_get_it(monkeypatch, capability, tokens, dtype, calls):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    shapes = tokens_and_kernel(1, tokens, 2, 72, dtype)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(attend(x, kernel, num_heads=2, fused=True).astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss)).trace(*shapes)
    assert gradient.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.custom_call @__cudnn$fmha") == calls
    assert "cudnn" not in gradient.lower(lowering_platforms=("cpu",)).as_text()
