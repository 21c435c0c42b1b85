"""The transformer pieces that every model is made of: projections, norms, attention, feed-forward, stacks of blocks.

Parameters are float32 and carry logical axis names, which `training/sharding.py` maps to the device mesh:

    embed     the model width D, as the side of a matrix
    heads     attention heads K
    head_dim  width E of one head
    mlp       hidden width of a feed-forward layer, and the stacked outputs of adaLN
    classes   rows of the label table
    patch     flattened pixels or latent channels of one patch
    tokens    positions of a learned table
    layers    the stacked axis of a scanned stack
    None      never divided (vectors: biases, norms, layer scales)

`dtype` is the dtype of matrix products; norm statistics and the softmax are float32 whatever it is.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., Any]

xavier_uniform = nn.initializers.xavier_uniform()
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def named(init: Initializer, *axes: str | None) -> Initializer:
    """`init` whose parameter carries the logical `axes`, one name a dimension."""
    return nn.with_logical_partitioning(init, axes)


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    *,
    dtype: Any,
    name: str,
    init: Initializer = xavier_uniform,
    bias_init: Initializer = nn.initializers.zeros,
    use_bias: bool = True,
) -> nn.Dense:
    """Linear layer `[..., in] -> [..., features]`; `axes` names the kernel's two sides."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=named(init, *axes),
        bias_init=named(bias_init, None),
        name=name,
    )


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale; statistics in float32."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", named(nn.initializers.ones, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with scale and bias unless `affine=False`; statistics in float32."""

    epsilon: float = 1e-6
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        if self.affine:
            scale = self.param("scale", named(nn.initializers.ones, None), (x.shape[-1],))
            bias = self.param("bias", named(nn.initializers.zeros, None), (x.shape[-1],))
            y = y * scale + bias
        return y.astype(self.dtype)


def rotate(x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding of `x: [B, N, K, E]` by `rotary = (cos, sin)`, each `[N, E / 2]`.

    Channel i turns with channel i + E/2, which keeps both halves contiguous in memory. The published weights pair
    channels 2i and 2i + 1 instead; `interop` permutes the columns of query and key, which makes the two the same map.
    """
    cos, sin = (table[:, None, :] for table in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def drawn_flat(init: Initializer, rows: int) -> Initializer:
    """`init` for a kernel of more than two axes, drawn as the matrix `[rows, columns]` that it stands for."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return init(key, (rows, math.prod(shape) // rows), dtype).reshape(shape)

    return draw


class ToHeads(nn.Module):
    """Linear layer into attention heads, `[B, N, D] -> [B, N, K, E]`."""

    num_heads: int
    head_dim: int
    use_bias: bool
    kernel_init: Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        init = named(drawn_flat(self.kernel_init, width), "embed", "heads", "head_dim")
        kernel = self.param("kernel", init, (width, self.num_heads, self.head_dim))
        y = jnp.einsum("bnd,dke->bnke", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            init = named(nn.initializers.zeros, "heads", "head_dim")
            y = y + self.param("bias", init, (self.num_heads, self.head_dim)).astype(self.dtype)
        return y


class FromHeads(nn.Module):
    """Linear layer out of attention heads, `[B, N, K, E] -> [B, N, D]`, with a bias."""

    width: int
    kernel_init: Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_heads, head_dim = x.shape[-2:]
        init = named(drawn_flat(self.kernel_init, num_heads * head_dim), "heads", "head_dim", "embed")
        kernel = self.param("kernel", init, (num_heads, head_dim, self.width))
        bias = self.param("bias", named(nn.initializers.zeros, None), (self.width,))
        y = jnp.einsum("bnke,ked->bnd", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, with optional query-key norm before the optional rotary embedding.

    `x: [B, N, D] -> [B, N, D]`. Parameters: `query`, `key`, `value` with kernel `[D, K, E]`, `out` with `[K, E, D]`.
    With `key_bias=False` only query and value have the bias that `qkv_bias` gives.
    """

    num_heads: int
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: Callable[..., nn.Module] | None = None
    kernel_init: Initializer = xavier_uniform
    qkv_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rotary: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        width = x.shape[-1]
        head_dim = width // self.num_heads

        def project(name: str, use_bias: bool) -> jax.Array:
            init = self.qkv_init or self.kernel_init
            return ToHeads(self.num_heads, head_dim, use_bias, init, dtype=self.dtype, name=name)(x)

        query = project("query", self.qkv_bias)
        key = project("key", self.qkv_bias and self.key_bias)
        value = project("value", self.qkv_bias)
        if self.qk_norm is not None:
            query = self.qk_norm(dtype=self.dtype, name="query_norm")(query)
            key = self.qk_norm(dtype=self.dtype, name="key_norm")(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        out = jax.nn.dot_product_attention(query, key, value)
        return FromHeads(width, self.kernel_init, dtype=self.dtype, name="out")(out)


class MLP(nn.Module):
    """Two-layer feed-forward `[..., D] -> hidden -> [..., D]`."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    kernel_init: Initializer = xavier_uniform
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = dense(self.hidden, ("embed", "mlp"), init=self.kernel_init, dtype=self.dtype, name="up")(x)
        down = dense(x.shape[-1], ("mlp", "embed"), init=self.kernel_init, dtype=self.dtype, name="down")
        return down(self.activation(up))


class SwiGLU(nn.Module):
    """Gated feed-forward `down(silu(gate(x)) * up(x))`, all three with a bias."""

    hidden: int
    kernel_init: Initializer = xavier_uniform
    gate_up_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = self.gate_up_init or self.kernel_init
        gate = dense(self.hidden, ("embed", "mlp"), init=first, dtype=self.dtype, name="gate")(x)
        up = dense(self.hidden, ("embed", "mlp"), init=first, dtype=self.dtype, name="up")(x)
        down = dense(x.shape[-1], ("mlp", "embed"), init=self.kernel_init, dtype=self.dtype, name="down")
        return down(nn.silu(gate) * up)


def gelu_exact(x: jax.Array) -> jax.Array:
    """GELU by the error function, as Vision Transformers have it."""
    return nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation."""
    return nn.gelu(x, approximate=True)


def divided_by_batch(x: jax.Array) -> jax.Array:
    """`x: [B, ...]` with its rows over the devices, as the batch came, and the rest whole.

    Every residual stream says so: the model width of the weights is divided over some of the same devices, and the
    compiler would as soon divide the activations like that and give each device the rows of many.
    """
    return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))


def apply_blocks(
    block_class: Callable[..., nn.Module],
    x: jax.Array,
    *args: Any,
    depth: int,
    name: str = "blocks",
    scan: bool = False,
    remat: str = "none",
    **block_arguments: Any,
) -> jax.Array:
    """`x` through `depth` blocks, each `block(x, *args) -> x`, inside the calling compact module.

    Unrolled, the blocks are named `blocks_0`, `blocks_1`, ...; scanned, one block's parameters are stacked along a
    leading `layers` axis under `blocks`, which compiles in a fraction of the time. `remat` is `none`, `full` (keep
    only each block's input for the backward pass) or `dots` (keep the matrix products too).
    """
    if remat != "none":
        if remat not in REMAT_POLICIES:
            raise ValueError(f"remat={remat!r} is not one of {['none', *REMAT_POLICIES]}")
        block_class = nn.remat(block_class, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if not scan:
        for i in range(depth):
            x = block_class(**block_arguments, name=f"{name}_{i}")(x, *args)
        return x
    scanned = nn.scan(
        lambda block, carry, *inner: (block(carry, *inner), None),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(block_class(**block_arguments, name=name), x, *args)[0]
