"""The one entry point: reads a config and runs what it asks for.

    python -m rae_jax.main --config=configs/digits.py
    python -m rae_jax.main --config=configs/digits.py --config.flow.train.steps=500 --workdir=runs/short
    python -m rae_jax.main --config=configs/digits.py --mode=sample --num_samples=5000

Modes:
  train     trains the config's stages in order (those that have not finished in the working directory), then samples
            and evaluates. Run again after an interruption, the same command continues.
  sample    samples with the weights that the working directory or the config names: samples.npz, samples.png; goes on
            where a killed one stopped. --seed_grid=3,207 makes only a picture of these classes.
  evaluate  evaluates what the working directory holds: summary.json.

--dry_run shows what a run would cost, on this machine or on a TPU slice, and stops.
"""

import contextlib
import functools
import os
import re
import signal
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from rae_jax.costs import dry_run
from rae_jax.costs.compile_report import mesh_over
from rae_jax.costs.model_flops import seconds_at_peak
from rae_jax.evaluation.report import write_environment, write_report
from rae_jax.experiment.configuration import check, take_classes_of_data
from rae_jax.experiment.stages import Pipeline, open_sources
from rae_jax.experiment.workdir import ConfigError, locked, remember
from rae_jax.training import sharding
from rae_jax.training.checkpoint import NotSaved
from rae_jax.training.loop import Diverged, Interrupted
from rae_jax.training.progress import RunLog, open_wandb

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file that defines get_config().")
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run keeps its files; runs/<config name> by default.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate"], "What to do.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One run over several processes, each started with this flag; on TPU pods, Slurm and GKE they find "
    "each other, elsewhere the next three flags say where they are.",
)
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 0, "How many images to sample; the config's number by default.")
SEED_GRID = flags.DEFINE_list(
    "seed_grid", [], "With --mode=sample: only a picture of these classes, as in 3,207; a column a noise."
)

WANDB = flags.DEFINE_string("wandb", "", "The project of Weights & Biases that is to get metrics and pictures too.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only print the config, what its models and stages cost, and memory; nothing is written."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "With --dry_run: as on this TPU slice, v5p:4x4x4 say, with the compiler's report (needs libtpu)."
)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; fields are set as --config.FIELD=VALUE")
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is missing; try --config=configs/digits.py")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    signal.signal(signal.SIGTERM, stop)
    try:
        run(CONFIG.value, file)
    except NotSaved as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # threads of the storage library may wait minutes for what will not come
    except (ConfigError, Diverged, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def stop(number: int, frame: object) -> None:
    """SIGTERM between stages and while sampling, where there is nothing to save; the loop has its own answer."""
    raise Interrupted


def run(config, file: str) -> None:
    """Runs `config`, read from `file`, as the flags say."""
    logging.set_verbosity(logging.WARNING)  # the libraries' own progress; the run reports its own
    try:
        classes = [int(label) for label in SEED_GRID.value]
    except ValueError:
        raise ConfigError(f"--seed_grid={','.join(SEED_GRID.value)}: classes are numbers, as in 3,207") from None
    if classes and MODE.value != "sample":
        raise ConfigError("--seed_grid goes with --mode=sample")
    if NUM_SAMPLES.value < 0:
        raise ConfigError(f"--num_samples={NUM_SAMPLES.value} is negative")
    if NUM_SAMPLES.value:
        config.sampling.num_samples = NUM_SAMPLES.value
    connect()
    workdir = working_directory(file)
    if TOPOLOGY.value and not DRY_RUN.value:
        raise ConfigError("--topology goes with --dry_run")
    take_classes_of_data(config, workdir)
    if DRY_RUN.value:
        mesh = mesh_over(config, TOPOLOGY.value) if TOPOLOGY.value else sharding.make_mesh(config.mesh.to_dict())
        check(config, file=file, num_devices=mesh.size)
        dry_run.show(config, mesh, TOPOLOGY.value)
        return
    check(config, file=file, num_devices=jax.device_count())
    sources = {} if MODE.value == "sample" else open_sources(config)  # generation needs no images
    first = jax.process_index() == 0
    with locked(workdir) if first else contextlib.nullcontext():
        plain = remember(config, workdir, file=file, write=first)
        if first:
            write_environment(workdir)
        wandb = open_wandb(WANDB.value, workdir, plain) if WANDB.value and first else None
        log = RunLog(workdir, active=first, report=functools.partial(write_report, workdir), wandb=wandb)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        try:
            with sharding.use(mesh):
                at_peak = functools.partial(seconds_at_peak, config, mesh=mesh)
                pipeline = Pipeline(config, plain, sources, workdir, mesh, log, at_peak)
                if MODE.value == "train":
                    pipeline.train()
                if MODE.value == "sample" or (MODE.value == "train" and pipeline.can_sample):
                    pipeline.sample(classes)
                if MODE.value in ("train", "evaluate"):
                    show(pipeline.evaluate(), workdir)
        finally:
            log.close()


def connect() -> None:
    """Joins the processes of a run, if the flags say that there are several."""
    if DISTRIBUTED.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)


def working_directory(file: str) -> Path:
    """Where the run of the config in `file` keeps its files."""
    return Path(WORKDIR.value or Path("runs") / re.sub(r"\.py:?", "_", Path(file).name).strip("_"))


def show(results: dict[str, float], workdir: Path) -> None:
    """The summary screen."""
    table = Table(title=str(workdir), title_justify="left")
    table.add_column("measured")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    if jax.process_index() == 0:
        Console().print(table)


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags; a field that the config does not have is named, with the nearest one that it has."""
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}")
    except (AttributeError, KeyError) as error:
        text = str(error).replace("\\n", "\n").replace("\\", "").strip("\"' ")  # ml_collections quotes twice
        name, _, hint = text.partition("\n")
        name = name.strip("\"' ")
        given = [a.split("=")[0] for a in arguments if name in a.split("=")[0].lstrip("-").split(".")]
        where = given[0] if given else "the config file"
        sys.exit(f"error: {where}: there is no field {name!r}. {hint}".strip())
    if CONFIG.present:
        path = Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0])
        if not path.is_file():
            known = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "base"))
            sys.exit(f"error: --config: there is no file {path}; the experiments are {', '.join(known)}")
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
