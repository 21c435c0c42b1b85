"""Where files may be, and files that appear whole or not at all, however the process that writes them ends."""

import argparse
import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

if os.name != "posix":  # said here, before signals, locks and memory files are looked for that others have not
    raise ImportError("rae_jax runs on Linux and macOS; on Windows use it in WSL (https://aka.ms/wsl)")


class NotLocal(ValueError, argparse.ArgumentTypeError):
    """An address such as gs://bucket where a path of a mounted file system is needed."""


def local_path(text: str | Path, what: str = "") -> Path:
    """`text`, which the user calls `what`, as a path, with `~` for the home directory.

    Raises:
      NotLocal: it is an address; taken for a path it would be a folder here of a name like "gs:".
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(text)):
        raise NotLocal(
            f"{what + '=' if what else ''}{text} is an address, and files are read and written on mounted file systems "
            "only: mount the bucket (docs/scaling.md says how it must be) and give its path, or copy what is there"
        )
    return Path(text).expanduser()


@contextlib.contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` when the block ends; nothing remains if the block fails."""
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write that appears as `path` when the block ends, or not at all if it fails."""
    with whole_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `rows` to `path`, a line of JSON each, atomically."""
    with whole_file(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def read_json_lines(path: str | Path, *, cut_short: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a file of one a line, each with where it stands, "FILE, line 3"; empty lines are none.

    Args:
      cut_short: lines that are no JSON are left out, as a process that was killed leaves its last.

    Raises:
      ValueError: a line is not UTF-8, or no JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{place} is not UTF-8 text: {error}") from None
            except ValueError as error:
                if cut_short:
                    continue
                raise ValueError(f"{place} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place} is no JSON object")
            yield place, row
