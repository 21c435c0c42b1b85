"""What an experiment's models cost: parameters and multiply-adds for one image, counted from the models themselves.

    python -m tools.cost --config=configs/dith_xl.py
    python -m tools.cost --config=configs/mf_rae_mfd_256.py --json=cost.json

Counted are the products in matrix products and convolutions, and nothing else. The papers' GFLOPs turn out to be
multiply-adds without attention's own two products, scores and weighted values; both numbers are given. Nothing is
computed and no weights are made.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from rae_jax.main import CONFIG, parse
from rae_jax.model_flops import matrix_flops
from rae_jax.training import components, sharding
from rae_jax.training.components import spec
from rae_jax.whole_files import whole_file


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
    space, size = components.latent_space(config), config.data.image_size
    image, latent = spec(size, size, 3), spec(*space.shape)
    result = {}
    if config.encoder.model:
        seen = config.encoder.input_size
        model = components.encoder(config)
        result["encoder"] = cost_of(
            components.encoder_init(config), lambda p, x: model.apply({"params": p}, x), spec(seen, seen, 3)
        )
    ways = {"latents of an image": (space.encoding, space.encode, image)}
    ways["image of latents"] = (space.decoding, space.decode, latent)
    for name, (inits, function, argument) in ways.items():
        result[name] = cost_of(lambda key, inits=inits: {n: i(key) for n, i in inits.items()}, function, argument)
    discriminator = components.discriminator(config)
    if config.discriminator.model and config.autoencoder in ("rae", "rpiae"):
        pixels = jnp.zeros(image.shape, image.dtype)

        def make(key: jax.Array) -> Any:
            return discriminator.init(key, pixels)

        result["discriminator"] = cost_of(make, lambda variables, x: discriminator.apply(variables, x), image)
    for name in ("flow", "guidance", "flow_map"):
        section = config.guidance if name == "guidance" else config.flow
        if not section.model or (name == "flow_map" and not {"mid_training", "flow_map"} & set(config.stages)):
            continue
        model, times = components.module(config, name), [spec()] * (2 if name == "flow_map" else 1)

        def velocity(p: Any, z: jax.Array, y: jax.Array, *t: jax.Array, model: Any = model) -> jax.Array:
            return model.apply({"params": p}, z, t[0], y, *t[1:])

        init = components.initializers(config)[name]
        result[name] = cost_of(init, velocity, latent, spec(dtype=jnp.int32), *times)
    return result


def main(arguments: list[str]) -> None:
    del arguments
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is missing; try --config=configs/dith_xl.py")
    try:
        result = costs(CONFIG.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = Table(title=f"one image of {CONFIG.value.data.image_size} pixels", title_justify="left")
    for name in ("part", "million parameters", "billion multiply-adds", "as the papers count"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, cost in result.items():
        table.add_row(name, f"{cost.parameters / 1e6:,.2f}", f"{cost.multiply_adds / 1e9:,.2f}",
                      f"{cost.without_attention / 1e9:,.2f}")  # fmt: skip
    Console(soft_wrap=True).print(table)
    if JSON.value:
        with whole_file(Path(JSON.value)) as file:
            plain = {name: dataclasses.asdict(cost) for name, cost in result.items()}
            file.write((json.dumps(plain, indent=2) + "\n").encode())


if __name__ == "__main__":
    JSON = flags.DEFINE_string("json", "", "Also writes the numbers to this file.")
    app.run(main, flags_parser=parse)
