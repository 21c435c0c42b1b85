"""Muon: matrices move along their orthogonalised momentum, all else by AdamW (Jordan et al., 2024; RAEv2 trains so).

For a matrix with the gradient g

    M <- momentum M + g,   U = g + momentum M,   p <- (1 - lr decay) p - lr 0.2 sqrt(max(rows, columns)) O(U)

where O brings all singular values near one by five Newton-Schulz steps `X <- a X + (b A + c A^2) X`, A = X X^T, from
`U / |U|`. `optax.contrib.muon` averages the gradients and corrects the average's bias, which is another momentum in the
first steps, so it does not make the released ones.

Matrices are those of the official files, whatever our layout: queries, keys and values are three, the modulations of a
layer are one, and a scanned stack is a batch. Rows and columns may be exchanged or permuted, which O commutes with.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from rae_jax.training.sharding import axis_sizes, divided, unbox

Coefficients = tuple[tuple[float, float, float], ...]
# (a, b, c) of each step. Polar Express (Amsel et al., 2025) by the safety that RAEv2 divides them by, and You's.
SAFETY = 1.05
COEFFICIENTS: dict[str, Coefficients] = {
    "polar_express": tuple(
        (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
        for a, b, c in (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115952949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        )
    ),
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
# How products are computed: in float32; in float32 by three bfloat16 passes on a TPU, at half the cost; or in the half
# precisions of the released code, which are another one percent of a step away.
PRODUCTS = {"float32": "highest", "bfloat16_3x": "high", "released": "default"}
UPDATE_SCALE = 0.2


class MuonState(NamedTuple):
    """Steps made, the momentum of the parameters that are matrices, by path, and AdamW's state of the others."""

    count: jax.Array
    momentum: dict[str, jax.Array]
    others: Any


def muon(
    learning_rate: Callable[[jax.Array], jax.Array],
    others: optax.GradientTransformation,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    coefficients: str,
    products: str,
) -> optax.GradientTransformation:
    """Muon for the matrices in a nested dict of parameters, and `others` for what is none, each with its own rate.

    Args:
      learning_rate: of a step.
      momentum: of the sum of gradients.
      nesterov: whether the last gradient counts once more, as above; else U = M.
      weight_decay: of all matrices.
      coefficients, products: names in `COEFFICIENTS` and `PRODUCTS`.

    Raises:
      ValueError: there are none of these names.
    """
    for what, name, known in (("coefficients", coefficients, COEFFICIENTS), ("products", products, PRODUCTS)):
        if name not in known:
            raise ValueError(f"Muon's {what} {name!r} are not one of {list(known)}")

    def parted(tree: Any) -> tuple[dict[str, Any], Any]:
        flat = flatten_dict(tree, sep="/")
        matrices = {path: leaf for path, leaf in flat.items() if is_matrix(path, getattr(unbox(leaf), "ndim", 0))}
        rest = {path: leaf for path, leaf in flat.items() if path not in matrices}
        return matrices, unflatten_dict(rest, sep="/")

    def init(params: Any) -> MuonState:
        matrices, rest = parted(params)
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, matrices), others.init(rest))

    def update(gradients: Any, state: MuonState, params: Any) -> tuple[Any, MuonState]:
        (matrices, rest), (mine, not_mine) = parted(gradients), parted(params)
        rest, rest_state = others.update(rest, state.others, not_mine)
        sums = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, matrices)
        directions = jax.tree.map(lambda m, g: g + momentum * m, sums, matrices) if nesterov else sums
        rate = learning_rate(state.count)
        steps = _steps(directions, flatten_dict(not_mine, sep="/"), COEFFICIENTS[coefficients], products)
        updates = {path: -rate * (weight_decay * p + steps[path]) for path, p in mine.items()}
        return unflatten_dict(flatten_dict(rest, sep="/") | updates, sep="/"), MuonState(
            state.count + 1, sums, rest_state
        )

    return optax.GradientTransformation(init, update)


def is_matrix(path: str, ndim: int) -> bool:
    """Whether the parameter at `path` is one matrix, or several, in the official files.

    Kernels, label tables and learned tokens are; patch embeddings, convolutions there, are not. Layers that are scanned
    have an axis more.
    """
    names = path.split("/")
    scanned = any(name == "blocks" or name.endswith("_blocks") for name in names[:-1])
    patches = any(name == "patch" or name.endswith("patch_embedding") for name in names[:-1])
    return names[-1] in ("kernel", "embedding", "tokens") and ndim - scanned == 2 and not patches


def orthogonalised(x: jax.Array, coefficients: Coefficients, products: str) -> jax.Array:
    """O of each of the matrices `x: [n, rows, columns]`, rows at most columns; float32, whatever the products are.

    Every device of the mesh computes some of the matrices, or where there are few of them some columns of some of them.
    """
    released, precision = products == "released", PRODUCTS[products]
    count, rows, columns = x.shape
    sizes = axis_sizes()
    over = _division(count, rows, columns, sizes)
    shares = [math.prod(sizes[axis] for axis in axes) for axes in over]
    x = _exchanged(jnp.pad(x, [(0, -size % share) for size, share in zip(x.shape, shares, strict=True)]), over)
    if released:
        x = x.astype(jnp.bfloat16)
    x = x.astype(jnp.float32)
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    x = x.astype(jnp.float16 if released else jnp.float32)
    product = functools.partial(jnp.matmul, precision=precision)

    def step(x: jax.Array, each: jax.Array) -> tuple[jax.Array, None]:  # one program for all, which compiles sooner
        a, b, c = each
        gram = product(x, x.swapaxes(1, 2))
        mixed = (b * gram + c * product(gram, gram)).astype(x.dtype)
        return divided((a * x + product(mixed, x)).astype(x.dtype), *over), None

    x, _ = jax.lax.scan(step, x, jnp.asarray(coefficients, jnp.float32))
    x = x.astype(jnp.bfloat16).astype(jnp.float32) if released else x
    return _exchanged(x, over, back=True)[:count, :, :columns]


def _exchanged(x: jax.Array, over: Sequence[tuple[str, ...]], back: bool = False) -> jax.Array:
    """Matrices as most parameters are divided, their rows over `fsdp`, divided as `over` says; `back`: the other way.

    Asked for both changes at once, the compiler collects all matrices on every device. One after the other they are an
    exchange of rows for matrices, and slices. Rows that `fsdp` does not divide: there are no steps between.
    """
    fsdp = axis_sizes().get("fsdp", 1)
    if x.shape[1] % fsdp or fsdp == 1:
        return divided(x, *over)
    others = [tuple(axis for axis in axes if axis != "fsdp") for axes in over]
    steps = [((), ("fsdp",), ()), (others[0], ("fsdp",), others[2]), over]
    for step in reversed(steps) if back else steps:
        x = divided(x, *step)
    return x


def _division(count: int, rows: int, columns: int, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """The axes of a mesh over which matrices, rows and columns are divided: each device computes the least so."""

    def work(matrices: tuple[str, ...]) -> float:
        """Of one device, in rows^3 products: of each matrix two with its columns, and one that all make."""
        groups = math.prod(sizes[axis] for axis in matrices)
        of_columns = groups * columns / math.prod(sizes.values())
        return math.ceil(count / groups) * (2 * of_columns / rows + 1)

    axes = sorted(sizes, key=lambda axis: axis == "fsdp")  # last, the one that matrices are exchanged over
    some = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes), -1, -1))
    matrices = min(some, key=work)
    return matrices, (), tuple(axis for axis in axes if axis not in matrices)


class _Layout(NamedTuple):
    """How parameters hold matrices: `packed(*parameters) -> [n, rows, columns]`, and back to a tuple of them."""

    paths: tuple[str, ...]
    packed: Callable[..., jax.Array]
    unpacked: Callable[[jax.Array], tuple[jax.Array, ...]]


def _layouts(matrices: Mapping[str, jax.Array], others: Mapping[str, jax.Array]) -> list[_Layout]:
    layers = {path: path.rsplit("/modulation/", 1)[0] if "/modulation/" in path else path for path in matrices}
    together = {layer: tuple(p for p in matrices if layers[p] == layer) for layer in layers.values()}
    return [_layout(paths, matrices[paths[0]].shape, others) for paths in together.values()]


def _layout(paths: tuple[str, ...], shape: tuple[int, ...], others: Mapping[str, jax.Array]) -> _Layout:
    stem = paths[0].removesuffix("/kernel")
    if len(paths) > 1:
        return _Layout(
            paths,
            lambda *parts: jnp.concatenate([part.reshape(-1, *shape[-2:]) for part in parts], axis=-1),
            lambda x: tuple(part.reshape(shape) for part in jnp.split(x, len(paths), axis=-1)),
        )
    if stem.endswith("qkv"):
        # Heads follow each other, and of each its query, key and value; the bias beside the kernel tells how many.
        if f"{stem}/bias" not in others:
            raise ValueError(f"Muon cannot tell the heads in {paths[0]}: there is no bias beside it; use AdamW")
        heads, lead = others[f"{stem}/bias"].shape[-3], shape[:-2]
        names = dict(three=3, k=heads, layers=math.prod(lead))
        return _Layout(
            paths,
            lambda x: rearrange(
                x.reshape(-1, *shape[-2:]), "layers (k three e) d -> (layers three) (k e) d", three=3, k=heads
            ),
            lambda x: (rearrange(x, "(layers three) (k e) d -> layers (k three e) d", **names).reshape(shape),),
        )
    return _Layout(paths, lambda x: x.reshape(-1, *shape[-2:]), lambda x: (x.reshape(shape),))


def _steps(
    directions: Mapping[str, jax.Array], others: Mapping[str, jax.Array], coefficients: Coefficients, products: str
) -> dict[str, jax.Array]:
    """`0.2 sqrt(max(rows, columns)) O(U)` of every parameter; matrices of one shape are computed together."""
    layouts = _layouts(directions, others)
    packed, tall = [], []
    for layout in layouts:
        x = layout.packed(*(directions[path] for path in layout.paths))
        tall.append(x.shape[1] > x.shape[2])
        packed.append(x.swapaxes(1, 2) if tall[-1] else x)
    alike = {x.shape[1:]: [i for i, other in enumerate(packed) if other.shape[1:] == x.shape[1:]] for x in packed}
    steps: dict[str, jax.Array] = {}
    for (_, columns), members in alike.items():
        x = jnp.concatenate([packed[i] for i in members])
        x = UPDATE_SCALE * math.sqrt(columns) * orthogonalised(x, coefficients, products)
        ends = list(itertools.accumulate(len(packed[i]) for i in members))
        for i, part in zip(members, jnp.split(x, ends[:-1]), strict=True):
            part = part.swapaxes(1, 2) if tall[i] else part
            steps |= dict(zip(layouts[i].paths, layouts[i].unpacked(part), strict=True))
    return steps
