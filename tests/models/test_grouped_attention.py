"""Grouped attention under a mask: the kernel against PyTorch in float64, as a TPU interpreter runs it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from rae_jax.costs.compile_report import mesh_over
from rae_jax.models.grouped_attention import FAST_MEMORY, by_kernel, fast_memory, grouped_attention, tiles_seen
from rae_jax.training import sharding


def draw(batch: int, queries: int, keys: int, heads: int, groups: int, head_dim: int) -> list[np.ndarray]:
    """Queries, keys, values, the gradient of the result, and a mask under which no query sees nothing."""
    rng = np.random.default_rng(0)
    shapes = [(queries, heads), (keys, groups), (keys, groups), (queries, heads)]
    arrays = [rng.normal(size=(batch, *shape, head_dim)).astype(np.float32) for shape in shapes]
    mask = rng.random((batch, 1, queries, keys)) < 0.3
    mask[..., : queries // 2, keys // 2 :] = False  # whole tiles, of some queries
    mask[..., 0] = True
    return [*arrays, mask]


def torch_attention(query, key, value, cotangent, mask) -> list[np.ndarray]:
    """The result and the gradients, `[B, N, K, E]`."""
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (query, key, value)]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(mask)).transpose(1, 2)
    out.backward(torch.tensor(cotangent, dtype=torch.float64))
    return [out.detach().numpy(), *(x.grad.numpy() for x in leaves)]


def both_ways(attention, query, key, value, cotangent, mask) -> list[np.ndarray]:
    """The same of ours, with the TPU's kernels interpreted."""

    @jax.jit
    def run(mask, cotangent, *arrays):
        out, pull = jax.vjp(lambda *x: attention(*x, mask), *arrays)
        return out, *pull(cotangent)

    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        return [np.asarray(x, np.float32) for x in run(mask, cotangent, query, key, value)]


@pytest.mark.parametrize(
    "shape",
    [
        (2, 300, 300, 4, 2, 16),  # ragged tiles, filled up to a multiple of 128
        (1, 130, 600, 2, 2, 8),  # what was read before, and heads of their own
        (1, 256, 512, 3, 1, 64),
    ],
)
def test_the_kernel_and_its_gradients_are_pytorchs(shape):
    arrays = draw(*shape)
    for ours, theirs in zip(both_ways(by_kernel, *arrays), torch_attention(*arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_tiles_that_are_hidden_whole_are_not_computed():
    query, key, value, cotangent, mask = draw(1, 512, 512, 1, 1, 8)
    mask[...] = np.tril(np.ones((512, 512), bool))
    seen = jnp.swapaxes(jnp.asarray(mask[:, 0]), 1, 2)
    np.testing.assert_array_equal(tiles_seen(seen), [[[1, 1], [0, 1]]])  # keys, then queries
    broken = value.copy()
    broken[:, 256:] = np.nan  # of keys that the first tile of queries does not see: not even a zero weight reaches them
    (found, d_query, *_), (expected, d_expected, *_) = (
        both_ways(by_kernel, query, key, v, cotangent, mask) for v in (broken, value)
    )
    for ours, theirs in ((found, expected), (d_query, d_expected)):
        np.testing.assert_array_equal(ours[:, :256], theirs[:, :256])
        assert np.isnan(ours[:, 256:]).all()


def test_a_query_that_sees_nothing_gives_zeros_and_moves_nothing():
    query, key, value, cotangent, mask = draw(1, 300, 512, 1, 1, 8)
    mask[..., 5, :] = False  # in a tile that others see
    mask[..., 256:, :] = False  # and a tile that nobody does
    blind = np.isin(np.arange(300), [5, *range(256, 300)])
    found = both_ways(by_kernel, query, key, value, cotangent, mask)
    expected = torch_attention(query[:, ~blind], key, value, cotangent[:, ~blind], mask[:, :, ~blind])
    for ours, theirs in zip(found[:2], expected[:2], strict=True):  # the result, and the queries' gradient
        np.testing.assert_allclose(ours[:, ~blind], theirs, atol=1e-5)
        assert not ours[:, blind].any()
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_in_bfloat16_the_kernel_is_as_near_as_plain_operations():
    def plain(query, key, value, mask):
        return jax.nn.dot_product_attention(query, key, value, mask=mask)

    arrays = draw(1, 256, 256, 4, 2, 64)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:4]]
    expected = torch_attention(*(np.asarray(x, np.float32) for x in rounded), arrays[4])
    errors = [
        [np.std(x - y) for x, y in zip(both_ways(attention, *rounded, arrays[4]), expected, strict=True)]
        for attention in (plain, by_kernel)
    ]
    for usual, fused in zip(*errors, strict=True):
        assert fused < 1.2 * usual


@pytest.mark.parametrize("masked", [True, False])
def test_off_a_tpu_it_is_plain_operations(masked):
    query, key, value, _, mask = draw(1, 128, 128, 2, 1, 8)
    if not masked:
        mask = np.tril(np.ones((1, 1, 128, 128), bool))
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
    found = jax.jit(grouped_attention)(query, key, value, *[mask] * masked)
    np.testing.assert_array_equal(found, jax.nn.dot_product_attention(query, key, value, mask=mask))


def array(mesh, *shape: int, dtype: str = "bfloat16", heads: str | None = None) -> jax.ShapeDtypeStruct:
    """Of rows that the axis `data` divides, and of heads that `heads` does."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec("data", None, heads)))


def compiled_gradient(mesh, query, key, mask) -> str:
    """The program of a TPU."""
    with sharding.use(mesh):
        loss = jax.jit(jax.grad(lambda q, k, m: jnp.sum(grouped_attention(q, k, k, m).astype(jnp.float32))))
        return loss.lower(query, key, mask).compile().as_text()


@pytest.mark.parametrize(
    "tokens, dtype, kernels", [(1132, "bfloat16", 2), (256, "float32", 0), (100, "bfloat16", 0), (2048, "bfloat16", 0)]
)
def test_a_tpu_runs_the_kernel_on_the_rows_and_groups_that_each_chip_has(tokens, dtype, kernels):
    pytest.importorskip("libtpu")
    config = base.get_config()
    config.mesh.data, config.mesh.tensor = 2, 2
    mesh = mesh_over(config, "v5p:2x2x1")
    query, key = (array(mesh, 4, tokens, heads, 64, dtype=dtype, heads="tensor") for heads in (4, 2))
    program = compiled_gradient(mesh, query, key, array(mesh, 4, 1, tokens, tokens, dtype="bool"))
    calls = re.findall(r"= (.*) custom-call\(.*tpu_custom_call", program)
    assert len(calls) == kernels and all("[2,2," in outputs for outputs in calls)
    moved = r"\b(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("
    assert not re.search(moved, program)


@pytest.mark.parametrize(
    "queries, keys, head_dim, rows", [(1536, 1536, 128, 4), (128, 3000, 128, 4), (1920, 1920, 64, 512)]
)
def test_what_is_said_to_fit_a_core_does(queries, keys, head_dim, rows):
    pytest.importorskip("libtpu")
    assert (
        fast_memory(queries, keys, head_dim)
        <= FAST_MEMORY
        < min(fast_memory(2048, 2048, 64), fast_memory(1664, 1664, 128))
    )
    config = base.get_config()
    config.mesh.data = 4
    mesh = mesh_over(config, "v4:2x2x1")
    query, key = (array(mesh, rows, tokens, 1, head_dim) for tokens in (queries, keys))
    assert (
        compiled_gradient(mesh, query, key, array(mesh, rows, 1, queries, keys, dtype="bool")).count("tpu_custom_call")
        == 2
    )


def test_only_plain_operations_have_a_forward_mode_derivative_on_a_tpu():
    x, mask = jnp.ones((1, 128, 1, 8), jnp.bfloat16), jnp.ones((1, 1, 128, 128), bool)

    def derivative(fused: bool) -> jax.stages.Traced:
        attend = lambda q: grouped_attention(q, x, x, mask, fused=fused)  # noqa: E731
        return jax.jit(lambda q: jax.jvp(attend, (q,), (q,))[1]).trace(x)

    derivative(False).lower(lowering_platforms=("tpu",))
    with pytest.raises(TypeError, match="custom_vjp"):
        derivative(True).lower(lowering_platforms=("tpu",))
