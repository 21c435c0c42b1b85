"""Batches of conversations with their images: text alone, questions and requests beside each other.

As in `batches.py`, the order and every random choice follow from the seed and the place in the global stream alone.
"""

import functools
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from rae_jax.data.batches import Batches
from rae_jax.data.conversations import (
    IMAGE,
    CaptionLayout,
    Layout,
    UnusableError,
    caption_ids,
    caption_of,
    laid_out,
    request,
    tables,
)
from rae_jax.data.decoding import decode_image
from rae_jax.data.scene_words import caption_to_learn, questions_to_learn
from rae_jax.data.scenes import SceneSource, render
from rae_jax.data.tokenizer import Tokenizer
from rae_jax.data.transforms import Transform

log = logging.getLogger(__name__)

ASKED = 2  # questions about a scene: as many as fit beside its image into the laptop's context
Turns = Sequence[Mapping[str, str]]


class Conversations(Protocol):
    """Random access to conversations; pickles into worker processes."""

    def __len__(self) -> int: ...

    def conversation(self, index: int, rng: np.random.Generator) -> tuple[list[bytes | np.ndarray], Turns]:
        """Its images, bytes of files or uint8 `[H, W, 3]`, and its turns; `rng` is for what is drawn."""


class SceneConversations:
    """Requests for scenes of digits and questions about them, put into other words each time.

    Attributes:
      question_share: of questions.
    """

    def __init__(self, split: str, question_share: float):
        self._scenes, self.question_share = SceneSource(split), question_share

    def __len__(self) -> int:
        return len(self._scenes)

    def conversation(self, index: int, rng: np.random.Generator) -> tuple[list[bytes | np.ndarray], Turns]:
        items = self._scenes.scene(index)
        image, random = render(items, self._scenes.split), np.random.RandomState(rng.bit_generator)
        if rng.random() >= self.question_share:
            return [image], request(caption_to_learn(items, random, rng.random()))
        turns = []
        for asked, answer in questions_to_learn(items, random, rng.random(), ASKED):
            turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        turns[0]["value"] = f"{IMAGE}\n{turns[0]['value']}"
        return [image], turns


def conversation_batches(
    mixture: Sequence[tuple[Conversations, float]],
    *,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    layout: Layout | CaptionLayout,
    transform: Transform,
    image_size: int,
    num_workers: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
) -> Batches:
    """Endless batches of what `conversations.tables` makes of each conversation, and its images.

    `image` is uint8 `[b, max_images, S, S, 3]` with S = `image_size`, zeros where there is none. With a `CaptionLayout`
    it is `[b, S, S, 3]` beside what `conversations.caption_ids` makes of what it was asked for by. A conversation that
    cannot be used is named in a warning, the first of each reason, and stands for the next of its source that can.

    Args:
      mixture: sources, and how often each is drawn from.

    Raises:
      ValueError: a source is empty, or a weight is not above 0.
    """
    parts, weights = [], []
    for number, (source, weight) in enumerate(mixture):
        if len(source) == 0 or not weight > 0:
            raise ValueError(f"there are {len(source)} conversations in {source}, with weight {weight:g}")
        indices = grain.MapDataset.source(range(len(source))).seed(seed + number).shuffle().repeat()
        parts.append(indices.map(functools.partial(_of, number)))
        weights.append(weight)
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    finish = _Finish([source for source, _ in mixture], tokenizer, layout, transform, image_size)
    return Batches(mixed.seed(seed).random_map(finish), batch_size, num_workers, prefetch, rows)


def row(
    images: Sequence[bytes | np.ndarray],
    turns: Turns,
    rng: np.random.Generator | None,
    tokenizer: Tokenizer,
    layout: Layout | CaptionLayout,
    transform: Transform,
    image_size: int,
) -> dict[str, np.ndarray]:
    """One conversation as a row of a batch.

    Raises:
      UnusableError: it cannot be trained on, or an image cannot be read.
    """
    if isinstance(layout, CaptionLayout):
        if len(images) != 1:
            raise UnusableError("a caption of none or several images")
        told, shape = caption_ids(tokenizer, caption_of(turns), layout), (1,)
    else:
        told = tables(tokenizer, *laid_out(tokenizer, turns, len(images), layout), layout)
        shape = (layout.max_images,)
    slots = np.zeros((*shape, image_size, image_size, 3), np.uint8)
    for slot, image in zip(slots, images, strict=False):
        try:
            slot[...] = transform(decode_image(image) if isinstance(image, bytes) else image, rng)
        except ValueError as error:
            raise UnusableError(f"an image that cannot be used: {error}") from error
    return {"image": slots[0] if isinstance(layout, CaptionLayout) else slots, **told}


def shapes(layout: Layout | CaptionLayout, image_size: int, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `conversation_batches`."""

    def array(*sides: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *sides), np.dtype(dtype))

    image = (image_size, image_size, 3)
    if isinstance(layout, CaptionLayout):
        return {"image": array(*image, dtype=np.uint8), "ids": array(layout.length), "mask": array(layout.length)}
    of_tokens = ("input_ids", "labels", "attention_mask", "vision_token_indices", "answer_token_mask")
    return {
        "image": array(layout.max_images, *image, dtype=np.uint8),
        **{name: array(layout.length) for name in of_tokens},
        "answer_img_mask": array(layout.max_images),
        "reverse_vti": array(layout.max_images * layout.tokens_per_image),
    }


def _of(number: int, index: int) -> tuple[int, int]:
    return number, index


class _Finish:
    """`(number of the source, index) -> row`, for grain's `random_map`."""

    def __init__(self, sources: list[Conversations], *how: Any):
        self._sources, self._how = sources, how
        self._unusable: dict[str, int] = {}

    def __call__(self, place: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        number, index = place
        source = self._sources[number]
        for candidate in itertools.chain(range(index, len(source)), range(index)):
            images, turns = source.conversation(candidate, rng)
            try:
                return row(images, turns, rng, *self._how)
            except UnusableError as error:
                reason = str(error)
                self._unusable[reason] = self._unusable.get(reason, 0) + 1
                if self._unusable[reason] == 1:
                    log.warning("conversation %d of %s is skipped, and others like it: %s", candidate, source, reason)
        raise ValueError(f"not one of the {len(source)} conversations in {source} can be used: {self._unusable}")
