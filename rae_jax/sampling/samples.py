"""Images as every metric here sees them, 8-bit, and the ADM-compatible `.npz` that carries them to the evaluator."""

import contextlib
import dataclasses
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rae_jax.files import whole_file

# What reading a damaged archive, or one that claims to be larger than memory, can end in.
UNREADABLE = (
    OSError, EOFError, ValueError, MemoryError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def check_images(images: np.ndarray, name: str) -> None:
    """Raises ValueError, naming the images, unless they are uint8 `[N, H, W, 3]` with N >= 1."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"{name} are {images.dtype}, expected uint8 (`models.autoencoder.to_uint8` converts images in [0, 1])"
        )
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name} have shape {tuple(images.shape)}, expected [N, H, W, 3]")
    if 0 in images.shape:
        raise ValueError(f"{name} are empty: shape {tuple(images.shape)}")


def check_labels(labels: np.ndarray, count: int, name: str) -> None:
    """Raises ValueError, naming the labels, unless they are `count` integers `[N]`."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
        raise ValueError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}, expected one integer for each of {count} images"
        )


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images uint8 `[N, H, W, 3]` and, if they were stored, the class labels `[N]` they were asked for."""

    images: np.ndarray
    labels: np.ndarray | None = None


def write_samples(path: str | Path, images: np.ndarray, labels: np.ndarray | None = None, **others: np.ndarray) -> None:
    """Writes `arr_0` (uint8 `[N, H, W, 3]`), `labels` (`[N]`) if given, and `others` (`[N, ...]`) to an `.npz`.

    Atomically, at `path`.

    `images` may be a memory map, for sets larger than memory. `others` are what else the samples were asked for, by
    name, such as `prompts`.

    Raises:
      ValueError: an array is not of one row for each image; it is named.
    """
    images = np.asanyarray(images)
    check_images(images, f"samples for {path}")
    arrays = {"arr_0": images} | {name: np.asarray(values) for name, values in others.items()}
    for name, values in arrays.items():
        if values.shape[:1] != images.shape[:1]:
            raise ValueError(f"{name} for {path} have shape {values.shape}; there are {len(images)} images")
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
        check_labels(arrays["labels"], len(images), f"labels for {path}")
    with whole_file(path) as file:
        np.savez(file, **arrays)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes `picture: [H, W, 3]` uint8 as a PNG file, atomically."""
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="png")
    with whole_file(path) as file:
        file.write(encoded.getbuffer())


def write_png_folder(
    folder: str | Path, images: np.ndarray, labels: np.ndarray | None = None, prompts: np.ndarray | None = None
) -> None:
    """Writes `images` (uint8 `[N, H, W, 3]`) as `000000.png`, `000001.png`, ... or, with `labels`, `000000_7.png`.

    `prompts` are written beside them, to `prompts.txt`, one a line.

    Files of such names that were there before are removed first, so that the folder has no images of another set.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if re.fullmatch(r"[0-9]{6,}(_[0-9]+)?\.png", file.name):
            file.unlink()

    def write(i: int) -> None:
        end = "" if labels is None else f"_{labels[i]}"
        save_png(folder / f"{i:06d}{end}.png", np.asarray(images[i]))

    if prompts is not None:
        with whole_file(folder / "prompts.txt") as file:
            file.write("".join(f"{' '.join(str(text).split())}\n" for text in prompts).encode())
    with ThreadPoolExecutor() as threads:  # compression releases the interpreter's lock
        list(threads.map(write, range(len(images))))


@contextlib.contextmanager
def open_npz(path: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive of arrays at `path`; nothing pickled is let out of it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, now or by what is done within the context; it names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            yield archive
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable .npz of arrays: {error}") from error


def read_samples(path: str | Path) -> Samples:
    """The samples in the `.npz` at `path`; labels are `labels`, or `arr_1` as ADM's own sampler calls them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, has no `arr_0`, or its arrays are not what they should be; it names the file.
    """
    with open_npz(path) as archive:
        arrays = {name: archive[name] for name in ("arr_0", "labels", "arr_1") if name in archive}
        names = list(archive)
    if "arr_0" not in arrays:
        raise ValueError(f"{path} has no images: it holds {names}, expected arr_0")
    images, labels = arrays["arr_0"], arrays.get("labels", arrays.get("arr_1"))
    check_images(images, f"images (arr_0) in {path}")
    if labels is not None:
        check_labels(labels, len(images), f"labels in {path}")
    return Samples(images, labels)
