"""Makes a cache of latents: encodes every training image and its mirror image, and writes them shard by shard.

`latent_cache.py` says whether a run may train from what is written here; `data/latents.py` has the format.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data import latents
from rae_jax.data.batches import evaluation_batches
from rae_jax.data.device import DeviceBatches, batch_rows
from rae_jax.data.latents import Description, Encoded
from rae_jax.data.sources import Source
from rae_jax.data.transforms import transform, without_flip
from rae_jax.experiment import latent_cache
from rae_jax.experiment.configuration import check
from rae_jax.experiment.stages import open_sources
from rae_jax.experiment.weights import Weights
from rae_jax.objectives.objective import Batch, to_float
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

IMAGES_A_DEVICE = 64  # of a batch
EVERY_DEVICE = {"data": -1, "fsdp": 1, "tensor": 1}  # the mesh: what encodes is small enough for each to have it whole


def share_of(shards: int, process: int, processes: int) -> range:
    """The shards that `process` of `processes` writes: as many as any other, or one more, side by side."""
    return range(process * shards // processes, (process + 1) * shards // processes)


def encoded_images(
    config: ConfigDict, parts: dict[str, Params], source: Source, fixed: str, first: int, mesh: jax.sharding.Mesh
) -> Iterator[Encoded]:
    """The latents of the images from number `first` on, in the order of `source`.

    Args:
      parts: the parameters of what encodes, on the devices of `mesh`.
      fixed: the transform.
    """
    space, rows = latent_space(config), sharding.batch_sharding(mesh)

    @jax.jit
    def encode(parts: dict[str, Params], batch: Batch) -> tuple[jax.Array, jax.Array]:
        images = to_float(batch)
        both = (space.encode(parts, x) for x in (images, images[:, :, ::-1]))
        return tuple(z.astype(jnp.bfloat16) for z in both)

    loader = evaluation_batches(
        source,
        batch_size=IMAGES_A_DEVICE * mesh.size,
        transform=transform(fixed, config.data.image_size),
        num_workers=config.data.num_workers,
        rows=batch_rows(rows, IMAGES_A_DEVICE * mesh.size),
    )
    loader.set_state({"position": first})
    batches = DeviceBatches(loader, rows)
    try:
        # A batch ahead of what is being written: the devices do not wait for the disk.
        ahead = ((*encode(parts, batch), batch["label"], batch["mask"]) for batch in batches)
        for now, _ in itertools.pairwise(itertools.chain(ahead, [None])):
            *of_rows, mask = jax.device_get(now)
            yield from zip(*(values[mask] for values in of_rows), strict=True)
    finally:
        batches.close()


def write_cache(config: ConfigDict, file: str, workdir: Path, output: Path) -> Description:
    """Writes the cache of the config's training images; a finished one is left as it is.

    Raises:
      ValueError: the config cannot work, there are no weights of what encodes, or `output` holds something else.
      OSError: a shard could not be written.
    """
    config.data.latents = ""
    config.mesh.update(EVERY_DEVICE)
    stages, config.stages = config.stages, ()  # nothing is trained: what only their training needs may be absent
    check(config, file=file, num_devices=jax.device_count())
    sources = open_sources(config, workdir)
    config.stages = stages  # they say which of them left the weights
    fixed, _ = without_flip(config.flow.train.transform)
    process, processes = jax.process_index(), jax.process_count()
    log = RunLog(workdir, active=False)
    # Every process encodes for itself: its shards are images that lie side by side.
    mesh = sharding.make_mesh(EVERY_DEVICE, jax.local_devices())
    with sharding.use(mesh):
        stored, space = Weights(config, {}, workdir, mesh, log.warn), latent_space(config)
        parts = {name: stored.load(component) for name, component in space.encoding.items()}
        weights = {name: latent_cache.digest(jax.device_get(params)) for name, params in parts.items()}
        source, settings = sources["train"], latent_cache.settings(config, fixed)
        counts, names = (len(source), source.num_classes), tuple(source.class_names)
        description = latents.describe(*counts, space.shape, settings, weights, names)
        if latents.is_finished(output, description):
            return description
        sharding.barrier("looked at")
        if process == 0:
            latents.begin(output, description)
        sharding.barrier("begun")
        mine = share_of(description.shards, process, processes)
        missing = [number for number in description.missing(output) if number in mine]
        if missing:
            write_shards(config, parts, source, fixed, description, output, range(missing[0], mine.stop), mesh)
        sharding.barrier("written")
        if process == 0:
            latents.finish(output, description)
        sharding.barrier("finished")
    return description


def write_shards(
    config: ConfigDict,
    parts: dict[str, Params],
    source: Source,
    fixed: str,
    description: Description,
    output: Path,
    shards: range,
    mesh: jax.sharding.Mesh,
) -> None:
    """Writes `shards`, saying how far it is."""
    first, last = description.images_of(shards[0]).start, description.images_of(shards[-1]).stop
    began = time.monotonic()
    with contextlib.closing(encoded_images(config, parts, source, fixed, first, mesh)) as encoded:
        for number in shards:
            images = description.images_of(number)
            latents.write_shard(output, description, number, itertools.islice(encoded, len(images)))
            done = images.stop - first
            print(
                f"{output / description.shard(number)}: {done:,} of {last - first:,} images, "
                f"{done / (time.monotonic() - began):,.0f} a second",
                flush=True,
            )
