"""The one way in which images are measured: batch by batch, on all devices; memory holds a batch and what is kept.

    summaries = Evaluator(mesh, measure, needs)(params, source_batches(source, mesh, ...))

Batches come from a data source, of which every host reads the rows that its devices hold (`source_batches`), or from
images on disk or in memory (`image_batches`). A jitted `measure` looks at them, or at images that it generates itself
from what a batch holds. Means, moments and rows of what it gives are gathered; `evaluation/metrics.py` makes numbers
of them. Neither the batch size nor the number of devices changes a result but by rounding: batches are filled up, and
what fills them is not counted.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rae_jax.data.batches import evaluation_batches
from rae_jax.data.device import DeviceBatches, batch_rows, part
from rae_jax.data.sources import Source
from rae_jax.data.transforms import Transform
from rae_jax.evaluation.frechet import Gaussian, Moments
from rae_jax.evaluation.image_sets import ImageSet
from rae_jax.training import sharding
from rae_jax.training.stopping import leave_if_agreed

Batch = dict[str, jax.Array]  # "mask": bool [B], which rows count, beside whatever is looked at: arrays [B, ...]
Measure = Callable[[Any, Batch], dict[str, dict[str, jax.Array]]]
Rows = dict[str, dict[str, np.ndarray]]

FOLDED = 1024  # rows that wait before they go into the moments, whose size they may be far below


@dataclasses.dataclass(frozen=True)
class Needs:
    """What is to be known of a set of images: of which values the means, of which features the moments, or all rows."""

    means: frozenset[str] = frozenset()
    moments: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(self.means | other.means, self.moments | other.moments, self.rows | other.rows)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is known of a set of images once all were seen.

    Attributes:
      count: how many there are.
      means: of values of each image.
      gaussians: means and covariances of features.
      rows: features or other arrays `[N, ...]` of all images, in order; on the first process only.
    """

    count: int = 0
    means: dict[str, float] = dataclasses.field(default_factory=dict)
    gaussians: dict[str, Gaussian] = dataclasses.field(default_factory=dict)
    rows: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Evaluator:
    """Measures images, as often as it is called.

    Args:
      measure: `(params, batch) -> {set: {quantity: rows [B, ...]}}`, jitted once. It may look at images of several
        sets at a time, such as reconstructions beside their originals.
      needs: what is to be known of each set; quantities that nothing needs are for `on_batch` alone.
    """

    def __init__(self, mesh: jax.sharding.Mesh, measure: Measure, needs: Mapping[str, Needs]):
        def run(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
            with jax.default_matmul_precision("highest"):  # of what is no component, which has a precision of its own
                return batch["mask"], measure(params, batch)

        self._run = jax.jit(run, out_shardings=sharding.replicated(mesh))
        self._needs = dict(needs)
        self._everywhere = {name: needed.means | needed.moments for name, needed in needs.items()}

    def __call__(
        self, params: Any, batches: Iterable[Batch], on_batch: Callable[[Rows], Rows | None] = lambda rows: None
    ) -> dict[str, Summary]:
        """What is known of each set once all `batches` were seen.

        Means and moments are the same on every process. `on_batch` is called on the first process alone, the one that
        may write, with all that was measured of the images that count; it may return values of its own,
        `{set: {quantity: [b]}}`, which are then known on that process alone.

        Raises:
          ValueError: there are no batches, a feature is not finite, or one image is to have a covariance.
          Interrupted: the run, which is training, was asked to stop.
        """
        gatherings = {name: _Gathering(needs) for name, needs in self._needs.items()}
        under_way = None
        for batch in itertools.chain(batches, [None]):  # the host looks at one batch while the devices have the next
            measured, under_way = under_way, None if batch is None else self._run(params, batch)
            if measured is not None:
                self._gather(*measured, gatherings, on_batch)
                leave_if_agreed()
        return {name: gathering.summary() for name, gathering in gatherings.items()}

    def _gather(self, mask: jax.Array, measured: Any, gatherings: dict[str, "_Gathering"], on_batch: Any) -> None:
        counted, first = np.asarray(mask), jax.process_index() == 0
        rows = {
            name: {
                quantity: np.asarray(values)[counted]
                for quantity, values in quantities.items()
                if first or quantity in self._everywhere.get(name, ())
            }
            for name, quantities in measured.items()
        }
        more = (on_batch(rows) or {}) if first else {}
        for name, gathering in gatherings.items():
            gathering.add(int(counted.sum()), rows.get(name, {}) | more.get(name, {}))


class _Gathering:
    """The running sums, moments and rows of one set."""

    def __init__(self, needs: Needs):
        self._needs, self._count = needs, 0
        self._sums: dict[str, float] = {}
        self._moments: dict[str, Moments] = {}
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in needs.moments}
        self._rows: dict[str, list[np.ndarray]] = {}

    def add(self, count: int, quantities: dict[str, np.ndarray]) -> None:
        self._count += count
        for name, values in quantities.items():
            if name in self._needs.means:
                self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
            if name in self._needs.moments:
                self._waiting[name].append(values)
                if sum(map(len, self._waiting[name])) >= FOLDED:
                    self._fold(name)
            if name in self._needs.rows:
                self._rows.setdefault(name, []).append(values)

    def _fold(self, name: str) -> None:
        if waiting := self._waiting[name]:
            part = Moments.of(np.concatenate(waiting))
            self._moments[name] = self._moments[name].merge(part) if name in self._moments else part
            waiting.clear()

    def summary(self) -> Summary:
        if not self._count:
            raise ValueError("there are no images to evaluate")
        for name in self._needs.moments:
            self._fold(name)
        return Summary(
            count=self._count,
            means={name: value / self._count for name, value in self._sums.items()},
            gaussians={name: moments.gaussian() for name, moments in self._moments.items()},
            rows={name: np.concatenate(parts) for name, parts in self._rows.items()},
        )


def batch_size_over(mesh: jax.sharding.Mesh, batch_size: int, count: int) -> int:
    """The size of batches for `count` images: as asked or as few as there are, and a multiple of the devices."""
    shards = sharding.num_batch_shards(mesh)
    return -(-max(min(batch_size, count), 1) // shards) * shards


def source_batches(
    source: Source,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    transform: Transform,
    num_workers: int = 0,
    count: int | None = None,
) -> Iterator[Batch]:
    """The images of `source` once, in order: `image` uint8, `label`, `index` and `mask`, on the devices.

    Every process reads the rows that its devices hold, with `num_workers` workers.

    Args:
      transform: without random steps.
      count: so many of the first images only.

    Raises:
      ValueError: see `evaluation_batches`.
    """
    images = source if count is None else _First(source, count)
    rows, size = sharding.batch_sharding(mesh), batch_size_over(mesh, batch_size, len(images))
    loader = evaluation_batches(
        images, batch_size=size, transform=transform, num_workers=num_workers, rows=batch_rows(rows, size)
    )
    batches = DeviceBatches(loader, rows)
    try:
        yield from batches
    finally:
        batches.close()


class _First:
    """The first `count` images of a source."""

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, min(count, len(source))
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index]


def image_batches(sets: Mapping[str, ImageSet], mesh: jax.sharding.Mesh, *, batch_size: int) -> Iterator[Batch]:
    """The images of `sets`, which are of one length, once, in order: of each its `[B, H, W, 3]` uint8, and `mask`.

    Every process reads the rows that its devices hold.

    Raises:
      ValueError: an image cannot be read.
    """
    (count,) = {len(images) for images in sets.values()}
    size, where = batch_size_over(mesh, batch_size, count), sharding.batch_sharding(mesh)
    rows, starts = batch_rows(where, size), range(0, count, size)
    wanted = [[min(start + row, count - 1) for row in rows] for start in starts]
    read = zip(*(images.parts(wanted) for images in sets.values()), strict=True)
    for start, batch in zip(starts, read, strict=True):
        mask = np.asarray([start + row < count for row in rows])
        yield {
            name: jax.make_array_from_callback((size, *x.shape[1:]), where, lambda at, x=x: part(x, rows, at[0]))
            for name, x in (*zip(sets, batch, strict=True), ("mask", mask))
        }
