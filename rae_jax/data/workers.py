"""Processes that read batches ahead, into memory that they share with the one that trains.

Each is a Python of its own with one socket to its parent: the parent says which batch it wants, the worker that it is
there. A killed worker's socket ends at once, and so does a killed parent's: nobody waits for the dead. The memory that
they share is a file without a name: none is left behind whoever is killed, and the size of `/dev/shm` is no limit.
SIGINT, SIGTERM and SIGHUP, which a terminal or a scheduler may send to a group of processes, are for the parent to
answer; the workers do not see them.
"""

import contextlib
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

import numpy as np

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers: one may be an accident
DYING_SECONDS = 5.0  # a killed process that waits for a disk goes only when that answers
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROGRAM = "import sys; from rae_jax.data.workers import serve; serve(*map(int, sys.argv[1:]))"
ALIGNMENT = 64  # bytes: what JAX asks of memory that it can take as it is on a CPU

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and dtype of each array of a batch


class Closed(ValueError):
    """A batch was wanted of workers that have been stopped."""


class Reading(Protocol):
    """Batches by number; pickles into worker processes."""

    def __len__(self) -> int: ...
    def read(self, number: int, into: dict[str, np.ndarray]) -> Any: ...


class Workers:
    """Iterates over the batches of `reading` in order; `count` processes read them ahead.

    Each has `ahead` batches under way, and as many that are ready. What reading raises is raised by the `next` that
    wanted the batch, again and again. A worker that dies is replaced, `MAX_DEATHS` times, and its batches read anew.

    Args:
      layout: of a batch; all are alike.

    Raises:
      ValueError: workers have died too often.
    """

    def __init__(self, reading: Reading, layout: Layout, count: int, ahead: int):
        self._length, self._layout = len(reading), layout
        self._count, self._slots = count, 2 * ahead * count
        self._memory_file = _unnamed_file(self._slots * _slot_bytes(layout))
        self._memory = np.frombuffer(mmap.mmap(self._memory_file, 0), np.uint8)
        message = pickle.dumps((reading, layout, ahead, self._slots))
        self._message_file = _unnamed_file(len(message))
        os.pwrite(self._message_file, message, 0)
        self._next, self._deaths = 0, 0
        self._ready: dict[int, Exception | None] = {}
        self._closed = False
        self._starting = threading.Lock()  # `close` may come from another thread
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []

    def start(self) -> None:
        """Starts the processes, and reading."""
        for worker in range(self._count):
            self._start(worker)

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, in memory of its own."""
        if self._next >= self._length:
            raise StopIteration
        self._receive(timeout=0)  # also a death is noticed before the batches run out
        while self._next not in self._ready:
            self._receive()
        if (error := self._ready[self._next]) is not None:
            raise error
        del self._ready[self._next]
        slot = _slot(self._memory, self._next % self._slots, self._layout)
        batch = _arrays(_aligned_copy(slot), self._layout)
        self._next += 1
        self._ask(self._next + self._slots - 1)  # the slot is free
        return batch

    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Ends the processes at once; a `next` in another thread raises `Closed`."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
            for process in self._processes:
                process.kill()
            deadline = time.monotonic() + DYING_SECONDS
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            os.close(self._memory_file)
            os.close(self._message_file)

    def _start(self, worker: int) -> None:
        with self._starting:
            if self._closed:
                raise Closed("these workers are closed")
            process, connection = _start_process(self._message_file, self._memory_file)
            self._processes[worker : worker + 1] = [process]
            self._connections[worker : worker + 1] = [connection]
        for number in range(self._next, self._next + self._slots):
            if number % self._count == worker and number not in self._ready:
                self._ask(number)

    def _ask(self, number: int) -> None:
        if number < self._length:
            with contextlib.suppress(OSError):  # it is dead: its successor will be asked
                self._connections[number % self._count].send(number)

    def _receive(self, timeout: float | None = None) -> None:
        """Waits for word from the workers: batches that are ready, or the end of one of them."""
        for connection in wait(self._connections, timeout):
            try:
                number, error = connection.recv()
            except (EOFError, OSError):
                self._replace(self._connections.index(connection))
            else:
                if number is None:
                    raise error
                self._ready[number] = error

    def _replace(self, worker: int) -> None:
        process = self._processes[worker]
        process.kill()  # a process that has closed its socket is of no use
        status = process.wait()
        if self._closed:
            raise Closed("these workers are closed")
        self._connections[worker].close()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise ValueError(
                f"a process that reads data ended unexpectedly ({how}), {self._deaths} times by now; look for it in "
                "the system's log (out of memory?), or set data.num_workers lower, or to 0 to read in this process"
            )
        log.warning("a process that reads data ended unexpectedly (%s); another takes its place", how)
        self._start(worker)


def serve(connection_file: int, message_file: int, memory_file: int) -> None:
    """The life of a worker: fills slots of the shared memory with the batches that its parent asks for."""
    connection, sending = Connection(connection_file), threading.Lock()

    def answer(number: int | None, error: Exception | None) -> None:
        with sending:
            connection.send((number, error))

    try:
        reading, layout, ahead, slots = pickle.loads(mmap.mmap(message_file, 0, access=mmap.ACCESS_READ))
        memory = np.frombuffer(mmap.mmap(memory_file, 0), np.uint8)
    except Exception as error:
        answer(None, _sendable(error))
        os._exit(1)

    def fill(number: int) -> None:
        try:
            reading.read(number, _arrays(_slot(memory, number % slots, layout), layout))
        except Exception as error:
            answer(number, _sendable(error))
        else:
            answer(number, None)

    threads = ThreadPoolExecutor(ahead)
    try:
        while True:
            threads.submit(fill, connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone, and with it whoever waits for what the threads are at


def _start_process(message_file: int, memory_file: int) -> tuple[subprocess.Popen, Connection]:
    ours, theirs = Pipe()
    files = (theirs.fileno(), message_file, memory_file)
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}  # a worker never opens the accelerators
    # A process is born with the signals blocked that its parent's thread has blocked.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, *map(str, files)],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        theirs.close()  # else the socket would not end with the worker
    return process, ours


def _unnamed_file(size: int) -> int:
    """The descriptor of a file of `size` bytes that is in memory, where the system has such, and in no directory."""
    try:
        descriptor = os.memfd_create("batches")
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _aligned_copy(source: np.ndarray) -> np.ndarray:
    memory = np.empty(source.size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + source.size]
    copy[:] = source
    return copy


def _array_bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    size = int(np.prod(shape)) * dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def _slot_bytes(layout: Layout) -> int:
    return sum(_array_bytes(*one) for one in layout.values())


def _slot(memory: np.ndarray, number: int, layout: Layout) -> np.ndarray:
    """The bytes of one batch, of all of them."""
    size = _slot_bytes(layout)
    return memory[number * size : (number + 1) * size]


def _arrays(slot: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays in the bytes of one batch."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        arrays[name] = np.ndarray(shape, dtype, slot, offset)
        offset += _array_bytes(shape, dtype)
    return arrays


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, or, if it does not survive pickling, one that says the same."""
    error.add_note("in a process that reads data:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
