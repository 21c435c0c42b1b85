"""What a component is: one part of an experiment that has parameters of its own, as a record.

The files beside this one make the records from the sections of a config that bear their names, and `catalogue.py` lists
them. They are the only place where config values become modules.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.interop.weights import Origin, check_weights, load_weights
from rae_jax.training.sharding import unbox

Params = Any
RANDOM = "random"  # as a component's weights: untrained ones
# The dtypes of a component, and how exactly a TPU multiplies float32 matrices for it. Left alone it would round them to
# bfloat16: float32 means float32 here. "bfloat16_3x" is float32 but for products in three passes, at half the cost.
PRECISIONS = {"float32": "highest", "bfloat16_3x": "high", "bfloat16": "default"}


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of an experiment.

    Attributes:
      name: of its section in the config, and of its weights wherever they are kept.
      module: the linen module; None for latent statistics, which are parameters without one.
      initializer: `key -> parameters`, boxed with their logical axis names.
      dtype: of matrix products, a key of `PRECISIONS`; the module is made with it.
      kind: the kind of official checkpoint that holds this component alone (`interop/kinds.py`); "" if there is none.
      weights: what the config says of its weights: a path, the name of a package or of a rule, or "" for none.
        Where a stage trains the component, it goes on from them.
      described_by: the part of the config that decides the architecture, for messages.
    """

    name: str
    module: nn.Module | None
    initializer: Callable[[jax.Array], Params]
    dtype: str
    kind: str
    weights: str
    described_by: str

    def init(self, key: jax.Array) -> Params:
        """Untrained parameters, boxed."""
        return self.initializer(key)

    def structure(self) -> Params:
        """Shapes of the parameters, without boxes; nothing is computed."""
        return unbox(jax.eval_shape(self.initializer, jax.random.key(0)))

    def precise(self) -> contextlib.AbstractContextManager:
        """Within it, matrix products are traced as exact as `dtype` asks; `apply` enters it."""
        return jax.default_matmul_precision(PRECISIONS[self.dtype])

    def apply(self, params: Params, *arguments: Any, **keywords: Any) -> Any:
        """The module's output; keywords are those of linen's `apply` and of the module."""
        with self.precise():
            return self.module.apply({"params": params}, *arguments, **keywords)

    def read(self, params: Params, condition: Any) -> Any:
        """What `apply` of a generator takes of a condition: itself, unless the network reads it once for all times."""
        del params
        return condition

    def clone(self, **changes: Any) -> "Component":
        """The component with other arguments of the module."""
        return dataclasses.replace(self, module=self.module.clone(**changes))

    def check(self, source: str | Path) -> None:
        """Raises ValueError unless the weights at `source` are this component's; see `interop.weights`."""
        check_weights(source, self.structure(), self.origin(source), self.module, self.name)

    def load(self, source: str | Path) -> Params:
        """The parameters at `source`, a weights directory, a checkpoint or an official file, float32, on the host.

        Raises:
          ValueError: no such weights, or another architecture; all differences are listed.
        """
        return load_weights(source, self.structure(), self.origin(source), self.module, self.name)

    def origin(self, source: str | Path) -> Origin:
        """What errors call the weights at `source`."""
        return Origin(f"config.{self.name}.weights={str(source)!r}", self.described_by)


def extended(part: Component, kind: Callable[..., Any], **attributes: Any) -> Any:
    """The component as one of `kind`, a subclass of `Component`, whose further attributes are given."""
    return kind(**{field.name: getattr(part, field.name) for field in dataclasses.fields(part)}, **attributes)


def of_module(
    config: ConfigDict,
    name: str,
    make: Callable[..., nn.Module],
    *inputs: jax.ShapeDtypeStruct,
    kind: str,
    weights: str | None = None,
    described_by: str = "",
) -> Component:
    """The component of section `name`, whose module is `make(dtype=...)`, initialised on zeros of the shapes `inputs`.

    Args:
      weights: `config.<name>.weights` by default.
      described_by: `config.<name>.model` by default.
    """
    dtype = dtype_of(config, name)
    module = make(dtype=array_dtype(dtype))

    def initializer(key: jax.Array) -> Params:
        return module.init(key, *(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), each) for each in inputs))[
            "params"
        ]

    weights = config[name].weights if weights is None else weights
    return Component(name, module, initializer, dtype, kind, weights, described_by or f"config.{name}.model")


def architecture(section: ConfigDict, name: str, function: str) -> dict[str, Any]:
    """The fields of `section.model`, which are what `function` of configs/architectures.py returns.

    Raises:
      ValueError: there are none; `name` is what the message calls the section.
    """
    if not section.model:
        raise ValueError(f"{name}.model is empty; it is to be what {function} of configs/architectures.py returns")
    return section.model.to_dict()


def dtype_of(config: ConfigDict, name: str) -> str:
    """The dtype of the component `name`: its section's, or the config's where that is empty.

    Raises:
      ValueError: it is none that there is.
    """
    field, dtype = f"{name}.dtype", config[name].dtype
    if not dtype:
        field, dtype = "dtype", config.dtype
    if dtype not in PRECISIONS:
        raise ValueError(f"{field}={dtype!r} is not one of {list(PRECISIONS)}")
    return dtype


def array_dtype(dtype: str) -> jnp.dtype:
    """The dtype of the arrays that are multiplied."""
    return jnp.dtype("bfloat16" if dtype == "bfloat16" else "float32")


def spec(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    """A batch of one array of `shape`."""
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def flow_map_inputs(config: ConfigDict) -> list[jax.ShapeDtypeStruct]:
    """What a flow map takes beside a velocity network's inputs, of a batch of one: r, and guidance if it is guided."""
    return [spec()] + [spec(3)] * config.flow_map.guided
