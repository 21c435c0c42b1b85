"""The transformer pieces that every model is made of: projections, norms, attention, feed-forward, stacks of blocks.

Parameters are float32 and carry logical axis names, which `training/sharding.py` maps to the device mesh:

    embed     the model width D, as the side of a matrix
    heads     attention heads K
    head_channels  the channels K * E of all heads, or their queries, keys and values K * 3 * E, as the side of a matrix
    mlp       hidden width of a feed-forward layer, and the stacked outputs of adaLN
    classes   rows of the label table
    vocabulary  rows of a language model's table, and its logits
    patch     flattened pixels or latent channels of one patch
    tokens    positions of a learned table
    layers    the stacked axis of a scanned stack
    None      never divided (vectors: biases, norms, layer scales)

`dtype` is the dtype of matrix products; norm statistics and the softmax are float32 whatever it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from rae_jax.models.attention import Rotary, attend

Initializer = Callable[..., Any]

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def named(init: Initializer, *axes: str | None) -> Initializer:
    """`init` whose parameter carries the logical `axes`, one name a dimension."""
    return nn.with_logical_partitioning(init, axes)


class Start(NamedTuple):
    """How a linear layer starts.

    Attributes:
      kernel: initializer of its matrix `[in, out]`.
      bias: number of its inputs -> initializer of its bias.
    """

    kernel: Initializer
    bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros


def _pytorch_bias(fan_in: int) -> Initializer:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# Uniform within 1 / sqrt(in) of zero, weight and bias: what PyTorch gives a linear layer.
PYTORCH = Start(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _pytorch_bias)
XAVIER = Start(nn.initializers.xavier_uniform())
TRUNC_NORMAL = Start(nn.initializers.truncated_normal(0.02))
ZEROS = Start(nn.initializers.zeros)


class Dense(nn.Module):
    """Linear layer `[..., in] -> [..., features]`; `axes` names the kernel's two sides.

    With `collect` the kernel is `collected`; for a few rows it moves less to leave it divided and bring the rows to it.
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: Any
    start: Start = XAVIER
    use_bias: bool = True
    collect: bool = True
    precision: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = self.param("kernel", named(self.start.kernel, *self.axes), (fan_in, self.features))
        bias = self.param("bias", named(self.start.bias(fan_in), None), (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = product(x, collected(kernel, self.axes) if self.collect else kernel, self.precision)
        return y if bias is None else y + bias


def product(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """`x @ kernel`, `[..., in] -> [..., out]`; on GPUs, bfloat16 of odd widths is filled up with zeros for it.

    They read matrices in pieces of 16 bytes. A product with a side that is no multiple of that, like the 5,461 of
    DiT^DH's head, takes three times as long (docs/performance.md).
    """
    plain = functools.partial(jnp.matmul, precision=precision)
    missing = [-side % 128 if side > 128 and side % 8 else 0 for side in kernel.shape]
    if x.dtype != jnp.bfloat16 or not any(missing):
        return plain(x, kernel)

    def filled_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing[0])])
        return plain(x, jnp.pad(kernel, [(0, n) for n in missing]))[..., : kernel.shape[1]]

    return jax.lax.platform_dependent(x, kernel, cuda=filled_up, default=plain)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def collected(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A kernel whole where `fsdp` divides it, for the product that it is about to be in.

    Said here, it is collected in the dtype of the product, and once: the backward pass has the same copy. Nothing is
    said of its gradient, which may so be summed and divided in one go.
    """
    undivided = {"embed": None, "head_channels": "heads"}
    return nn.with_logical_constraint(kernel, tuple(undivided.get(axis, axis) for axis in axes))


@collected.defjvp
def _(
    axes: tuple[str | None, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return collected(*primals, axes), tangents[0]


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


def drawn_as_matrix(init: Initializer) -> Initializer:
    """`init` for a kernel `[out, in]`, which it draws as the matrix `[in, out]`."""
    return lambda key, shape, dtype=jnp.float32: init(key, shape[::-1], dtype).T


def drawn_apart(init: Initializer, parts: int) -> Initializer:
    """`init` for a matrix `[in, out]`, each of `parts` equal groups of its columns drawn as a matrix of its own."""

    def draw(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        part = (shape[0], shape[1] // parts)
        return jnp.concatenate([init(k, part, dtype) for k in jax.random.split(key, parts)], axis=1)

    return draw


class ToHeads(nn.Module):
    """What makes the queries, keys and values of K heads of the tokens `x: [B, N, D]`: kernel and bias for `attend`.

    `kernel: [K * 3 * E, D]`, as PyTorch has its matrices, and as a TPU computes this product without laying out
    anything anew. `bias: [K, 3, E]`; without `key_bias` `[K, 2, E]`, of queries and values.
    """

    num_heads: int
    bias: bool
    key_bias: bool
    start: Start
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        axes = ("head_channels", None)
        init = named(drawn_as_matrix(self.start.kernel), *axes)
        kernel = collected(self.param("kernel", init, (3 * width, width)).astype(self.dtype), axes)
        if not self.bias:
            return kernel, None
        shape = (self.num_heads, 2 + self.key_bias, width // self.num_heads)
        init = named(self.start.bias(width), "heads", None, None)
        bias = self.param("bias", init, shape).astype(self.dtype)
        return kernel, bias if self.key_bias else jnp.insert(bias, 1, 0, axis=1)


class NormOfHeads(nn.Module):
    """What the norm of each head's queries, or keys, has learned, for `attend`: scales, and of layer norm shifts.

    Attributes:
      kind: "rms" or "layer".
    """

    kind: Literal["rms", "layer"]

    @nn.compact
    def __call__(self, size: int) -> dict[str, jax.Array]:
        learned = {"scales": self.param("scale", named(nn.initializers.ones, None), (size,))}
        if self.kind == "layer":
            learned["shifts"] = self.param("bias", named(nn.initializers.zeros, None), (size,))
        return learned


class FromHeads(nn.Module):
    """Linear layer out of attention heads, `[B, K, E, N] -> [B, N, D]`, with a bias; `kernel: [K * E, D]`."""

    start: Start
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_heads, head_dim = x.shape[1:3]
        width = num_heads * head_dim
        axes = ("head_channels", None)
        kernel = collected(
            self.param("kernel", named(self.start.kernel, *axes), (width, width)).astype(self.dtype), axes
        )
        bias = self.param("bias", named(self.start.bias(width), None), (width,))
        kernel = kernel.reshape(num_heads, head_dim, width)
        return jnp.einsum("bken,ked->bnd", x.astype(self.dtype), kernel) + bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, with optional query-key norm before the optional rotary embedding.

    `x: [B, N, D] -> [B, N, D]`; `rotary` and `visible` as in `attention.attend`. Parameters: `qkv`, a `ToHeads`, and
    `out`, a `FromHeads`.

    Attributes:
      qkv_bias, key_bias: whether queries, keys and values have a bias, and keys too.
      qk_norm: the norm of each head's queries and keys, "rms" or "layer"; None: they have none.
      start: of the layer out of the heads, and of queries, keys and values as three layers.
      qkv_start: of these as one layer instead.
      fused: as in `attention.attend`.
    """

    num_heads: int
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: Literal["rms", "layer"] | None = None
    start: Start = XAVIER
    qkv_start: Start | None = None
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rotary: Rotary | None = None, visible: jax.Array | None = None) -> jax.Array:
        start = self.qkv_start or self.start._replace(kernel=drawn_apart(self.start.kernel, 3))
        width = x.shape[-1]
        kernel, bias = ToHeads(self.num_heads, self.qkv_bias, self.key_bias, start, self.dtype, name="qkv")(width)
        norms = {}
        if self.qk_norm:
            parts = [
                NormOfHeads(self.qk_norm, name=f"{name}_norm")(width // self.num_heads) for name in ("query", "key")
            ]
            norms = {name: jnp.stack([part[name] for part in parts]) for name in parts[0]}
        x = x.astype(self.dtype)
        x = attend(x, kernel, bias, rotary, visible, **norms, num_heads=self.num_heads, fused=self.fused)
        return FromHeads(self.start, self.dtype, name="out")(x)


class MLP(nn.Module):
    """Two-layer feed-forward `[..., D] -> hidden -> [..., D]`."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    start: Start = XAVIER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = Dense(self.hidden, ("embed", "mlp"), start=self.start, dtype=self.dtype, name="up")(x)
        down = Dense(x.shape[-1], ("mlp", "embed"), start=self.start, dtype=self.dtype, name="down")
        return down(self.activation(up))


class SwiGLU(nn.Module):
    """Gated feed-forward `down(silu(gate(x)) * up(x))`, all three with a bias or none."""

    hidden: int
    start: Start = XAVIER
    gate_up_start: Start | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = functools.partial(Dense, dtype=self.dtype, use_bias=self.use_bias)
        first = self.gate_up_start or self.start
        gate = linear(self.hidden, ("embed", "mlp"), start=first, name="gate")(x)
        up = linear(self.hidden, ("embed", "mlp"), start=first, name="up")(x)
        down = linear(x.shape[-1], ("mlp", "embed"), start=self.start, name="down")
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
    kept: Sequence[int] | None = None,
    each: Sequence[Any] = (),
    name: str = "blocks",
    scan: bool = False,
    remat: str = "none",
    **block_arguments: Any,
) -> Any:
    """`x` through `depth` blocks, each `block(x, *args) -> x`, inside the calling compact module.

    Of `each` of more arguments, trees of arrays `[depth, ...]`, a block has its own part, before `args`. With `kept`,
    numbers of blocks, returns `(x, [x after so many blocks for each of them])`.

    Unrolled, the blocks are named `blocks_0`, `blocks_1`, ...; scanned, one block's parameters are stacked along a
    leading `layers` axis under `blocks`, which compiles in a fraction of the time. `remat` is `none`, `full` (keep
    only each block's input for the backward pass) or `dots` (keep the matrix products too).

    Raises:
      ValueError: unknown `remat`, or fewer blocks than are `kept`.
    """
    if any(not 0 <= count <= depth for count in kept or ()):
        raise ValueError(f"x is wanted after {list(kept)} of the {depth} blocks of {name!r}")
    if remat != "none":
        if remat not in REMAT_POLICIES:
            raise ValueError(f"remat={remat!r} is not one of {['none', *REMAT_POLICIES]}")
        block_class = nn.remat(block_class, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if not scan:
        states = [x]
        for i in range(depth):
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], tuple(each))
            x = block_class(**block_arguments, name=f"{name}_{i}")(x, *mine, *args)
            states.append(x)
        return x if kept is None else (x, [states[count] for count in kept])

    def step(block: nn.Module, carry: Any, *inner: Any) -> tuple[Any, None]:
        x, count, copies = carry
        x, count = block(x, *inner), count + 1
        copies = [jnp.where(count == wanted, x, copy) for wanted, copy in zip(kept or (), copies, strict=True)]
        return (x, count, copies), None

    scanned = nn.scan(
        step,
        variable_axes={"params": 0, "intermediates": 0, "cache": 0},
        split_rngs={"params": True},
        in_axes=(*(0 for _ in each), *(nn.broadcast for _ in args)),
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    (x, _, copies), _ = scanned(
        block_class(**block_arguments, name=name), (x, 0, [x for _ in kept or ()]), *each, *args
    )
    return x if kept is None else (x, copies)
