"""What the long rehearsal calls a difference, a lost file, an orphan and a growth."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from rae_jax.data.sources import open_source
from tools import long_rehearsal
from tools.long_rehearsal import Memory, Watch

RECORDS = [
    {"stage": "decoder", "step": 10, "loss": 2.0, "images_per_second": 5.0},
    {"stage": "decoder", "step": 20, "loss": 1.0, "images_per_second": 9.0},
    {"stage": "decoder", "step": 20, "evaluation/psnr": 20.0},
]


@pytest.fixture
def leave(tmp_path):
    """Makes what a run leaves."""

    def working_directory(name, records=RECORDS, weights=1.0, checkpoints=(10, 20)):
        workdir = tmp_path / name
        (workdir / "decoder/weights").mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        save_file({"kernel": np.full(4, weights, np.float32)}, workdir / "decoder/weights/weights.safetensors")
        for step in checkpoints:
            state = workdir / f"decoder/checkpoints/{step}/state"
            state.mkdir(parents=True)
            (state / f"named_by_chance_{name}").touch()
        return workdir

    return working_directory


def changed(index, **values):
    return [record | values if i == index else record for i, record in enumerate(RECORDS)]


def test_runs_alike_but_for_rounding_and_the_names_that_storage_gives_are_equal(leave):
    whole, other = leave("a"), leave("b", changed(1, loss=1.0 + 2e-6, images_per_second=1.0), weights=1.0 + 1e-6)
    found = long_rehearsal.compare(whole, other)
    assert found["numbers"] == 3 and found["largest_deviation"] == pytest.approx(2e-6)
    assert found["weights_apart"] == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"records": changed(1, loss=1.001)}, "decoder 20 loss: 1.001 instead of 1.0"),
        ({"records": changed(1, loss=float("nan"))}, "decoder 20 loss: nan"),
        ({"records": changed(2, **{"evaluation/psnr": 20.1})}, "decoder 20 evaluation/psnr"),
        ({"records": RECORDS[1:]}, r"only one run has recorded \['decoder 10 loss'\]"),
        ({"records": [*RECORDS, RECORDS[0]]}, "has decoder 10 loss twice"),
        ({"weights": 1.01}, "the weights are 0.01 of their norm apart"),
        ({"checkpoints": (20,)}, "only one run has left .*decoder/checkpoints/10"),
    ],
)
def test_a_difference_or_a_loss_is_named(difference, message, leave):
    with pytest.raises(ValueError, match=message):
        long_rehearsal.compare(leave("a"), leave("b", **difference))


def test_growth_is_that_of_a_process_which_has_settled():
    times = [float(second) for second in range(330)]
    rising = [500.0 if second <= 30 else 600.0 + 0.1 * (second - 30) for second in range(330)]
    assert Memory("", times, rising).growth() == pytest.approx(0.1 * 99.5, abs=0.1)
    assert Memory("", times, [600.0] * 330).growth() == 0
    assert Memory("", times[:300], rising[:300]).growth() is None  # it ended within five minutes


def test_a_process_that_outlives_its_run_is_named_and_one_that_ended_is_not(monkeypatch):
    monkeypatch.setattr(long_rehearsal, "ENDED_WITHIN", 0.5)
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    host = subprocess.Popen([sys.executable, "-c", program])
    watch = Watch(SimpleNamespace(processes=[SimpleNamespace(pid=host.pid)]), time.monotonic(), 2)
    try:
        with watch:
            deadline = time.monotonic() + 30
            while len(watch.seen) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
        assert sorted(memory.name for memory in watch.seen.values()) == ["start 2, process 0", "start 2, worker of 0"]
        assert all(min(memory.mebibytes) > 1 for memory in watch.seen.values())
        host.kill()
        host.wait()
        assert watch.orphans() == ["start 2, worker of 0"]
    finally:
        for process, _ in watch.seen:
            if process != host.pid:
                os.kill(process, signal.SIGKILL)
        host.kill()
    assert watch.orphans() == []


def test_the_shards_hold_so_many_different_crops_of_every_photograph(tmp_path):
    pytest.importorskip("skimage")
    path = long_rehearsal.prepare(tmp_path / "data", 200)
    train, held_out = (open_source("tfds:imagenet_folder", split, str(path)) for split in ("train", "validation"))
    assert len(train) == 200 and len(held_out) == 9 and train.num_classes == held_out.num_classes == 9
    images = [train[i]["image"] for i in range(200)]
    assert len(set(images)) == 200 and not any(held_out[i]["image"] in images for i in range(9))
    before = (tmp_path / "data/prepared.json").stat().st_mtime_ns
    assert long_rehearsal.prepare(tmp_path / "data", 200) == path
    assert (tmp_path / "data/prepared.json").stat().st_mtime_ns == before  # not made again
