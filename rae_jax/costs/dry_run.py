"""What a run would do, without doing it: `python -m rae_jax.main --dry_run` prints this and writes nothing."""

import json
import math
import re
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from rae_jax.costs import compile_report
from rae_jax.costs.model_flops import costs, model_flops
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding

MIB = 2**20
PARTS = {
    "parameters": ("params",),
    "average": ("ema_params", "more_ema"),
    "optimizer": ("opt_state",),
    "discriminator": ("discriminator",),
    "frozen": ("frozen",),
}


def state_bytes(config: ConfigDict, stage: str, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Bytes of the state of `stage` on each device of `mesh`, by part; nothing is allocated.

    Activations, gradients and what the compiler adds are not in it: `compile_report.report` has those.
    """
    objective = OBJECTIVES[config[stage].objective](config, stage)
    batch, key = example_batch(config, stage, objective), jax.random.key(0)
    with sharding.use(mesh):  # from here on arrays belong to devices that may not be there: shapes only
        state = compile_report.abstract_state(objective, key, batch, mesh)
    return {what: sum(_bytes_a_device(getattr(state, part)) for part in parts) for what, parts in PARTS.items()}


def _bytes_a_device(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def show(config: ConfigDict, mesh: jax.sharding.Mesh, topology: str = "") -> None:
    """Prints the config, the cost of its models, memory and computation of its stages, and, with a topology, what the
    TPU compiler says of the last stage.

    Args:
      mesh: whose devices need not be there.

    Raises:
      ValueError: see `compile_report.report`.
    """
    console = Console(soft_wrap=True, highlight=False)
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
    console.print(re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text), markup=False)

    models = Table(title=f"models, for one image of {config.data.image_size} pixels", title_justify="left")
    _columns(models, "model", "parameters", "million multiply-adds")
    for name, cost in costs(config).items():
        models.add_row(name, f"{cost.parameters:,}", f"{cost.multiply_adds / 1e6:,.2f}")
    console.print(models)

    steps = Table(title="a step of each stage", title_justify="left")
    _columns(steps, "stage", "steps", "batch", "matrix FLOPs")
    sizes = {stage: state_bytes(config, stage, mesh) for stage in config.stages}
    for stage in config.stages:
        one_epoch = OBJECTIVES[config[stage].objective](config, stage).one_epoch
        number = "one epoch" if one_epoch else f"{config[stage].train.steps:,}"
        steps.add_row(stage, number, f"{config[stage].train.batch_size:,}", f"{model_flops(config, stage):.3g}")
    console.print(steps)

    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    memory = Table(title=f"MiB of state on each of {mesh.size} devices ({axes})", title_justify="left")
    parts = [part for part in PARTS if any(found[part] for found in sizes.values())]
    _columns(memory, "stage", "all", *parts)
    for stage, found in sizes.items():
        memory.add_row(stage, *(f"{size / MIB:,.2f}" for size in (sum(found.values()), *(found[p] for p in parts))))
    console.print(memory)
    console.print("The state is what lasts from step to step; activations and gradients come on top.")
    if topology:
        compile_report.show(compile_report.report(config, topology))


def _columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="left" if name == names[0] else "right")
