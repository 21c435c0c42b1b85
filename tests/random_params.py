"""Random parameters: of models whose initial output is zero by design, and of components, without compiling a start."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from rae_jax.components.component import Component
from rae_jax.objectives.objective import Objective
from rae_jax.training.state import TrainState


def random_params(model: nn.Module, *arguments: Any, std: float = 0.1) -> Any:
    """Parameters of `model` (called on `arguments`), all drawn from N(0, std^2), norm scales around one."""
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [std * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)


def random_values(shapes: Any, seed: int = 0) -> Any:
    """Parameters of these shapes as if they had been trained: none is zero, which would leave nothing to learn."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:  # variances are positive
        drawn = rng.normal(0, 0.1, x.shape) if path[-1].key == "kernel" else rng.uniform(0.1, 0.5, x.shape)
        return drawn.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_weights(part: Component, seed: int = 0) -> Any:
    """Parameters of a component, see `random_values`."""
    return jax.tree.map(jnp.asarray, random_values(part.structure(), seed))


def random_state(objective: Objective, batch: Any = None, seed: int = 0) -> TrainState:
    """The objective's state before the first step, at random parameters and with random frozen components."""
    shapes = meta.unbox(jax.eval_shape(objective.init, jax.random.key(0), batch))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes).starting_at(random_values(shapes.params, seed))
    frozen = {name: random_weights(part, seed + i) for i, (name, part) in enumerate(objective.frozen.items(), 1)}
    return state.replace(frozen=frozen)
