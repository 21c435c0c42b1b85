"""ImageNet as ArrayRecord shards, which the data source `tfds:` reads without TensorFlow.

    python -m tools.prepare_imagenet --source=IMAGENET --output=DIR
    python -m tools.prepare_imagenet --check=DIR/imagenet_folder/1.0.0

The source has `train/<class>/*.JPEG` and `val/<class>/*.JPEG` (or `test/`); the files' bytes are stored as they are.
What was written is read back: the images and bytes of each class must be those of the folder. ImageNet's own numbers,
1,281,167 and 50,000 images of 1,000 classes, are demanded unless `--any` says that it is another data set. `--check`
looks at shards that exist, also those of `tfds build imagenet2012 --file_format=array_record`. A run takes the
directory that the command prints: `--config.data.source=tfds:imagenet_folder --config.data.path=DIRECTORY`.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import track

from rae_jax.data.sources import FolderSource, TfdsSource
from rae_jax.files import local_path

IMAGENET = {"train": 1_281_167, "validation": 50_000}
CLASSES = 1000


class ImagenetFolder(tfds.core.GeneratorBasedBuilder):
    """Encoded images of a folder with their classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, sources: dict[str, FolderSource], **options: Any):
        self._sources = sources
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(self._sources["train"].class_names)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=names),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {split: _examples(source) for split, source in self._sources.items()}

    def _generate_examples(self) -> None:
        raise NotImplementedError("the splits make their examples themselves")


def _examples(source: FolderSource) -> Iterator[tuple[int, dict[str, Any]]]:
    for i in range(len(source)):
        path = source.path(i)
        image = io.BytesIO(path.read_bytes())  # encoded images are stored as they are
        yield i, {"image": image, "label": source.label(i), "file_name": path.name}


def prepare(source: Path, output: Path) -> Path:
    """Writes the shards and returns their directory.

    Raises:
      ValueError: the folder is not one of training and held-out images, or what is read back differs from it.
    """
    sources = {split: FolderSource(str(source), split, 0.01, 256) for split in IMAGENET}
    builder = ImagenetFolder(sources=sources, data_dir=output)
    builder.download_and_prepare(file_format="array_record")
    for split, folder in sources.items():
        expected = np.zeros((folder.num_classes, 2), np.int64)
        for i in range(len(folder)):
            expected[folder.label(i)] += (1, folder.path(i).stat().st_size)
        found = contents(Path(builder.data_dir), split)
        if different := np.flatnonzero((expected != found).any(axis=1)).tolist():
            names = ", ".join(folder.class_names[label] for label in different[:5])
            raise ValueError(f"{builder.data_dir}: {split}: {len(different)} classes differ from the folder: {names}")
    return Path(builder.data_dir)


def contents(directory: Path, split: str) -> np.ndarray:
    """Number of images, and of their bytes, of each class: int64 `[classes, 2]`; every record is read.

    Raises:
      ValueError: there is no such split in ArrayRecord files, or an image has no label.
    """
    source = TfdsSource(directory.parent.name, split, str(directory))
    found = np.zeros((source.num_classes, 2), np.int64)
    for i in track(range(len(source)), description=f"reading {split}"):
        element = source[i]
        found[element["label"]] += (1, len(element["image"]))
    return found


def demand_imagenet(directory: Path) -> None:
    """Raises ValueError unless the shards hold as many images and classes as ImageNet's 2012 challenge does."""
    for split, count in IMAGENET.items():
        found = contents(directory, split)[:, 0]
        if (len(found), found.sum()) != (CLASSES, count) or not found.all():
            raise ValueError(
                f"{directory}: {split} has {found.sum():,} images of {np.count_nonzero(found)} classes, ImageNet has "
                f"{count:,} of {CLASSES}; complete the folder, or say --any"
            )
        print(f"{split}: {found.sum():,} images, {found.min()} to {found.max()} of each of {len(found)} classes")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.prepare_imagenet", description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", type=local_path, help="the folder of images")
    parser.add_argument("--output", type=local_path, help="the TFDS data directory to write into")
    parser.add_argument("--check", type=local_path, help="a prepared directory, which is only checked")
    parser.add_argument("--any", action="store_true", help="the data set is not ImageNet")
    options = parser.parse_args(arguments)
    if not options.check and not (options.source and options.output):
        parser.error("--source and --output, or --check, are needed")
    try:
        directory = options.check or prepare(options.source, options.output)
        if not options.any:
            demand_imagenet(directory)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"complete: {directory}")


if __name__ == "__main__":
    main()
