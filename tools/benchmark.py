"""How long an experiment's training step takes on this machine's devices.

    python -m tools.benchmark --config=configs/dith_xl.py:S --batch=4 --latents --config.dtype=float32 \\
        --config.mesh.fsdp=1

Runs the config's own step, compiled as in training, on random weights and one random batch.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict

from rae_jax.costs.model_flops import model_flops
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import example_batch, resolved, stage_of
from rae_jax.files import whole_file
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding
from rae_jax.training.loop import lower_step

WARM_UP = 2


def benchmark(config: ConfigDict, stage: str, *, steps: int, latents: bool) -> dict[str, Any]:
    """Times `steps` training steps of `stage` after `WARM_UP` others.

    Args:
      latents: batches are of latents computed before, so that the step does without the encoder.

    Returns:
      `step_seconds`, the median; `fastest_step_seconds`; `compile_seconds`; `peak_bytes`, of the process on a CPU and
      of the fullest device elsewhere; `params`; `model_flops` of a step.

    Raises:
      ValueError: the mesh does not lay over the devices.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict())
    objective, key = OBJECTIVES[config[stage].objective](config, stage), jax.random.key(config.seed)
    shapes = example_batch(config, stage, objective, latents=latents)
    with sharding.use(mesh):
        abstract = jax.eval_shape(objective.init, key, shapes)

        def make(init: Any, *arguments: Any) -> Any:
            layout = sharding.shardings_of(jax.eval_shape(init, *arguments), mesh)
            return jax.jit(lambda: sharding.unbox(init(*arguments)), out_shardings=layout)()

        state = make(lambda: objective.init(key, shapes))
        state = state.replace(frozen={name: make(part.init, key) for name, part in objective.frozen.items()})
        draw = jax.jit(
            lambda: {name: _random(x) for name, x in shapes.items()}, out_shardings=sharding.batch_sharding(mesh)
        )
        batch = draw()
        began = time.perf_counter()
        step = lower_step(objective.train_step, state, shapes, mesh).compile()
        compile_seconds = time.perf_counter() - began

        def once() -> Any:
            nonlocal state
            state, metrics = step(state, batch)
            return metrics

        seconds = timed(once, jax.block_until_ready, WARM_UP + steps)[WARM_UP:]
    return {
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "params": sum(x.size for x in jax.tree.leaves(sharding.unbox(abstract.params))),
        "batch_size": config[stage].train.batch_size,
        "step_seconds": statistics.median(seconds),
        "fastest_step_seconds": min(seconds),
        "compile_seconds": compile_seconds,
        "peak_bytes": _peak_bytes(mesh),
        "model_flops": model_flops(config, stage, latents=latents),
    }


def timed(step: Callable[[], Any], wait: Callable[[Any], Any], count: int) -> list[float]:
    """Seconds of each of `count` steps; one is on its way while the one before is waited for, as in training."""
    seconds, previous, began = [], None, time.perf_counter()
    for _ in range(count):
        result = step()
        if previous is not None:
            wait(previous)
        previous, ended = result, time.perf_counter()
        seconds.append(ended - began)
        began = ended
    return seconds


def _random(shape: jax.ShapeDtypeStruct) -> jax.Array:
    key = jax.random.key(0)
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jax.random.normal(key, shape.shape, shape.dtype)
    if shape.dtype == jnp.bool_:
        return jnp.ones(shape.shape, shape.dtype)
    return jax.random.randint(key, shape.shape, 0, 2 if shape.dtype == jnp.int32 else 255).astype(shape.dtype)


def _peak_bytes(mesh: jax.sharding.Mesh) -> int:
    if mesh.devices.flat[0].platform == "cpu":
        return resident_bytes()
    return max(device.memory_stats()["peak_bytes_in_use"] for device in mesh.local_devices)


def resident_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def leave(result: dict[str, Any], path: Path | None) -> None:
    """Prints a result, and writes it to `path` if there is one."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        with whole_file(path) as file:
            file.write(f"{text}\n".encode())


def main(arguments: list[str]) -> None:
    del arguments
    config = experiment.config()
    experiment.divide_cpu(config)
    try:
        stage = stage_of(config, STAGE.value)
        if BATCH.value:
            config[stage].train.batch_size = BATCH.value
        config = resolved(config, experiment.workdir())
        result = benchmark(config, stage, steps=STEPS.value, latents=LATENTS.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    leave(result, Path(JSON.value) if JSON.value else None)


if __name__ == "__main__":
    BATCH = flags.DEFINE_integer("batch", 0, "Batch size; the config's by default.")
    STAGE = flags.DEFINE_string("stage", "", "Whose training step; the last of the config's stages by default.")
    STEPS = flags.DEFINE_integer("steps", 10, "How many steps are timed.", lower_bound=1)
    LATENTS = flags.DEFINE_bool("latents", False, "Batches of latents computed before: a step without the encoder.")
    JSON = flags.DEFINE_string("json", "", "Also writes the result to this file.")
    app.run(main, flags_parser=experiment.parse)
