"""Images with something said of them: captions, and instructions with what they make of an image.

An *example* is a list of `Part`s in the order in which a model reads them: given images, texts, images to be made; or
texts first, see `texts_first`.

scenes        captions and edits of the laptop's scenes (`scenes.py`), drawn anew for every epoch
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rae_jax.data import scene_words, scenes
from rae_jax.data.scenes import SceneSource

TASKS = ("caption", "edit")


class Part(NamedTuple):
    """One part of an example.

    Attributes:
      kind: "text", or an image that is given, "clean", or to be made, "noised".
      text: of a text.
      image: which of the example's images it is.
      droppable: whether the model may have to do without.
      loss: whether the model is to say the text.
    """

    kind: str
    text: str = ""
    image: Any = None
    droppable: bool = True
    loss: bool = False


class ToldImages(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def parts(self, index: int, draw: int) -> list[Part]:
        """What example `index` says; `draw` chooses where there is more than one thing to say."""

    def image(self, image: Any) -> bytes | np.ndarray:
        """An image of a part: the bytes of a file, or uint8 `[H, W, 3]`."""


def captioned(text: str, image: Any) -> list[Part]:
    """Text to image."""
    return [Part("text", text=text or " "), Part("noised", image=image, droppable=False)]


def edited(images: Sequence[Any], instructions: Sequence[str]) -> list[Part]:
    """An edit, or several in turns: each image that was made is given for the next.

    Raises:
      ValueError: not one instruction between each two images.
    """
    if len(images) != len(instructions) + 1 or len(images) < 2:
        raise ValueError(
            f"a chain of {len(images)} images with {len(instructions)} instructions; there is one between each two"
        )
    parts = []
    for source, text, target in zip(images[:-1], instructions, images[1:], strict=True):
        turn = [Part("clean", image=source), Part("text", text=text or " "), Part("noised", image=target)]
        parts += [part._replace(droppable=part.kind != "noised") for part in turn]
    return parts


def texts_first(parts: Sequence[Part]) -> list[Part]:
    """The parts with each given text moved before the one given image that precedes it, whose tokens then see it."""
    turned = list(parts)
    for i, (image, text) in enumerate(itertools.pairwise(parts)):
        if image.kind == "clean" and text.kind == "text" and not text.loss:
            turned[i : i + 2] = text, image
    return turned


def answered(image: Any, question: str, answer: str) -> list[Part]:
    """A question about an image, and the answer, which is to be learnt."""
    given = [Part("clean", image=image, droppable=False), Part("text", text=question, droppable=False)]
    return [*given, Part("text", text=answer, droppable=False, loss=True)]


class ToldScenes:
    """Scenes of digits with a caption, or with an edit; an image is a scene.

    Args:
      question_share: of the examples, those that are a question with its answer instead.

    Raises:
      ValueError: an unknown task.
    """

    def __init__(self, source: SceneSource, task: str, question_share: float = 0.0):
        if task not in TASKS:
            raise ValueError(f"scenes are told by one of {TASKS}, not by {task!r}")
        self._source, self._task, self._question_share = source, task, question_share

    def __repr__(self) -> str:
        return f"what is told of {self._source}"

    def __len__(self) -> int:
        return len(self._source)

    def parts(self, index: int, draw: int) -> list[Part]:
        items, random = self._source.scene(index), self._random(index, draw)
        if self._question_share and scenes.randomness("asked", index, draw).random_sample() < self._question_share:
            chance = scenes.randomness("described", index, draw).random_sample()
            (asked,) = scene_words.questions_to_learn(items, random, chance, most=1)
            return answered(items, *asked)
        if self._task == "caption":
            return captioned(scene_words.caption_to_learn(items, random, random.rand()), items)
        items, edit = self.edit(index, draw)
        return edited([items, edit.target], [edit.instruction])

    def edit(self, index: int, draw: int) -> tuple[scenes.Scene, scene_words.Edit]:
        """The scene and the change of it that `parts` tells: of a training scene, often briefly."""
        items, learnt = self._source.scene(index), self._source.split == "train"
        random = self._random(index, draw)
        brief = learnt and scenes.randomness("brief", index, draw).random_sample() < scene_words.BRIEF
        while True:
            edit = scene_words.edit(items, random, brief=brief)
            if not learnt or scenes.seen(edit.target):
                return items, edit

    @staticmethod
    def _random(index: int, draw: int) -> np.random.RandomState:
        return scenes.randomness("told", index, draw)

    def image(self, image: scenes.Scene) -> np.ndarray:
        return scenes.render(image, self._source.split)
