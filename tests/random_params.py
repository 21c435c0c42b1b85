"""Random parameters: of models whose initial output is zero by design, and of components, without compiling a start."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from rae_jax.components.component import Component


def random_params(model: nn.Module, *arguments: Any, std: float = 0.1) -> Any:
    """Parameters of `model` (called on `arguments`), all drawn from N(0, std^2), norm scales around one."""
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [std * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)


def random_weights(part: Component, seed: int = 0) -> Any:
    """Parameters of a component as if it had been trained: none is zero, which would leave nothing to learn."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:  # variances are positive
        drawn = rng.normal(0, 0.1, x.shape) if path[-1].key == "kernel" else rng.uniform(0.1, 0.5, x.shape)
        return jnp.asarray(drawn, x.dtype)

    return jax.tree_util.tree_map_with_path(draw, part.structure())
