"""Self-attention of all tokens on all, or on those seen: plain operations, a TPU kernel each way, cuDNN's on GPUs.

Queries, keys and values lie as `[B, K, 3, E, N]`, tokens last: a TPU pads the last axis of an array to 128, of which an
E of 64 or 72 would waste half, and the product that makes them writes them like that at no cost.

The kernel keeps a head's logits, 256 KiB for 256 tokens, inside the core. XLA writes and reads them several times: it
is those passes that make attention slow where the products are cheap. The backward pass computes them anew
(FlashAttention; Dao et al., 2022). Tokens are filled up to a multiple of 128 with zeros before the product. Results
and positions keep their length: what a block reads beyond it is undefined, and is masked. Queries and keys are
normalised in the kernel too: outside it, taking them apart and putting them together again would each be a pass over
the whole array.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from rae_jax.models.kernels import LANES, filled, per_device, product, rows_and_heads

Rotary = tuple[jax.Array, jax.Array]
Kernel = Any

# What a kernel holds at a time fits the 16 MiB of fast memory that every TPU gives one: the logits of so many queries
# that there are no more than this, and so many heads that their queries have no more than that many numbers.
MOST_LOGITS = 2**18
MOST_CHANNELS = 2**17
LONGEST = 1024
EPSILON = {"rms": 1e-6, "layer": 1e-5}  # of the norms of queries and keys


def rotate(x: jax.Array, rotary: Rotary, inverse: bool = False) -> jax.Array:
    """Rotary position embedding of `x: [..., E, N]` by `rotary = (cos, sin)`, each `[E / 2, N]`; float32.

    Channel i turns with channel i + E/2, which keeps both halves contiguous in memory. The published weights pair
    channels 2i and 2i + 1 instead; `interop` permutes the rows of query and key, which makes the two the same map.
    The inverse turns back, and is the transpose.
    """
    cos, sin = rotary
    sin = -sin if inverse else sin
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-2)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-2)


def normed(x: jax.Array, scale: jax.Array, shift: jax.Array | None = None) -> jax.Array:
    """Each token's channels over their root mean square, times the scale: `[.., E, N]` and `[E]`; float32.

    With a shift, `[E]`, it is layer norm instead.
    """
    if shift is None:
        return x * _over_size(x) * scale[:, None]
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-2, keepdims=True)
    return x * _over_size(x, EPSILON["layer"]) * scale[:, None] + shift[:, None]


def _over_size(x: jax.Array, epsilon: float = EPSILON["rms"]) -> jax.Array:
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-2, keepdims=True) + epsilon)


def attend(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    rotary: Rotary | None = None,
    visible: jax.Array | None = None,
    scales: jax.Array | None = None,
    shifts: jax.Array | None = None,
    *,
    num_heads: int,
    fused: bool,
) -> jax.Array:
    """Softmax attention of every token on all, in float32 whatever the dtype: `[B, N, D] -> [B, K, E, N]`.

    Args:
      x: `[B, N, D]`; kernel and bias have its dtype.
      kernel: `[K * 3 * E, D]`, makes each head's queries, keys and values.
      bias: of these, `[K, 3, E]`.
      rotary: turns queries and keys by their positions; `(cos, sin)`, each `[N, E / 2]`.
      visible: `[B, N]` booleans, which tokens are attended to, or `[B, N, N]`, by which; all by all by default.
      scales: `[2, E]`, of the RMS norms that queries and keys go through first; None: through none.
      shifts: `[2, E]`, beside scales; with them the norms are layer norms.
      num_heads: K.
      fused: bfloat16, if all are visible and nothing has a shift, goes through a kernel where the program is compiled
        for a TPU and N is 128 to 1024, and through cuDNN's where it is compiled for GPUs that have it. Neither has a
        forward-mode derivative (`jax.jvp`), and so neither has the function there.
    """
    rotary = None if rotary is None else (rotary[0].T, rotary[1].T)
    tokens, head_dim = x.shape[1], kernel.shape[0] // (3 * num_heads)

    def plainly(x: Any, kernel: Any, bias: Any, *told: Any, **how: Any) -> jax.Array:
        return plain_attention(to_heads(x, kernel, bias, num_heads), *told, **how)

    def by_kernel(x: Any, kernel: Any, bias: Any, *told: Any) -> jax.Array:
        # Filled up before the product, which then writes whole tiles. Of other lengths the compiler makes two passes
        # more, each way. The bias is in the sums of the way back.
        x = jnp.pad(x, ((0, 0), (0, filled(tokens) - tokens), (0, 0)))
        constant = None if bias is None else jax.lax.stop_gradient(bias)
        return fused_attention(to_heads(x, kernel, constant, num_heads), *told, bias, tokens)

    ways = {}
    if fused and visible is None and shifts is None and x.dtype == jnp.bfloat16:
        if LANES <= tokens <= LONGEST:
            ways["tpu"] = by_kernel
        if cudnn_attends(head_dim, tokens):
            ways["cuda"] = functools.partial(plainly, implementation="cudnn")
    if ways:
        return jax.lax.platform_dependent(x, kernel, bias, rotary, scales, **ways, default=plainly)
    return plainly(x, kernel, bias, rotary, scales, shifts, visible)


def to_heads(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, num_heads: int) -> jax.Array:
    """Queries, keys and values, `[B, N, D] -> [B, K, 3, E, N]`; kernel and bias as in `attend`."""
    y = jnp.einsum("bnd,fd->bfn", x, kernel)
    if bias is not None:
        y = y + bias.reshape(-1, 1)
    return rearrange(y, "b (k three e) n -> b k three e n", k=num_heads, three=3)


def cudnn_attends(head_dim: int, tokens: int) -> bool:
    """Whether every GPU of this process has cuDNN's attention, from Ampere on, for an even number of such tokens."""
    gpus = [device for device in jax.local_devices() if device.platform == "gpu"]
    capable = all(re.fullmatch(r"([89]|\d\d+)\.\d+", str(getattr(gpu, "compute_capability", ""))) for gpu in gpus)
    return bool(gpus) and capable and head_dim % 8 == 0 and head_dim <= 128 and tokens % 2 == 0


def plain_attention(
    qkv: jax.Array,
    rotary: Rotary | None,
    scales: jax.Array | None = None,
    shifts: jax.Array | None = None,
    visible: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """`attend` on `qkv: [B, K, 3, E, N]` by `jax.nn.dot_product_attention`; `rotary` is `[E / 2, N]` twice."""
    query, key, value = (qkv[:, :, i] for i in range(3))
    if scales is not None:
        each = (query, key), scales, (None, None) if shifts is None else shifts
        query, key = (normed(*parts).astype(qkv.dtype) for parts in zip(*each, strict=True))
    if rotary is not None:
        query, key = (rotate(x, rotary).astype(qkv.dtype) for x in (query, key))
    query, key, value = (jnp.moveaxis(x, -1, 1) for x in (query, key, value))  # [B, N, K, E]
    mask = visible if visible is None else visible[:, None] if visible.ndim == 3 else visible[:, None, None]
    attended = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
    return jnp.moveaxis(attended, 1, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused_attention(
    qkv: jax.Array,
    rotary: Rotary | None,
    scales: jax.Array | None = None,
    bias: jax.Array | None = None,
    tokens: int | None = None,
) -> jax.Array:
    """`attend` on `qkv: [B, K, 3, E, N]` by the kernel: whole images and heads, those that each device of the mesh has.

    The `bias` is in `qkv` already, and is given for its gradient alone. Of more than `tokens` the others are left out.
    """
    return _forward(qkv, rotary, scales, bias, tokens)[0]


def _forward(
    qkv: jax.Array, rotary: Rotary | None, scales: jax.Array | None, bias: jax.Array | None, tokens: int | None
) -> tuple[jax.Array, Any]:
    batch, heads, _, head_dim, whole = qkv.shape
    tokens = tokens or whole
    out = jax.ShapeDtypeStruct((batch, heads, head_dim, tokens), qkv.dtype)
    normaliser = jax.ShapeDtypeStruct((batch, heads, 1, tokens), jnp.float32)
    out, normaliser = _call(_forward_kernel, tokens, rotary, scales, (qkv,), (out, normaliser), num_products=2)
    return out, (qkv, rotary, scales, bias, out, normaliser)


def _backward(
    tokens: int | None, residuals: Any, cotangent: jax.Array
) -> tuple[jax.Array, None, jax.Array | None, jax.Array | None]:
    qkv, rotary, scales, bias, out, normaliser = residuals
    of_qkv = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    sums = [jax.ShapeDtypeStruct(qkv.shape[:-1], jnp.float32)]  # of each image's and head's tokens
    if scales is not None:
        sums.append(jax.ShapeDtypeStruct((*qkv.shape[:2], *scales.shape), jnp.float32))
    gradient, *sums = _call(
        _backward_kernel, out.shape[-1], rotary, scales, (qkv, out, normaliser, cotangent), (of_qkv, *sums),
        num_products=5, num_sums=len(sums),
    )  # fmt: skip
    of_bias = None if bias is None else jnp.sum(sums[0], axis=0).astype(bias.dtype)
    of_scales = None if scales is None else jnp.sum(sums[1], axis=(0, 1)).astype(scales.dtype)
    return gradient, None, of_scales, of_bias  # the positions are constants


fused_attention.defvjp(_forward, _backward)


def _call(
    kernel: Kernel,
    tokens: int,
    rotary: Rotary | None,
    scales: jax.Array | None,
    inputs: tuple[jax.Array, ...],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    num_products: int,
    num_sums: int = 0,
) -> tuple[jax.Array, ...]:
    """`kernel(tokens, rotary, scales, *inputs, *outputs)` on each image and group of heads, each device on its own.

    The last `num_sums` outputs have no tokens.
    """
    tables, structure = jax.tree.flatten((rotary, None if scales is None else scales[..., None]))
    divided = rows_and_heads(*outputs[0].shape[:2])
    return per_device(
        functools.partial(_call_here, kernel, tokens, structure, num_products, num_sums),
        [*((table, PartitionSpec()) for table in tables), *((x, divided) for x in inputs)],
        [(x, divided) for x in outputs],
    )


def _call_here(
    kernel: Kernel,
    tokens: int,
    structure: jax.tree_util.PyTreeDef,
    num_products: int,
    num_sums: int,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    *arguments: jax.Array,
) -> tuple[jax.Array, ...]:
    num_tables, num_with_tokens = structure.num_leaves, len(outputs) - num_sums
    (batch, heads), head_dim, whole = outputs[0].shape[:2], outputs[0].shape[-2], filled(tokens)
    group = next(n for n in (4, 2, 1) if heads % n == 0 and (n * head_dim * whole <= MOST_CHANNELS or n == 1))

    def over_refs(*refs: Any) -> None:
        rotary, scales = jax.tree.unflatten(structure, [ref[...] for ref in refs[:num_tables]])
        kernel(tokens, rotary, scales, *refs[num_tables:])

    def table(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((x.shape[0], whole) if x.ndim == 2 else x.shape, lambda b, h: (0,) * x.ndim)

    def block(x: jax.Array | jax.ShapeDtypeStruct, last: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, group, *x.shape[2:-1], last), lambda b, h: (b, h, *(0,) * (x.ndim - 2)))

    logits = batch * heads * whole**2
    return pl.pallas_call(
        over_refs,
        grid=(batch, heads // group),
        in_specs=[*map(table, arguments[:num_tables]), *(block(x, whole) for x in arguments[num_tables:])],
        out_specs=tuple(block(x, whole if i < num_with_tokens else x.shape[-1]) for i, x in enumerate(outputs)),
        out_shape=outputs,
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * logits * head_dim,
            transcendentals=logits,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arguments, *outputs)),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name=kernel.__name__.strip("_"),
    )(*arguments)


def _parts(
    qkv: Any, rotary: Rotary | None, scales: jax.Array | None, head: int, tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, with the logits' factor 1 / sqrt(E) in it, key and value of one head, each `[E, N]`."""
    query, key, value = (qkv[head, i] for i in range(3))
    if scales is not None:
        query, key = (normed(x, scale[:, 0]) for x, scale in zip((query, key), scales, strict=True))
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    query = query.astype(jnp.float32) * query.shape[0] ** -0.5
    return tuple(_within(x.astype(value.dtype), tokens) for x in (query, key, value))


def _through_norm(x: jax.Array, scale: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of x, `[E, N]`, and of the scale, `[E]`, from that of `normed(x, scale)`."""
    over_size = _over_size(x)
    unscaled = x * over_size
    of_scale = jnp.sum(gradient * unscaled, axis=1)
    gradient = gradient * scale[:, None]
    return over_size * (gradient - unscaled * jnp.mean(gradient * unscaled, axis=0, keepdims=True)), of_scale


def _within(x: jax.Array, tokens: int, axis: int = 1, start: int = 0, other: float = 0.0) -> jax.Array:
    """`x`, `[.., ..]` from the token `start` on along an axis, with `other` in the place of what is beyond the last."""
    if start + x.shape[axis] <= tokens:
        return x
    shape = [1, 1]
    shape[axis] = x.shape[axis]
    there = start + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < tokens
    return jnp.where(there, x, jnp.asarray(other, x.dtype))


def _tiles(tokens: int) -> list[slice]:
    size = min(tokens, MOST_LOGITS // tokens // LANES * LANES)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _forward_kernel(
    tokens: int, rotary: Rotary | None, scales: jax.Array | None, qkv: Any, out: Any, normaliser: Any
) -> None:
    """Attention of a group of heads, and the logarithm of each query's sum of exponentials for the way back."""
    for head in range(out.shape[0]):
        query, key, value = _parts(qkv, rotary, scales, head, tokens)
        for tile in _tiles(query.shape[1]):
            logits = product(key, query[:, tile], (0, 0))  # [N keys, queries]
            logits = _within(logits, tokens, axis=0, other=-jnp.inf)
            largest = jnp.max(logits, axis=0, keepdims=True)
            weights = jnp.exp(logits - largest)
            total = jnp.sum(weights, axis=0, keepdims=True)
            out[head, :, tile] = (product(value, weights.astype(value.dtype), (1, 0)) / total).astype(out.dtype)
            normaliser[head, :, tile] = largest + jnp.log(total)


def _backward_kernel(
    tokens: int,
    rotary: Rotary | None,
    scales: jax.Array | None,
    qkv: Any,
    out: Any,
    normaliser: Any,
    cotangent: Any,
    gradient: Any,
    of_bias: Any,
    *of_scales: Any,
) -> None:
    """The gradients of a group of heads' queries, keys and values, their bias, and the scales of their norms if any."""
    for head in range(out.shape[0]):
        query, key, value = _parts(qkv, rotary, scales, head, tokens)
        d_query, d_key, d_value = [], 0.0, 0.0
        for tile in _tiles(query.shape[1]):
            attended, d_out, of_sums = (
                _within(x[head, :, tile], tokens, start=tile.start) for x in (out, cotangent, normaliser)
            )
            weights = jnp.exp(product(key, query[:, tile], (0, 0)) - of_sums)  # [N keys, queries]
            weights = _within(weights, tokens, axis=0)
            mean = jnp.sum(attended.astype(jnp.float32) * d_out.astype(jnp.float32), axis=0, keepdims=True)
            d_logits = (weights * (product(value, d_out, (0, 0)) - mean)).astype(value.dtype)
            d_query.append(product(key, d_logits, (1, 0)))
            d_key += product(query[:, tile], d_logits, (1, 1))
            d_value += product(d_out, weights.astype(value.dtype), (1, 1))
        d_query = jnp.concatenate(d_query, axis=1) * query.shape[0] ** -0.5
        if rotary is not None:
            d_query, d_key = rotate(d_query, rotary, inverse=True), rotate(d_key, rotary, inverse=True)
        gradients = [_within(part, tokens) for part in (d_query, d_key, d_value)]
        if scales is not None:
            for i, scale in enumerate(scales):
                x = _within(qkv[head, i], tokens)
                gradients[i], of_scales[0][head, i] = _through_norm(x, scale[:, 0], gradients[i])
        for i, part in enumerate(gradients):
            gradient[head, i] = part.astype(gradient.dtype)
            of_bias[head, i] = jnp.sum(part, axis=1)
