"""Runs the project's commands as a user would, in processes of their own.

Each is forked from a process that has imported what the commands import, which spares it the seconds that this takes;
from there on it is `python -m`: the module is `__main__`, with its arguments, environment, output and exit.
"""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_FLOW_MAP = "--config.stages=('encoder', 'decoder', 'stats', 'flow')"  # for tests that need no more of them

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["rae_jax.experiment.stages", "rae_jax.costs.dry_run", "rae_jax.evaluation.report", "sklearn.datasets"]
)


def command(workdir: Path, *options: str, config: str = "configs/digits.py:tiny") -> list[str]:
    return [sys.executable, "-m", "rae_jax.main", f"--config={config}", f"--workdir={workdir}", *options]


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "COLUMNS": "200"}


class Process:
    """`python -m module arguments` on `devices` CPU devices: what tests need of `subprocess.Popen`."""

    def __init__(self, module: str, *arguments: str, devices: int = 1):
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name) / "output.txt"
        self._process = FORKS.Process(
            target=_as_main, args=(module, arguments, environment(devices), str(self._output)), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 1800) -> tuple[str, None]:
        """Waits for the end; everything printed, errors included."""
        self._process.join(timeout)
        output = self._output.read_text()
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"{self._process.name} has not ended after {timeout} s:\n{output}")
        return output, None


def _as_main(module: str, arguments: tuple[str, ...], variables: dict[str, str], output: str) -> None:
    """What a forked process does."""
    import jax

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    jax.config.update("jax_platforms", variables["JAX_PLATFORMS"])  # read when jax was imported
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing's processes end without them


def shared_memory() -> set[str]:
    """What lies in /dev/shm, but for the semaphores of joblib, which tests that run beside this one make."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky")}


def start(workdir: Path, *options: str, devices: int = 1, config: str = "configs/digits.py:tiny") -> Process:
    return Process("rae_jax.main", *command(workdir, *options, config=config)[3:], devices=devices)


def free_address() -> str:
    """A host and port at which the processes of a run can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run(workdir: Path, *options: str, devices: int = 1, **keywords: str) -> tuple[int, str]:
    """Exit status and everything printed."""
    process = start(workdir, *options, devices=devices, **keywords)
    output, _ = process.communicate()
    return process.returncode, output


def run_module(module: str, *arguments: str, devices: int = 1) -> tuple[int, str]:
    """Exit status and everything printed by `python -m module arguments`."""
    process = Process(module, *arguments, devices=devices)
    output, _ = process.communicate()
    return process.returncode, output


def metrics(workdir: Path, stage: str, name: str = "loss") -> dict[int, float]:
    """The recorded values of one metric by step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return {r["step"]: r[name] for r in records if r["stage"] == stage and name in r}
