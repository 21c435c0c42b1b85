"""Captioned images and chains of edits in parquet files, as Bagel's data sets and the published ones have them.

captions   <path>/<split>/*.parquet with `image`, and `captions`: a JSON object, of which one value is taken at random;
           or, of CC12M-LLaVA-Next, `caption_llava` and `caption_llava_short`
edits      <path>/<split>/*.parquet with `image_list` and `instruction_list`: for each two neighbours a list of ways to
           say what was done; or, of OmniEdit, `src_img`, `edited_img` and `edited_prompt_list`

An image is as `tables.image_bytes` has it.
"""

import bisect
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from rae_jax.data.tables import image_bytes
from rae_jax.data.told_images import Part, captioned, edited

TASK_OF = {"captions": "caption", "edits": "edit"}
CAPTIONS = ("captions",), ("caption_llava", "caption_llava_short")
EDITS = ("image_list", "instruction_list"), ("src_img", "edited_img", "edited_prompt_list")
LONGEST = 2  # edits of a chain that are taken together
JOINED = 0.5  # how often two are told as one
KEPT_TEXTS, KEPT_IMAGES = 256, 4  # groups of rows whose texts, and whose images, are kept in memory


class ToldFiles:
    """Examples in parquet files, as `told_images.ToldImages`, and their first images as a `sources.Source`.

    Raises:
      ValueError: an unknown kind, no such files, or files without the columns that are needed.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, kind: str, path: str, split: str):
        if kind not in TASK_OF:
            raise ValueError(f"told files are one of {list(TASK_OF)}, not {kind!r}")
        self.task, self._folder = TASK_OF[kind], Path(path) / split
        self._files = [str(file) for file in sorted(self._folder.glob("*.parquet"))] if path else []
        if not self._files:
            raise ValueError(f"the source {kind!r} reads parquet files in {self._folder}, where there are none; set "
                             "config.data.path to the folder that holds them by split")  # fmt: skip
        groups = [(file, i, rows) for file in self._files for i, rows in enumerate(_rows_of_groups(file))]
        self._groups = [(file, i) for file, i, _ in groups]
        self._ends = np.cumsum([rows for _, _, rows in groups]).tolist()
        names = set(parquet.read_schema(self._files[0]).names)
        known = CAPTIONS if self.task == "caption" else EDITS
        self._columns = next((columns for columns in known if set(columns) <= names), None)
        if self._columns is None or (self.task == "caption" and "image" not in names):
            wanted = " or ".join(", ".join(columns) for columns in known)
            image = "image and " if self.task == "caption" else ""
            raise ValueError(f"{self._files[0]} has the columns {sorted(names)}; {kind} have {image}{wanted}")
        self._texts = self._columns if self.task == "caption" else self._columns[-1:]

    def __repr__(self) -> str:
        return f"the parquet files in {self._folder}"

    def __len__(self) -> int:
        return self._ends[-1]

    def contents(self) -> dict[str, Any]:
        """As of a `sources.Source`."""
        return {"images": len(self), "folder": str(self._folder)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image((index, 0)), "label": 0}

    def parts(self, index: int, draw: int) -> list[Part]:
        """See `told_images.ToldImages`."""
        random = np.random.RandomState(draw)
        row = self._row(index, self._texts)
        if self.task == "caption":
            return captioned(_choice(random, self._captions(row, index)), (index, 0))
        ways = row[self._texts[0]]
        if self._columns is not EDITS[0]:
            ways = [ways]
        if not ways or not all(ways):
            raise ValueError(f"row {index} of {self} has an edit without an instruction")
        first, count = 0, len(ways)
        if count > 1:
            length = 1 + random.randint(LONGEST)
            first = random.randint(count - length + 1)
            ways = ways[first : first + length]
        instructions = [_choice(random, each) for each in ways]
        images = [(index, first + i) for i in range(len(instructions) + 1)]
        if len(instructions) > 1 and random.rand() < JOINED:
            instructions, images = [". ".join(instructions)], [images[0], images[-1]]
        return edited(images, instructions)

    def image(self, image: tuple[int, int]) -> bytes:
        """See `told_images.ToldImages`."""
        index, number = image
        if self.task == "caption":
            return image_bytes(self._row(index, ("image",))["image"], self._folder)
        if self._columns is not EDITS[0]:
            name = self._columns[number]
            return image_bytes(self._row(index, (name,))[name], self._folder)
        images = self._row(index, ("image_list",))["image_list"]
        if number >= len(images):
            raise ValueError(f"row {index} of {self} has {len(images)} images, and instructions for more: a chain has "
                             "an instruction between each two")  # fmt: skip
        return image_bytes(images[number], self._folder)

    def _captions(self, row: dict[str, Any], index: int) -> list[str]:
        if len(self._texts) > 1:
            return [text for text in row.values() if text] or [" "]
        try:
            return [str(text) for text in json.loads(row["captions"] or "{}").values()] or [" "]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"the captions of row {index} of {self} are no JSON object: {error}") from None

    def _row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not one of {len(self)} rows")
        group = bisect.bisect_right(self._ends, index)
        file, number = self._groups[group]
        read = _read_texts if columns is self._texts else _read_images
        table = read(file, number, tuple(columns))
        place = index - (self._ends[group - 1] if group else 0)
        return {name: table[name][place].as_py() for name in columns}


def _choice(random: np.random.RandomState, ways: Sequence[str]) -> str:
    return ways[random.randint(len(ways))]


def _rows_of_groups(file: str) -> list[int]:
    try:
        metadata = parquet.read_metadata(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise ValueError(f"{file} is no readable parquet file: {error}") from None
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _read(file: str, group: int, columns: tuple[str, ...]) -> Any:
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=list(columns))


_read_texts, _read_images = (functools.lru_cache(maxsize=kept)(_read) for kept in (KEPT_TEXTS, KEPT_IMAGES))
