import gc
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import runs
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rae_jax.costs.compile_report import mesh_over
from rae_jax.data.batches import evaluation_batches, training_batches
from rae_jax.data.device import DeviceBatches, batch_rows, part
from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import Transform, transform
from rae_jax.training.sharding import batch_sharding
from tests.data.bad_images import drawn, failing, sleeping

BATCH = 8


def source(count: int = 20) -> ArraySource:
    return ArraySource(drawn(count), np.arange(count, dtype=np.int32), [str(i) for i in range(count)])


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


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_reader_is_raised_by_the_next_that_wanted_the_batch(on_devices, workers):
    epoch = evaluation_batches(source(), batch_size=BATCH, transform=Transform((failing,)), num_workers=workers)
    batches = on_devices(epoch)
    next(batches)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="image 10 is bad"):
            next(batches)
    assert batches.state() == {"position": BATCH}


def test_closing_does_not_wait_for_a_worker_that_reads(sharding):
    epoch = evaluation_batches(source(), batch_size=BATCH, transform=Transform((sleeping,)), num_workers=1)
    batches = DeviceBatches(epoch, sharding)
    next(batches)
    time.sleep(0.2)  # the thread waits for the second batch
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 10 and placing_threads() == [] and epoch.worker_pids() == []


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


TOPOLOGIES = ("v5p:2x2x4", "v5p:4x4x4", "v5e:4x4", "v6e:8x8")


@pytest.mark.parametrize("axes", [{"fsdp": 1}, {"fsdp": 8}, {"fsdp": 16}, {"tensor": 2}, {"fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_on_real_slices_every_device_is_given_its_rows_by_the_host_it_belongs_to(topology, axes):
    pytest.importorskip("libtpu")
    config = ConfigDict({"mesh": {"data": -1, "fsdp": 1, "tensor": 1} | axes})
    rows_of_batches = batch_sharding(mesh_over(config, topology))
    batch_size = 2 * rows_of_batches.num_devices
    places = rows_of_batches.devices_indices_map((batch_size,))
    hosts = {device.process_index for device in places}
    assert len(hosts) == rows_of_batches.num_devices // 4 > 1
    given = {}
    for host in hosts:
        rows = batch_rows(rows_of_batches, batch_size, host)
        for device, (where,) in places.items():
            if device.process_index == host:
                given[device] = part(np.array(rows), rows, where).tolist()  # a row is its number
        assert set(rows) == {row for device in given if device.process_index == host for row in given[device]}
    assert given == {device: list(range(batch_size)[where]) for device, (where,) in places.items()}
    assert {row for rows in given.values() for row in rows} == set(range(batch_size))


PROCESS = """
import sys

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rae_jax.data.batches import training_batches
from rae_jax.data.device import DeviceBatches, batch_rows
from rae_jax.data.sources import open_source
from rae_jax.data.transforms import transform

if __name__ == "__main__":
    process = int(sys.argv[2])
    jax.distributed.initialize(sys.argv[1], 4, process)
    arguments = dict(source=open_source("digits", "test"), batch_size=16, seed=0, transform=transform("none", 32))
    whole, sharding = training_batches(**arguments), None
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    order = {
        "interleaved": [0, 2, 4, 6, 1, 3, 5, 7],
        "shuffled": [5, 0, 3, 6, 1, 7, 2, 4],
        "in order": range(8),
    }[sys.argv[3]]
    for shape in ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)):
        mesh = Mesh(np.array([ordered[number] for number in order]).reshape(shape), ("data", "fsdp", "tensor"))
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        rows = batch_rows(sharding, 16)
        batches = DeviceBatches(training_batches(**arguments, rows=rows), sharding)
        whole.set_state({"position": 0})
        for _ in range(2):
            expected, batch = next(whole), next(batches)
            for name, value in expected.items():
                assert batch[name].shape == value.shape and batch[name].sharding == sharding
                for shard in batch[name].addressable_shards:
                    np.testing.assert_array_equal(shard.data, value[shard.index])
        batches.close()
        print(shape, *rows)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["interleaved", "shuffled", "in order"])
def test_four_processes_put_the_rows_of_one_batch_on_the_devices_in_whatever_order(order, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROCESS)
    environment = runs.environment(2) | {"PYTHONPATH": str(runs.ROOT)}
    command = [sys.executable, str(script), runs.free_address()]
    processes = [
        subprocess.Popen([*command, str(i), order], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(4)
    ]
    outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(outputs)
    first = {"interleaved": "0 1 8 9", "shuffled": "2 3 8 9", "in order": "0 1 2 3"}[order]
    assert f"(8, 1, 1) {first}" in outputs[0]


def test_one_process_holds_everything(sharding):
    assert batch_rows(sharding, BATCH) == list(range(BATCH))


def test_batches_that_the_sharding_does_not_fit_are_errors(sharding):
    with pytest.raises(ValueError, match=r"are of rows \[1, 4\], but the sharding places rows \[0, 1, 2.*batch_rows"):
        DeviceBatches(training(rows=[1, 4]), sharding)
    with pytest.raises(ValueError, match="prefetch 0 must be at least 1"):
        DeviceBatches(training(), sharding, prefetch=0)


def test_a_batch_that_does_not_divide_over_the_devices_is_an_error():
    mesh = AbstractMesh((16,), ("data",))
    with pytest.raises(ValueError, match="batch_size 8 does not divide over 16 data shards; use a multiple of 16"):
        batch_rows(NamedSharding(mesh, PartitionSpec("data")), 8)
