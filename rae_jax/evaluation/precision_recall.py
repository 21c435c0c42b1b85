"""Improved precision and recall: how much of one feature set lies inside the manifold of the other."""

import functools

import jax
import jax.numpy as jnp

NEIGHBOURS = 3


def _squared_distances(points: jax.Array, others: jax.Array, others_squared: jax.Array) -> jax.Array:
    """Squared Euclidean distances of one point `[D]` to `others: [M, D]`, whose squared norms are given."""
    # Full float32 products: the default precision of an accelerator loses the digits that the subtraction needs.
    inner = jnp.matmul(others, points, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(jnp.square(points)) - 2 * inner + others_squared, 0)


@functools.partial(jax.jit, static_argnames=("k", "block"))
def manifold_radii(features: jax.Array, *, k: int = NEIGHBOURS, block: int = 1024) -> jax.Array:
    """Squared distance `[N]` of each of `features: [N, D]` to its k-th nearest neighbour other than itself.

    `block` points are compared with all others at a time: memory is `block * N` distances.
    """
    features = features.astype(jnp.float32)
    squared = jnp.sum(jnp.square(features), axis=1)

    def nearest(point: jax.Array) -> jax.Array:
        return jax.lax.top_k(-_squared_distances(point, features, squared), k + 1)[0]

    # The nearest of the k + 1 is the point itself, at distance zero. The last is taken outside the loop: inside it the
    # CPU's compiler no longer knows the top-k and sorts each row whole, which takes twelve times as long.
    return -jax.lax.map(nearest, features, batch_size=block)[:, k]


@functools.partial(jax.jit, static_argnames=("block",))
def inside_manifold(points: jax.Array, features: jax.Array, radii: jax.Array, *, block: int = 1024) -> jax.Array:
    """Whether each of `points: [M, D]` is within the (squared) radius of any of `features: [N, D]`; bool `[M]`."""
    points, features = points.astype(jnp.float32), features.astype(jnp.float32)
    squared = jnp.sum(jnp.square(features), axis=1)

    def inside(point: jax.Array) -> jax.Array:
        return jnp.any(_squared_distances(point, features, squared) <= radii)

    return jax.lax.map(inside, points, batch_size=block)


def precision(reference: jax.Array, sample: jax.Array, *, k: int = NEIGHBOURS) -> float:
    """The share of `sample: [M, D]` inside the manifold of `reference: [N, D]` (Kynkäänniemi et al., 2019).

    A manifold is the union of balls that reach each point's k-th neighbour. ADM's evaluator computes the distances in
    float16 where they are finite, so its numbers may differ by a few samples.
    """
    _check(reference, sample, k)
    return float(jnp.mean(inside_manifold(sample, reference, manifold_radii(reference, k=k))))


def recall(reference: jax.Array, sample: jax.Array, *, k: int = NEIGHBOURS) -> float:
    """The share of `reference: [N, D]` inside the manifold of `sample: [M, D]`; see `precision`."""
    _check(reference, sample, k)
    return float(jnp.mean(inside_manifold(reference, sample, manifold_radii(sample, k=k))))


def _check(reference: jax.Array, sample: jax.Array, k: int) -> None:
    for name, features in (("reference", reference), ("sample", sample)):
        if features.ndim != 2 or features.shape[0] <= k:
            raise ValueError(f"{name} features have shape {features.shape}; need [N, D] with N > k = {k}")
    if reference.shape[1] != sample.shape[1]:
        raise ValueError(f"reference has {reference.shape[1]} features a point, sample {sample.shape[1]}")
