"""Sets of images on disk, larger than memory perhaps: an ADM `.npz` or a folder of picture files, read in order."""

import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rae_jax.sampling.samples import UNREADABLE

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images uint8 of one size.

    Attributes:
      path: where they are.
      shape: `[N, H, W, 3]` of all of them.
      batches: `batch size -> parts [b, H, W, 3]` in order, the last one possibly smaller.
    """

    path: Path
    shape: tuple[int, int, int, int]
    batches: Callable[[int], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.shape[0]


def open_images(path: str | Path) -> ImageSet:
    """The images at `path`; nothing but names, sizes and headers is read yet.

    Raises:
      ValueError: there is nothing, no image, one that cannot be read or is of another size than the first, or an
        array `arr_0` that is not uint8 `[N, H, W, 3]`; it names the file and what was found.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}")
    return _npz(path)


def _folder(path: Path) -> ImageSet:
    inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in inside if file.suffix.lower() in ENDINGS]
    if not files:
        other = f"{len(inside)} other files, such as {inside[0].name}" if inside else "nothing"
        raise ValueError(f"{path} has no images ({', '.join(ENDINGS)}); it holds {other}")
    width, height = _size(files[0])
    for file in files[1:]:
        if (size := _size(file)) != (width, height):
            raise ValueError(f"{file} is {size[0]} x {size[1]} pixels, {files[0].name} is {width} x {height}; "
                             "all images of a set must be of one size")  # fmt: skip

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(files), batch_size):
            yield np.stack([_pixels(file) for file in files[start : start + batch_size]])

    return ImageSet(path, (len(files), height, width, 3), batches)


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


def _npz(path: Path) -> ImageSet:
    unreadable = f"{path} is not a readable .npz of arrays"
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0" in held:
                with archive.open("arr_0.npy") as member:
                    shape, fortran, dtype = _header(member)
    except UNREADABLE as error:
        raise ValueError(f"{unreadable}: {error}") from None
    if "arr_0" not in held:
        raise ValueError(f"{path} has no images: it holds {held}, expected arr_0")
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape or fortran:
        order = " in Fortran order" if fortran else ""
        raise ValueError(f"images (arr_0) in {path} are {dtype} {shape}{order}, expected uint8 [N, H, W, 3]")

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        size, done = math.prod(shape[1:]), 0
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
                _header(member)
                while done < shape[0]:
                    rows = min(batch_size, shape[0] - done)
                    data = member.read(rows * size)
                    if len(data) != rows * size:
                        break
                    yield np.frombuffer(data, np.uint8).reshape(rows, *shape[1:])
                    done += rows
        except UNREADABLE as error:
            raise ValueError(f"{unreadable}: {error}") from None
        if done < shape[0]:
            raise ValueError(f"{path} ends after {done + len(data) // size} of {shape[0]} images")

    return ImageSet(path, shape, batches)


def _header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)
