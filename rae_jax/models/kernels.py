"""What the attention kernels for TPUs share: their unit of length, a product, and a call on each device's own part."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

LANES = 128  # of which a kernel's blocks have multiples


def filled(tokens: int) -> int:
    """The least multiple of `LANES` that holds so many tokens."""
    return -(-tokens // LANES) * LANES


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, accumulated in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def rows_and_heads(rows: int, heads: int) -> PartitionSpec:
    """How the mesh in scope divides so many rows and heads; what does not divide stays whole, as everywhere."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec((), ())
    axes = [(a,) if isinstance(a, str) else a or () for a in nn.logical_to_mesh_axes(("batch", "heads"))]
    shares = [math.prod(mesh.shape[name] for name in axis) for axis in axes]
    return PartitionSpec(
        *(a if n % share == 0 else () for a, n, share in zip(axes, (rows, heads), shares, strict=True))
    )


def per_device(
    call: Callable[..., tuple[jax.Array, ...]],
    inputs: Sequence[tuple[jax.Array, PartitionSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, PartitionSpec]],
) -> tuple[jax.Array, ...]:
    """`call(shapes of the outputs, *inputs)` by each device of the mesh in scope on what it has of all of these."""
    mesh = jax.sharding.get_abstract_mesh()
    (arrays, in_specs), (shapes, out_specs) = (zip(*parts, strict=True) for parts in (inputs, outputs))
    if mesh.empty:
        return call(shapes, *arrays)
    local = tuple(jax.ShapeDtypeStruct(NamedSharding(mesh, spec).shard_shape(x.shape), x.dtype) for x, spec in outputs)
    call = functools.partial(call, local)
    return jax.shard_map(call, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)
