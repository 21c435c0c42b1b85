import gc
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rae_jax.data.batches import evaluation_batches, training_batches
from rae_jax.data.device import DeviceBatches, batch_share
from rae_jax.data.sources import ArraySource
from rae_jax.data.transforms import Transform, transform

BATCH = 8


def source(count: int = 20) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count, dtype=np.int32), [str(i) for i in range(count)])


def training(images=None, transform=transform("none", 2), **arguments):  # noqa: B008
    images = source() if images is None else images
    return training_batches(images, batch_size=BATCH, seed=0, transform=transform, prefetch=1, **arguments)


@pytest.fixture
def sharding() -> NamedSharding:
    """Rows divided over as many devices as there are, up to eight."""
    count = max(n for n in (1, 2, 4, 8) if n <= len(jax.devices()))
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), PartitionSpec("data"))


@pytest.fixture
def on_devices(sharding):
    """Makes `DeviceBatches` and closes them."""
    made = []

    def make(batches=None, **arguments):
        made.append(DeviceBatches(training() if batches is None else batches, sharding, **arguments))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def labels(batches, number):
    return [np.asarray(next(batches)["label"]).tolist() for _ in range(number)]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batches_arrive_unchanged_and_laid_out_as_asked(on_devices, sharding):
    host, batches = training(), on_devices()
    for _ in range(4):
        expected, batch = next(host), next(batches)
        assert set(batch) == {"image", "label"}
        for name, value in batch.items():
            assert isinstance(value, jax.Array) and value.sharding == sharding
            np.testing.assert_array_equal(value, expected[name])


def test_the_state_is_that_of_the_batches_handed_out_not_of_those_read_ahead(on_devices):
    expected = labels(training(), 8)
    host = training()
    batches = on_devices(host, prefetch=3)
    assert batches.state() == {"position": 0}
    assert labels(batches, 1) == expected[:1]
    wait_until(lambda: host.get_state()["position"] >= 5 * BATCH)  # the background thread is ahead
    assert labels(batches, 1) == expected[1:2]
    assert batches.state() == {"position": 2 * BATCH}
    state = batches.state()
    assert labels(batches, 2) == expected[2:4]

    batches.restore(state)
    assert batches.state() == state
    assert labels(batches, 3) == expected[2:5]

    resumed = on_devices()
    resumed.restore(state)
    assert labels(resumed, 3) == expected[2:5]


def test_an_example_has_the_shapes_of_the_global_batch(on_devices):
    batches = on_devices()
    example, batch = batches.example(), next(batches)
    assert example == {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}


def test_an_epoch_ends_and_can_be_restored(on_devices):
    batches = on_devices(evaluation_batches(source(), batch_size=BATCH, transform=transform("none", 2)))
    assert [int(batch["mask"].sum()) for batch in batches] == [8, 8, 4]
    with pytest.raises(StopIteration):
        next(batches)
    batches.restore({"position": 2 * BATCH})
    assert [int(batch["mask"].sum()) for batch in batches] == [4]


def failing(image: np.ndarray) -> np.ndarray:
    if (image == source().images[10]).all():
        raise RuntimeError("image 10 is bad")
    return image


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_reader_is_raised_by_the_next_that_wanted_the_batch(on_devices, workers):
    epoch = evaluation_batches(source(), batch_size=BATCH, transform=Transform((failing,)), num_workers=workers)
    batches = on_devices(epoch)
    next(batches)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="image 10 is bad"):
            next(batches)
    assert batches.state() == {"position": BATCH}


class Slow(ArraySource):
    """Takes 20 ms an image."""

    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_waiting_is_measured_and_reading_goes_on_while_the_step_runs(on_devices):
    slow = Slow(source().images, source().labels, "a" * 20)
    batches = on_devices(training(slow))
    labels(batches, 2)
    assert batches.seconds_waited > 0.9 * BATCH * 0.02
    time.sleep(6 * BATCH * 0.02)  # a step that takes longer than reading
    waited = batches.seconds_waited
    labels(batches, 2)
    assert batches.seconds_waited - waited < 0.5 * BATCH * 0.02


def test_no_more_than_the_prefetch_waits_on_the_devices(on_devices):
    host = training()
    next(on_devices(host, prefetch=2))
    wait_until(lambda: host.get_state()["position"] == 4 * BATCH)  # one used, two wait, one has no room yet
    time.sleep(0.2)
    assert host.get_state()["position"] == 4 * BATCH


def placing_threads():
    return [thread for thread in threading.enumerate() if thread.name == "place-batches"]


def test_closing_or_dropping_ends_the_thread(sharding):
    batches = DeviceBatches(training(), sharding)
    next(batches)
    assert len(placing_threads()) == 1
    batches.close()
    batches.close()
    assert placing_threads() == []
    with pytest.raises(ValueError, match="closed"):
        next(batches)

    batches = DeviceBatches(training(), sharding)
    next(batches)
    del batches
    gc.collect()
    assert placing_threads() == []


class Layout:
    """Stands for a sharding of rows over several processes: who holds which rows, as this process sees it."""

    def __init__(self, held, num_devices, shards):
        self._held, self.num_devices, self._shards = held, num_devices, shards

    def addressable_devices_indices_map(self, shape):
        assert shape == (self.num_devices,)
        return {device: (slice(*rows),) for device, rows in enumerate(self._held)}

    def shard_shape(self, shape):
        return (shape[0] // self._shards,)


@pytest.mark.parametrize(
    ("held", "share"),
    [
        ([(0, 1), (1, 2), (2, 3), (3, 4)], (0, 2)),  # four devices here, four on another process
        ([(4, 5), (7, 8), (6, 7), (5, 6)], (1, 2)),
        ([(2, 4), (2, 4)], (1, 4)),  # two devices of a tensor axis share rows
        ([(0, None), (0, None)], (0, 1)),  # everything everywhere
    ],
)
def test_a_process_is_given_the_rows_that_its_devices_hold(held, share):
    assert batch_share(Layout(held, 8, 8)) == share


@pytest.mark.parametrize("held", [[(0, 1), (2, 3)], [(1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_rows_that_do_not_lie_side_by_side_are_an_error(held):
    with pytest.raises(ValueError, match="do not lie side by side"):
        batch_share(Layout(held, 8, 8))


def test_one_process_holds_everything(sharding):
    assert batch_share(sharding) == (0, 1)


def test_batches_that_the_sharding_does_not_fit_are_errors(sharding):
    with pytest.raises(ValueError, match=r"share 0 of 1, but the sharding places share 1 of 2 .*process_index=1"):
        DeviceBatches(training(), Layout([(4, 8)], 8, 2))
    with pytest.raises(ValueError, match="batch_size 8 does not divide over 16 data shards; use a multiple of 16"):
        DeviceBatches(training(), Layout([(0, 16)], 16, 16))
    with pytest.raises(ValueError, match="prefetch 0 must be at least 1"):
        DeviceBatches(training(), sharding, prefetch=0)
