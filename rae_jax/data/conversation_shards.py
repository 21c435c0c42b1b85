"""Conversations with their images in ArrayRecord files, as `tools.prepare_captions` writes them.

A record is four bytes, the length of a header; the header, JSON with `conversations`, the sizes of the `images` and the
`key` that the source knows it by; and the bytes of the images as they were. `conversations.json` beside the shards says
how many records there are, and is written last.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.files import whole_file

INDEX = "conversations.json"
PREFIX = 4  # bytes that say how long the header is


def encode(turns: Sequence[Mapping[str, str]], images: Sequence[bytes], key: str) -> bytes:
    """One record."""
    header = {"conversations": list(turns), "images": [len(image) for image in images], "key": key}
    text = json.dumps(header, ensure_ascii=False).encode()
    return b"".join([len(text).to_bytes(PREFIX, "little"), text, *images])


def decode(record: bytes) -> tuple[list[dict[str, str]], list[bytes], str]:
    """`(turns, images, key)` of a record."""
    end = PREFIX + int.from_bytes(record[:PREFIX], "little")
    header = json.loads(record[PREFIX:end])
    ends = np.cumsum([end, *header["images"]])
    images = [record[a:b] for a, b in itertools.pairwise(ends)]
    return header["conversations"], images, header["key"]


class ShardWriter:
    """Writes records one after the other to shards of `size`; `finish` makes them a set that can be read.

    Raises:
      ValueError: there are conversations already.
    """

    def __init__(self, directory: str | Path, size: int):
        self._directory, self._size = Path(directory), size
        if (self._directory / INDEX).exists():
            raise ValueError(f"{directory} holds conversations already; give another directory, or remove it")
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob("*.array_record"):  # of a run that was killed
            left.unlink()
        self._writer: Any = None
        self._counts: list[int] = []

    def append(self, record: bytes) -> None:
        """Adds a record."""
        if self._writer is None or self._counts[-1] == self._size:
            self._close()
            self._counts.append(0)
            path = self._directory / f"{len(self._counts) - 1:05d}.array_record"
            self._writer = _array_record().ArrayRecordWriter(str(path), "group_size:1")
        self._writer.write(record)
        self._counts[-1] += 1

    def finish(self, about: Mapping[str, Any]) -> None:
        """Closes the shards, counts what can be read back, and says so beside them, with what there is to know `about`.

        Raises:
          ValueError: another number than was written can be read.
        """
        self._close()
        for number, count in enumerate(self._counts):
            found = _reader(self._directory / f"{number:05d}.array_record").num_records()
            if found != count:
                raise ValueError(f"shard {number} of {self._directory} has {found} records of the {count} written")
        content = {"shards": self._counts, "records": sum(self._counts), **about}
        with whole_file(self._directory / INDEX) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class ConversationShards:
    """The conversations in a directory, at random; also a source of the first image of each, without classes.

    Raises:
      ValueError: there are none, or a shard is missing or damaged.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path):
        self._directory = Path(path)
        index = self._directory / INDEX
        if not index.is_file():
            raise ValueError(
                f"{path} holds no conversations: there is no {INDEX}; `python -m tools.prepare_captions` writes them"
            )
        self._counts = json.loads(index.read_text())["shards"]
        self._ends = np.cumsum(self._counts)
        self._readers: dict[int, Any] = {}
        for number, count in enumerate(self._counts):
            path = self._directory / f"{number:05d}.array_record"
            if not path.is_file():
                raise ValueError(f"{path} is missing, of {len(self._counts)} shards that {index} lists")
            try:
                found = _reader(path).num_records()
            except Exception as error:  # the library raises errors of several types for a damaged file
                raise ValueError(f"{path} is damaged: {error}") from None
            if found != count:
                raise ValueError(f"{path} has {found} records, {index} says {count}; it was cut short")

    def __repr__(self) -> str:
        return str(self._directory)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}  # which belong to one process

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def contents(self) -> dict[str, Any]:
        return {"images": len(self), "folder": str(self._directory)}

    def record(self, index: int) -> tuple[list[dict[str, str]], list[bytes], str]:
        """`(turns, images, key)` of conversation `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not one of {len(self)} conversations")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard not in self._readers:
            self._readers[shard] = _reader(self._directory / f"{shard:05d}.array_record")
        within = index - int(self._ends[shard]) + self._counts[shard]
        return decode(self._readers[shard].read([within])[0])

    def conversation(self, index: int, rng: np.random.Generator) -> tuple[list[bytes], list[dict[str, str]]]:
        """The images and the turns."""
        del rng  # nothing is drawn
        turns, images, _ = self.record(index)
        return images, turns

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The first image of the first conversation from `index` on that has one."""
        for candidate in range(index, index + len(self)):
            _, images, _ = self.record(candidate % len(self))
            if images:
                return {"image": images[0], "label": 0}
        raise ValueError(f"there are no images in {self}")


def _array_record() -> Any:
    from array_record.python import array_record_module  # of TensorFlow Datasets and grain; slow to import

    return array_record_module


def _reader(path: Path) -> Any:
    return _array_record().ArrayRecordReader(str(path), "readahead_buffer_size:0")
