"""Sets of images on disk, larger than memory perhaps: an `.npz` or a folder of picture files, read and streamed."""

import contextlib
import dataclasses
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rae_jax.data.decoding import ENDINGS
from rae_jax.data.folders import natural
from rae_jax.files import whole_path
from rae_jax.sampling.samples import UNREADABLE, check_images

PAIRS = ("originals", "reconstructions")  # the arrays of a run's `reconstructions.npz`


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images uint8 of one size.

    Attributes:
      path: where they are.
      shape: `[N, H, W, 3]` of all of them.
      parts: gives `[b, H, W, 3]` for each list of positions; these ascend, within a list and from one to the next, but
        may repeat. Nothing else is decoded.
      names: of the files that hold them, if it is one each.
      array: the one of the file at `path` that holds them, if it has several.
    """

    path: Path
    shape: tuple[int, int, int, int]
    parts: Callable[[Iterable[Sequence[int]]], Iterator[np.ndarray]]
    names: tuple[str, ...] = ()
    array: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """All of them in order, `batch_size` at a time, the last batch possibly smaller."""
        return self.parts(range(len(self))[start : start + batch_size] for start in range(0, len(self), batch_size))


def open_images(path: str | Path, array: str = "arr_0") -> ImageSet:
    """The images at `path`, of an `.npz` those in `array`; nothing but names, sizes and headers is read yet.

    Files of a folder are in the natural order of their names, `img_2` before `img_10`.

    Raises:
      ValueError: there is nothing, no image, one that cannot be read or is of another size than the first, or an
        array that is not uint8 `[N, H, W, 3]`; it names the file and what was found.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}")
    return _npz(path, array)


def images_of(images: np.ndarray, name: str) -> ImageSet:
    """Images uint8 `[N, H, W, 3]` in memory (or mapped into it) as a set; `name` is for messages."""
    check_images(images, name)

    return ImageSet(Path(name), images.shape, lambda lists: (images[list(positions)] for positions in lists))


def holds_pairs(path: str | Path) -> bool:
    """Whether the file at `path` is a run's `reconstructions.npz`, with originals and reconstructions."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in PAIRS} <= set(archive.namelist())
    except UNREADABLE:
        return False


def check_pairs(a: ImageSet, b: ImageSet) -> None:
    """Raises ValueError unless image i of `a` can be compared with image i of `b`: as many, as large, named alike.

    Names of files correspond if they differ in nothing but their endings and the zeros before a number: `img_2.png` and
    `img_02.jpg` do.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.path} holds images {a.shape} and {b.path} {b.shape}; pairs must be as many and as large")
    for i, (one, other) in enumerate(zip(a.names, b.names, strict=False)):
        if natural(Path(one).stem) != natural(Path(other).stem):
            raise ValueError(
                f"image {i + 1} of {a.path} is {one} and of {b.path} {other}; name both alike (their endings and zeros "
                "before numbers may differ), so that every image is compared with its own"
            )


def _folder(path: Path) -> ImageSet:
    inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    files = sorted((f for f in inside if f.suffix.lower() in ENDINGS), key=lambda f: (natural(f.stem), f.name))
    if not files:
        other = f"{len(inside)} other files, such as {inside[0].name}" if inside else "nothing"
        raise ValueError(f"{path} has no images ({', '.join(ENDINGS)}); it holds {other}")
    width, height = _size(files[0])
    for file in files[1:]:
        if (size := _size(file)) != (width, height):
            raise ValueError(f"{file} is {size[0]} x {size[1]} pixels, {files[0].name} is {width} x {height}; "
                             "all images of a set must be of one size")  # fmt: skip

    def parts(lists: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor() as threads:  # decoding releases the interpreter's lock
            for positions in lists:
                yield np.stack(list(threads.map(_pixels, (files[i] for i in positions))))

    return ImageSet(path, (len(files), height, width, 3), parts, tuple(file.name for file in files))


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except Exception as error:  # Pillow's decoders raise errors of many types for a damaged file
        raise ValueError(f"{file} is no readable image: {error}") from None


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise ValueError(f"{file} is no readable image: {error}") from None


def _npz(path: Path, array: str) -> ImageSet:
    unreadable = f"{path} is not a readable .npz of arrays"
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            if array in held:
                with archive.open(f"{array}.npy") as member:
                    shape, fortran, dtype = _header(member)
    except UNREADABLE as error:
        raise ValueError(f"{unreadable}: {error}") from None
    if array not in held:
        raise ValueError(f"{path} has no images: it holds {held}, expected {array}")
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape or fortran:
        order = " in Fortran order" if fortran else ""
        raise ValueError(f"images ({array}) in {path} are {dtype} {shape}{order}, expected uint8 [N, H, W, 3]")

    def parts(lists: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
        size, read = math.prod(shape[1:]), 0
        image = np.zeros(shape[1:], np.uint8)
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
                _header(member)
                for positions in lists:
                    part = np.empty((len(positions), *shape[1:]), np.uint8)
                    for row, position in enumerate(positions):
                        if position >= read:
                            member.seek((position - read) * size, os.SEEK_CUR)
                            data = member.read(size)
                            if len(data) != size:
                                raise ValueError(f"it ends before image {position + 1} of {shape[0]}")
                            image, read = np.frombuffer(data, np.uint8).reshape(shape[1:]), position + 1
                        part[row] = image
                    yield part
        except UNREADABLE as error:
            raise ValueError(f"{unreadable}: {error}") from None

    return ImageSet(path, shape, parts, array=array)


def _header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


@contextlib.contextmanager
def stream_pairs(path: str | Path, shape: tuple[int, int, int, int]) -> Iterator[Callable[..., None]]:
    """A function that adds `(originals, reconstructions)`, uint8 `[b, H, W, 3]`, to what becomes the `.npz` at `path`.

    Memory holds no more than is added at a time. The file appears once all `shape[0]` pairs are there, or not at all.

    Raises:
      ValueError: there are fewer or more pairs than that.
    """
    done = 0
    with whole_path(path) as file, contextlib.ExitStack() as stack:
        parts = []
        for name in PAIRS:
            part = file.with_name(f"{file.name}.{name}")
            stack.callback(part.unlink, missing_ok=True)
            parts.append(stack.enter_context(part.open("w+b")))
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(parts[-1], header)

        def add(*pair: np.ndarray) -> None:
            nonlocal done
            for part, images in zip(parts, pair, strict=True):
                check_images(images, f"images for {path}")
                part.write(images.tobytes())
            done += len(pair[0])

        yield add
        if done != shape[0]:
            raise ValueError(f"{path} was to hold {shape[0]} pairs of images, but there are {done}")
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for name, part in zip(PAIRS, parts, strict=True):
                part.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    shutil.copyfileobj(part, member, 2**20)
