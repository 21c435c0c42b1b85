"""Random parameters for a module, for tests of models whose initial output is zero by design."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta


def random_params(model: nn.Module, *arguments: Any, std: float = 0.1) -> Any:
    """Parameters of `model` (called on `arguments`), all drawn from N(0, std^2), norm scales around one."""
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [std * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)
