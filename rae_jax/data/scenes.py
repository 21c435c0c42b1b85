"""Scenes of handwritten digits: the laptop's images with something to say about them, to paint, to ask and to edit.

A scene is one to four of scikit-learn's digits, each in one of six colours and in a cell of a 2 x 2 grid, on black; the
image is uint8 `[32, 32, 3]`. Scenes are drawn from (split, seed, index) alone. Those of "train" are of the training
digits and never hold one of the combinations of digit and colour in `UNSEEN`; those of "test" are of held-out digits.
`scene_words.py` puts scenes into words.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from rae_jax.data.digits import digits

GRID = 2  # cells a side
CELL = 16  # pixels a side
PIXELS = GRID * CELL
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "cyan": (0, 255, 255),
}
# Combinations that no training scene holds: one of each colour.
UNSEEN = frozenset({(0, "red"), (7, "green"), (2, "blue"), (9, "yellow"), (4, "purple"), (5, "cyan")})
ALL_PAIRS = tuple((digit, colour) for digit in range(10) for colour in COLOURS)
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN)
CELLS = tuple((row, column) for row in range(GRID) for column in range(GRID))


@dataclasses.dataclass(frozen=True)
class Item:
    """One digit of a scene.

    Attributes:
      digit: 0 to 9.
      colour: a key of `COLOURS`.
      row, column: of its cell, from the top left.
      glyph: which of the handwritten images of that digit it is, modulo their number.
    """

    digit: int
    colour: str
    row: int
    column: int
    glyph: int = 0

    @property
    def cell(self) -> tuple[int, int]:
        return self.row, self.column

    @property
    def pair(self) -> tuple[int, str]:
        return self.digit, self.colour

    def described(self) -> dict[str, Any]:
        """What can be seen of it, as files have it."""
        return dict(digit=self.digit, colour=self.colour, row=self.row, column=self.column)


Scene = tuple[Item, ...]  # in the order of their cells, at most one in each


def scene(items: Sequence[Item]) -> Scene:
    """The scene of `items`.

    Raises:
      ValueError: there are none, two are in one cell, or one is of no digit, colour or cell that there is.
    """
    for item in items:
        if item.digit not in range(10) or item.colour not in COLOURS or item.cell not in CELLS:
            raise ValueError(f"{item} is no item of a scene: digits are 0 to 9, colours {list(COLOURS)}, cells {CELLS}")
    if len({item.cell for item in items}) < len(items):
        raise ValueError(f"two items of one scene are in one cell: {items}")
    if not items:
        raise ValueError("a scene has one item at least")
    return tuple(sorted(items, key=lambda item: item.cell))


def described(items: Scene) -> list[dict[str, Any]]:
    """What can be seen of a scene, as files have it."""
    return [item.described() for item in items]


def seen(items: Scene) -> bool:
    """Whether training scenes may hold each of the combinations of digit and colour."""
    return not any(item.pair in UNSEEN for item in items)


def randomness(*of: int | str) -> np.random.RandomState:
    """Random numbers fixed by `of`; NumPy keeps them the same in every version.

    From a generator that is quickly seeded: there is one for each image of a batch.
    """
    return np.random.RandomState(np.random.PCG64([zlib.crc32(x.encode()) if isinstance(x, str) else x for x in of]))


def draw(
    random: np.random.RandomState,
    count: int,
    pairs: Sequence[tuple[int, str]] = SEEN_PAIRS,
    *,
    one_digit: bool = False,
) -> Scene:
    """A scene of `count` items at random; `one_digit`: all of the same digit."""
    chosen = [pairs[random.randint(len(pairs))] for _ in range(count)]
    if one_digit:
        same = [pair for pair in pairs if pair[0] == chosen[0][0]]
        chosen = [same[random.randint(len(same))] for _ in range(count)]
    cells = [CELLS[i] for i in random.permutation(len(CELLS))[:count]]
    return scene([Item(*pair, *cell, int(random.randint(2**16))) for pair, cell in zip(chosen, cells, strict=True)])


@functools.cache
def glyphs(split: str) -> tuple[np.ndarray, ...]:
    """The handwritten images of each digit, `[N, 16, 16]` in [0, 1]."""
    source = digits(split)
    size = (CELL, CELL)
    small = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in source.images[..., 0]])
    return tuple(small[source.labels == digit].astype(np.float32) / 255 for digit in range(10))


def render(items: Scene, split: str) -> np.ndarray:
    """The image uint8 `[32, 32, 3]` of a scene, with the handwriting of `split`."""
    image, handwriting = np.zeros((PIXELS, PIXELS, 3), np.float32), glyphs(split)
    for item in items:
        rows, columns = (slice(i * CELL, (i + 1) * CELL) for i in item.cell)
        of_digit = handwriting[item.digit]
        image[rows, columns] = of_digit[item.glyph % len(of_digit), ..., None] * np.float32(COLOURS[item.colour])
    return np.rint(image).astype(np.uint8)


def description() -> dict[str, Any]:
    """What a reader of samples needs to know: the grid, the cell's size in pixels and each colour's RGB."""
    return {"grid": [GRID, GRID], "cell": CELL, "colours": {name: list(rgb) for name, rgb in COLOURS.items()}}


class SceneSource:
    """Scenes as a source of images without classes; element i is drawn anew each time, always the same.

    Attributes:
      split: whose handwriting; "test" has `UNSEEN` combinations too.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()
    IMAGES: ClassVar[dict[str, int]] = {"train": 20_000, "test": 2_000}

    def __init__(self, split: str, seed: int = 0):
        if split not in self.IMAGES:
            raise ValueError(f"the scenes have the splits 'train' and 'test', not {split!r}")
        self.split, self._seed = split, seed

    def __repr__(self) -> str:
        return f"the {self.split} scenes"

    def __len__(self) -> int:
        return self.IMAGES[self.split]

    def scene(self, index: int) -> Scene:
        """What is in image `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not one of {len(self)} scenes")
        random = randomness("scene", self.split, self._seed, index)
        return draw(random, 1 + random.randint(len(CELLS)), SEEN_PAIRS if self.split == "train" else ALL_PAIRS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": render(self.scene(index), self.split), "label": 0}

    def contents(self) -> dict[str, Any]:
        return {"images": len(self)}
