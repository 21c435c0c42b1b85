"""Puts batches on the devices ahead of the step that needs them, and keeps account of which were used.

Batches that wait on the devices have not been trained on: the position for a checkpoint is that of the last batch
handed to the step.
"""

import queue
import threading
import time
import weakref
from typing import Any

import jax
from jax.sharding import Sharding

from rae_jax.data.batches import Batches


def batch_share(sharding: Sharding) -> tuple[int, int]:
    """Which rows of a batch this process needs: share `index` of `count` equal ones.

    With a mesh that divides batches over all processes that is (process index, process count); processes whose devices
    hold the same rows, as under tensor parallelism across hosts, share one.

    Raises:
      ValueError: the process's devices hold rows that do not lie side by side.
    """
    rows = sharding.num_devices  # a batch of so many rows divides over whichever axes the batch is divided
    places = sharding.addressable_devices_indices_map((rows,)).values()
    held = sorted({row for (where,) in places for row in range(rows)[where]})
    size = len(held)
    if held[-1] - held[0] + 1 != size or held[0] % size or rows % size:
        raise ValueError(
            f"the devices of process {jax.process_index()} hold rows {held} of {rows}, which do not lie side by side; "
            "order the mesh so that the devices of a process follow each other along the batch axes"
        )
    return held[0] // size, rows // size


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
        share = batch_share(sharding)
        if share != (batches.process_index, batches.process_count):
            raise ValueError(
                f"the batches are share {batches.process_index} of {batches.process_count}, but the sharding places "
                f"share {share[0]} of {share[1]} on process {jax.process_index()}; "
                f"make them with process_index={share[0]}, process_count={share[1]} (see batch_share)"
            )
        shards = sharding.num_devices // sharding.shard_shape((sharding.num_devices,))[0]
        if batches.batch_size % shards:
            raise ValueError(
                f"batch_size {batches.batch_size} does not divide over {shards} data shards; use a multiple of {shards}"
            )
        self.seconds_waited = 0.0
        self._batches, self._sharding, self._prefetch = batches, sharding, prefetch
        self._position = batches.get_state()
        self._ready: queue.Queue | None = None
        self._stop: weakref.finalize | None = None
        self._failure: BaseException | None = None

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batch."""
        count = self._batches.process_count
        return {
            name: jax.ShapeDtypeStruct((local.shape[0] * count, *local.shape[1:]), local.dtype)
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
        self._stop = weakref.finalize(self, _end_thread, thread, self._ready, asked)

    def _halt(self) -> None:
        if self._stop is not None:
            self._stop()
        self._ready = self._stop = None


def _place_ahead(batches: Batches, sharding: Sharding, ready: queue.Queue, asked: threading.Event) -> None:
    def place(local: Any) -> jax.Array:
        shape = (local.shape[0] * batches.process_count, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    try:
        while not asked.is_set():
            batch = {name: place(value) for name, value in next(batches).items()}
            ready.put((batch, batches.get_state(), None))
    except BaseException as error:  # the training thread must see whatever it was, the end of the epoch included
        ready.put((None, None, error))


def _end_thread(thread: threading.Thread, ready: queue.Queue, asked: threading.Event) -> None:
    asked.set()
    while thread.is_alive():
        while not ready.empty():  # makes room for a batch that the thread is about to put
            ready.get_nowait()
        thread.join(0.05)
