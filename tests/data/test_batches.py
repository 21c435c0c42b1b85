import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rae_jax.data import workers as pool
from rae_jax.data.batches import evaluation_batches, training_batches
from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import Transform, transform

COUNT = 10


def numbered(count: int = COUNT) -> ArraySource:
    """Images whose first pixel is their index; the labels are 100 more."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ArraySource(images, np.arange(100, 100 + count, dtype=np.int32), [str(i) for i in range(200)])


def write_draw(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random step that leaves what it drew in the image."""
    image = image.copy()
    image[1, 1] = rng.integers(0, 256, 3)
    return image


AS_IS = transform("none", 2)
DRAWING = Transform(random=(write_draw,))


def training(batch_size=4, *, source=None, seed=3, transform=DRAWING, **arguments):
    return training_batches(
        numbered() if source is None else source, batch_size=batch_size, seed=seed, transform=transform, **arguments
    )


def taken(batches, number: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(number)]


def joined(batches: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Batches, from the parts of each, in their order."""
    return [{k: np.concatenate([p[k] for p in batch]) for k in batch[0]} for batch in zip(*batches, strict=True)]


def dealt(process: int, processes: int, batch_size: int = 4) -> range:
    """Rows that lie apart: those of a process whose devices alternate with those of the others."""
    return range(process, batch_size, processes)


def gathered(parts: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Global batches, from those of all processes, to whom `dealt` gave their rows."""
    return [
        {k: np.stack([p[k] for p in batch], axis=1).reshape(-1, *batch[0][k].shape[1:]) for k in batch[0]}
        for batch in zip(*parts, strict=True)
    ]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys()
        for name in e:
            np.testing.assert_array_equal(a[name], e[name])
            assert a[name].dtype == e[name].dtype


@pytest.fixture(scope="module")
def stream() -> list[dict[str, np.ndarray]]:
    """The first ten global batches of four, four epochs, read by one process without workers."""
    return taken(training(), 10)


def test_batches_hold_images_and_labels_that_belong_together(stream):
    assert set(stream[0]) == {"image", "label"}
    assert stream[0]["image"].shape == (4, 2, 2, 3) and stream[0]["image"].dtype == np.uint8
    assert stream[0]["label"].shape == (4,) and stream[0]["label"].dtype == np.int32
    for batch in stream:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] + 100, batch["label"])


def test_every_epoch_is_a_new_permutation_with_new_augmentation(stream):
    order = np.concatenate([b["image"][:, 0, 0, 0] for b in stream]).reshape(4, COUNT)
    draws = np.concatenate([b["image"][:, 1, 1] for b in stream]).reshape(4, COUNT, 3)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT)) != epoch.tolist()
    assert len({tuple(epoch) for epoch in order}) == 4
    assert len({tuple(draw) for draw in draws.reshape(-1, 3)}) == 4 * COUNT


def test_the_seed_decides(stream):
    assert_same(taken(training(), 3), stream[:3])
    other = taken(training(seed=4), 3)
    assert any((a["label"] != b["label"]).any() for a, b in zip(other, stream, strict=False))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_global_batch_is_the_same_for_any_number_of_processes(stream, processes, prefetch):
    parts = [taken(training(rows=dealt(p, processes), prefetch=prefetch), 5) for p in range(processes)]
    assert parts[0][0]["label"].shape == (4 // processes,)
    assert_same(gathered(parts), stream[:5])


def test_a_process_may_read_any_rows_in_any_order(stream):
    for rows in ([2], [3, 0], [1, 2, 3]):
        expected = [{name: value[rows] for name, value in batch.items()} for batch in stream[:3]]
        assert_same(taken(training(rows=rows), 3), expected)


def test_the_global_batch_is_the_same_with_workers(stream):
    parts = []
    for p in range(2):
        batches = training(rows=dealt(p, 2), num_workers=2)
        parts.append(taken(batches, 5))
        batches.close()
    assert type(parts[0][0]["image"]) is np.ndarray  # and not one in shared memory
    assert_same(gathered(parts), stream[:5])


def test_a_batch_may_be_larger_than_the_source(stream):
    (large,) = taken(training(40), 1)
    assert_same([large], joined([[b] for b in stream]))
    assert next(training(3, source=numbered(1)))["label"].tolist() == [100, 100, 100]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_continues_exactly(stream, workers):
    batches = training(num_workers=workers)
    assert batches.get_state() == {"position": 0}
    taken(batches, 3)
    state = batches.get_state()
    assert_same(taken(batches, 2), stream[3:5])
    batches.set_state(state)
    assert_same(taken(batches, 2), stream[3:5])
    batches.close()


def test_a_state_fits_other_numbers_of_processes_and_other_batch_sizes(stream):
    batches = training()
    taken(batches, 3)
    parts = [training(rows=dealt(p, 2)) for p in range(2)]
    for part in parts:
        part.set_state(batches.get_state())
    assert_same(gathered([taken(part, 2) for part in parts]), stream[3:5])

    doubled = training(8)
    doubled.set_state(batches.get_state())
    assert_same(taken(doubled, 1), joined([[b] for b in stream[3:5]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_orbax_checkpoint_continues_exactly(stream, workers, tmp_path):
    batches = training(num_workers=workers)
    taken(batches, 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        taken(batches, 2)  # goes on while the checkpoint is written
        manager.wait_until_finished()
        batches.close()
        resumed = training(num_workers=workers)
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    assert_same(taken(resumed, 3), stream[3:6])
    resumed.close()


def test_examples_have_the_shapes_of_the_batches():
    for batches in (
        training(8, rows=dealt(1, 2, 8)),
        evaluation_batches(numbered(), batch_size=8, transform=AS_IS, rows=dealt(1, 2, 8)),
    ):
        example, batch = batches.example(), next(batches)
        assert example == {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 10, 16])
def test_evaluation_shows_every_element_once_and_in_order(processes, batch_size):
    shares = [dealt(p, processes, batch_size) for p in range(processes)]
    arguments = dict(batch_size=batch_size, transform=AS_IS)
    batches = gathered([list(evaluation_batches(numbered(), rows=rows, **arguments)) for rows in shares])
    assert len(batches) == -(-COUNT // batch_size)
    assert all(b["index"].shape == b["mask"].shape == (batch_size,) for b in batches)
    whole = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert (whole["index"].dtype, whole["mask"].dtype) == (np.int32, bool)
    np.testing.assert_array_equal(whole["mask"], np.arange(len(whole["mask"])) < COUNT)
    np.testing.assert_array_equal(whole["index"], np.minimum(np.arange(len(whole["index"])), COUNT - 1))
    np.testing.assert_array_equal(whole["image"][:, 0, 0, 0], whole["index"])
    np.testing.assert_array_equal(whole["label"], whole["index"] + 100)


def test_evaluation_is_the_same_with_more_workers_than_batches():
    plain = evaluation_batches(numbered(), batch_size=16, transform=AS_IS)
    parallel = evaluation_batches(numbered(), batch_size=16, transform=AS_IS, num_workers=2)
    assert_same(list(parallel), list(plain))
    with pytest.raises(StopIteration):
        next(parallel)
    parallel.close()


def test_an_epoch_can_be_resumed_up_to_its_end():
    batches = evaluation_batches(numbered(), batch_size=4, transform=AS_IS)
    everything = list(batches)
    batches.set_state({"position": 8})
    assert_same(list(batches), everything[2:])
    batches.set_state({"position": 12})
    assert list(batches) == []
    larger = evaluation_batches(numbered(), batch_size=8, transform=AS_IS)
    larger.set_state({"position": 4})
    assert [int(b["mask"].sum()) for b in larger] == [6]


class Recording(ArraySource):
    """Remembers which elements were read."""

    def __init__(self, count):
        whole = numbered(count)
        super().__init__(whole.images, whole.labels, whole.class_names)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_a_process_reads_no_rows_but_its_own():
    source = Recording(16)
    list(evaluation_batches(source, batch_size=8, transform=AS_IS, rows=dealt(1, 4, 8)))
    assert sorted(source.read) == [1, 5, 9, 13]


def test_no_more_than_the_prefetch_is_read_ahead():
    source = Recording(400)
    batches = training(4, source=source, prefetch=2)
    next(batches)
    time.sleep(0.3)
    assert len(source.read) == (1 + 2) * 4


def failing(image: np.ndarray) -> np.ndarray:
    if image[0, 0, 0] == 7:
        raise RuntimeError("element 7 is bad")
    return image


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_reader(workers):
    batches = evaluation_batches(numbered(), batch_size=2, transform=Transform((failing,)), num_workers=workers)
    assert [b["index"].tolist() for b in taken(batches, 3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(RuntimeError, match="element 7 is bad"):
        next(batches)
    batches.close()


def test_what_cannot_work_is_an_error_at_once():
    with pytest.raises(ValueError, match="no images"):
        training(source=numbered(0))
    with pytest.raises(ValueError, match="no images"):
        evaluation_batches(numbered(0), batch_size=4, transform=AS_IS)
    with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
        training(0)
    for rows in ([], [4], [-1]):
        with pytest.raises(ValueError, match="must be some of the 4 of a batch"):
            training(rows=rows)
    with pytest.raises(ValueError, match="num_workers -1 must be at least 0"):
        training(num_workers=-1)
    with pytest.raises(ValueError, match="without random steps, such as 'center_crop'"):
        evaluation_batches(numbered(), batch_size=4, transform=DRAWING)


def test_closing_stops_the_workers():
    batches = training(num_workers=2)
    next(batches)
    pids = batches.worker_pids()
    assert len(pids) == 2 and all(map(alive, pids))
    batches.close()
    batches.close()
    assert not any(map(alive, pids)) and batches.worker_pids() == []
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


SCRIPT = """
from rae_jax.data import batches as pipeline
from rae_jax.data.batches import training_batches
from rae_jax.data.sources import open_source
from rae_jax.data.transforms import transform

if __name__ == "__main__":
    arguments = dict(batch_size=8, seed=0, transform=transform("none", 32), num_workers=1)
    closed = training_batches(open_source("digits", "test"), **arguments)
    next(closed)
    closed.close()
    left_open = training_batches(open_source("digits", "test"), **arguments)
    next(left_open)
"""


def test_a_program_with_workers_ends_in_silence_whether_it_closes_them_or_not(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_that_dies_is_replaced_and_no_row_is_lost_until_it_happens_too_often(caplog, monkeypatch):
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)
    reference, batches = taken(training(), 60), training(num_workers=2)
    seen = taken(batches, 3)
    os.kill(batches.worker_pids()[1], signal.SIGKILL)
    seen += taken(batches, 57)
    assert_same(seen, reference)
    assert [record.message for record in caplog.records] == [
        "a process that reads data ended unexpectedly (by signal 9); another takes its place"
    ]
    os.kill(batches.worker_pids()[0], signal.SIGKILL)
    with pytest.raises(ValueError, match=r"ended unexpectedly \(by signal 9\), 2 times.*data.num_workers"):
        taken(batches, 60)
    batches.close()
