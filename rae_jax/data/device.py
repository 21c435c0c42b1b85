"""Puts batches on the devices ahead of the step that needs them, and keeps account of which were used.

Batches that wait on the devices have not been trained on: the position for a checkpoint is that of the last batch
handed to the step.
"""

import bisect
import math
import queue
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from rae_jax.data.batches import Batches


def batch_rows(sharding: Sharding, batch_size: int, process: int | None = None) -> list[int]:
    """Which rows of a batch the devices of `process` (by default this one) hold, in ascending order.

    They are whatever rows the layout gives these devices: a slice's own order of devices interleaves its hosts, so that
    rows need not lie side by side, and hosts whose devices differ only along a tensor axis hold the same ones.

    Raises:
      ValueError: the batch does not divide over the devices.
    """
    shards = sharding.num_devices // sharding.shard_shape((sharding.num_devices,))[0]
    if batch_size % shards:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {shards} data shards; use a multiple of {shards}"
        )
    process = jax.process_index() if process is None else process
    places = sharding.devices_indices_map((batch_size,)).items()
    return sorted(
        {row for device, (where,) in places if device.process_index == process for row in range(batch_size)[where]}
    )


def part(local: np.ndarray, rows: Sequence[int], where: slice) -> np.ndarray:
    """What a device that holds the rows `where` of the batch is given of `local`, whose rows are `rows` of the batch.

    `rows` are in ascending order and hold all of `where`, which therefore lie side by side in `local`.
    """
    first = bisect.bisect_left(rows, where.start or 0)
    last = bisect.bisect_left(rows, math.inf if where.stop is None else where.stop)
    return local[first:last]


class DeviceBatches:
    """Iterates over `batches` as global arrays divided by `sharding`, `prefetch` of them ahead.

    A background thread reads and places. What it raises, a worker's error included, is raised again by the `next` that
    would have returned that batch. `seconds_waited` adds up how long `next` found nothing ready.

    Raises:
      ValueError: the batches are of other rows than the sharding places here, or do not divide over the devices.
    """

    def __init__(self, batches: Batches, sharding: Sharding, prefetch: int = 2):
        if prefetch < 1:
            raise ValueError(f"prefetch {prefetch} must be at least 1")
        held = batch_rows(sharding, batches.batch_size)
        if list(batches.rows) != held:
            raise ValueError(
                f"the batches are of rows {list(batches.rows)}, but the sharding places rows {held} on process "
                f"{jax.process_index()}; make them with rows=batch_rows(sharding, batch_size)"
            )
        self.seconds_waited = 0.0
        self._batches, self._sharding, self._prefetch = batches, sharding, prefetch
        self._position = batches.get_state()
        self._ready: queue.Queue | None = None
        self._stop: weakref.finalize | None = None
        self._failure: BaseException | None = None

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batch."""
        return {
            name: jax.ShapeDtypeStruct((self._batches.batch_size, *local.shape[1:]), local.dtype)
            for name, local in self._batches.example().items()
        }

    def __iter__(self) -> "DeviceBatches":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._failure is not None:
            raise self._failure
        if self._ready is None:
            self._start()
        began = time.perf_counter()
        batch, position, self._failure = self._ready.get()
        self.seconds_waited += time.perf_counter() - began
        if self._failure is not None:
            raise self._failure
        self._position = position
        return batch

    def state(self) -> dict[str, Any]:
        """The position after the last batch handed out, as `Batches.get_state` gives it."""
        return self._position

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`; batches that were waiting are dropped."""
        self._halt()
        self._batches.set_state(state)
        self._position = self._batches.get_state()
        self._failure = None

    def close(self) -> None:
        """Ends the thread and the workers."""
        self._halt()
        self._batches.close()
        self._failure = ValueError("these batches are closed")

    def _start(self) -> None:
        self._ready = queue.Queue(self._prefetch)
        asked = threading.Event()
        # The thread must not hold `self`: an object that is dropped, or alive at exit, still ends its thread.
        thread = threading.Thread(
            target=_place_ahead,
            args=(self._batches, self._sharding, self._ready, asked),
            name="place-batches",
            daemon=True,
        )
        thread.start()
        self._stop = weakref.finalize(self, _end_thread, self._batches, thread, self._ready, asked)

    def _halt(self) -> None:
        if self._stop is not None:
            self._stop()
        self._ready = self._stop = None


def _place_ahead(batches: Batches, sharding: Sharding, ready: queue.Queue, asked: threading.Event) -> None:
    def place(local: np.ndarray) -> jax.Array:
        shape = (batches.batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: part(local, batches.rows, index[0]))

    try:
        while not asked.is_set():
            batch = {name: place(value) for name, value in next(batches).items()}
            ready.put((batch, batches.get_state(), None))
    except BaseException as error:  # the training thread must see whatever it was, the end of the epoch included
        ready.put((None, None, error))


def _end_thread(batches: Batches, thread: threading.Thread, ready: queue.Queue, asked: threading.Event) -> None:
    asked.set()
    while thread.is_alive():
        batches.interrupt()
        while not ready.empty():  # makes room for a batch that the thread is about to put
            ready.get_nowait()
        thread.join(0.05)
