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

  ask       answers --question about the image in --image.
  edit      edits the image in --image as --instruction says, from several noises: edit.png.

--prompts=FILE or --prompt="..." says what --mode=sample is to paint, with a language model's config.

--dry_run shows what a run would cost, on this machine or on a TPU slice, and stops.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rae_jax.components.language import prompts, speaks, tells_features
from rae_jax.costs import dry_run
from rae_jax.costs.compile_report import mesh_over
from rae_jax.costs.model_flops import seconds_at_peak
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.run import open_run
from rae_jax.experiment.workdir import ConfigError
from rae_jax.training import sharding, stopping
from rae_jax.training.checkpoint import NotSaved
from rae_jax.training.loop import Diverged
from rae_jax.training.stopping import Interrupted

MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate", "ask", "edit"], "What to do.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 0, "How many images to sample; the config's number by default.")
SEED_GRID = flags.DEFINE_list(
    "seed_grid", [], "With --mode=sample: only a picture of these classes, as in 3,207; a column a noise."
)

PROMPTS = flags.DEFINE_string("prompts", "", "With --mode=sample: a file of prompts, one a line, or JSON lines.")
PROMPT = flags.DEFINE_multi_string("prompt", None, "With --mode=sample: a prompt, in its stead; may be given again.")
IMAGE = flags.DEFINE_string("image", "", "With --mode=ask or edit: the file of an image.")
QUESTION = flags.DEFINE_string("question", "", "With --mode=ask: what is asked about it.")
INSTRUCTION = flags.DEFINE_string("instruction", "", "With --mode=edit: what is to be done with the image.")
WORDS = {"ask": {"image": "FILE", "question": "TEXT"}, "edit": {"image": "FILE", "instruction": "TEXT"}}  # of a mode

WANDB = flags.DEFINE_string("wandb", "", "The project of Weights & Biases that is to get metrics and pictures too.")
KEEP_PROGRAMS = flags.DEFINE_bool(
    "keep_programs", True, "Keep compiled programs in the working directory, for the next start; --nokeep_programs: no."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only print the config, what its models and stages cost, and memory; nothing is written."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "With --dry_run: as on this TPU slice, v5p:4x4x4 say, with the compiler's report (needs libtpu)."
)

# The statuses with which XLA's errors begin that a process can have whose siblings have gone.
LOST = ("UNKNOWN: ", "UNAVAILABLE: ", "INTERNAL: ", "ABORTED: ", "CANCELLED: ", "DEADLINE_EXCEEDED: ")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; fields are set as --config.FIELD=VALUE")
    try:
        run(experiment.config(), experiment.config_file())
    except KeyboardInterrupt:
        end("interrupted; the same command goes on")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if lost := lost_another(error):
            end(f"another process of the run seems to have ended: {str(lost).splitlines()[0]}", stopping.STATUS)
        if not isinstance(error, ConfigError | Diverged | OSError | ValueError):
            if stopping.several():
                end(traceback.format_exc().strip())
            raise
        end(f"error: {error}")
        if isinstance(error, NotSaved):
            os._exit(1)  # threads of the storage library may wait minutes for what will not come
        sys.exit(1)


def lost_another(error: BaseException | None) -> BaseException | None:
    """The error of a collective with a process that is no more, as on CPUs and GPUs, which `error` is or comes from.

    XLA's errors begin with a status; Python's type of them depends on where they come up.
    """
    if error is None or not stopping.several():
        return None
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    if of_runtime or (isinstance(error, ValueError) and str(error).startswith(LOST)):
        return error
    return lost_another(error.__cause__ or error.__context__)


def answer_signals() -> None:
    """What asks to stop does so now, between stages and while sampling, where there is nothing to save.

    The training loop has its own answer.
    """
    for number in stopping.signals_to_answer():
        if number != signal.SIGINT or stopping.several():
            signal.signal(number, stop)


def stop(number: int, frame: object) -> None:
    """Leaves at once, as one process; as one of several, when all do."""
    if not stopping.ask_all():
        os.write(2, b"asked to stop; the same command goes on\n")  # `print` may be what was interrupted
        raise Interrupted


def end(text: str, status: int = 1) -> None:
    """Says what ends this process, and ends it if it is one of several, which would wait for each other."""
    print(text, file=sys.stderr, flush=True)
    stopping.fail(status, text)


def run(config, file: str) -> None:
    """Runs `config`, read from `file`, as the flags say."""
    logging.set_verbosity(logging.WARNING)  # the libraries' own progress; the run reports its own
    if SEED_GRID.value and MODE.value != "sample":
        raise ConfigError("--seed_grid goes with --mode=sample")
    if NUM_SAMPLES.value < 0:
        raise ConfigError(f"--num_samples={NUM_SAMPLES.value} is negative")
    if NUM_SAMPLES.value:
        config.sampling.num_samples = NUM_SAMPLES.value
    take_words(config)
    if TOPOLOGY.value and not DRY_RUN.value:
        raise ConfigError("--topology goes with --dry_run")
    experiment.connect(config)
    if not DRY_RUN.value:
        jax.devices()  # a TPU's library takes signals when it is loaded
    answer_signals()
    workdir = experiment.workdir()
    if DRY_RUN.value:
        config = resolved(config, workdir)
        mesh = mesh_over(config, TOPOLOGY.value) if TOPOLOGY.value else sharding.make_mesh(config.mesh.to_dict())
        check(config, file=file, num_devices=mesh.size, weights=False)
        dry_run.show(config, mesh, TOPOLOGY.value)
        return
    mode, images = MODE.value, MODE.value in ("train", "evaluate")
    with open_run(
        config,
        file,
        workdir,
        images=images,
        wandb=WANDB.value,
        keep_programs=KEEP_PROGRAMS.value,
        seconds_at_peak=seconds_at_peak,
    ) as stages:
        if mode == "train":
            stages.train()
        if mode in ("train", "sample"):
            stages.sample(SEED_GRID.value, required=mode == "sample")
        if mode == "ask":
            print(stages.ask(IMAGE.value, QUESTION.value))
        if mode == "edit":
            stages.edit(IMAGE.value, INSTRUCTION.value)
        if mode in ("train", "evaluate"):
            show(stages.evaluate(), workdir)


def take_words(config) -> None:
    """Writes to `config` what is to be painted, and checks what is to be asked or edited."""
    mode, needed = MODE.value, WORDS.get(MODE.value, {})
    for flag in (IMAGE, QUESTION, INSTRUCTION):
        if flag.value and flag.name not in needed:
            modes = (f"--mode={mode}" for mode, flags in WORDS.items() if flag.name in flags)
            raise ConfigError(f"--{flag.name} goes with {' and '.join(modes)}")
        if flag.name in needed and not flag.value:
            raise ConfigError(f"--mode={mode} needs {' and '.join(f'--{name}={of}' for name, of in needed.items())}")
    if mode == "edit" and not config.mixture.model:
        raise ConfigError("--mode=edit needs a config with a mixture of transformers; mixture.model is empty")
    if mode == "ask" and not speaks(config):
        raise ConfigError("--mode=ask needs a config with a language model; language_model.model is empty")
    if not PROMPTS.value and PROMPT.value is None:
        return
    if mode != "sample":
        raise ConfigError("--prompts and --prompt go with --mode=sample")
    told = speaks(config) or tells_features(config)
    if not (told or config.mixture.model):
        raise ConfigError("--prompts and --prompt need a config with a language model; language_model.model is empty")
    if PROMPTS.value and PROMPT.value is not None:
        raise ConfigError("--prompts and --prompt exclude each other")
    config.sampling.prompts, config.sampling.prompt = PROMPTS.value, tuple(PROMPT.value or ())
    if told and not NUM_SAMPLES.value:
        config.sampling.num_samples = len(prompts(config))


def show(results: dict[str, float], workdir: Path) -> None:
    """The summary screen."""
    table = Table(title=Text(str(workdir)), title_justify="left")
    table.add_column("measured")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    if jax.process_index() == 0:
        Console().print(table)


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
