"""A judge of scenes of digits: what is in each cell, whether a prompt was painted, and whether an edit was made.

Its eyes are a support vector classifier of single digits and the colours' own directions. It has seen real training
digits only, and how often it is right about held-out scenes is to be said beside what it says of generated ones.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.svm import SVC

from rae_jax.data.scenes import CELL, CELLS, COLOURS, glyphs
from rae_jax.evaluation.image_quality import psnr
from rae_jax.sampling.samples import check_images

_DARK = 80  # a cell without a value above it is empty; the faintest real digit reaches 180

Seen = dict[tuple[int, int], tuple[int, str]]  # digit and colour by cell; empty cells are left out


@dataclasses.dataclass(frozen=True)
class SceneJudge:
    """Eyes for scenes; see `train_scene_judge`."""

    classifier: SVC

    def look(self, images: np.ndarray) -> list[Seen]:
        """What is in each of the images, uint8 `[N, 32, 32, 3]`."""
        check_images(images, "images to judge")
        cells = np.stack([_cell(images, cell) for cell in CELLS], axis=1)
        grey = cells.max(axis=-1)  # [N, cells, 16, 16]: every colour's brightest channel is full
        digits = self.classifier.predict(_pixels(grey.reshape(-1, CELL, CELL))).reshape(grey.shape[:2])
        colours = _colours(cells)
        lit = grey.max(axis=(-2, -1)) > _DARK
        return [
            {cell: (int(digits[i, j]), str(colours[i, j])) for j, cell in enumerate(CELLS) if lit[i, j]}
            for i in range(len(images))
        ]


def train_scene_judge() -> SceneJudge:
    """A judge that has learnt the training digits."""
    each = glyphs("train")
    grey = np.rint(np.concatenate(each) * 255)
    return SceneJudge(SVC(C=10.0, gamma="scale").fit(_pixels(grey), np.repeat(range(10), [len(g) for g in each])))


def painted(category: str, wanted: Sequence[dict[str, Any]], seen: Seen) -> bool:
    """Whether an image shows what its prompt asks for, as GenEval counts it.

    single_object and two_object: the digits are there. counting: that digit so many times, and no more. colors: the
    digit in its colour. position: every digit in its cell. color_attr: each digit in its colour.

    Args:
      category: one of `scene_words.CATEGORIES`.
      wanted: the items of the prompt's scene, as `scenes.described` has them.
      seen: what the judge sees.

    Raises:
      ValueError: an unknown category.
    """
    digits = [item["digit"] for item in wanted]
    found = [digit for digit, _ in seen.values()]
    if category in ("single_object", "two_object"):
        return all(found.count(digit) >= digits.count(digit) for digit in digits)
    if category == "counting":
        return found.count(digits[0]) == len(digits)
    if category in ("colors", "color_attr"):
        return all((item["digit"], item["colour"]) in seen.values() for item in wanted)
    if category == "position":
        return all(seen.get((item["row"], item["column"]), (None,))[0] == item["digit"] for item in wanted)
    raise ValueError(f"there is no category {category!r} of prompts")


def exactly(wanted: Sequence[dict[str, Any]], seen: Seen) -> bool:
    """Whether an image shows a scene as it is: every cell right, the empty ones too."""
    return seen == {(item["row"], item["column"]): (item["digit"], item["colour"]) for item in wanted}


@dataclasses.dataclass(frozen=True)
class Edited:
    """What became of one edit.

    Attributes:
      followed: every cell that the instruction changes is as it should be.
      kept: every other cell has the digit and colour of the source.
      psnr: of the other cells to the source, dB; NaN if there is none.
    """

    followed: bool
    kept: bool
    psnr: float


def judge_edit(
    source: Sequence[dict[str, Any]],
    target: Sequence[dict[str, Any]],
    images: tuple[np.ndarray, np.ndarray],
    seen: Seen,
) -> Edited:
    """Judges one edit.

    Args:
      source, target: the scenes before and after, as `scenes.described` has them.
      images: the source, and what was made of it; uint8 `[32, 32, 3]`.
      seen: what the judge sees in the latter.
    """
    before, after = ({(x["row"], x["column"]): (x["digit"], x["colour"]) for x in scene} for scene in (source, target))
    changed = [cell for cell in CELLS if before.get(cell) != after.get(cell)]
    others = [cell for cell in CELLS if cell not in changed]
    cells = [np.concatenate([_cell(image, cell) for cell in others])[None] for image in images if others]
    distance = float(psnr(*cells)[0]) if others else float("nan")
    followed = all(seen.get(cell) == after.get(cell) for cell in changed)
    return Edited(followed, all(seen.get(cell) == before.get(cell) for cell in others), distance)


def _cell(images: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The part of images `[..., 32, 32, 3]` that a cell is."""
    rows, columns = (slice(i * CELL, (i + 1) * CELL) for i in cell)
    return images[..., rows, columns, :]


def _pixels(grey: np.ndarray) -> np.ndarray:
    return grey.reshape(len(grey), -1).astype(np.float32)


def _colours(cells: np.ndarray) -> np.ndarray:
    """The name of the colour `[...]` to whose direction the sum of each cell `[..., 16, 16, 3]` is nearest."""
    directions = np.array(list(COLOURS.values()), float)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    # The length of a cell's own sum does not change which direction is nearest.
    likeness = cells.sum(axis=(-3, -2), dtype=np.float64) @ directions.T
    return np.array(list(COLOURS))[likeness.argmax(axis=-1)]
