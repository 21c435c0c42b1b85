"""Sampling at scale: any number of images from trained weights, the same ones whatever the batch size or the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.models.autoencoder import to_uint8
from rae_jax.training import components, sharding
from rae_jax.training.generator import Generator, sample_keys

Load = Callable[[str, Any], Any]


def equal_labels(num_samples: int, num_classes: int) -> np.ndarray:
    """Class-ordered labels `[num_samples]`, as many of each class as divide evenly (the first classes get the rest)."""
    return np.sort(np.arange(num_samples) % num_classes).astype(np.int32)


def load_components(config: ConfigDict, load: Load, *names: str) -> dict[str, Any]:
    """The trained parameters of the named components, on the devices."""
    inits = components.initializers(config)
    return {name: load(name, jax.eval_shape(inits[name], jax.random.key(0))) for name in names}


def sample(
    config: ConfigDict,
    load: Load,
    mesh: jax.sharding.Mesh,
    labels: np.ndarray,
    network: str,
    generate: Generator,
    on_batch: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Images uint8 `[len(labels), H, W, 3]`; sample i is fixed by (seed, i, label).

    `generate` makes them with the parameters of the component `network`.
    `on_batch` is told how many samples are done. One compiled program samples and decodes a batch.
    """
    decoding = components.latent_space(config).decoding
    weights = load_components(config, load, network, "stats", *decoding)
    params = weights.pop(network)
    shards = sharding.num_batch_shards(mesh)
    batch_size = -(-min(config.sampling.batch_size, len(labels)) // shards) * shards
    rows = sharding.batch_sharding(mesh)

    @jax.jit
    def run(params: Any, frozen: Any, indices: jax.Array, labels: jax.Array) -> jax.Array:
        return to_uint8(generate(params, frozen, sample_keys(config.seed, indices), labels))

    images = []
    for start in range(0, len(labels), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        wanted = labels[np.minimum(indices, len(labels) - 1)]
        batch = run(params, weights, sharding.place(indices, rows), sharding.place(wanted, rows))
        images.append(sharding.to_host(batch))
        on_batch(min(start + batch_size, len(labels)))
    return np.concatenate(images)[: len(labels)]
