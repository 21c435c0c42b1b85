"""Labelled images with random access: the embedded digits, folders of image files, and TensorFlow Datasets.

digits           scikit-learn's 1,797 handwritten digits, enlarged to 32 x 32; split "train" or "test"
scenes           one to four of these digits, coloured, in a grid of cells; no classes; `scenes.py`
conversations    the first image of each (`conversation_shards.py`); <path>, or <path>/<split>
folder           <path>/<class>/**/*.jpg, or train/ and test/ (or validation/) with these; `folders.py` has the layouts
tfds:<builder>   a prepared data set in ArrayRecord files, read without TensorFlow; any split expression of TFDS
"""

import concurrent.futures
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rae_jax.data.conversation_shards import ConversationShards
from rae_jax.data.decoding import decode_image
from rae_jax.data.digits import ArraySource, class_counts, digits
from rae_jax.data.folders import LAYOUT, find_images
from rae_jax.data.scenes import SceneSource
from rae_jax.data.told_files import ToldFiles

log = logging.getLogger(__name__)

IMAGENET_TRAIN_IMAGES = 1_281_167

_READERS = 16  # threads that read files while a folder is checked
_NAMED = 5  # files named in a message


class Source(Protocol):
    """Random access to labelled images; pickles into worker processes."""

    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`: the bytes of an image file, or uint8 `[H, W, 3]`; `label`: int in `[0, num_classes)`.

        Without classes, `num_classes` is 0 and so is every label: the null label of a model without classes.
        """

    def contents(self) -> dict[str, Any]:
        """What it holds, as plain values: how many `images`, and what else is known without looking at them.

        That may be `folder`, `classes` (how many images of each, by name) and `left_out` (how many files, by reason).
        """


def open_source(
    name: str,
    split: str,
    path: str = "",
    max_unreadable_share: float = 0.01,
    check_images: int = 256,
    held_out_share: float = 0.0,
    classes: Sequence[str] | None = None,
) -> Source:
    """The images `name` of the module's table.

    Args:
      name: "digits", "scenes", "folder", "conversations", "captions", "edits" or "tfds:<builder>".
      split: "train" or "test" (held out); for TFDS any split expression, for a folder see `folders.find_images`.
      path: the folder of images; for TFDS its data directory or the directory of one prepared version.
      max_unreadable_share: a folder with a larger share of unreadable images is an error.
      check_images: so many images of a folder, evenly spaced, are decoded before this returns.
      held_out_share: of each class of a folder that has no held-out images of its own; 0: such a folder has no "test".
      classes: the classes by label that it must have; any by default. A folder labels its classes as they say.

    Raises:
      ValueError: there is no such source or split, or it is not in the state that is needed; says what to do.
    """
    if name == "folder":
        if not path:
            raise ValueError(f"the source 'folder' needs the folder's path (config.data.path); {LAYOUT}")
        return FolderSource(path, split, max_unreadable_share, check_images, held_out_share, classes)
    if name == "conversations":
        if not path:
            raise ValueError("the source 'conversations' needs the directory of their shards (config.data.path)")
        return ConversationShards(Path(path) / split if (Path(path) / split).is_dir() else path)
    if name in ("captions", "edits"):
        return ToldFiles(name, path, split)
    if name == "digits":
        source: Source = digits(split)
    elif name == "scenes":
        source = SceneSource(split)
    elif name.startswith("tfds:"):
        source = TfdsSource(name.removeprefix("tfds:"), split, path)
    else:
        raise ValueError(
            f"there is no data source {name!r}; use 'digits', 'scenes', 'folder', 'conversations', 'captions', 'edits' "
            "or 'tfds:<builder>'"
        )
    if classes is not None and source.class_names != tuple(classes):
        raise ValueError(
            f"{source} has other classes than when this run began, and labels would no longer mean the same; give the "
            "data that it began with, or begin another run (--workdir)"
        )
    return source


def count_classes(name: str, split: str, path: str = "") -> int:
    """How many classes the source `name` has; errors as `open_source`, but no image is looked at."""
    if name == "folder" and path:
        return len(find_images(Path(path), split, held_out_share=0.5).classes)
    return open_source(name, split, path).num_classes


def count_images(name: str, split: str, path: str = "", held_out_share: float = 0.0) -> int:
    """How many images the source `name` has; errors as `open_source`, but none is decoded.

    Those of ImageNet's training split are known without it.
    """
    if (name, split) == ("tfds:imagenet2012", "train"):
        return IMAGENET_TRAIN_IMAGES
    return len(open_source(name, split, path, check_images=0, held_out_share=held_out_share))


def load_split(
    source: Source, transform: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All of a small source in memory: images uint8 `[N, H, W, 3]`, labels int32 `[N]`.

    Raises:
      ValueError: the images differ in size, and no `transform` makes them alike.
    """
    if isinstance(source, ArraySource) and transform is None:
        return source.images, source.labels
    decoded = DecodedSource(source)
    elements = [decoded[i] for i in range(len(decoded))]
    images = [e["image"] if transform is None else transform(e["image"]) for e in elements]
    return np.stack(images), np.asarray([e["label"] for e in elements], np.int32)


class DecodedSource:
    """`source` with every image decoded to uint8 `[H, W, 3]`; a failure says which image it was."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        element = self._source[index]
        if not isinstance(element["image"], bytes):
            return element
        try:
            return element | {"image": decode_image(element["image"])}
        except ValueError as error:
            raise ValueError(f"image {index} of {self._source}: {error}") from error


class FolderSource:
    """Image files in one subfolder a class; the subfolders in natural order are the labels 0, 1, 2, ...

    `find_images` says what is found and what is left out. Held-out images get the labels of the training classes. A
    folder of images without subfolders of images has no classes.

    Images come out decoded, because only then is it known whether they can be read. An unreadable one is named in a
    warning and stands for the next readable one, with that one's label, so the source stays random access and its
    elements do not depend on who reads them in which order. Each process counts the distinct unreadable files it meets
    and stops once they are more than `max_unreadable_share` of all files.
    """

    def __init__(
        self,
        path: str,
        split: str,
        max_unreadable_share: float,
        check_images: int,
        held_out_share: float = 0.0,
        classes: Sequence[str] | None = None,
    ):
        for name, share in (("max_unreadable_share", max_unreadable_share), ("held_out_share", held_out_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {share}")
        found = find_images(Path(path), split, held_out_share=held_out_share, classes=classes)
        self._root, self.class_names, self._left_out = found.root, found.classes, found.left_out
        self.num_classes = len(self.class_names)
        self._folders = self.class_names or ("",)
        self._max_share = max_unreadable_share
        self.unreadable: set[int] = set()

        counts = [len(files) for files in found.files]
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # One block of bytes: a million strings would be pickled into every worker.
        encoded = [os.fsencode(name) for name in itertools.chain.from_iterable(found.files)]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded])
        self._check(check_images)

    def __repr__(self) -> str:
        return f"the folder {self._root}"

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> Path:
        """The file of element `index`."""
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return self._root / self._folders[self._labels[index]] / name

    def label(self, index: int) -> int:
        """The class of element `index`."""
        return int(self._labels[index])

    def contents(self) -> dict[str, Any]:
        found: dict[str, Any] = {"images": len(self), "folder": str(self._root), "left_out": self._left_out}
        return found | ({"classes": class_counts(self.class_names, self._labels)} if self.class_names else {})

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self)
        if not 0 <= index < count:
            raise IndexError(f"{index} is not one of {count} images")
        for candidate in itertools.chain(range(index, count), range(index)):
            try:
                image = decode_image(self.path(candidate).read_bytes())
            except (OSError, ValueError) as error:
                self._note_unreadable(candidate, error)
            else:
                return {"image": image, "label": self.label(candidate)}
        raise ValueError(f"not one of the {count} images in {self._root} can be read")

    def _note_unreadable(self, index: int, error: Exception) -> None:
        if index in self.unreadable:
            return
        self.unreadable.add(index)
        log.warning("%s is skipped: %s", self.path(index), error)
        if len(self.unreadable) > self._max_share * len(self):
            raise ValueError(
                f"{len(self.unreadable)} of the {len(self)} images in {self._root} cannot be read, "
                f"more than max_unreadable_share={self._max_share:g} allows: {self._named(sorted(self.unreadable))}. "
                "Repair or remove them, or raise max_unreadable_share"
            ) from error

    def _check(self, number: int) -> None:
        """Decodes `number` evenly spaced images, so that a broken folder is found before anything is trained."""

        def failure(index: int) -> Exception | None:
            try:
                decode_image(self.path(index).read_bytes())
            except (OSError, ValueError) as error:
                return error
            return None

        number = min(number, len(self))
        indices = [i * len(self) // number for i in range(number)]
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            failures = {i: error for i, error in zip(indices, readers.map(failure, indices), strict=True) if error}
        if not failures:
            return
        summary = f"{len(failures)} of {number} checked images in {self._root} cannot be read"
        if len(failures) > self._max_share * number:
            raise ValueError(
                f"{summary}, more than max_unreadable_share={self._max_share:g} allows: "
                f"{self._named(list(failures))}; the first: {next(iter(failures.values()))}. "
                "Repair or remove them, or raise max_unreadable_share"
            )
        log.warning("%s and will be skipped: %s", summary, self._named(list(failures)))

    def _named(self, indices: list[int]) -> str:
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        return ", ".join(str(self.path(i)) for i in indices[:_NAMED]) + more


class TfdsSource:
    """A data set prepared by TensorFlow Datasets in ArrayRecord files; images come out as encoded bytes.

    Raises:
      ValueError: it is not prepared, not in ArrayRecord files, or has no such split, image or label.
    """

    def __init__(self, builder: str, split: str, path: str):
        import tensorflow_datasets as tfds

        self._described = f"TFDS {builder}, split {split!r}"
        prepare = f"prepare it with `tfds build {builder} --file_format=array_record`"
        try:
            if path and (Path(path) / "dataset_info.json").exists():
                loaded = tfds.builder_from_directory(path)
            else:
                loaded = tfds.builder(builder, data_dir=path or None)
        except (tfds.core.DatasetNotFoundError, ModuleNotFoundError) as error:
            raise ValueError(f"{self._described}: not found under {path or 'the default data directory'!r}") from error
        features = dict(loaded.info.features.items())
        label = features.get("label")
        if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
            raise ValueError(f"{self._described}: needs 'image' and a class 'label', has {sorted(features)}")
        self.class_names = tuple(label.names)
        self.num_classes = label.num_classes
        if not loaded.info.splits:
            raise ValueError(f"{self._described}: nothing is prepared in {loaded.data_dir}; {prepare}")
        try:
            self._elements = loaded.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise ValueError(f"{self._described}: its files allow no random access; {prepare}") from error
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self._described}: prepared are the splits {sorted(loaded.info.splits)}") from error

    def __repr__(self) -> str:
        return self._described

    def __len__(self) -> int:
        return len(self._elements)

    def contents(self) -> dict[str, Any]:
        return {"images": len(self)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        element = self._elements[index]
        label = int(element["label"])
        if label < 0:
            raise ValueError(f"{self._described}: image {index} has no label; choose a labelled split")
        return {"image": bytes(element["image"]), "label": label}
