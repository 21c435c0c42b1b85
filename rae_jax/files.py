"""Files that appear whole or not at all, however the process that writes them ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` when the block ends; nothing remains if the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write that appears as `path` when the block ends, or not at all if it fails."""
    with whole_path(path) as temporary, temporary.open("wb") as file:
        yield file
