"""What is said of a run's images, and the packs or the single requests that a stage trains on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.mixtures import rows, spelling, tokenizer
from rae_jax.data.batches import Batches
from rae_jax.data.decoding import decode_image
from rae_jax.data.pack_batches import PackBatches
from rae_jax.data.request_batches import request_batches
from rae_jax.data.scenes import SceneSource
from rae_jax.data.sources import Source
from rae_jax.data.told_files import ToldFiles
from rae_jax.data.told_images import ToldImages, ToldScenes
from rae_jax.data.transforms import Transform, transform


def told_images(config: ConfigDict, source: Source, *, questions: bool = True) -> ToldImages:
    """The images of `source` with what `config.mixture.task` has said of them; `questions`: and asked, if it is.

    Raises:
      ValueError: nothing is said of these images.
    """
    if isinstance(source, SceneSource):
        share = config.mixture.question_share if questions else 0.0
        if share and not config.mixture.pack_sources:
            raise ValueError("questions are about given images, for which rows have no room; set mixture.pack_sources")
        return ToldScenes(source, config.mixture.task, share)
    if isinstance(source, ToldFiles):
        if source.task != config.mixture.task:
            raise ValueError(f"data.source={config.data.source!r} is for mixture.task={source.task!r}, not "
                             f"{config.mixture.task!r}")  # fmt: skip
        return source
    raise ValueError(
        f"nothing is said of the images of data.source={config.data.source!r}, from which a mixture of transformers "
        "could learn; use 'scenes', 'captions' or 'edits'"
    )


def pack_batches(config: ConfigDict, stage: str, source: Source, of_batch: Sequence[int] | None = None) -> PackBatches:
    """The batches that `stage` trains on; `of_batch`: the rows of each that this process reads, all by default.

    Raises:
      ValueError: see `told_images`, `mixtures.rows` and `PackBatches`; or images would be changed at random.
    """
    return PackBatches(
        told_images(config, source),
        tokenizer(config),
        rows(config),
        read=_reading(config, stage),
        batch_size=config[stage].train.batch_size,
        seed=config.seed,
        rows=of_batch,
        threads=config.data.num_workers,
    )


def requests(config: ConfigDict, stage: str, source: Source, of_batch: Sequence[int] | None = None) -> Batches:
    """The batches of single images that `stage` trains on, questions left out; `of_batch` as in `pack_batches`.

    Raises:
      ValueError: see `told_images` and `request_batches`; or images would be changed at random.
    """
    return request_batches(
        told_images(config, source, questions=False),
        spelling(config),
        read=_reading(config, stage),
        batch_size=config[stage].train.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        rows=of_batch,
    )


def _reading(config: ConfigDict, stage: str) -> Callable[[Any], np.ndarray]:
    name = config[stage].train.transform
    fit = transform(name, config.data.image_size)
    if fit.random:
        raise ValueError(
            f"{stage}.train.transform={name!r} is random, and would change each image of an edit in its own "
            "way; use 'center_crop' or 'resize'"
        )
    return functools.partial(_read, fit)


def _read(fit: Transform, image: Any) -> np.ndarray:
    return fit(decode_image(image) if isinstance(image, bytes) else image, None)
