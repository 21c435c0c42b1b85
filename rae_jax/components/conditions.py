"""Conditions: what a generator is told.

A condition is a tree of arrays with a row for each sample, `[B, ...]`. Objectives, samplers, guidance, evaluation and
pictures pass it on without looking inside; the generator's own embedder does. What can be asked of conditions of one
kind is gathered here, a class a kind.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params
from rae_jax.components.language import (
    adapters,
    language_model,
    layout,
    prompt_length,
    prompts,
    reader,
    speaks,
    tells_features,
    tokenizer,
)
from rae_jax.components.mixtures import instruction_embedding
from rae_jax.data.conversations import HERE, IMAGE, CaptionLayout, caption_ids, prompt
from rae_jax.data.tokenizer import IMAGE_START, Tokenizer
from rae_jax.models.text_to_image import TokenCondition

Condition = Any
Embed = Callable[[dict[str, Params], Any], Any]
CHOICES = ("permuted", "random", "unconditional")
SHOWN_CLASSES, SHOWN_OF_EACH, SHOWN_UNCONDITIONAL = 10, 8, 32  # samples in a picture that is taken while training


def drop(key: jax.Array, condition: Condition, null: Condition, probability: float) -> Condition:
    """`condition` with each row replaced by that of `null` with the given probability, decided row by row."""
    if not probability:
        return condition
    rows = jax.tree.leaves(condition)[0].shape[0]
    dropped = jax.random.bernoulli(key, probability, (rows,))
    return jax.tree.map(lambda c, n: jnp.where(dropped.reshape(-1, *(1,) * (c.ndim - 1)), n, c), condition, null)


@dataclasses.dataclass(frozen=True)
class ClassCondition:
    """Told a class, or none: the condition is the labels, int32 `[B]`, and `num_classes` is the null label.

    Attributes:
      num_classes: classes beside the null; 0 if the images have none.
      choice: the classes that samples are asked for. "permuted": as many of each as divide evenly (the first classes
        get the rest), in an order that the seed fixes, so that any part of the samples is of all classes, as the
        published inception scores have it. "random": each fixed by (seed, sample index). "unconditional": none.
      seed: of the order, and of the random choice.

    Raises:
      ValueError: `choice` is none of these, or there are no classes to choose from.
    """

    num_classes: int
    choice: str = "permuted"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(
                f"flow.num_classes={self.num_classes} is neither a number of classes nor -1, that of the data"
            )
        if self.choice not in CHOICES:
            raise ValueError(f"sampling.labels={self.choice!r} is not one of {CHOICES}")
        if self.num_classes == 0 and not self.unconditional:
            raise ValueError(f"sampling.labels={self.choice!r}, but there are no classes; set it to 'unconditional'")

    @property
    def unconditional(self) -> bool:
        """Whether samples are asked for without a class."""
        return self.choice == "unconditional"

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """The condition of a batch of one."""
        return jax.ShapeDtypeStruct((1,), jnp.int32)

    def of_batch(self, batch: dict[str, jax.Array]) -> jax.Array:
        """What the images of a batch would be asked for by."""
        return batch["label"]

    def null(self, condition: jax.Array) -> jax.Array:
        """As many nulls as `condition` has rows."""
        return jnp.full_like(condition, self.num_classes)

    def chosen(self, num_samples: int) -> np.ndarray:
        """What samples `[num_samples]` are asked for, on the host."""
        if self.choice == "permuted":
            order = np.random.RandomState(self.seed)  # whose numbers NumPy keeps the same in every version
            return order.permutation(np.arange(num_samples) % self.num_classes).astype(np.int32)
        if self.unconditional:
            return np.full(num_samples, self.num_classes, np.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(b"labels"))
        draw = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, self.num_classes))
        return np.asarray(draw(np.arange(num_samples)), np.int32)

    def asked(self, names: Sequence[str]) -> np.ndarray:
        """The condition `[len(names)]` that a user's words ask for: numbers of classes.

        Raises:
          ValueError: there is no such class.
        """
        unknown = [name for name in names if not (name.strip().isdigit() and int(name) < self.num_classes)]
        if unknown:
            raise ValueError(f"there are no classes {', '.join(unknown)}, but 0 to {self.num_classes - 1}")
        return np.array([int(name) for name in names], np.int32)

    def shown(self) -> np.ndarray:
        """A few, for pictures that are taken while a stage trains: of the first classes, or of none."""
        if self.unconditional:
            return np.full(SHOWN_UNCONDITIONAL, self.num_classes, np.int32)
        return np.repeat(np.arange(min(self.num_classes, SHOWN_CLASSES), dtype=np.int32), SHOWN_OF_EACH)

    def groups(self, condition: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """How a picture is laid out: for each row its caption and the samples in it; empty without classes."""
        if self.unconditional:
            return []
        return [(str(label), np.flatnonzero(condition == label)) for label in np.unique(condition)]

    def arrays(self, condition: np.ndarray) -> dict[str, np.ndarray]:
        """What a file of samples says of what was asked for, by name."""
        return {} if self.unconditional else {"labels": condition}


@dataclasses.dataclass(frozen=True)
class PromptCondition:
    """Told a prompt: ids of a conversation up to where the image begins, `{"ids": [B, L], "length": [B], ...}`.

    `dropped`, bool `[B]`, says whether the learned null condition stands for what the prompt would tell, as it does for
    the empty prompt.

    Attributes:
      prompts: what samples are asked for, one after the other, and over again.
      tokenizer: of the language model.
      context: L, with the tokens of an image the most that it reads.
    """

    prompts: tuple[str, ...]
    tokenizer: Tokenizer
    context: int

    unconditional = False

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The condition of a batch of one."""
        return {
            "ids": jax.ShapeDtypeStruct((1, self.context), jnp.int32),
            "length": jax.ShapeDtypeStruct((1,), jnp.int32),
            "dropped": jax.ShapeDtypeStruct((1,), jnp.bool_),
        }

    def null(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As many nulls as `condition` has rows."""
        return condition | {"dropped": jnp.ones_like(condition["dropped"])}

    def asked(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of prompts.

        Raises:
          ValueError: one is longer than the context.
        """
        ids = np.full((len(names), self.context), self.tokenizer.padding, np.int32)
        lengths = []
        for row, name in zip(ids, names, strict=True):
            words = prompt(self.tokenizer, name) + self.tokenizer.encode(HERE.replace(IMAGE, IMAGE_START))
            if len(words) > self.context:
                raise ValueError(
                    f"the prompt {name[:40]!r}... has {len(words)} tokens with what stands around it, and room is for "
                    f"{self.context}; shorten it, or raise language_model.context"
                )
            row[: len(words)] = words
            lengths.append(len(words))
        return {"ids": ids, "length": np.array(lengths, np.int32), "dropped": np.array([not n for n in names])}

    def chosen(self, num_samples: int) -> dict[str, np.ndarray]:
        """What samples are asked for, on the host."""
        asked = self.asked(self.prompts)
        return jax.tree.map(lambda x: x[np.arange(num_samples) % len(self.prompts)], asked)

    def shown(self) -> dict[str, np.ndarray]:
        """A few, for pictures that are taken while a stage trains."""
        few = self.asked(self.prompts[:SHOWN_CLASSES])
        return jax.tree.map(lambda x: np.repeat(x, SHOWN_OF_EACH // 2, axis=0), few)

    def words(self, condition: dict[str, np.ndarray]) -> list[str]:
        """The prompts of a condition."""
        rows = zip(condition["ids"], condition["length"], strict=True)
        whole = [self.tokenizer.decode(ids[:length]) for ids, length in rows]
        return [text.partition("user\n")[2].rpartition("\nassistant\n")[0] for text in whole]

    def groups(self, condition: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """How a picture is laid out: for each prompt its words and the samples of it."""
        words = np.array(self.words(condition))
        return [(str(text), np.flatnonzero(words == text)) for text in dict.fromkeys(words)]

    def arrays(self, condition: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file of samples says of what was asked for, by name."""
        return {"prompts": np.array(self.words(condition))}


class CaptionCondition(PromptCondition):
    """Told a raw text: `{"ids": [B, L], "mask": [B, L]}`, L = `context`, whose mask is 0 where there is no word.

    The null is the empty text, of which nothing is seen.
    """

    num_classes = 0

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The condition of a batch of one."""
        return {name: jax.ShapeDtypeStruct((1, self.context), jnp.int32) for name in ("ids", "mask")}

    def of_batch(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What the images of a batch would be asked for by."""
        return {name: batch[name] for name in ("ids", "mask")}

    def null(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As many nulls as `condition` has rows."""
        ids, mask = condition["ids"], condition["mask"]
        return {"ids": jnp.full_like(ids, self.tokenizer.padding), "mask": jnp.zeros_like(mask)}

    def asked(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of texts; what is longer is cut off, as in training."""
        rows = [caption_ids(self.tokenizer, name, CaptionLayout(self.context)) for name in names]
        return {name: np.stack([row[name] for row in rows]) for name in ("ids", "mask")}

    def words(self, condition: dict[str, np.ndarray]) -> list[str]:
        """The texts of a condition."""
        rows = zip(condition["ids"], condition["mask"], strict=True)
        return [self.tokenizer.decode(ids[: mask.sum()]) for ids, mask in rows]


def condition(config: ConfigDict) -> ClassCondition | PromptCondition:
    """What the config's generators are told.

    Raises:
      ValueError: see `ClassCondition`; or there are no prompts.
    """
    if tells_features(config):
        return CaptionCondition(prompts(config), tokenizer(config), layout(config).length)
    if speaks(config):
        return PromptCondition(prompts(config), tokenizer(config), prompt_length(config))
    return ClassCondition(config.flow.num_classes, config.sampling.labels, config.seed)


def embedding(config: ConfigDict) -> tuple[dict[str, Component], Embed]:
    """What generators are given in place of a condition: `(parts, (their parameters, condition) -> what)`.

    A class is what it is. A prompt becomes a `TokenCondition`, an instruction a `mixtures.Instruction`; the raw text of
    a caption, where features are told, its last hidden states after the final norm.

    Raises:
      ValueError: there is no language model, or one of another width.
    """
    if config.mixture.model:
        return instruction_embedding(config)
    if speaks(config):
        return _of_prompts(config)
    if not tells_features(config):
        return {}, lambda frozen, condition: condition
    model = language_model(config)
    if model.module.width != config.flow.model.context_width:
        raise ValueError(
            f"flow.model.context_width={config.flow.model.context_width}, but language_model.model has features of "
            f"width {model.module.width}; they must be equal"
        )

    def features(frozen: dict[str, Params], condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        states = model.apply(frozen["language_model"], condition["ids"], mask=condition["mask"])
        return {"features": states, "mask": condition["mask"]}

    return {"language_model": model}, features


def _of_prompts(config: ConfigDict) -> tuple[dict[str, Component], Embed]:
    model, read = language_model(config), reader(config)

    def told(frozen: dict[str, Params], condition: dict[str, jax.Array]) -> TokenCondition:
        with model.precise():
            tokens = read.asked(frozen, condition["ids"], condition["length"])
        return TokenCondition(tokens, condition["dropped"])

    return {"language_model": model, "adapters": adapters(config)}, told
