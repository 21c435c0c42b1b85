"""Where arrays live: the device mesh, and the one table that maps logical axis names to it.

Models name the axes of their parameters (`models/layers.py` lists the names); nothing else in the code mentions
devices. Changing `config.mesh` moves the same run from one CPU to a pod.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Batches are divided over data and fsdp alike; of a parameter, the model width over fsdp, heads and hidden over tensor.
RULES = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("head_channels", ("tensor", "fsdp")),
    ("mlp", "tensor"),
    ("classes", None),
    ("vocabulary", "tensor"),
    ("patch", None),
    ("tokens", None),
    ("layers", None),
)


# What a CPU's compiler is asked to leave out of a program that runs for less time than optimising it takes.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def mesh_shape(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """The sizes of the three mesh axes, with one `-1` replaced by what is left of `num_devices`.

    Raises:
      ValueError: the sizes cannot be laid over that many devices.
    """
    if set(sizes) != set(MESH_AXES):
        raise ValueError(f"mesh has axes {sorted(sizes)}; it needs exactly {list(MESH_AXES)}")
    free = [axis for axis in MESH_AXES if sizes[axis] == -1]
    fixed = max(1, math.prod(size for size in sizes.values() if size != -1))
    if len(free) > 1:
        raise ValueError(f"mesh.{free[0]} and mesh.{free[1]} are both -1; at most one axis can take what is left")
    misfit = num_devices % fixed if free else fixed != num_devices
    if misfit or any(size < 1 for size in sizes.values() if size != -1):
        wanted = " x ".join(f"{axis}={sizes[axis]}" for axis in MESH_AXES)
        fsdp = math.gcd(max(sizes["fsdp"], 1), num_devices)
        tensor = math.gcd(max(sizes["tensor"], 1), num_devices // fsdp)
        nearest = " ".join(f"--config.mesh.{axis}={n}" for axis, n in zip(MESH_AXES, (-1, fsdp, tensor), strict=True))
        raise ValueError(
            f"mesh {wanted} does not lay over {num_devices} devices, whose number the product has to be, with one axis "
            f"of -1 for what is left; {nearest} does"
        )
    return {axis: num_devices // fixed if sizes[axis] == -1 else sizes[axis] for axis in MESH_AXES}


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes `data`, `fsdp`, `tensor` over `devices` (all of them by default).

    Neighbours along an axis are neighbours in the slice. An axis may take part of one of the slice's own: fsdp=8 lies
    over the 4 x 2 of a 4 x 4 x 4.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(mesh_shape(sizes, len(devices)).values())
    laid_out = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Makes `mesh` and `RULES` those that traced code refers to. Entered once, around a whole run."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def num_batch_shards(mesh: Mesh) -> int:
    """Over how many devices a batch is divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def axis_sizes() -> dict[str, int]:
    """The sizes of the axes of the mesh that traced code refers to; without one there are none."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def divided(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """`x`, inside traced code, with each of its axes divided over some of the mesh's, which have to divide its size."""
    if not axis_sizes():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(axis or None for axis in axes)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows divided over the data-parallel devices, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def unbox(tree: Any) -> Any:
    """The tree with the boxes that carry logical axis names opened (without flax's sharding constraint on the way)."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, nn.LogicallyPartitioned) else x,
        tree,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )


def dividing(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """`axes` of the mesh if together they divide a dimension of `size`; else without the last of them, and so on."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """The `NamedSharding` of every leaf of an abstract tree whose parameters carry logical axis names.

    A dimension that its mesh axis does not divide stays whole, and so do leaves without names (counters, keys).

    Raises:
      ValueError: a parameter carries a name that `RULES` does not know.
    """
    rules = dict(RULES)

    def sharding(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        if not jax.tree.leaves(leaf.value):  # of a parameter that is another optimizer's
            return leaf.value
        unknown = [name for name in leaf.names if name is not None and name not in rules]
        if unknown:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has the logical axis {unknown[0]!r}, "
                f"which no sharding rule knows; known: {sorted(rules)}"
            )
        divided = [
            dividing(rules.get(name), size, mesh) for name, size in zip(leaf.names, leaf.value.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*divided))

    return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def place(tree: Any, where: NamedSharding) -> Any:
    """NumPy arrays that every process holds whole, as arrays on the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index]), tree)


def of_first_process(value: int) -> int:
    """The first process's `value`, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def on_every_process(flag: bool) -> bool:
    """Whether `flag` is set on every process."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def to_host(tree: Any) -> Any:
    """The tree as NumPy arrays, whole, on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def jit_for_one_call(function: Callable[..., Any], mesh: Mesh, out_shardings: Any) -> Callable[..., Any]:
    """`jax.jit` for a program that runs once, like that which draws the first weights: compiled in half the time."""
    options = UNOPTIMISED if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(function, out_shardings=out_shardings, compiler_options=options)
