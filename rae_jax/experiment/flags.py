"""The flags that name an experiment, its working directory and its processes: of `main` and of the tools."""

import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags
from jax._src import distributed  # its client, by which the processes can talk, has no public name
from ml_collections import ConfigDict, config_flags

from rae_jax.files import local_path
from rae_jax.spelling import nearest
from rae_jax.training import durations, stopping

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file that defines get_config(), or the name of one that comes with the project."
)
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run keeps its files; runs/<config name> by default.")
NO_EXPERIMENTS = (
    "__init__",
    "architectures",
    "base",
    "released",
    "variants",
)  # files of configs/ that experiments are made of

DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One run over several processes, each started with this flag; on TPU pods, Slurm and GKE they find "
    "each other, elsewhere the next three flags say where they are.",
)
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def config() -> ConfigDict:
    """The experiment that the flags name, with the fields that they set.

    Raises:
      UsageError: none is named.
    """
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is missing; try --config=configs/digits.py")
    return CONFIG.value


def config_file() -> str:
    """The file of the experiment, with its variant if one is named."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def workdir() -> Path:
    """The working directory.

    Raises:
      ValueError: it is an address, or checkpoints in it could not be read again.
    """
    if not WORKDIR.value:
        return Path("runs") / re.sub(r"\.py:?", "_", Path(config_file()).name).strip("_")
    path = local_path(WORKDIR.value, "--workdir")
    if found := sorted(set(str(path.absolute())) & set("*?[]\\")):
        raise ValueError(
            f"--workdir={WORKDIR.value}: the storage below the checkpoints takes {' '.join(found)} in the path "
            f"{path.absolute()} for a pattern, and would not find there what it has written; use other characters, "
            "as in run(lr=1e-3)"
        )
    return path


def divide_cpu(config: ConfigDict) -> None:
    """Makes `config.cpu_devices` devices of this machine's CPU, unless `XLA_FLAGS` says how many; before any is used.

    Small operations keep one core busy each; as devices of their own the cores work on the parts of a batch at once.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)


def connect(config: ConfigDict) -> None:
    """Divides the CPU, and joins the processes of a run, if the flags say that there are several."""
    divide_cpu(config)
    if DISTRIBUTED.value:
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM: `training/stopping.py`
        jax.distributed.initialize(
            COORDINATOR.value,
            NUM_PROCESSES.value,
            PROCESS_ID.value,
            heartbeat_timeout_seconds=stopping.HEARTBEAT_SECONDS,
        )
        joined = distributed.global_state
        if joined.num_processes > 1:
            stopping.join(joined.client, joined.process_id, joined.num_processes)


def shipped() -> dict[str, Path]:
    """The experiments that come with the project, by name, wherever it is installed."""
    folder = Path(importlib.util.find_spec("configs").origin).parent
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem not in NO_EXPERIMENTS}


def located(argument: str) -> str:
    """A command-line argument; of `--config=digits`, and `--config=configs/digits.py` from elsewhere, the file's path.

    A file of that name comes first.
    """
    flag, _, value = argument.partition("=")
    path, colon, variant = value.partition(":")
    if flag.lstrip("-") != "config" or Path(path).is_file():
        return argument
    found = shipped().get(path.removeprefix("configs/").removesuffix(".py"))
    if found is None:
        return argument
    near = found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    return f"{flag}={near}{colon}{variant}"


def read_config(name: str) -> ConfigDict:
    """The config that `--config=name` means, for tools that take one under another flag.

    Raises:
      ValueError: there is none of that name, or its file has a mistake.
    """
    argument = located(f"--config={name}")
    path, _, variant = argument.partition("=")[2].partition(":")
    if not Path(path).is_file():
        raise ValueError(_nowhere(path))
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([variant] if variant else []))
    except Exception as error:
        raise ValueError(mistake(error, [argument]) or f"{path}: {error}") from error
    return _checked(config, path)


def _nowhere(path: str) -> str:
    return (
        f"there is no file {path}, and no experiment of that name{nearest(Path(path).stem, shipped())}; "
        f"those that come with the project are {', '.join(shipped())}"
    )


def _checked(config: object, path: str | Path) -> ConfigDict:
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() returns {config!r}, not a ConfigDict")
    return config


def mistake(error: BaseException | None, arguments: list[str]) -> str | None:
    """What is wrong in the config file of a command, with the line of it; None if `error` did not arise there."""
    values = [a.partition("=")[2] for a in map(located, arguments) if a.lstrip("-").startswith("config=")]
    path, _, variant = values[-1].partition(":") if values else ("", "", "")
    if error is None or not Path(path).is_file():
        return None
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if "has no attribute 'get_config'" in str(error):
        return f"{path} defines no get_config()"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    text = _plain(error)
    if text[0].startswith("Error whilst parsing config file"):  # ml_collections puts the traceback into the text
        frames += re.findall(r'File "(.+)", line (\d+)', str(error))
        text = [line.partition(": ")[2] for line in text if line][-1:]
    lines = [line for file, line in frames if Path(file).resolve() == Path(path).resolve()]
    if not lines and isinstance(error, TypeError) and variant:
        return f"{path} has no variants, its get_config() takes no argument: leave out :{variant}"
    if not lines:
        return None
    said = " ".join(dict.fromkeys([text[0], text[-1]]))  # between them are all the fields that there are
    if isinstance(error, ValueError) and Path(path).name in said:
        return said
    return f"{path}, line {lines[-1]}: {type(error).__name__}: {said}"


def _plain(error: BaseException) -> list[str]:
    """The lines of an error's text; ml_collections quotes its own twice, and lists all the fields that there are."""
    lines = str(error).replace("\\n", "\n").replace("\\", "").strip().splitlines() or [""]
    lines = [line.partition(" Other fields present")[0].strip() for line in lines]
    return [line.strip("\"'") if line.count("'") % 2 or line.count('"') % 2 else line for line in lines]


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags; a field that the config does not have is named, with the nearest one that it has."""
    try:
        rest = flags.FLAGS([located(argument) for argument in arguments])
    except flags.Error as error:
        sys.exit(f"error: {mistake(error.__cause__ or error.__context__, arguments) or error}")
    except Exception as error:
        if said := mistake(error, arguments):
            sys.exit(f"error: {said}")
        if not isinstance(error, AttributeError | KeyError):
            raise
        name, *more = _plain(error)
        name = name.strip("\"' ")
        hint = more[-1] if more else ""
        given = [a.split("=")[0] for a in arguments if name in a.split("=")[0].lstrip("-").split(".")]
        where = given[0] if given else "the config file"
        sys.exit(f"error: {where}: there is no field {name!r}. {hint}".strip())
    if CONFIG.present:
        path = Path(config_file().split(":")[0])
        if not path.is_file():
            sys.exit(f"error: --config: {_nowhere(str(path))}")
        try:
            config = _checked(CONFIG.value, path)
            durations.give_way(config, config_flags.get_override_values(flags.FLAGS["config"]))
            workdir()
        except ValueError as error:
            sys.exit(f"error: {error}")
    return rest
