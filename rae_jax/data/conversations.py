"""Conversations as a language model with images is trained on them: token ids, labels, and where images go.

A conversation is a list of turns `{"from": "human" or "gpt", "value": text}`, in which `<image>` stands for an image.
It is laid out as Qwen's chat template has it (Scale-RAE, code), each turn followed by a newline:

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>
    <|im_start|>user\\n...<|im_end|>
    <|im_start|>assistant\\n...<|im_end|>

To be learned are the assistant's turns, header and marks of its images included, and in every turn the newlines and the
turn's own marks; never an image's tokens. An image in an assistant's turn is an answer, to be generated; any other is
part of a question.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rae_jax.data.tokenizer import IMAGE_END, IMAGE_START, TURN_END, TURN_START, Tokenizer

SYSTEM = "You are a helpful assistant."
IMAGE = "<image>"
PLACEHOLDER = -200  # the id of an image's token
IGNORED = -100  # the label of what is not to be learned
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
HERE = "Here you go:\n" + IMAGE  # what the assistant says to a request for an image


class UnusableError(ValueError):
    """A conversation, or what one would be made of, that cannot be trained on; the same few words for all of a kind."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a sample.

    Attributes:
      length: tokens.
      tokens_per_image: tokens of an image that is an answer, and slots that any image has.
      max_images: images that a sample has room for.
      tokens_read: tokens of an image that is part of a question, at most `tokens_per_image`; none: as many.
    """

    length: int
    tokens_per_image: int
    max_images: int = 1
    tokens_read: int | None = None

    def tokens_of(self, answer: bool) -> int:
        """How many tokens an image takes, as an answer or as part of a question."""
        return self.tokens_per_image if answer or self.tokens_read is None else self.tokens_read


@dataclasses.dataclass(frozen=True)
class CaptionLayout:
    """The shape of a sample that is an image and its caption alone (RAEv2).

    Attributes:
      length: tokens of the caption.
    """

    length: int


def caption_ids(tokenizer: Tokenizer, text: str, layout: CaptionLayout) -> dict[str, np.ndarray]:
    """`ids` and `mask`, int32 `[length]`, of a raw text: cut off at the length, padded on the right.

    An empty text has a mask of zeros: nothing is told.
    """
    words = tokenizer.encode(text)[: layout.length]
    ids, mask = np.full(layout.length, tokenizer.padding, np.int32), np.zeros(layout.length, np.int32)
    ids[: len(words)], mask[: len(words)] = words, 1
    return {"ids": ids, "mask": mask}


def caption_of(conversation: Sequence[Mapping[str, str]]) -> str:
    """What a request for an image asks for: its first turn.

    Raises:
      UnusableError: there is none.
    """
    text = conversation[0].get("value") if conversation else None
    if not isinstance(text, str):
        raise UnusableError("a conversation without text")
    return text.replace(IMAGE, "").strip()


def request(caption: str) -> list[dict[str, str]]:
    """The conversation in which the human's turn is `caption` and the answer an image."""
    return [{"from": "human", "value": caption}, {"from": "gpt", "value": HERE}]


def laid_out(
    tokenizer: Tokenizer, conversation: Sequence[Mapping[str, str]], num_images: int, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """`(ids, labels)` of a conversation, int32 `[n]`, n at most `layout.length`; images are expanded to their tokens.

    A conversation with an image and no place for it has it before its first turn. Text without images is cut off at
    the length.

    Raises:
      UnusableError: no turns, an unknown role, other numbers of places and images, more images than there is room for,
        images that make it too long, or nothing to be learned.
    """
    turns = [(turn.get("from"), turn.get("value")) for turn in conversation]
    if not turns or not all(isinstance(value, str) for _, value in turns):
        raise UnusableError("a conversation without text")
    if unknown := {str(role) for role, _ in turns} - ROLES.keys():
        raise UnusableError(f"a turn of {sorted(unknown)[0]!r}, which is none of {', '.join(ROLES)}")
    if num_images and not any(IMAGE in value for _, value in turns):
        turns[0] = (turns[0][0], f"{IMAGE}\n{turns[0][1]}")
    if ROLES[turns[0][0]] == "assistant":
        turns = turns[1:]

    ids, labels = _turn(tokenizer, "system", SYSTEM)
    repeats = [1] * len(ids)
    for role, value in turns:
        more = _turn(tokenizer, ROLES[role], value)
        tokens = layout.tokens_of(ROLES[role] == "assistant")
        repeats += [tokens if i == PLACEHOLDER else 1 for i in more[0]]
        ids, labels = ids + more[0], labels + more[1]
    places = ids.count(PLACEHOLDER)
    if places != num_images:
        raise UnusableError("images and their places <image> in the text differ in number")
    if num_images > layout.max_images:
        raise UnusableError(f"more images than the {layout.max_images} that a sample has room for")
    if num_images and sum(repeats) > layout.length:
        raise UnusableError(f"longer than {layout.length} tokens with its images")
    ids, labels = (np.repeat(np.asarray(x, np.int32), repeats)[: layout.length] for x in (ids, labels))
    if (labels == IGNORED).all():
        raise UnusableError("nothing to be learned")
    return ids, labels


def tables(tokenizer: Tokenizer, ids: np.ndarray, labels: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """A sample as the model is given it, padded on the right to L = `layout.length`; T slots of all images.

    input_ids, labels: int32 `[L]`; image tokens are `PLACEHOLDER`.
    attention_mask: `[L]`, zero at padding.
    vision_token_indices: `[L]`, what each position is an embedding of: p, text; L + k, slot k of the sample's images.
    answer_token_mask: `[L]`, one at the tokens of answers.
    answer_img_mask: `[max_images]`, one where the image is an answer.
    reverse_vti: `[T]`, for each slot T + the position of its token, or its own index where there is none.
    """
    length, slots = layout.length, layout.max_images * layout.tokens_per_image
    padded = np.full(length, tokenizer.padding, np.int32)
    padded[: len(ids)] = ids
    wanted = np.full(length, IGNORED, np.int32)
    wanted[: len(labels)] = labels
    where = np.flatnonzero(padded == PLACEHOLDER)
    first = where[np.diff(where, prepend=-2) > 1]  # no image stands right after another: marks are around each
    answers = wanted[first - 1] != IGNORED
    image = np.searchsorted(first, where, side="right") - 1
    taken = image * layout.tokens_per_image + where - first[image]
    sources = np.arange(length, dtype=np.int32)
    sources[where] = length + taken
    answer_tokens = np.zeros(length, np.int32)
    answer_tokens[where] = answers[image]
    answer_images = np.zeros(layout.max_images, np.int32)
    answer_images[: len(answers)] = answers
    back = np.arange(slots, dtype=np.int32)
    back[taken] = slots + where
    return {
        "input_ids": padded,
        "labels": wanted,
        "attention_mask": (padded != tokenizer.padding).astype(np.int32),
        "vision_token_indices": sources,
        "answer_token_mask": answer_tokens,
        "answer_img_mask": answer_images,
        "reverse_vti": back,
    }


def prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a user's turn, up to where the assistant begins; `<image>` is one `PLACEHOLDER`."""
    head = f"{TURN_START}system\n{SYSTEM}{TURN_END}\n{TURN_START}user\n{text}{TURN_END}\n{TURN_START}assistant\n"
    return _encoded(tokenizer, head)


def question(text: str) -> str:
    """A user's turn that asks `text` of an image."""
    return f"{IMAGE_START}{IMAGE}{IMAGE_END}\n{text}"


def asked(tokenizer: Tokenizer, text: str, layout: Layout) -> dict[str, np.ndarray]:
    """The part of `tables` that a model needs to answer `text` about an image, and its `length`.

    Raises:
      ValueError: it is longer than the layout.
    """
    ids = np.asarray(prompt(tokenizer, question(text)), np.int32)
    ids = np.repeat(ids, np.where(ids == PLACEHOLDER, layout.tokens_of(answer=False), 1))
    if len(ids) > layout.length:
        raise ValueError(
            f"the question {text[:40]!r} has {len(ids)} tokens with its image and what stands around it, and room is "
            f"for {layout.length}; shorten it, or raise language_model.context"
        )
    whole = tables(tokenizer, ids, np.full(len(ids), IGNORED, np.int32), layout)
    names = ("input_ids", "vision_token_indices", "answer_token_mask")
    return {name: whole[name] for name in names} | {"length": np.int32(len(ids))}


def _turn(tokenizer: Tokenizer, role: str, text: str) -> tuple[list[int], list[int]]:
    text = text.replace(IMAGE, f"{IMAGE_START}{IMAGE}{IMAGE_END}")
    ids = _encoded(tokenizer, f"{TURN_START}{role}\n{text}{TURN_END}\n")
    always = {tokenizer.newline, tokenizer.turn_start, tokenizer.turn_end}
    learned = [i != PLACEHOLDER and (role == "assistant" or i in always) for i in ids]
    return ids, [i if learns else IGNORED for i, learns in zip(ids, learned, strict=True)]


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    parts: list[Any] = [tokenizer.encode(part) for part in text.split(IMAGE)]
    return sum(([PLACEHOLDER, *part] for part in parts[1:]), parts[0])
