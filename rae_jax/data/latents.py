"""A cache of latents on disk: what a frozen autoencoder makes of every training image and of its mirror image.

`tools/cache_latents.py` writes it, and `rae_jax/data/batches.py: latent_batches` reads it in place of the images.

DIR/
  latents-00000-of-00471.array_record ...   records 2 i and 2 i + 1 of all shards together: image i and its mirror image
  latents.json                              what they are; written last, so that a cache without it is unfinished

A record is the label, int32, and the latent `[N, C]`, bfloat16, row by row, both little-endian.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from rae_jax.files import whole_file, whole_path

DESCRIPTION, UNFINISHED = "latents.json", "unfinished.json"
DTYPE, LABEL = np.dtype(ml_dtypes.bfloat16), np.dtype("<i4")
SHARD_BYTES = 2**31  # few enough shards of ImageNet to be open at once, and many for the hosts
# Read one by one. Compression would take a fifth off normally distributed numbers, their exponents, and cost twice
# the processor's time in reading.
WRITER_OPTIONS = "group_size:1,uncompressed"

Encoded = tuple[np.ndarray, np.ndarray, int]  # the latents [N, C] of an image and of its mirror image, and its label


@dataclasses.dataclass(frozen=True)
class Description:
    """What a cache holds.

    Attributes:
      images: how many; there are twice as many records.
      classes: of the data; 0 if they have none.
      shape: `(N, C)` of a latent.
      images_a_shard: of every shard but the last, which has the rest.
      encoded_by: the settings that decide the latents of an image, by name (`experiment/latent_cache.py: settings`).
      weights: digests of the parameters that made them, by component.
      dtype: of the latents.
      class_names: the classes in the order of their labels; empty if there are none, or nobody has kept them.
    """

    images: int
    classes: int
    shape: tuple[int, int]
    images_a_shard: int
    encoded_by: dict[str, Any]
    weights: dict[str, str]
    dtype: str = DTYPE.name
    class_names: tuple[str, ...] = ()

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return LABEL.itemsize + math.prod(self.shape) * DTYPE.itemsize

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.images_a_shard)

    def shard(self, number: int) -> str:
        """The file of shard `number`."""
        return f"latents-{number:05}-of-{self.shards:05}.array_record"

    def images_of(self, number: int) -> range:
        """The images of shard `number`."""
        return range(number * self.images_a_shard, min((number + 1) * self.images_a_shard, self.images))

    def missing(self, directory: Path) -> list[int]:
        """The shards that are not in `directory`."""
        return [number for number in range(self.shards) if not (directory / self.shard(number)).exists()]


def describe(
    images: int,
    classes: int,
    shape: tuple[int, int],
    encoded_by: dict[str, Any],
    weights: dict[str, str],
    class_names: tuple[str, ...] = (),
) -> Description:
    """The description of a cache to be written, with shards of about `SHARD_BYTES`."""
    one = Description(images, classes, shape, 1, encoded_by, weights, class_names=class_names)
    return dataclasses.replace(one, images_a_shard=max(1, SHARD_BYTES // (2 * one.record_bytes)))


def read_description(directory: str | Path) -> Description:
    """What the cache in `directory` holds.

    Raises:
      ValueError: there is no finished cache, or its description is damaged.
    """
    directory, make = Path(directory), "make it with tools.cache_latents"
    if not directory.is_dir():
        raise ValueError(f"there is no directory {str(directory)!r}; {make}")
    if (directory / UNFINISHED).exists() and not (directory / DESCRIPTION).exists():
        raise ValueError(
            f"the cache in {directory} is unfinished; the command of tools.cache_latents that began it goes on with it"
        )
    if not (directory / DESCRIPTION).exists():
        raise ValueError(f"{directory} has no {DESCRIPTION}, so that it holds no cache of latents; {make}")
    found = _read(directory / DESCRIPTION)
    if absent := found.missing(directory):
        raise ValueError(
            f"{len(absent)} of the {found.shards} shards in {directory} are missing, {found.shard(absent[0])} among "
            "them; copy them again"
        )
    return found


def _read(path: Path) -> Description:
    try:
        values = json.loads(path.read_text())
        lists = {"shape": tuple(values["shape"]), "class_names": tuple(values.get("class_names", ()))}
        found = Description(**values | lists)
        if found.dtype != DTYPE.name or min(found.images, found.images_a_shard, *found.shape) < 1:
            raise ValueError(f"dtype {found.dtype}, images {found.images}, shape {found.shape}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}; make the cache again") from None
    return found


class LatentSource:
    """Random access to the latents of a finished cache; pickles into worker processes.

    Raises:
      ValueError: as `read_description`, or a shard is damaged.
    """

    def __init__(self, directory: str | Path):
        self.description = read_description(directory)
        self._directory, found = Path(directory), self.description
        paths = [self._directory / found.shard(number) for number in range(found.shards)]
        try:
            self._records = grain.sources.ArrayRecordDataSource(paths)
        except RuntimeError as error:
            raise ValueError(f"a shard in {directory} is damaged: {error}; copy it again") from None
        if len(self._records) != 2 * found.images:
            raise ValueError(
                f"the shards in {directory} have {len(self._records)} records, and {found.images} images need "
                f"{2 * found.images}; copy them again"
            )

    def __repr__(self) -> str:
        return f"the cache of latents {self._directory}"

    def __len__(self) -> int:
        return self.description.images

    def read(self, index: int, *, mirrored: bool) -> dict[str, Any]:
        """`latent`: bfloat16 `[N, C]` of image `index`, or of its mirror image; `label`: int32.

        Raises:
          ValueError: the record is damaged.
        """
        try:
            record = self._records[2 * index + mirrored]
        except RuntimeError as error:
            raise ValueError(f"image {index} of {self} is damaged: {error}; copy the shards again") from None
        if len(record) != self.description.record_bytes:
            raise ValueError(f"image {index} of {self} has {len(record)} bytes, not {self.description.record_bytes}")
        latent = np.frombuffer(record, DTYPE, offset=LABEL.itemsize).reshape(self.description.shape)
        return {"latent": latent, "label": np.frombuffer(record, LABEL, count=1)[0].astype(np.int32)}


def is_finished(directory: Path, description: Description) -> bool:
    """Whether `directory` holds the whole cache that `description` describes; if not, it is fit to take it.

    Raises:
      ValueError: the directory holds something else, or the disk has too little room.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; choose another --output")
    described = [name for name in (DESCRIPTION, UNFINISHED) if (directory / name).exists()]
    if any(_read(directory / name) != description for name in described):
        raise ValueError(
            f"{directory} holds the cache of another config, other weights or other data; "
            "choose another --output, or remove it"
        )
    if not described and directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty and holds no cache of latents; choose another --output")
    missing = description.missing(directory)
    if not missing and DESCRIPTION in described:
        return True
    needed = 2 * description.record_bytes * sum(len(description.images_of(number)) for number in missing)
    free = shutil.disk_usage(next(path for path in (directory, *directory.absolute().parents) if path.exists())).free
    if free < needed:
        raise ValueError(
            f"the latents take {needed / 1e9:,.1f} GB, and the disk of {directory} has {free / 1e9:,.1f} free; "
            "choose another --output"
        )
    return False


def begin(directory: Path, description: Description) -> None:
    """Makes `directory`, which `is_finished` has found fit, an unfinished cache; of several processes one begins."""
    with whole_file(directory / UNFINISHED) as file:
        file.write((json.dumps(dataclasses.asdict(description), indent=2) + "\n").encode())
    (directory / DESCRIPTION).unlink(missing_ok=True)


def write_shard(directory: Path, description: Description, number: int, encoded: Iterable[Encoded]) -> None:
    """Writes shard `number`, whole or not at all, from its images in their order.

    Raises:
      OSError: it could not be written.
    """
    path, count = directory / description.shard(number), 0
    with whole_path(path) as temporary:
        with _as_os_error(path):
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for latent, mirrored, label in encoded:
                with _as_os_error(path):
                    for values in (latent, mirrored):
                        writer.write(LABEL.type(label).tobytes() + values.astype(DTYPE, copy=False).tobytes())
                count += 1
        finally:
            with _as_os_error(path):
                writer.close()
        if count != len(description.images_of(number)):
            raise AssertionError(f"{count} images for {path}, which has {len(description.images_of(number))}")


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """ArrayRecord's errors are RuntimeErrors, as are those of the devices that compute what is written."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def finish(directory: Path, description: Description) -> None:
    """Says that the cache is finished.

    Raises:
      ValueError: shards are missing.
    """
    if absent := description.missing(directory):
        raise ValueError(f"{len(absent)} shards are missing in {directory}, {description.shard(absent[0])} among them")
    os.replace(directory / UNFINISHED, directory / DESCRIPTION)
