"""Packs for a mixture of transformers: texts and images in one sequence, as Bagel's code lays them out.

A *sample* is a list of `Item`s. `arrange` makes splits of them, `pack` one sequence of several samples, and `buffers`
the arrays of fixed sizes that a compiled step takes: the kinds of tokens apart, since each goes through other weights
and attention does not ask in which order tokens lie. `PackFilling` chooses the samples of a pack.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rae_jax.models.pack import Places

# The kinds of items and of their tokens: a text; an image as tokens of a vision encoder; one as latents; and one as
# latents that the model is to predict. What stands around an image is text.
TEXT, SEMANTIC, CLEAN, NOISED = KINDS = ("text", "semantic", "clean", "noised")
LATENTS = (CLEAN, NOISED)
MODE_OF = {TEXT: "causal", SEMANTIC: "full", CLEAN: "full", NOISED: "noise"}
NO_LABEL = -1
GIVEN = -np.inf  # the normal draw of an image that is given: its time is sigmoid(-inf) = 0


class Markers(NamedTuple):
    """The ids of the tokens around texts and images."""

    text_start: int
    text_end: int
    image_start: int
    image_end: int


# Qwen2.5's <|im_start|>, <|im_end|>, <|vision_start|>, <|vision_end|>.
QWEN = Markers(151_644, 151_645, 151_652, 151_653)


@dataclasses.dataclass(frozen=True)
class Item:
    """One part of a sample.

    Attributes:
      kind: one of `KINDS`.
      ids: of a text, without markers.
      grid: rows and columns of an image's tokens.
      values: `[rows * columns, channels]`, an image's tokens; None where only the arrangement is wanted.
      droppable: whether the item may be left out, so that the model learns to do without.
      loss: whether the model is to predict the text.

    Raises:
      ValueError: an unknown kind, or an item with a loss that may be left out.
    """

    kind: str
    ids: Sequence[int] = ()
    grid: tuple[int, int] = (0, 0)
    values: np.ndarray | None = None
    droppable: bool = False
    loss: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an item of kind {self.kind!r}; it is one of {list(KINDS)}")
        if self.droppable and (self.loss or self.kind == NOISED):
            raise ValueError(f"a {self.kind} item has a loss and may be dropped; one of the two")

    @property
    def length(self) -> int:
        """Tokens, with the markers."""
        return (len(self.ids) if self.kind == TEXT else self.grid[0] * self.grid[1]) + 2


class Split(NamedTuple):
    """An item in its place: `rotary: [length]` are the positions of its tokens, markers included."""

    item: Item
    rotary: np.ndarray


def arrange(sample: Sequence[Item], dropout: Mapping[str, float], draws: Iterator[float]) -> list[Split]:
    """The splits of a sample, without the items that are dropped.

    Positions start at 0. Each token of a text moves on by one and a given image by one as a whole, dropped or not; a
    noised one does not, nor does a dropped text.

    Args:
      dropout: probabilities by kind.
      draws: uniform numbers, one taken for each droppable item; it is dropped if its number is below the probability.
    """
    splits, position = [], 0
    for item in sample:
        text = item.kind == TEXT
        if item.droppable and next(draws) < dropout[item.kind]:
            position += 0 if text else 1
            continue
        places = np.arange(item.length) if text else np.zeros(item.length, int)
        splits.append(Split(item, position + places))
        position += item.length if text else int(item.kind != NOISED)
    return splits


@dataclasses.dataclass(frozen=True)
class Pack:
    """Samples in one sequence; arrays `[L]` in its order unless they say otherwise.

    Attributes:
      places: where every token stands.
      kind: one of `KINDS`.
      ids: of text tokens; 0 elsewhere.
      position: row times capacity plus column of an image's token, in the table of its kind; 0 elsewhere.
      image: the number of a latent's image among those of its kind; 0 elsewhere.
      normal: the normal draw that says the time of a latent, -inf of a given one; 0 elsewhere.
      labels: the token that is to be predicted, or -1.
      label_weights: 1 / sqrt(number of labels of that text); 0 without a label.
      values: `{kind: [n, channels]}`, the content of the image tokens of each kind, where items have it.
      sample_lengths, split_lengths, modes: of the samples, and of all splits.
      grids: rows and columns of each image of latents, of either kind, in order.
    """

    places: Places
    kind: np.ndarray
    ids: np.ndarray
    position: np.ndarray
    image: np.ndarray
    normal: np.ndarray
    labels: np.ndarray
    label_weights: np.ndarray
    values: dict[str, np.ndarray]
    sample_lengths: list[int]
    split_lengths: list[int]
    modes: list[str]
    grids: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def indexes(self, *kinds: str) -> np.ndarray:
        """Where the tokens of these kinds are."""
        return np.flatnonzero(np.isin(self.kind, kinds))


def pack(
    samples: Sequence[Sequence[Split]],
    markers: Markers,
    *,
    capacity: Mapping[str, int],
    normals: Iterator[float],
) -> Pack:
    """The samples one after the other.

    Args:
      capacity: rows and columns of the position table of each kind of image.
      normals: numbers from N(0, 1), one taken for each noised image.

    Raises:
      ValueError: there is no sample, or an image has more rows or columns than its table.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("kind", "ids", "position", "image", "normal", "labels", "label_weights", "rotary")
    }
    values: dict[str, list[np.ndarray]] = {}
    grids: list[tuple[int, int]] = []
    images = dict.fromkeys(KINDS, 0)

    def extend(**arrays: Any) -> None:
        length = len(arrays["rotary"])
        for name, column in columns.items():
            column.append(np.broadcast_to(arrays.get(name, 0), (length,)))

    for split in (split for sample in samples for split in sample):
        item, kind = split.item, split.item.kind
        if kind == TEXT:
            ids, count = [markers.text_start, *item.ids, markers.text_end], len(item.ids) + 1
            told = {"labels": NO_LABEL}
            if item.loss:  # the closing marker is predicted, and predicts nothing
                told = {"labels": [*ids[1:], NO_LABEL], "label_weights": [count**-0.5] * count + [0]}
            extend(kind=TEXT, ids=ids, rotary=split.rotary, **told)
            continue
        rows, across = item.grid
        if max(item.grid) > capacity[kind]:
            raise ValueError(
                f"an image of {rows} x {across} {kind} tokens; the table of positions has room for "
                f"{capacity[kind]} x {capacity[kind]}"
            )
        position = (np.arange(rows)[:, None] * capacity[kind] + np.arange(across)).ravel()
        normal = next(normals) if kind == NOISED else GIVEN
        begin, content, end = split.rotary[:1], split.rotary[1:-1], split.rotary[-1:]
        extend(kind=TEXT, ids=markers.image_start, labels=NO_LABEL, rotary=begin)
        told = {"image": images[kind], "normal": normal} if kind in LATENTS else {}
        extend(kind=kind, position=position, labels=NO_LABEL, rotary=content, **told)
        extend(kind=TEXT, ids=markers.image_end, labels=NO_LABEL, rotary=end)
        images[kind] += 1
        if kind in LATENTS:
            grids.append(item.grid)
        if item.values is not None:
            values.setdefault(kind, []).append(item.values)
    if not columns["kind"]:
        raise ValueError("a pack of no tokens")
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    lengths = [split.item.length for sample in samples for split in sample]
    modes = [MODE_OF[split.item.kind] for sample in samples for split in sample]
    of = [i for i, sample in enumerate(samples) for _ in sample]
    integers = {name: joined[name].astype(np.int32) for name in ("ids", "position", "image", "labels")}
    floats = {name: joined[name].astype(np.float32) for name in ("normal", "label_weights")}
    return Pack(
        places=Places.of_splits(lengths, modes, of, joined["rotary"]),
        kind=joined["kind"],
        values={kind: np.concatenate(parts) for kind, parts in values.items()},
        sample_lengths=[sum(split.item.length for split in sample) for sample in samples],
        split_lengths=lengths,
        modes=modes,
        grids=grids,
        **integers,
        **floats,
    )


def buffers(packed: Pack, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """`{kind: arrays [size, ...]}`, the tokens of each kind in the order of the pack, filled up with padding.

    Every buffer has `places` and `mask` (which tokens count). Texts have `ids`, `labels` and `label_weights`; images
    `position` and, where the items have them, `values`; latents also `image` and `normal`. Padding is one more text,
    each token of which sees those before it. Where a size is 0 there is no buffer.

    Raises:
      ValueError: more tokens of a kind than its buffer is long.
    """
    latents = ("position", "image", "normal")
    names = {TEXT: ("ids", "labels", "label_weights"), SEMANTIC: ("position",), CLEAN: latents, NOISED: latents}
    filling = {"labels": NO_LABEL, "normal": GIVEN}
    result: dict[str, dict[str, Any]] = {}
    padding = len(packed)
    for kind in KINDS:
        at, size = packed.indexes(kind), sizes.get(kind, 0)
        extra = size - len(at)
        if extra < 0:
            raise ValueError(f"a pack has {len(at)} {kind} tokens, its buffer is of {size}")
        if not size:
            continue
        rest = Places.of_splits([extra], ["causal"], [len(packed.sample_lengths)], np.zeros(extra), start=padding)
        padding += extra
        places = Places(
            *(
                np.concatenate([np.asarray(of)[at], more]).astype(np.int32)
                for of, more in zip(packed.places, rest, strict=True)
            )
        )
        arrays = {"places": places, "mask": np.arange(size) < len(at)}
        for name in names[kind]:
            column = getattr(packed, name)
            arrays[name] = np.concatenate([column[at], np.full(extra, filling.get(name, 0), column.dtype)])
        if kind in packed.values:
            content = packed.values[kind]
            arrays["values"] = np.concatenate([content, np.zeros((extra, *content.shape[1:]), content.dtype)])
        result[kind] = arrays
    return result


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a pack is, in tokens with markers; the defaults are Bagel's.

    Attributes:
      expected: with so many a pack is done.
      maximum: it never has more.
      per_sample: samples with more are skipped.
      buffer: samples that were too long for their pack and wait for the next.
      prefer_buffer_before: while a pack has fewer, those that wait come first.
      maximum_of: likewise the most of each kind, that their buffers hold.
      until: a pack is done, too, when it has so many tokens of one of these kinds.

    Raises:
      ValueError: a pack that ends before it has begun, or could not hold the longest sample.
    """

    expected: int = 32_768
    maximum: int = 36_864
    per_sample: int = 16_384
    buffer: int = 50
    prefer_buffer_before: int = 16_384
    maximum_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    until: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.expected <= self.maximum:
            raise ValueError(f"a pack of {self.expected} expected tokens and {self.maximum} at most; give 0 < expected "
                             "<= maximum")  # fmt: skip
        if self.per_sample > self.maximum:
            raise ValueError(f"a pack of at most {self.maximum} tokens cannot hold a sample of {self.per_sample}; "
                             "raise the pack's maximum, or lower the sample's")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Group:
    """Samples of one kind, in an endless order.

    Attributes:
      sizes: `position in the order -> (tokens of each kind if nothing is dropped, and with what is dropped)`.
      weight: how often it is drawn from, next to the other groups'.
      mandatory: whether every pack begins with one of its samples.
    """

    sizes: Callable[[int], tuple[Mapping[str, int], Mapping[str, int]]]
    weight: float = 1.0
    mandatory: bool = False


class PackFilling:
    """The samples of one pack after the other, `[(group, position in its order)]`: Bagel's rule.

    Draws samples until the expected length. One that would pass the maximum waits in the buffer; if that is full, or
    the sample came from it, the pack is done, and the sample lost. Nothing but lengths is looked at, so that every
    process can plan the packs of all and read only its own. Its state is small, and `set_state` continues exactly.
    """

    def __init__(self, groups: Sequence[Group], budget: Budget, seed: int):
        if not groups or sum(group.weight for group in groups) <= 0:
            raise ValueError("packs are filled from no group of samples with a weight above 0")
        self._groups, self._budget, self._seed = groups, budget, seed
        self._shares = np.cumsum([group.weight for group in groups]) / sum(group.weight for group in groups)
        self._next = [0] * len(groups)
        self._waiting: list[tuple[int, int]] = []
        self._draws = 0

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as plain values."""
        return {"next": list(self._next), "waiting": [list(s) for s in self._waiting], "draws": self._draws}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state taken between two packs."""
        self._next = [int(n) for n in state["next"]]
        self._waiting = [(int(g), int(p)) for g, p in state["waiting"]]
        self._draws = int(state["draws"])

    def __iter__(self) -> "PackFilling":
        return self

    def __next__(self) -> list[tuple[int, int]]:
        budget = self._budget
        chosen: list[tuple[int, int]] = []
        used = dict.fromkeys(KINDS, 0)

        def put(sample: tuple[int, int]) -> None:
            chosen.append(sample)
            for kind, count in self._sizes(sample)[1].items():
                used[kind] += count

        for number, group in enumerate(self._groups):
            while group.mandatory:
                sample = self._take(number)
                if sum(self._sizes(sample)[0].values()) < budget.per_sample:
                    put(sample)
                    break
        while sum(used.values()) < budget.expected and all(used[k] < count for k, count in budget.until.items()):
            waited = bool(self._waiting) and sum(used.values()) < budget.prefer_buffer_before
            sample = self._waiting.pop(0) if waited else self._take(self._draw())
            whole = self._sizes(sample)[0]
            if sum(whole.values()) > budget.per_sample:
                continue
            beyond = sum(used.values()) + sum(whole.values()) > budget.maximum or any(
                used[kind] + whole.get(kind, 0) > most for kind, most in budget.maximum_of.items()
            )
            if not beyond:
                put(sample)
            elif not waited and len(self._waiting) < budget.buffer:
                self._waiting.append(sample)
            elif chosen:
                break
        return chosen

    def _sizes(self, sample: tuple[int, int]) -> tuple[Mapping[str, int], Mapping[str, int]]:
        group, position = sample
        return self._groups[group].sizes(position)

    def _take(self, group: int) -> tuple[int, int]:
        self._next[group] += 1
        return group, self._next[group] - 1

    def _draw(self) -> int:
        self._draws += 1
        drawn = np.random.default_rng((self._seed, self._draws)).random()
        return min(int(np.searchsorted(self._shares, drawn, side="right")), len(self._groups) - 1)
