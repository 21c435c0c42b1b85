"""Batches of packs: rows of a few samples each, of the same size in every step, for a mixture of transformers.

A row holds so many images to be made and given, and so many tokens of text; `packing.PackFilling` fills it. Every
process plans all rows of all batches, which takes lengths alone, and reads the images of its own. So neither the
processes nor their rows change any batch, and the whole state is where the filling stands.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from rae_jax.data.packing import (
    CLEAN,
    KINDS,
    NOISED,
    QWEN,
    SEMANTIC,
    TEXT,
    Budget,
    Group,
    Item,
    Markers,
    PackFilling,
    Split,
    arrange,
    buffers,
    pack,
)
from rae_jax.data.tokenizer import Tokenizer
from rae_jax.data.told_images import Part, ToldImages, texts_first
from rae_jax.models.pack import Places

IMAGES = (CLEAN, NOISED)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a row of a batch has room for, and what its samples may lose.

    Attributes:
      grid: rows and columns of an image's latent tokens.
      images, sources: how many images to be made, and given.
      texts: tokens of text, markers included.
      semantic: whether given images come as semantic tokens too, on the same grid.
      dropout: probability that a droppable item is left out, by its kind.
      labels: whether texts may be such as are to be learnt.
      text_first: whether texts stand before the given images that they are about, see `told_images.texts_first`.

    Raises:
      ValueError: there is no room for an image, or semantic tokens are of no given images.
    """

    grid: int
    images: int
    sources: int
    texts: int
    semantic: bool
    dropout: dict[str, float]
    labels: bool = False
    text_first: bool = False

    def __post_init__(self) -> None:
        if self.images < 1 or self.texts < 1:
            raise ValueError(f"rows of {self.images} images to be made and {self.texts} tokens of text; they need both")
        if self.semantic and not self.sources:
            raise ValueError("semantic tokens are of given images, for which rows have no room (pack_sources=0)")

    @property
    def sizes(self) -> dict[str, int]:
        """Tokens of each kind that a row has room for."""
        image = self.grid**2
        given = self.sources * image
        return {TEXT: self.texts, SEMANTIC: given * self.semantic, CLEAN: given, NOISED: self.images * image}

    @property
    def budget(self) -> Budget:
        """A row is done when it has its images to be made; a sample for which it had no room begins another."""
        most = sum(self.sizes.values())
        return Budget(
            expected=most,
            maximum=most,
            per_sample=most,
            prefer_buffer_before=1,
            maximum_of=self.sizes,
            until={NOISED: self.sizes[NOISED]},
        )


def markers_of(tokenizer: Tokenizer) -> Markers:
    """The markers around texts and images: Qwen's own in its vocabulary, those of the tokenizer in any other."""
    if tokenizer.turn_start == QWEN.text_start:
        return QWEN
    return Markers(tokenizer.turn_start, tokenizer.turn_end, tokenizer.image_start, tokenizer.image_end)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A sample in its place in the stream: what is left of it, how many tokens, and its images."""

    splits: list[Split]
    images: list[tuple[str, Any]]
    whole: dict[str, int]
    left: dict[str, int]


class PackBatches(grain.DatasetIterator):
    """Endless batches of packs of `source`, in an order fixed by the seed: the interface of `batches.Batches`.

    Arrays `[b, ...]`, b of the `batch_size` rows: `text_ids [T]`, and if asked `text_labels` and `text_label_weights`;
    `text_places`, `noised_places`, `clean_places` and `semantic_places`, `[N, 5]`, the fields of `pack.Places`;
    `noised_image` and `clean_image`, uint8 `[M, S, S, 3]`, or whatever else `read` gives.

    Args:
      read: an image as the source has it -> its array.
      threads: that read images.

    Raises:
      ValueError: the source is empty, or a row is not one of the batch.
    """

    def __init__(
        self,
        source: ToldImages,
        tokenizer: Tokenizer,
        shape: Rows,
        *,
        read: Callable[[Any], np.ndarray],
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
        threads: int = 4,
    ):
        super().__init__()
        if not len(source):
            raise ValueError(f"there are no images in {source}")
        self.batch_size, self.rows = batch_size, tuple(range(batch_size) if rows is None else rows)
        if not self.rows or not all(0 <= row < batch_size for row in self.rows):
            raise ValueError(f"rows {self.rows} must be some of the {batch_size} of a batch, numbered from 0")
        self._source, self._tokenizer, self._shape, self._read = source, tokenizer, shape, read
        self._markers = markers_of(tokenizer)
        elements = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
        self._stream = elements.random_map(self._plan)
        self._planned = functools.lru_cache(maxsize=4096)(lambda position: self._stream[position])
        sizes = lambda position: (self._planned(position).whole, self._planned(position).left)  # noqa: E731
        self._filling = PackFilling([Group(sizes)], shape.budget, seed)
        self._pool = concurrent.futures.ThreadPoolExecutor(max(threads, 1))

    def _plan(self, index: int, rng: np.random.Generator) -> Planned:
        parts = self._source.parts(index, int(rng.integers(2**31)))
        parts = texts_first(parts) if self._shape.text_first else parts
        items, images = [], []
        for part in parts:
            for item in self._items(part):
                items.append(item)
                images.append((item.kind, part.image))
        length = self._shape.budget.per_sample
        if sum(item.length for item in items) > length or any(
            self._counts(items)[kind] > room for kind, room in self._shape.sizes.items()
        ):
            raise ValueError(
                f"example {index} has {self._counts(items)} tokens of each kind, more than the {self._shape.sizes} of "
                "a row; raise mixture.pack_texts or the numbers of its images"
            )
        splits = arrange(items, self._shape.dropout, iter(rng.random(len(items))))
        kept = {id(split.item) for split in splits}
        left = [pair for item, pair in zip(items, images, strict=True) if id(item) in kept]
        return Planned(splits, left, self._counts(items), self._counts([split.item for split in splits]))

    def _items(self, part: Part) -> list[Item]:
        if part.kind == TEXT:
            return [Item(TEXT, ids=self._tokenizer.encode(part.text), droppable=part.droppable, loss=part.loss)]
        grid = (self._shape.grid,) * 2
        of_kinds = [part.kind, *([SEMANTIC] if part.kind == CLEAN and self._shape.semantic else [])]
        return [Item(kind, grid=grid, droppable=part.droppable) for kind in of_kinds]

    @staticmethod
    def _counts(items: Sequence[Item]) -> dict[str, int]:
        counts = dict.fromkeys(KINDS, 0)
        for item in items:
            counts[item.kind] += item.length - (0 if item.kind == TEXT else 2)
            counts[TEXT] += 0 if item.kind == TEXT else 2
        return counts

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of this process's batches; reads one image."""
        position = next(p for p in itertools.count() if self._planned(p).images)
        image = self._read(self._source.image(next(i for k, i in self._planned(position).images if k in IMAGES)))
        return shapes(self._shape, image.shape, image.dtype, len(self.rows))

    def __next__(self) -> dict[str, np.ndarray]:
        chosen = [[position for _, position in next(self._filling)] for _ in range(self.batch_size)]
        made = list(self._pool.map(self._row, (chosen[row] for row in self.rows)))
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _row(self, positions: Sequence[int]) -> dict[str, np.ndarray]:
        samples = [self._planned(position) for position in positions]
        capacity = dict.fromkeys(KINDS, self._shape.grid)
        packed = pack([s.splits for s in samples], self._markers, capacity=capacity, normals=itertools.repeat(0.0))
        held = buffers(packed, self._shape.sizes)
        row = {f"{kind}_places": np.stack(arrays["places"], axis=-1) for kind, arrays in held.items()}
        row["text_ids"] = held[TEXT]["ids"]
        if self._shape.labels:
            row |= {f"text_{name}": held[TEXT][name] for name in ("labels", "label_weights")}
        for kind, room in ((NOISED, self._shape.images), (CLEAN, self._shape.sources)):
            if not room:
                continue
            wanted = [image for sample in samples for k, image in sample.images if k == kind]
            images = [self._read(self._source.image(image)) for image in wanted]
            blank = np.zeros_like(images[0]) if images else self._blank
            row[f"{kind}_image"] = np.stack([*images, *[blank] * (room - len(images))])
        return row

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        image = self.example()[f"{NOISED}_image"]
        return np.zeros(image.shape[2:], image.dtype)

    def get_state(self) -> dict[str, Any]:
        """Where it stands after the batches handed out; `position` counts the samples."""
        state = self._filling.get_state()
        return {"position": state["next"][0], "filling": state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state taken before."""
        self._filling.set_state(state["filling"])

    def start_prefetch(self) -> None:
        """Nothing is read ahead here; `device.DeviceBatches` does."""

    def worker_pids(self) -> list[int]:
        """There are no processes."""
        return []

    def interrupt(self) -> None:
        """Stops reading."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    close = interrupt


def shapes(shape: Rows, image: Sequence[int], dtype: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `batch_size` rows, of images `[S, S, 3]` or whatever stands for them."""

    def array(*sides: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *sides), np.dtype(dtype))

    fields = len(Places._fields)
    result = {f"{kind}_places": array(size, fields) for kind, size in shape.sizes.items() if size}
    result["text_ids"] = array(shape.texts)
    if shape.labels:
        result |= {"text_labels": array(shape.texts), "text_label_weights": array(shape.texts, dtype=np.float32)}
    for kind, room in ((NOISED, shape.images), (CLEAN, shape.sources)):
        if room:
            result[f"{kind}_image"] = array(room, *image, dtype=dtype)
    return result
