"""Batches from a source: what every process reads of every global batch, in an order fixed by the seed alone.

The order of elements and their augmentation are decided for the whole stream, before it is divided. A process reads the
rows of each global batch that it is told to (`device.batch_rows`: those that its devices hold) and decodes no others.
Neither the processes and their rows, nor the number of workers, nor the prefetch changes any row of any global batch,
so a run may continue on other hardware.
"""

import functools
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from rae_jax.data.latents import LatentSource
from rae_jax.data.sources import DecodedSource, Source
from rae_jax.data.transforms import Transform, draw_flip

log = logging.getLogger(__name__)

WORKER_DIED = "Worker process was terminated unexpectedly"  # grain's words
MAX_DEATHS = 3  # of workers, in a run: one may be an accident


class Rows(Protocol):
    """Random access to elements by their position in the global stream; the last batch may ask past the end."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> dict[str, Any]: ...


def training_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transform: Transform,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> "Batches":
    """Endless shuffled batches `{'image': uint8 [b, S, S, 3], 'label': int32 [b]}`: b rows of each global batch.

    Each epoch is a new permutation, and epochs follow each other without a gap: a batch may hold the end of one and the
    start of the next, and one larger than the source holds several. Random transforms draw from a generator of their
    own for every position in the stream.

    Args:
      batch_size: rows of the global batch.
      transform: see `rae_jax.data.transforms.transform`.
      num_workers: processes that read and decode; with 0, threads of this one.
      prefetch: batches that each worker has under way, and again as many that it holds ready.
      rows: which rows of the global batch, in this order; all of them by default.

    Raises:
      ValueError: the source is empty, or a row is not one of the batch.
    """
    _check_not_empty(source)
    stream = _shuffled(DecodedSource(source), seed, functools.partial(_transformed, transform))
    return Batches(stream, batch_size, num_workers, prefetch, rows)


def latent_batches(
    source: LatentSource,
    *,
    batch_size: int,
    seed: int,
    flip: bool,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> "Batches":
    """The batches of `training_batches` with `latent`, bfloat16 `[b, N, C]`, in place of `image`.

    They are the latents of the very images that `training_batches` gives with the same seed and a transform that flips
    if `flip` is set: a run may change from one to the other at any step. Other arguments and errors are its.
    """
    stream = _shuffled(range(len(source)), seed, functools.partial(_read_latent, source, flip))
    return Batches(stream, batch_size, num_workers, prefetch, rows)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> "Batches":
    """One epoch in the order of the source: the batches of `training_batches` with two more entries.

    `index: int32 [b]` is the position in the source and `mask: bool [b]` says which rows count. The last batch is
    filled up with copies of the last element, whose mask is False; there are as many batches for any `rows`.

    Raises:
      ValueError: as `training_batches`, or the transform is random.
    """
    _check_not_empty(source)
    if transform.random:
        raise ValueError("evaluation takes a transform without random steps, such as 'center_crop'")
    epoch = _Epoch(DecodedSource(source), transform)
    return Batches(epoch, batch_size, num_workers, prefetch, rows)


class Batches(grain.DatasetIterator):
    """The batches of one process: an iterator whose state is a single number, the same in every process.

    The state, `{'position': rows of the global stream already handed out}`, is taken and set by `get_state` and
    `set_state`, which `grain.checkpoint` calls; it fits any number of processes and workers, and any batch size.
    Workers that die are started anew where they were, `MAX_DEATHS` times.
    `batch_size` is the global one, and `rows` says which rows of it these are. Close it to stop its workers.
    """

    def __init__(
        self,
        stream: Rows,
        batch_size: int,
        num_workers: int,
        prefetch: int,
        rows: Sequence[int] | None,
    ):
        super().__init__()
        self._ended = False
        self._deaths = 0
        self._readers: list[grain.DatasetIterator] = []  # the open one, if any
        # Also at exit: grain's own clean-up comes too late then, and prints tracebacks.
        weakref.finalize(self, _close_all, self._readers)
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        self.rows = tuple(range(batch_size) if rows is None else rows)
        if not self.rows or not all(0 <= row < batch_size for row in self.rows):
            raise ValueError(f"rows {self.rows} must be some of the {batch_size} of a batch, numbered from 0")
        if num_workers < 0 or prefetch < 1:
            raise ValueError(f"num_workers {num_workers} must be at least 0, and prefetch {prefetch} at least 1")
        if num_workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which nobody parses outside of app.run
        self.batch_size = batch_size
        self._stream = stream
        self._num_workers, self._prefetch = num_workers, prefetch
        self._position = 0

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of this process's batches; decodes the first element."""
        first = {name: np.asarray(value) for name, value in self._stream[0].items()}
        return {
            name: jax.ShapeDtypeStruct((len(self.rows), *value.shape), value.dtype) for name, value in first.items()
        }

    def __next__(self) -> dict[str, np.ndarray]:
        self.start_prefetch()
        try:
            batch = next(self._readers[0])
        except RuntimeError as error:
            if WORKER_DIED not in str(error):
                raise
            self._begin_anew(error)
            return next(self)
        self._position += self.batch_size
        return batch

    def _begin_anew(self, error: RuntimeError) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise ValueError(
                f"a process that decodes images ended unexpectedly, {self._deaths} times by now ({error}); look for it "
                "in the system's log (out of memory?), or set data.num_workers lower, or to 0 to decode in this process"
            ) from error
        log.warning("a process that decodes images ended unexpectedly; starting them anew at %d", self._position)
        _close_all(self._readers)

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands after the batches handed out so far."""
        return {"position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state taken before; workers are started anew."""
        _close_all(self._readers)
        self._position = int(state["position"])

    def start_prefetch(self) -> None:
        """Starts reading ahead, which the first `next` does otherwise."""
        if self._ended:
            raise ValueError("these batches are closed")
        if not self._readers:
            self._readers.append(self._open_reader())
            self._readers[0].start_prefetch()

    def close(self) -> None:
        """Stops the workers."""
        self._ended = True
        while self._readers:  # no function of this module, which may be gone already when the program ends
            self._readers.pop().close()

    def _open_reader(self) -> grain.DatasetIterator:
        share = _Share(self._stream, self._position, self.batch_size, self.rows)
        batches = grain.MapDataset.source(share).batch(len(self.rows), drop_remainder=True)
        ahead = grain.ReadOptions(num_threads=self._prefetch, prefetch_buffer_size=self._prefetch)
        # Workers answer through pipes: shared memory is 64 MiB in a default container, and leaks when a run ends.
        no_shared_memory = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        read = grain.experimental.WithOptionsIterDataset(batches.to_iter_dataset(ahead), no_shared_memory)
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=self._prefetch)
        return iter(read.mp_prefetch(workers))


def _close_all(readers: list[grain.DatasetIterator]) -> None:
    while readers:
        readers.pop().close()


class _Share:
    """The given rows of the global batches that follow position `start` of the stream."""

    def __init__(self, stream: Rows, start: int, batch_size: int, rows: Sequence[int]):
        self._stream, self._start, self._batch_size, self._rows = stream, start, batch_size, rows
        batches = -(-max(len(stream) - start, 0) // batch_size)
        self._length = min(batches, sys.maxsize // batch_size) * len(rows)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(index, len(self._rows))
        return self._stream[self._start + batch * self._batch_size + self._rows[row]]


class _Epoch:
    """Every element once; at positions past the end, with which a batch is filled up, the last one and `mask` False."""

    def __init__(self, source: DecodedSource, transform: Transform):
        self._source, self._transform = source, transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = min(position, len(self._source) - 1)
        element = _transformed(self._transform, self._source[index])
        return element | {"mask": np.bool_(position == index), "index": np.int32(index)}


def _shuffled(
    elements: Sequence[Any], seed: int, finish: Callable[[Any, np.random.Generator], dict[str, Any]]
) -> grain.MapDataset:
    return grain.MapDataset.source(elements).seed(seed).shuffle().repeat().random_map(finish)


def _read_latent(source: LatentSource, flip: bool, index: int, rng: np.random.Generator) -> dict[str, Any]:
    return source.read(index, mirrored=flip and draw_flip(rng))


def _transformed(
    transform: Callable[..., np.ndarray], element: dict[str, Any], rng: np.random.Generator | None = None
) -> dict[str, Any]:
    return {"image": transform(element["image"], rng), "label": np.int32(element["label"])}


def _check_not_empty(source: Source) -> None:
    if len(source) == 0:
        raise ValueError(f"there are no images in {source}")
