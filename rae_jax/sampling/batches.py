"""Sampling at scale: any number of images from trained weights, the same ones whatever the batch size or the mesh."""

import io
import json
import math
import os
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

# (network's parameters, those of what its generator needs beside it, indices [B], condition [B, ...])
# -> images [B, H, W, 3] uint8
Program = Callable[[Params, dict[str, Params], jax.Array, Condition], jax.Array]


def sampling_program(generate: Generator, seed: int) -> Program:
    """The compiled function that samples; what keeps it does not compile it again for the same shapes."""

    @jax.jit
    def run(params: Params, frozen: dict[str, Params], indices: jax.Array, asked: Condition) -> jax.Array:
        return to_uint8(generate(params, frozen, sample_keys(seed, indices), asked))

    return run


def sample_batches(
    run: Program,
    params: Params,
    frozen: dict[str, Params],
    asked: Condition,
    indices: np.ndarray,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[np.ndarray]:
    """Images uint8 `[b, H, W, 3]` of consecutive parts of `indices`, whole on every process.

    Sample i is fixed by (the program's seed, indices[i], row i of `asked`): the batch size and the mesh change
    nothing but rounding.
    One compiled program samples and decodes a batch; the next one is under way while the caller looks at one.

    Args:
      run: a `sampling_program`.
      params, frozen: of the network that is sampled, and of what the program needs beside it, on the devices.
      asked: the condition of every sample, on the host.
    """
    count, shards, rows = len(indices), sharding.num_batch_shards(mesh), sharding.batch_sharding(mesh)
    batch_size = -(-max(min(batch_size, count), 1) // shards) * shards

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
      warn: told, in a line, of rows that were there and cannot be used.

    Raises:
      OSError: they cannot be written.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], request: dict[str, Any], warn: Callable[[str], None]):
        self._rows, self._progress = (path.with_suffix(f".partial.{end}") for end in ("npy", "json"))
        self._shape, self._request = shape, json.loads(json.dumps(request))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._header = header.getvalue()
        try:
            self.done = self._continued()
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"{self._rows} and {self._progress.name} cannot be read ({error}); these samples are made anew")
            self.done = 0
        if not self.done:
            self.remove()
            self._rows.parent.mkdir(parents=True, exist_ok=True)
            self._rows.write_bytes(self._header)

    def _continued(self) -> int:
        """How many rows are there of these samples; a file cut short has fewer than its progress says."""
        if not (self._progress.exists() and self._rows.exists()):
            return 0
        kept = json.loads(self._progress.read_text())
        with self._rows.open("rb") as file:
            fits = file.read(len(self._header)) == self._header
        if not fits or kept["request"] != self._request:
            return 0
        there = (self._rows.stat().st_size - len(self._header)) // math.prod(self._shape[1:])
        return min(int(kept["done"]), there, self._shape[0])

    def append(self, images: np.ndarray) -> None:
        """Adds the next rows; they are on disk before the count says so.

        Raises:
          OSError: they cannot be written, for want of space say; those before them are kept.
        """
        try:
            # Not through a memory map: on a full disk that ends the process without a word.
            with self._rows.open("r+b") as file:
                file.seek(len(self._header) + self.done * math.prod(self._shape[1:]))
                file.write(np.ascontiguousarray(images).data)
                file.flush()
                os.fsync(file.fileno())
            with whole_file(self._progress) as file:
                progress = {"done": self.done + len(images), "request": self._request}
                file.write(json.dumps(progress).encode())
        except OSError as error:
            raise OSError(
                f"samples could not be written to {self._rows} ({error.strerror}); the {self.done} before are kept. "
                "Look at the space left there (df), then run the same command again"
            ) from error
        self.done += len(images)

    @property
    def images(self) -> np.ndarray:
        """All of them, once they are made, uint8 `[N, H, W, 3]`, as a memory map."""
        return np.load(self._rows, mmap_mode="r")

    def remove(self) -> None:
        """Removes the files, once the samples are where they belong."""
        self._progress.unlink(missing_ok=True)
        self._rows.unlink(missing_ok=True)
