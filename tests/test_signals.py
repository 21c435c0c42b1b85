"""Signals to a run whose data is read by processes of their own, with batches of the size of a real run's."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import runs

# 12.6 MB a batch: 4,096 images of 32 x 32 pixels.
OPTIONS = (
    "--config.stages=('encoder',)",
    "--config.data.num_workers=8",
    "--config.encoder.train.steps=1000000",
    "--config.encoder.train.batch_size=4096",
    "--config.encoder.train.log_every=1",
)
SECONDS = 20.0  # that a scheduler surely grants


class Run:
    """A run in a process group of its own, as a terminal or a scheduler starts it."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.process = subprocess.Popen(
            runs.command(workdir, *OPTIONS), cwd=runs.ROOT, env=runs.environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def step(self) -> int:
        """The last step in the records."""
        exists = (self.workdir / "metrics.jsonl").exists()
        return max(runs.metrics(self.workdir, "encoder"), default=0) if exists else 0

    def wait_for_step(self, step: int) -> None:
        """Waits until the run has made `step`."""
        deadline = time.monotonic() + 300
        while self.step() < step:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """The processes that read for it."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == self.process.pid and "rae_jax.data.workers" in command:
                found.append(pid)
        return found


@pytest.fixture
def run(tmp_path):
    """A run that has made two steps."""
    started = Run(tmp_path / "run")
    try:
        started.wait_for_step(2)
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_and_ends_with_status_75_in_20_seconds_without_a_traceback(number, run):
    workers, before = run.workers(), runs.shared_memory()
    assert len(workers) == 8
    os.killpg(run.process.pid, number)
    output, _ = run.process.communicate(timeout=SECONDS)
    assert run.process.returncode == 75, output
    assert output.count("asked to stop; saving step") == 1
    assert "Traceback" not in output and "leaked" not in output and "warn" not in output.lower(), output
    saved = max(int(path.name) for path in (run.workdir / "encoder" / "checkpoints").iterdir() if path.name.isdigit())
    assert f"saving step {saved}." in output and saved == run.step()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert runs.shared_memory() <= before


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_still_stops_when_asked(run):
    victim = run.workers()[3]
    os.kill(victim, signal.SIGKILL)
    run.wait_for_step(run.step() + 4)
    deadline = time.monotonic() + SECONDS
    while len(run.workers()) != 8 or victim in run.workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.process.terminate()
    output, _ = run.process.communicate(timeout=SECONDS)
    assert run.process.returncode == 75, output
    assert output.count("ended unexpectedly (by signal 9); another takes its place") == 1 and "Traceback" not in output
