"""Processes that read ahead, with batches of the size of a real run's: how they end, and how they are ended."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs

from rae_jax.data import workers as pool
from rae_jax.data.workers import Workers
from tests.data.large_batches import LAYOUT, Large, check

COUNT = 8
SECONDS = 20.0  # within which everything must have ended, on a machine that is busy


@pytest.fixture
def workers():
    """Makes started `Workers`, and closes them."""
    made = []

    def make(reading, count=COUNT, ahead=2):
        made.append(Workers(reading, LAYOUT, count, ahead))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


def alive(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_batches_come_whole_in_their_order_and_end(workers):
    reader = workers(Large(20), count=3)
    for number, batch in enumerate(reader):
        check(batch, number)
    assert number == 19
    with pytest.raises(StopIteration):
        next(reader)


def test_a_batch_is_not_overwritten_by_those_that_follow(workers):
    reader = workers(Large(), count=2, ahead=1)
    kept = [next(reader) for _ in range(12)]
    for number, batch in enumerate(kept):
        check(batch, number)


def test_closing_full_workers_takes_no_time_and_leaves_nothing():
    before, files = runs.shared_memory(), len(os.listdir("/proc/self/fd"))
    reader = Workers(Large(), LAYOUT, COUNT, 2)
    reader.start()
    next(reader)
    time.sleep(1)  # whatever they have room for is ready
    pids, began = reader.pids(), time.monotonic()
    reader.close()
    assert time.monotonic() - began < 5
    assert len(pids) == COUNT and not any(map(alive, pids))
    assert runs.shared_memory() <= before
    del reader
    assert len(os.listdir("/proc/self/fd")) == files


def test_closing_wakes_a_reader_that_waits_in_another_thread(workers):
    reader, ended = workers(Large(seconds=3600)), []

    def wait():
        try:
            next(reader)
        except pool.Closed as error:
            ended.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.5)
    reader.close()
    thread.join(SECONDS)
    assert len(ended) == 1 and not any(map(alive, reader.pids()))


def test_a_killed_worker_is_replaced_at_any_moment_and_no_batch_is_lost(workers, monkeypatch, caplog):
    monkeypatch.setattr(pool, "MAX_DEATHS", 100)
    kills = int(os.environ.get("WORKER_KILLS", "3"))
    reader, number = workers(Large()), 0
    for _ in range(kills):
        until = time.monotonic() + random.uniform(0, 0.5)
        while time.monotonic() < until:
            check(next(reader), number)
            number += 1
        victim = random.choice(reader.pids())
        os.kill(victim, signal.SIGKILL)
        while victim in reader.pids():
            check(next(reader), number)
            number += 1
    assert [record.message for record in caplog.records] == [
        "a process that reads data ended unexpectedly (by signal 9); another takes its place"
    ] * kills


class Fatal(Large):
    """Ends the process that reads batch 5."""

    def read(self, number, into):
        if number == 5:
            os._exit(3)
        super().read(number, into)


def test_a_batch_that_ends_every_worker_is_one_error(workers):
    reader = workers(Fatal(), count=2)
    with pytest.raises(
        ValueError, match=r"ended unexpectedly \(with status 3\), 4 times by now; look for it in the sys"
    ):
        for _ in range(10):
            next(reader)


class Refusing(Large):
    """Does not arrive in the worker."""

    def __reduce__(self):
        return int, ("no number",)


def test_what_does_not_arrive_in_a_worker_is_an_error(workers):
    with pytest.raises(ValueError, match=r"invalid literal for int.*no number"):
        next(workers(Refusing(), count=1))


class Odd(Exception):
    """Pickles, and does not come back."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class Failing(Large):
    """Fails at batch 1."""

    def read(self, number, into):
        if number == 1:
            raise Odd("batch 1", "it is odd")


def test_an_error_that_cannot_be_sent_is_told(workers):
    reader = workers(Failing(), count=1)
    next(reader)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Odd: batch 1: it is odd"):
            next(reader)


PROGRAM = """
import signal
import sys
import time

from rae_jax.data.workers import Workers
from tests.data.large_batches import LAYOUT, Large, check

if __name__ == "__main__":
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    workers = Workers(Large(), LAYOUT, 8, 2)
    workers.start()
    number = 0
    for batch in workers:
        check(batch, number)
        number += 1
        if number == 1:
            print(*workers.pids(), flush=True)
        if asked:
            began = time.monotonic()
            break
    for batch in workers:  # they are all there
        check(batch, number)
        number += 1
        if time.monotonic() - began > 1:
            break
    workers.close()
    print("closed", flush=True)
    sys.exit(75)
"""


def program(tmp_path):
    """Starts the program above in a group of its own; returns it and its workers' process ids."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == COUNT and all(map(alive, pids))
    return process, pids


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_is_the_parents_to_answer(number, tmp_path):
    process, pids = program(tmp_path)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, errors) == (75, "closed\n", "")
    assert not any(map(alive, pids))


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed_and_leave_nothing(tmp_path):
    before = runs.shared_memory()
    process, pids = program(tmp_path)
    process.kill()
    _, errors = process.communicate(timeout=SECONDS)
    wait_until(lambda: not any(map(alive, pids)))
    assert errors == "" and runs.shared_memory() <= before
