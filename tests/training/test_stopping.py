"""How the processes of a run leave together; what they do here costs nothing, so that only this is seen."""

import atexit
import os
import signal
import time

import jax
import pytest
import runs
from jax._src import distributed

from rae_jax.training import stopping

COUNT = 3


def member(address, number, doing, folder):
    """One process of a run that trains (its step takes longer the higher its number), or only waits.

    That "compiles" is that all but the first come to the loop later.
    """
    with (folder / f"{number}.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(address, COUNT, number, heartbeat_timeout_seconds=10)
    stopping.join(distributed.global_state.client, number, COUNT)
    for each in stopping.SIGNALS:
        signal.signal(each, lambda *_: stopping.ask_all())
    distributed.global_state.client.wait_at_barrier("ready", 60_000)
    try:
        (folder / f"{number}.ready").touch()
        if doing == "fails" and number == 1:
            time.sleep(1)
            stopping.fail(3, "error: the disk is full")
        if doing == "compiles" and number:
            time.sleep(4)
        if doing in ("trains", "compiles"):
            with stopping.StopRequest() as stop:
                calls = 1
                while not stop.agreed():
                    calls += 1
                    time.sleep(0.02 * (1 + number))
                print("left at call", calls, flush=True)
        time.sleep(100)
    finally:
        atexit._run_exitfuncs()


class Run:
    """`COUNT` processes that are `doing` something."""

    def __init__(self, doing, folder):
        address = runs.free_address()
        self._folder = folder
        self.processes = [
            runs.FORKS.Process(target=member, args=(address, number, doing, folder), daemon=True)
            for number in range(COUNT)
        ]
        for process in self.processes:
            process.start()
        deadline = time.monotonic() + 120
        while not all((folder / f"{number}.ready").exists() for number in range(COUNT)):
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.02)

    def outputs(self):
        return [(self._folder / f"{number}.txt").read_text() for number in range(COUNT)]

    def ended(self, within=30.0):
        """Statuses, how long it took, and outputs."""
        began = time.monotonic()
        for process in self.processes:
            process.join(max(0.0, began + within - time.monotonic()))
        return [process.exitcode for process in self.processes], time.monotonic() - began, self.outputs()


@pytest.fixture
def start(tmp_path):
    """Starts runs, and ends them."""
    started = []

    def one(doing):
        started.append(Run(doing, tmp_path))
        return started[-1]

    yield one
    for run in started:
        for process in run.processes:
            process.kill()


@pytest.mark.parametrize(("number", "doing"), [(signal.SIGTERM, "trains"), (signal.SIGHUP, "compiles")])
def test_processes_that_train_leave_at_one_and_the_same_call_when_one_is_asked(number, doing, start):
    run = start(doing)
    time.sleep(1)
    os.kill(run.processes[2].pid, number)
    statuses, _, outputs = run.ended()
    assert statuses == [75] * COUNT, outputs
    calls = {line for output in outputs for line in output.splitlines() if line.startswith("left at call")}
    assert len(calls) == 1


def test_processes_with_nothing_to_save_leave_when_one_is_asked_wherever_they_are(start):
    run = start("waits")
    os.kill(run.processes[1].pid, signal.SIGTERM)
    statuses, _, outputs = run.ended()
    assert statuses == [75] * COUNT, outputs
    assert all("process 1 was asked to stop, and so are all. The same command goes on\n" in each for each in outputs)


def test_an_error_of_one_process_ends_the_others_with_its_words_and_status(start):
    statuses, _, outputs = start("fails").ended()
    assert statuses == [3] * COUNT, outputs
    assert [each.count("process 1 has ended: error: the disk is full") for each in outputs] == [1, 0, 1]


@pytest.mark.parametrize("victim", [0, 2])
def test_when_a_process_is_killed_the_others_end_as_what_is_started_again(victim, start):
    run = start("waits")
    os.kill(run.processes[victim].pid, signal.SIGKILL)
    statuses, _, outputs = run.ended(60.0)
    assert all(status in (75, -signal.SIGABRT) for i, status in enumerate(statuses) if i != victim), outputs


def test_signals_that_are_ignored_stay_so():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signal.SIGHUP not in stopping.signals_to_answer()
        with stopping.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_during_the_last_step_is_heeded_when_training_ends(number):
    with pytest.raises(SystemExit) as left, stopping.StopRequest():
        os.kill(os.getpid(), number)
    assert left.value.code == 75
