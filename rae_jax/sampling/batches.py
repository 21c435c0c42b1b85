"""Sampling at scale: any number of images from trained weights, the same ones whatever the batch size or the mesh."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rae_jax.components.component import Params
from rae_jax.components.conditions import Condition
from rae_jax.files import whole_file
from rae_jax.models.autoencoder import to_uint8
from rae_jax.sampling.generator import Generator, sample_keys
from rae_jax.training import sharding


def sampling_program(generate: Generator, seed: int) -> Callable[..., jax.Array]:
    """The compiled function `(params, frozen, indices [B], condition [B, ...]) -> images [B, H, W, 3]` uint8."""

    @jax.jit
    def run(params: Params, frozen: dict[str, Params], indices: jax.Array, asked: Condition) -> jax.Array:
        return to_uint8(generate(params, frozen, sample_keys(seed, indices), asked))

    return run


def sample_batches(
    generate: Generator,
    params: Params,
    frozen: dict[str, Params],
    asked: Condition,
    indices: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[np.ndarray]:
    """Images uint8 `[b, H, W, 3]` of consecutive parts of `indices`, whole on every process.

    Sample i is fixed by (seed, indices[i], row i of `asked`): the batch size and the mesh change nothing but rounding.
    One compiled program samples and decodes a batch; the next one is under way while the caller looks at one.

    Args:
      params, frozen: of the network that is sampled, and of what `generate` needs beside it, on the devices.
      asked: the condition of every sample, on the host.
    """
    count, shards, rows = len(indices), sharding.num_batch_shards(mesh), sharding.batch_sharding(mesh)
    batch_size = -(-max(min(batch_size, count), 1) // shards) * shards
    run = sampling_program(generate, seed)

    def start(first: int) -> jax.Array:
        wanted = np.minimum(np.arange(first, first + batch_size), count - 1)
        placed = sharding.place(jax.tree.map(lambda x: x[wanted], (indices.astype(np.int32), asked)), rows)
        return run(params, frozen, *placed)

    under_way = None
    for first in range(0, count, batch_size):
        previous, under_way = under_way, start(first)
        if previous is not None:
            yield sharding.to_host(previous)
    if under_way is not None:
        yield sharding.to_host(under_way)[: count - first]


class PartialSamples:
    """Samples on disk while they are made, so that a run that is killed continues, and memory holds one batch.

    `<path>.partial.npy` holds rows, `<path>.partial.json` how many of them are there and what they are samples of.

    Args:
      path: of the file that they become.
      shape: `[N, H, W, 3]` of all of them.
      request: everything that decides what they are; rows made for another request are thrown away.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], request: dict[str, Any]):
        self._rows, self._progress = (path.with_suffix(f".partial.{end}") for end in ("npy", "json"))
        self._request = json.loads(json.dumps(request))
        self.done = self._continued(shape)
        mode = "r+" if self.done else "w+"
        self._rows.parent.mkdir(parents=True, exist_ok=True)
        self.images = np.lib.format.open_memmap(self._rows, mode, np.uint8, None if self.done else shape)

    def _continued(self, shape: tuple[int, ...]) -> int:
        if not (self._progress.exists() and self._rows.exists()):
            return 0
        kept = json.loads(self._progress.read_text())
        fits = np.load(self._rows, mmap_mode="r").shape == shape
        return kept["done"] if fits and kept["request"] == self._request else 0

    def append(self, images: np.ndarray) -> None:
        """Adds the next rows; they are on disk before the count says so."""
        self.images[self.done : self.done + len(images)] = images
        self.images.flush()
        self.done += len(images)
        with whole_file(self._progress) as file:
            file.write(json.dumps({"done": self.done, "request": self._request}).encode())

    def remove(self) -> None:
        """Removes the files, once the samples are where they belong."""
        self._progress.unlink(missing_ok=True)
        self._rows.unlink(missing_ok=True)
