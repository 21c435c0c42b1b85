"""Batches from a source: what every process reads of every global batch, in an order fixed by the seed alone.

The order of elements and their augmentation are decided for the whole stream, before it is divided. A process reads the
rows of each global batch that it is told to (`device.batch_rows`: those that its devices hold) and decodes no others.
Neither the processes and their rows, nor the number of workers, nor the prefetch changes any row of any global batch,
so a run may continue on other hardware.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from rae_jax.data.latents import LatentSource
from rae_jax.data.sources import DecodedSource, Source
from rae_jax.data.transforms import Transform, draw_flip
from rae_jax.data.workers import Workers


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


def mixed_batches(
    sources: Sequence[tuple[Source, float]],
    *,
    batch_size: int,
    seed: int,
    transform: Transform,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> "Batches":
    """The batches of `training_batches`, each of them whole from one of several sources (RAEv2's "general" decoders).

    Which one the seed draws for each batch, with probabilities in proportion to the weights beside the sources. Each
    source is shuffled as if all batches were its own, and those that are not are left out: none of its images comes
    twice before its epoch is over. Other arguments and errors are those of `training_batches`.

    Raises:
      ValueError: there is no source, or a weight is not above 0.
    """
    if not sources or any(weight <= 0 for _, weight in sources):
        raise ValueError(f"each source needs a weight above 0; the weights are {[weight for _, weight in sources]}")
    for source, _ in sources:
        _check_not_empty(source)
    finish = functools.partial(_transformed, transform)
    streams = [_shuffled(DecodedSource(source), seed, finish) for source, _ in sources]
    stream = _OneABatch(streams, [weight for _, weight in sources], seed, batch_size)
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
    `batch_size` is the global one, and `rows` says which rows of it these are. Close it to stop its workers, of which
    `data/workers.py` says what becomes of them.
    """

    def __init__(self, stream: Rows, batch_size: int, num_workers: int, prefetch: int, rows: Sequence[int] | None):
        super().__init__()
        self._ended = False
        self._readers: list[Workers | grain.DatasetIterator] = []  # the open one, if any
        weakref.finalize(self, _close_all, self._readers)  # also at exit
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        self.rows = tuple(range(batch_size) if rows is None else rows)
        if not self.rows or not all(0 <= row < batch_size for row in self.rows):
            raise ValueError(f"rows {self.rows} must be some of the {batch_size} of a batch, numbered from 0")
        if num_workers < 0 or prefetch < 1:
            raise ValueError(f"num_workers {num_workers} must be at least 0, and prefetch {prefetch} at least 1")
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
        batch = next(self._readers[0])
        self._position += self.batch_size
        return batch

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
            reading = _Reading(self._stream, self._position, self.batch_size, self.rows)
            if self._num_workers:
                layout = {name: (value.shape, value.dtype) for name, value in self.example().items()}
                self._readers.append(Workers(reading, layout, self._num_workers, self._prefetch))
                self._readers[0].start()
            else:
                ahead = grain.ReadOptions(num_threads=self._prefetch, prefetch_buffer_size=self._prefetch)
                self._readers.append(iter(grain.MapDataset.source(reading).to_iter_dataset(ahead)))
                self._readers[0].start_prefetch()

    def worker_pids(self) -> list[int]:
        """The process ids of the workers, if any are running."""
        return [pid for reader in self._readers if isinstance(reader, Workers) for pid in reader.pids()]

    def interrupt(self) -> None:
        """Ends the workers, if there are any: a `next` that waits for them in another thread raises an error."""
        for reader in self._readers:
            if isinstance(reader, Workers):
                reader.close()

    def close(self) -> None:
        """Stops reading ahead, and the workers."""
        self._ended = True
        while self._readers:  # no function of this module, which may be gone already when the program ends
            self._readers.pop().close()


def _close_all(readers: list[Workers | grain.DatasetIterator]) -> None:
    while readers:
        readers.pop().close()


class _Reading:
    """The given rows of the global batches that follow position `start` of the stream, by the number of the batch."""

    def __init__(self, stream: Rows, start: int, batch_size: int, rows: Sequence[int]):
        self._stream, self._start, self._batch_size, self._rows = stream, start, batch_size, rows
        self._length = min(-(-max(len(stream) - start, 0) // batch_size), sys.maxsize // batch_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.read(number, {})

    def read(self, number: int, into: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Batch `number`, written to the arrays of `into`, or to new ones if it has none.

        Raises:
          ValueError: the elements differ in shape or dtype.
        """
        for place, row in enumerate(self._rows):
            position = self._start + number * self._batch_size + row
            element = {name: np.asarray(value) for name, value in self._stream[position].items()}
            into = into or {n: np.empty((len(self._rows), *value.shape), value.dtype) for n, value in element.items()}
            for name, value in element.items():
                if (value.shape, value.dtype) != (into[name].shape[1:], into[name].dtype):
                    raise ValueError(
                        f"{name!r} of element {position} of the stream is {value.dtype}{list(value.shape)}, of others "
                        f"{into[name].dtype}{list(into[name].shape[1:])}; a transform must make them alike"
                    )
                into[name][place] = value
        return into


class _OneABatch:
    """The positions of each batch of one of several streams, drawn by weight."""

    def __init__(self, streams: Sequence[Rows], weights: Sequence[float], seed: int, batch_size: int):
        self._streams, self._seed, self._batch_size = streams, seed, batch_size
        self._shares = np.asarray(weights) / sum(weights)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> dict[str, Any]:
        rng = np.random.default_rng((self._seed, position // self._batch_size))
        return self._streams[rng.choice(len(self._streams), p=self._shares)][position]


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
