"""Attention of language models and of packs: grouped queries, a mask of pairs, a TPU kernel that skips hidden tiles.

XLA keeps the logits of all pairs in memory, and writes and reads them several times. The kernel keeps a tile of them,
`TILE` queries by as many keys, inside the core, computes no tile of which the mask hides every pair, and computes the
others anew on the way back (FlashAttention; Dao et al., 2022). Inside it tokens lie last, as in `attention`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from rae_jax.models.kernels import LANES, filled, per_device, product, rows_and_heads

TILE = 256  # queries, and keys, of a tile
HIDDEN = -1e30  # the logit of a hidden pair; finite, so that differences of two are numbers
FAST_MEMORY = 15 * 2**20  # bytes, of the 16 MiB that every TPU gives a kernel


def grouped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *, fused: bool = True
) -> jax.Array:
    """Grouped-query attention, softmax in float32; scale `E^-0.5`: `[B, N, K, E]`.

    Args:
      query: `[B, N, K, E]`.
      key, value: `[B, S, G, E]`; head h reads group `h // (K / G)`.
      mask: true where a query may see a key, `[B or 1, 1, N or 1, S]`; without one a query sees the keys up to its own
        place.
      fused: bfloat16 goes through the kernel where the program is compiled for a TPU, for 128 queries or more and as
        many keys as leave room for it (`fast_memory`). A query that sees nothing gets zeros there, and the mean of all
        values elsewhere. The kernel has no forward-mode derivative (`jax.jvp`), and so neither has the function there.
    """
    (batch, tokens), keys = query.shape[:2], key.shape[1]
    fits = tokens >= LANES and fast_memory(tokens, keys, query.shape[-1]) <= FAST_MEMORY
    if not fused or query.dtype != jnp.bfloat16 or not fits:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=mask is None)
    if mask is None:
        mask = jnp.tril(jnp.ones((tokens, keys), bool))
    mask = jnp.broadcast_to(mask, (batch, 1, tokens, keys))
    return jax.lax.platform_dependent(
        query, key, value, mask, tpu=by_kernel, default=lambda q, k, v, m: jax.nn.dot_product_attention(q, k, v, mask=m)
    )


def by_kernel(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """`grouped_attention` by the kernel, each device on its rows and groups of heads; `mask: [B, 1, N, S]`."""
    seen = jnp.swapaxes(mask[:, 0], 1, 2)
    seen = jnp.pad(seen, ((0, 0), *((0, filled(n) - n) for n in seen.shape[1:])))
    out = _attend(*(_tokens_last(x) for x in (query, key, value)), seen.astype(jnp.int8), tiles_seen(seen))
    return jnp.moveaxis(out, -1, 1)[:, : query.shape[1]]


def fast_memory(queries: int, keys: int, head_dim: int) -> int:
    """About how many bytes the way back holds in a core at a time, for a head of a row."""
    queries, keys = filled(queries), filled(keys)
    of_queries = 3 * 2 * head_dim + 2 * 4 * 8  # in, out and back; and two numbers each, which fill eight rows
    of_keys = 2 * (2 + 4) * head_dim
    blocks = queries * of_queries + keys * of_keys + queries * keys
    return 2 * blocks + 4 * head_dim * queries + 8 * 4 * TILE**2  # the next blocks come in meanwhile; some tiles


def _tokens_last(x: jax.Array) -> jax.Array:
    """`[B, N, K, E] -> [B, K, E, N]`, filled up with zeros."""
    x = jnp.moveaxis(x, 1, -1)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, filled(x.shape[-1]) - x.shape[-1])))


def _tiles(tokens: int) -> list[slice]:
    return [slice(start, min(start + TILE, tokens)) for start in range(0, tokens, TILE)]


def tiles_seen(seen: jax.Array) -> jax.Array:
    """Which tiles of `seen: [B, S, N]` have a pair to compute, int32 `[B, tiles of S, tiles of N]`."""
    rows = [[jnp.any(seen[:, j, i], axis=(1, 2)) for i in _tiles(seen.shape[2])] for j in _tiles(seen.shape[1])]
    return jnp.moveaxis(jnp.array(rows), -1, 0).astype(jnp.int32)


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, tiles: jax.Array) -> jax.Array:
    """`[B, K, E, N]`, twice `[B, G, E, S]`, int8 `[B, S, N]` and the tiles of it -> `[B, K, E, N]`."""
    return _forward(query, key, value, seen, tiles)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, tiles: jax.Array) -> Any:
    of_query = jax.ShapeDtypeStruct((*query.shape[:2], 1, query.shape[-1]), jnp.float32)
    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    out, normaliser = _call(
        _forward_kernel, tiles, (query, key, value, seen), (out, of_query), (query.shape[2], 1, 1), 2
    )
    return out, (query, key, value, seen, tiles, out, normaliser)


def _backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    query, key, value, seen, tiles, out, normaliser = residuals
    mean = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=2, keepdims=True)
    dtypes = (query.dtype, jnp.float32, jnp.float32)
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, dtype) for x, dtype in zip((query, key, value), dtypes, strict=True))
    inputs = (query, key, value, seen, normaliser, mean, cotangent)
    d_query, d_key, d_value = _call(_backward_kernel, tiles, inputs, outputs, (query.shape[2],), 5)
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Any,
    tiles: jax.Array,
    inputs: tuple[jax.Array, ...],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    scratch: tuple[int, ...],
    num_products: int,
) -> tuple[jax.Array, ...]:
    """`kernel(tiles, *inputs, *outputs, *scratch)` on each row and head, each device on its own.

    Args:
      scratch: rows of float32 numbers, one a query, that it keeps besides.
    """
    # Of the heads whole groups, and of the mask and its tiles, which are every head's, rows alone.
    divided = rows_and_heads(inputs[0].shape[0], inputs[1].shape[1])
    of = {3: PartitionSpec(divided[0]), 4: divided}
    return per_device(
        functools.partial(_call_here, kernel, scratch, num_products),
        [(x, of[x.ndim]) for x in (tiles, *inputs)],
        [(x, of[x.ndim]) for x in outputs],
    )


def _call_here(
    kernel: Any,
    scratch: tuple[int, ...],
    num_products: int,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    tiles: jax.Array,
    *inputs: jax.Array,
) -> tuple[jax.Array, ...]:
    (batch, heads, head_dim, tokens), (groups, keys) = inputs[0].shape, (inputs[1].shape[i] for i in (1, 3))
    of_group = heads // groups

    def block(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        if x.ndim == 3:
            return pl.BlockSpec((None, *x.shape[1:]), lambda b, g, h, tiles: (b, 0, 0))
        if x.shape[1] == groups and of_group > 1:
            return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, g, h, tiles: (b, g, 0, 0))
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, g, h, tiles: (b, g * of_group + h, 0, 0))

    pairs = batch * heads * tokens * keys
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, groups, of_group),
            in_specs=[block(x) for x in inputs],
            out_specs=tuple(block(x) for x in outputs),
            scratch_shapes=[pltpu.VMEM((rows, tokens), jnp.float32) for rows in scratch],
        ),
        out_shape=outputs,
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * pairs * head_dim,  # of all tiles, as if none were skipped
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name=f"grouped{kernel.__name__}",
    )(tiles.reshape(-1), *inputs)  # one axis: the scalar memory fills the last up to 128


def _logits(query: Any, key: Any, seen: Any, queries: slice, keys: slice) -> jax.Array:
    """Of a tile, `[keys, queries]`."""
    logits = product(key[:, keys], query[:, queries], (0, 0)) * query.shape[0] ** -0.5
    return jnp.where(seen[keys, queries].astype(jnp.int32) != 0, logits, HIDDEN)


def _forward_kernel(
    tiles: Any, query: Any, key: Any, value: Any, seen: Any,
    out: Any, normaliser: Any, attended: Any, largest: Any, total: Any,
) -> None:  # fmt: skip
    """Attention of a head, and the logarithm of each query's sum of exponentials for the way back."""
    row, all_queries, all_keys = pl.program_id(0), _tiles(query.shape[1]), _tiles(key.shape[1])
    attended[...], total[...] = jnp.zeros_like(attended), jnp.zeros_like(total)
    largest[...] = jnp.full_like(largest, HIDDEN)
    for i, queries in enumerate(all_queries):
        for j, keys in enumerate(all_keys):

            @pl.when(tiles[(row * len(all_keys) + j) * len(all_queries) + i] != 0)
            def _(queries: slice = queries, keys: slice = keys) -> None:
                logits = _logits(query, key, seen, queries, keys)
                highest = jnp.maximum(largest[:, queries], jnp.max(logits, axis=0, keepdims=True))
                before, weights = jnp.exp(largest[:, queries] - highest), jnp.exp(logits - highest)
                largest[:, queries] = highest
                total[:, queries] = total[:, queries] * before + jnp.sum(weights, axis=0, keepdims=True)
                of_tile = product(value[:, keys], weights.astype(value.dtype), (1, 0))
                attended[:, queries] = attended[:, queries] * before + of_tile

    sees, sums = largest[...] > HIDDEN / 2, jnp.maximum(total[...], jnp.finfo(jnp.float32).tiny)
    out[...] = jnp.where(sees, attended[...] / sums, 0.0).astype(out.dtype)
    # Of a query that sees nothing zero, so that its weights on the way back are exp(HIDDEN), none.
    normaliser[...] = jnp.where(sees, largest[...] + jnp.log(sums), 0.0)


def _backward_kernel(
    tiles: Any, query: Any, key: Any, value: Any, seen: Any, normaliser: Any, mean: Any, cotangent: Any,
    d_query: Any, d_key: Any, d_value: Any, of_query: Any,
) -> None:  # fmt: skip
    """The gradient of a head's queries, and what it adds to those of its group's keys and values."""
    row, all_queries, all_keys = pl.program_id(0), _tiles(query.shape[1]), _tiles(key.shape[1])
    scale = query.shape[0] ** -0.5

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        d_key[...], d_value[...] = jnp.zeros_like(d_key), jnp.zeros_like(d_value)

    of_query[...] = jnp.zeros_like(of_query)
    for i, queries in enumerate(all_queries):
        for j, keys in enumerate(all_keys):

            @pl.when(tiles[(row * len(all_keys) + j) * len(all_queries) + i] != 0)
            def _(queries: slice = queries, keys: slice = keys) -> None:
                weights = jnp.exp(_logits(query, key, seen, queries, keys) - normaliser[:, queries])
                d_out = cotangent[:, queries]
                d_logits = weights * (product(value[:, keys], d_out, (0, 0)) - mean[:, queries]) * scale
                d_logits, weights = d_logits.astype(query.dtype), weights.astype(query.dtype)
                of_query[:, queries] += product(key[:, keys], d_logits, (1, 0))
                d_key[:, keys] += product(query[:, queries], d_logits, (1, 1))
                d_value[:, keys] += product(d_out, weights, (1, 1))

    d_query[...] = of_query[...].astype(d_query.dtype)
