"""Sampling at scale: any number of images from trained weights, the same ones whatever the batch size or the mesh."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.files import whole_file
from rae_jax.models.autoencoder import to_uint8
from rae_jax.sampling.generator import Generator, guiding_component, sample_keys
from rae_jax.training import sharding

Load = Callable[..., Any]
LABELS = ("equal", "random", "unconditional")


def choose_labels(how: str, num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """The labels `[num_samples]`, int32, that samples are asked for.

    Args:
      how: "equal": in order of class, as many of each as divide evenly (the first classes get the rest). "random":
        each fixed by (seed, sample index). "unconditional": the null label, `num_classes`.

    Raises:
      ValueError: none of these.
    """
    if num_classes == 0 and how != "unconditional":
        raise ValueError(f"sampling.labels={how!r}, but there are no classes; set it to 'unconditional'")
    if how == "equal":
        return np.sort(np.arange(num_samples) % num_classes).astype(np.int32)
    if how == "unconditional":
        return np.full(num_samples, num_classes, np.int32)
    if how != "random":
        raise ValueError(f"sampling.labels={how!r} is not one of {LABELS}")
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"labels"))
    draw = jax.vmap(lambda index: jax.random.randint(jax.random.fold_in(key, index), (), 0, num_classes))
    return np.asarray(draw(np.arange(num_samples)), np.int32)


def load_components(config: ConfigDict, load: Load, *names: str) -> dict[str, Any]:
    """The trained parameters of the named components, on the devices."""
    inits = components.initializers(config)
    return {name: load(name, inits[name]) for name in names}


def sampling_program(config: ConfigDict, generate: Generator) -> Callable[..., jax.Array]:
    """The compiled function `(params, frozen, indices [B], labels [B]) -> images [B, H, W, 3]` uint8."""

    @jax.jit
    def run(params: Any, frozen: Any, indices: jax.Array, labels: jax.Array) -> jax.Array:
        return to_uint8(generate(params, frozen, sample_keys(config.seed, indices), labels))

    return run


def sample_batches(
    config: ConfigDict,
    load: Load,
    mesh: jax.sharding.Mesh,
    labels: np.ndarray,
    network: str,
    generate: Generator,
    indices: np.ndarray,
) -> Iterator[np.ndarray]:
    """Images uint8 `[b, H, W, 3]` of consecutive parts of `indices`, whole on every process.

    Sample i is fixed by (config.seed, indices[i], labels[i]): the batch size and the mesh change nothing but rounding.
    `generate` makes it with the parameters of the component `network`. One compiled program samples and decodes a
    batch; the next one is under way while the caller looks at one.
    """
    decoding, guide = components.latent_space(config).decoding, guiding_component(config)
    guides = [guide] if guide and network == "flow" else []
    weights = load_components(config, load, network, "stats", *decoding, *guides)
    params = weights.pop(network)
    shards = sharding.num_batch_shards(mesh)
    batch_size = -(-max(min(config.sampling.batch_size, len(labels)), 1) // shards) * shards
    rows = sharding.batch_sharding(mesh)
    run = sampling_program(config, generate)

    def start(first: int) -> jax.Array:
        wanted = np.minimum(np.arange(first, first + batch_size), len(labels) - 1)
        placed = (sharding.place(np.asarray(x[wanted], np.int32), rows) for x in (indices, labels))
        return run(params, weights, *placed)

    under_way = None
    for first in range(0, len(labels), batch_size):
        previous, under_way = under_way, start(first)
        if previous is not None:
            yield sharding.to_host(previous)
    if under_way is not None:
        yield sharding.to_host(under_way)[: len(labels) - first]


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
