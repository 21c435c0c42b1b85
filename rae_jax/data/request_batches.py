"""Batches of images to be made, each with the text, and the image to edit, that it is asked for by.

Where a pack holds several images and all that is said of them, a row here is one image: what a flow map learns from.
The order and every random choice follow from the seed and the place in the global stream alone, as in `batches.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from rae_jax.data.batches import Batches
from rae_jax.data.told_images import Part, ToldImages

Spelling = Callable[[str], dict[str, np.ndarray]]


def request_batches(
    source: ToldImages,
    spell: Spelling,
    *,
    read: Callable[[Any], np.ndarray],
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> Batches:
    """Endless batches `{"image": uint8 [b, S, S, 3], "ids": [b, T], "length": [b]}`, of edits with "source" as "image".

    Of an example with several images to be made one is drawn, with what is said right before it.

    Args:
      spell: a text -> its "ids" and their "length".
      read: an image as the source has it -> its array.

    Raises:
      ValueError: the source is empty. When a row is read: what `spell` raises, or nothing is said.
    """
    if not len(source):
        raise ValueError(f"there are no images in {source}")
    indices = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
    finish = functools.partial(_row, source, spell, read)
    return Batches(indices.random_map(finish), batch_size, num_workers, prefetch, rows)


def shapes(room: int, size: int, batch_size: int, *, edits: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `request_batches`."""
    image = jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8)
    ids, length = (jax.ShapeDtypeStruct((batch_size, *sides), np.int32) for sides in ((room,), ()))
    return {"image": image, "ids": ids, "length": length} | ({"source": image} if edits else {})


def places_made(parts: Sequence[Part]) -> list[int]:
    """The places of the images to be made.

    Raises:
      ValueError: there are none.
    """
    places = [place for place, part in enumerate(parts) if part.kind == "noised"]
    if not places:
        raise ValueError("no image is to be made; questions are not for this stage")
    return places


def said_before(parts: Sequence[Part], made: int) -> tuple[str, Any]:
    """The text and the image to edit, or None, that the image to be made in place `made` is asked for by.

    Raises:
      ValueError: there is no text right before it, or right before the image to edit.
    """
    told = parts[:made]
    image = next((part.image for part in told[-2:] if part.kind == "clean"), None)
    text = next((part.text for part in reversed(told[-2:]) if part.kind == "text"), None)
    if text is None:
        raise ValueError("an image to be made comes without a text; there is nothing that it is asked for by")
    return text, image


def _row(
    source: ToldImages, spell: Spelling, read: Callable[[Any], np.ndarray], index: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    parts = source.parts(index, int(rng.integers(2**31)))
    try:
        made = rng.choice(places_made(parts))
        text, image = said_before(parts, made)
        row = spell(text) | {"image": read(source.image(parts[made].image))}
    except ValueError as error:
        raise ValueError(f"example {index} of {source}: {error}") from error
    return row if image is None else row | {"source": read(source.image(image))}
