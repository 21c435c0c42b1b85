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
    qkv, _, angles = draw(1, 2, 64, 128)
    qkv, rotary = jnp.asarray(qkv, jnp.bfloat16), (jnp.cos(angles.T), jnp.sin(angles.T))
    results = [jax.jit(lambda x, fused=fused: attend(x, rotary, fused=fused))(qkv) for fused in (True, False)]
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
    where = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    qkv = jax.ShapeDtypeStruct((4, 4, 3, 64, tokens), dtype, sharding=where)
    scales = jax.ShapeDtypeStruct((2, 64), "float32", sharding=sharding.replicated(mesh)) if normed else None

    def loss(x: jax.Array, scales: jax.Array | None) -> jax.Array:
        return jnp.sum(attend(x, None, None, scales, fused=True).astype(jnp.float32))

    with sharding.use(mesh):
        program = jax.jit(jax.grad(loss, (0, 1) if normed else 0)).lower(qkv, scales).compile().as_text()
    calls = re.findall(r"= (.*) custom-call\(.*tpu_custom_call", program)
    assert len(calls) == kernels and all("[2,2," in outputs for outputs in calls)
    moved = re.findall(r"(\S+) (?:all-(?:gather|reduce|to-all)|collective-permute)\(", program)
    assert [shape.split("{")[0] for shape in moved] == ["f32[2,64]"] * normed  # the scales' gradient, summed


def test_on_a_tpu_only_plain_operations_have_a_forward_mode_derivative():
    qkv = jnp.ones((1, 1, 3, 8, 128), jnp.bfloat16)
    derivative = {
        fused: jax.jit(lambda x, fused=fused: jax.jvp(functools.partial(attend, fused=fused), (x,), (x,))[1]).trace(qkv)
        for fused in (True, False)
    }
    derivative[False].lower(lowering_platforms=("tpu",))
    with pytest.raises(TypeError, match="custom_vjp"):
        derivative[True].lower(lowering_platforms=("tpu",))
    np.testing.assert_allclose(derivative[True].lower().compile()(qkv), 1.0)  # of equal keys: of the values alone


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
    qkv = jnp.ones((1, 2, 3, 72, tokens), dtype)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(attend(x, None, fused=True).astype(jnp.float32)))).trace(qkv)
    assert gradient.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.custom_call @__cudnn$fmha") == calls
    assert "cudnn" not in gradient.lower(lowering_platforms=("cpu",)).as_text()
