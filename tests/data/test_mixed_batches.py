"""Batches of several sources, each whole from one: which, how often, and the same however they are read."""

import contextlib
import types

import numpy as np
import pytest

from configs import digits
from rae_jax.data.batches import mixed_batches
from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import transform
from rae_jax.experiment.stages import mixed_sources, open_batches

COUNTS, WEIGHTS, BATCH = (40, 12, 7), (1.0, 2.0, 1.0), 4


def source(number: int, count: int) -> ArraySource:
    """Images of `count` brightnesses, from 100 times `number` on."""
    values = np.arange(count, dtype=np.uint8) + 80 * number
    images = np.broadcast_to(values[:, None, None, None], (count, 2, 2, 3))
    return ArraySource(np.ascontiguousarray(images), np.zeros(count, np.int32), ["one"])


SOURCES = [(source(number, count), WEIGHTS[number]) for number, count in enumerate(COUNTS)]


def mixed(sources=SOURCES, **changes):
    arguments = dict(batch_size=BATCH, seed=3, transform=transform("none", 2)) | changes
    return mixed_batches(sources, **arguments)


def values(batches, count: int) -> np.ndarray:
    return np.stack([next(batches)["image"][:, 0, 0, 0] for _ in range(count)])


def test_each_batch_is_of_one_source_drawn_by_weight():
    seen = values(mixed(rows=(0, 3)), 500)  # a shuffle of so few elements takes milliseconds for each
    of = seen // 80
    assert (of == of[:, :1]).all()
    shares = np.bincount(of[:, 0]) / len(of)
    np.testing.assert_allclose(shares, np.array(WEIGHTS) / sum(WEIGHTS), atol=0.09)  # 4 standard deviations
    np.testing.assert_allclose(np.corrcoef(of[1:, 0], of[:-1, 0])[0, 1], 0, atol=0.18)
    for number, count in enumerate(COUNTS):
        assert set(seen[of == number] - 80 * number) == set(range(count))


def test_no_image_comes_twice_in_an_epoch_of_its_source():
    seen = values(mixed(SOURCES[:2]), 10)  # an epoch of the first
    (first,) = (seen[seen < 80],)
    assert 0 < len(first) < 40 and len(set(first)) == len(first)


def test_batches_are_the_same_for_any_rows_workers_and_after_a_restart():
    whole = values(mixed(), 12)
    np.testing.assert_array_equal(values(mixed(rows=(3, 1)), 12), whole[:, [3, 1]])
    batches = mixed()
    values(batches, 5)
    again = mixed(num_workers=1)
    again.set_state(batches.get_state())
    np.testing.assert_array_equal(values(again, 7), whole[5:])
    again.close()
    assert (values(mixed(seed=4), 12) != whole).any()


@pytest.mark.parametrize("sources", [[], [(SOURCES[0][0], 0.0)], [SOURCES[0], (source(1, 0), 1.0)]])
def test_no_source_no_weight_and_no_image_are_errors_at_once(sources):
    with pytest.raises(ValueError, match=r"weight above 0|no images"):
        mixed(sources)


def test_a_stage_trains_on_its_own_sources_where_it_has_some():
    config = digits.get_config("tiny")
    config.data.num_workers, config.decoder.train.batch_size = 0, 2
    objective = types.SimpleNamespace(
        reads_conversations=False, reads_packs=False, reads_requests=False, reads_latents=False, one_epoch=False
    )
    config.decoder.sources = (("digits", "", 1.0), ("scenes", "", 3.0))
    with contextlib.closing(open_batches(config, "decoder", objective, None)) as batches:
        images = np.stack([next(batches)["image"] for _ in range(60)])
    coloured = (images.max(axis=-1) != images.min(axis=-1)).any(axis=(2, 3))
    assert (coloured == coloured[:, :1]).all() and 0.55 < coloured.mean() < 0.95  # digits are white
    config.decoder.sources = (("digits", 1.0),)
    with pytest.raises(ValueError, match="are to be a source, a path and a weight each"):
        mixed_sources(config, "decoder")
