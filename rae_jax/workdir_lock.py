"""One run at a time in a working directory."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

FILE = ".lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir` (made if need be) for this process. The lock ends with the process, however that ends.

    Of the several processes of one run, one takes it. It is the operating system's record lock, which also holds
    between machines that share a file system with locks; where there are none, nothing is locked.

    Raises:
      ValueError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / FILE).open("a+") as file:
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
