"""Sampling at scale: any number of images from trained weights, the same ones whatever the batch size or the mesh."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.models.autoencoder import to_uint8
from rae_jax.training import components, sharding
from rae_jax.training.generator import Generator, guiding_component, sample_keys

Load = Callable[[str, Any], Any]
LABELS = ("equal", "random", "unconditional")


def choose_labels(how: str, num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """The labels `[num_samples]`, int32, that samples are asked for.

    Args:
      how: "equal": in order of class, as many of each as divide evenly (the first classes get the rest). "random":
        each fixed by (seed, sample index). "unconditional": the null label, `num_classes`.

    Raises:
      ValueError: none of these.
    """
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
    return {name: load(name, jax.eval_shape(inits[name], jax.random.key(0))) for name in names}


def sampling_program(config: ConfigDict, generate: Generator) -> Callable[..., jax.Array]:
    """The compiled function `(params, frozen, indices [B], labels [B]) -> images [B, H, W, 3]` uint8."""

    @jax.jit
    def run(params: Any, frozen: Any, indices: jax.Array, labels: jax.Array) -> jax.Array:
        return to_uint8(generate(params, frozen, sample_keys(config.seed, indices), labels))

    return run


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
    guide = guiding_component(config)
    weights = load_components(config, load, network, "stats", *decoding, *([guide] if guide else []))
    params = weights.pop(network)
    shards = sharding.num_batch_shards(mesh)
    batch_size = -(-min(config.sampling.batch_size, len(labels)) // shards) * shards
    rows = sharding.batch_sharding(mesh)
    run = sampling_program(config, generate)
    images = []
    for start in range(0, len(labels), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        wanted = labels[np.minimum(indices, len(labels) - 1)]
        batch = run(params, weights, sharding.place(indices, rows), sharding.place(wanted, rows))
        images.append(sharding.to_host(batch))
        on_batch(min(start + batch_size, len(labels)))
    return np.concatenate(images)[: len(labels)]
