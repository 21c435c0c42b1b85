"""What is said of a run's images, and the packs that it trains on."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.mixtures import rows, tokenizer
from rae_jax.data.decoding import decode_image
from rae_jax.data.pack_batches import PackBatches
from rae_jax.data.scenes import SceneSource
from rae_jax.data.sources import Source
from rae_jax.data.told_files import ToldFiles
from rae_jax.data.told_images import ToldImages, ToldScenes
from rae_jax.data.transforms import Transform, transform


def told_images(config: ConfigDict, source: Source) -> ToldImages:
    """The images of `source` with what `config.mixture.task` has said of them.

    Raises:
      ValueError: nothing is said of these images.
    """
    if isinstance(source, SceneSource):
        share = config.mixture.question_share
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
    train = config[stage].train
    fit = transform(train.transform, config.data.image_size)
    if fit.random:
        raise ValueError(
            f"{stage}.train.transform={train.transform!r} is random, and would change each image of an edit in its own "
            "way; use 'center_crop' or 'resize'"
        )
    return PackBatches(
        told_images(config, source),
        tokenizer(config),
        rows(config),
        read=functools.partial(_read, fit),
        batch_size=train.batch_size,
        seed=config.seed,
        rows=of_batch,
        threads=config.data.num_workers,
    )


def _read(fit: Transform, image: Any) -> np.ndarray:
    return fit(decode_image(image) if isinstance(image, bytes) else image, None)
