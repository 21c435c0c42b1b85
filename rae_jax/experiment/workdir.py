"""The working directory of a run: one run at a time in it, and the config that made it."""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import time
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.files import whole_file
from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import CHECKPOINTS, images_seen, is_of, steps_in
from rae_jax.training.durations import DURATIONS

LOCK, CONFIG, FINISHED, SHARED = ".lock", "config.json", "finished.json", ".seen_by_all"
SEEN_SECONDS = 10.0  # after which a file of one host has come to be seen by another
# What may change between two starts of one run: where it runs, how long and how it is watched, not what is computed.
MAY_CHANGE = (
    "mesh", "cpu_devices", "sampling", "evaluation", "data.num_workers", "data.path", "data.max_unreadable_share",
    "data.check_images", "data.latents", "inception", "lpips_alexnet",
)  # fmt: skip
MAY_CHANGE_IN_TRAIN = (
    "log_every", "checkpoint_every", "keep_checkpoints", "pictures_every", "max_gradient_norm", "max_loss",
    "profile_step", "best_metric", "evaluate_every", "evaluation_images", "max_skipped_steps", "batch_size",
    "gradient_accumulation",
)  # fmt: skip
# Fields that a run may have begun without, and what it did then.
FORMERLY = {"mixture.text_first": False, "latent_patch_size": 1, "teacher.model.shift_factor": 0.0}
OF_TIME = {name for units in DURATIONS for name in units}  # in whatever part of a stage


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the file, the field and what to do."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir` (made if need be) for this process. The lock ends with the process, however that ends.

    Of the several processes of one run, one takes it. It is the operating system's record lock, which also holds
    between machines that share a file system with locks; where there are none, nothing is locked.

    Raises:
      ValueError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(
                f"the working directory {workdir} is in use by {holder}; wait for it, stop it, or use another --workdir"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def begun(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir`, as plain values; nothing if it has left neither a checkpoint nor samples.

    A command that has failed before, or was taken back, binds no later one.
    """
    path = workdir / CONFIG
    if not path.exists():
        return {}
    stages = (folder for folder in workdir.iterdir() if folder.is_dir())
    trained = any((stage / FINISHED).exists() or steps_in(stage / CHECKPOINTS) for stage in stages)
    return json.loads(path.read_text()) if trained or any(workdir.glob("samples*")) else {}


def progress(stage: Path) -> tuple[int, int]:
    """The steps that the stage in the directory `stage` has made, and the images that it has seen."""
    folder = stage / CHECKPOINTS
    if steps := steps_in(folder):
        return steps[-1], images_seen(folder / str(steps[-1]))
    finished = stage / FINISHED
    left = json.loads(finished.read_text()) if finished.exists() else {}
    return (left["steps"], left["images"]) if "images" in left else (0, 0)


def check_shared(workdir: Path) -> None:
    """Checks that all processes of this run, on whichever hosts, see one working directory; all must call it.

    Raises:
      ValueError: some see another of that name, a disk of their host's own say.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token, path = sharding.of_first_process(secrets.randbits(30)), workdir / SHARED
    if jax.process_index() == 0:
        path.write_text(str(token))
    sharding.barrier("token written")
    deadline, seen = time.monotonic() + SEEN_SECONDS, False
    while not seen and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = path.read_text() == str(token)
        if not seen:
            time.sleep(0.2)
    all_seen = multihost_utils.process_allgather(np.asarray(seen))
    if jax.process_index() == 0:
        path.unlink()
    if not all_seen.all():
        raise ValueError(
            f"the working directory {workdir.absolute()} is not the same for all processes: number "
            f"{', '.join(map(str, np.flatnonzero(~all_seen)))} do not see what number 0 wrote there. Name a directory "
            "on a disk that all hosts have mounted at the same place"
        )


def remember(config: ConfigDict, workdir: Path, *, file: str, write: bool) -> tuple[dict[str, Any], list[str]]:
    """Checks that what is in the working directory was made by `config`, and returns `config` as plain values.

    With `write` it is kept there for the next start; of several processes one writes. The lines that come with the
    values say what has changed since the last start.

    Raises:
      ConfigError: the directory was made by another config; the fields that differ are listed, nothing is changed.
    """
    plain = json.loads(config.to_json_best_effort())
    kept, lines = begun(workdir), []
    for name, section in plain.items():
        # Weights that this run has made itself are a choice for once, not what the run is.
        if isinstance(section, dict) and section.get("weights") and _made_here(section["weights"], workdir):
            section["weights"] = kept.get(name, {}).get("weights", "")
    if kept:
        now = flat(plain)
        before = with_former(flat(kept), now)
        differing = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
        if refused := [name for name in differing if not _may_change(name)]:
            raise ConfigError(
                f"{file}: the working directory {workdir} was made by another config:\n"
                + "\n".join(f"  {name}: {before[name]!r} there, {now[name]!r} now" for name in refused)
                + "\nuse another --workdir, or set these fields as they were"
            )
        if differing:
            changes = (f"{name} from {before[name]!r} to {now[name]!r}" for name in differing)
            lines.append(f"changed since the last start: {', '.join(changes)}")
        if new := sorted(now.keys() - before.keys()):
            values = ", ".join(f"{name}={now[name]!r}" for name in new)
            lines.append(f"not known to the version that began this run: {values}")
        if gone := sorted(before.keys() - now.keys()):
            values = ", ".join(f"{name}={before[name]!r}" for name in gone)
            lines.append(f"not known to this version, and left out: {values}")
    if write:
        with whole_file(workdir / CONFIG) as stream:
            stream.write((json.dumps(plain, indent=2) + "\n").encode())
    return plain, lines


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their names, joined by dots."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def config_of(kept: Mapping[str, Any]) -> ConfigDict:
    """The config of a run from its plain values, with what was done then in the fields that there were not yet."""
    config = ConfigDict(kept)
    for name, value in FORMERLY.items():
        *path, field = name.split(".")
        section = functools.reduce(lambda found, part: found.get(part, {}), path, config)
        if section and field not in section:
            section[field] = value
    return config


def with_former(kept: Mapping[str, Any], now: Container[str]) -> dict[str, Any]:
    """Fields that were kept, by their names, and of those of `now` that there were not yet what was done then."""
    return {name: value for name, value in FORMERLY.items() if name in now} | dict(kept)


def _made_here(weights: str, workdir: Path) -> bool:
    return any(is_of(weights, stage) for stage in workdir.iterdir() if stage.is_dir())


def _may_change(name: str) -> bool:
    if any(name == field or name.startswith(field + ".") for field in MAY_CHANGE):
        return True
    return name.split(".")[-1] in OF_TIME or any(name.endswith(f".train.{field}") for field in MAY_CHANGE_IN_TRAIN)
