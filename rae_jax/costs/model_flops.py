"""Operations of training steps and of models from the shapes of their traces, and what devices could do in a time."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components import critics
from rae_jax.components.catalogue import FLOW_MAPS, component
from rae_jax.components.component import flow_map_inputs, spec
from rae_jax.components.conditions import condition
from rae_jax.components.encoders import encoder
from rae_jax.components.language import speaks, token_condition
from rae_jax.components.latent_spaces import latent_space
from rae_jax.components.mixtures import instructed, instruction_example
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding

# Dense bfloat16 operations a second of a device, by `device_kind`, from the vendors' specification sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def model_flops(config: ConfigDict, stage: str, *, latents: bool = False) -> float:
    """Matrix operations of one training step of `stage` on the whole batch, without recomputation.

    Args:
      latents: as in `configuration.example_batch`; always so where the stage reads `config.data.latents`.
    """
    config = without_recomputation(config)
    objective, key = OBJECTIVES[config[stage].objective](config, stage), jax.random.key(0)
    batch = example_batch(config, stage, objective, latents=latents)

    def plain(init: Callable[..., Any], *arguments: Any) -> Any:
        return sharding.unbox(jax.eval_shape(init, *arguments))

    frozen = {name: plain(part.init, key) for name, part in objective.frozen.items()}
    state = plain(objective.init, key, batch).replace(frozen=frozen)
    return matrix_flops(objective.train_step, state, batch)


def without_recomputation(config: ConfigDict) -> ConfigDict:
    """The config with models that compute nothing twice, as rematerialisation does."""
    config = ConfigDict(config.to_dict())
    for section in config.values():
        if isinstance(section, ConfigDict) and "remat" in section.get("model", {}):
            section.model.remat = "none"
    return config


def seconds_at_peak(config: ConfigDict, stage: str, mesh: jax.sharding.Mesh) -> float | None:
    """How long the mesh's devices would take for a step of `stage` at their peak; None where that is not known."""
    peak = PEAK_FLOPS.get(mesh.devices.flat[0].device_kind)
    return peak and model_flops(config, stage) / (mesh.size * peak)


def matrix_flops(function: Callable[..., Any], *arguments: Any, batched: bool = True) -> float:
    """Operations in the matrix products and convolutions of `function`, from the shapes of its trace.

    A loop counts as often as it runs, a branch as its most expensive side, and what has a kernel on some platforms as
    it is on the others: kernels fill arrays up and compute things twice. Of a Pallas kernel, its grid times its body.
    Without `batched`, products with batch dimensions are left out: attention's two, for our models.
    """

    def inner(value: Any) -> Iterator[Any]:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            for item in value:
                yield from inner(item)

    def count(jaxpr: Any) -> float:
        total = 0.0
        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            if name in ("dot_general", "conv_general_dilated"):
                left, right = (v.aval.shape for v in equation.invars[:2])
                if name == "dot_general" and params["dimension_numbers"][1][0] and not batched:
                    continue
                if name == "dot_general":
                    terms = math.prod(left[axis] for axis in params["dimension_numbers"][0][0])
                else:
                    terms = math.prod(right[axis] for axis in params["dimension_numbers"].rhs_spec[1:])
                total += 2.0 * terms * math.prod(equation.outvars[0].aval.shape)
            elif name == "cond":
                branches, platforms = params["branches"], params.get("branches_platforms")
                if platforms:
                    branches = (branches[platforms.index(None)],)
                total += max(count(branch.jaxpr) for branch in branches)
            elif name == "custom_vjp_call":  # its rules are there too, and not called
                total += count(params["call_jaxpr"].jaxpr)
            else:
                times = params["length"] if name == "scan" else 1
                if name == "pallas_call":
                    times = math.prod(params["grid_mapping"].grid)
                total += times * sum(count(j) for value in params.values() for j in inner(value))
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds for one image or one evaluation, all of them and as the papers count."""

    parameters: int
    multiply_adds: float
    without_attention: float


def cost_of(init: Callable[[jax.Array], Any], apply: Callable[..., Any], *arguments: Any) -> Cost:
    """The cost of `apply(parameters, *arguments)`, with the parameters that `init(key)` would make."""
    params = sharding.unbox(jax.eval_shape(init, jax.random.key(0)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    both = (matrix_flops(apply, params, *arguments, batched=batched) / 2 for batched in (True, False))
    return Cost(count, *both)


def costs(config: ConfigDict) -> dict[str, Cost]:
    """Every model that the config describes: name -> cost."""
    config = without_recomputation(config)
    space, size = latent_space(config), config.data.image_size
    image, latent = spec(size, size, 3), spec(*space.shape)
    result = {}
    if config.encoder.model:
        seen, part = config.encoder.input_size, encoder(config)
        result["encoder"] = cost_of(part.init, part.apply, spec(seen, seen, 3))
    ways = {"latents of an image": (space.encoding, space.encode, image)}
    ways["image of latents"] = (space.decoding, space.decode, latent)
    for name, (parts, function, argument) in ways.items():
        result[name] = cost_of(lambda key, parts=parts: {n: p.init(key) for n, p in parts.items()}, function, argument)
    if config.discriminator.model and config.autoencoder in ("rae", "rpiae"):
        discriminator = critics.with_heads(config)
        pixels = jnp.zeros(image.shape, image.dtype)

        def make(key: jax.Array) -> Any:
            return discriminator.init(key, pixels)

        result["discriminator"] = cost_of(make, lambda variables, x: discriminator.apply(variables, x), image)
    if config.mixture.model:
        return result | _costs_of_mixture(config)
    prompted = speaks(config)
    velocity, told = ("text_dit", token_condition(config)) if prompted else ("flow", condition(config).example)
    for name in (velocity, "flow_map") if prompted else (velocity, "guide", "flow_map"):
        section = config[velocity if name == "flow_map" else name]
        if not section.model or (name == "flow_map" and not set(FLOW_MAPS) & set(config.stages)):
            continue
        network, others = component(config, name), flow_map_inputs(config) if name == "flow_map" else ()
        result[name] = cost_of(network.init, network.apply, latent, spec(), told, *others)
    return result


def _costs_of_mixture(config: ConfigDict) -> dict[str, Cost]:
    """Of a mixture of transformers and of its flow map, with all that they read once for an image."""
    told, latent, result = instruction_example(config), spec(*latent_space(config).shape), {}
    for name in ("mixture", *["flow_map"] * bool(set(FLOW_MAPS) & set(config.stages))):
        network = instructed(config, name, flow_map=name == "flow_map")

        def evaluate(params: Any, z: jax.Array, t: jax.Array, told: Any, *r: jax.Array, of: Any = network) -> jax.Array:
            return of.apply(params, z, t, of.read(params, told), *r)

        result[name] = cost_of(network.init, evaluate, latent, spec(), told, *[spec()] * (name == "flow_map"))
    return result
