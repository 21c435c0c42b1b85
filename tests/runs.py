"""Starts `python -m rae_jax.main` as a user would, in processes of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_FLOW_MAP = "--config.stages=('encoder', 'decoder', 'stats', 'flow')"  # for tests that need no more of them


def command(workdir: Path, *options: str, config: str = "configs/digits.py:tiny") -> list[str]:
    return [sys.executable, "-m", "rae_jax.main", f"--config={config}", f"--workdir={workdir}", *options]


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "COLUMNS": "200"}


def start(workdir: Path, *options: str, devices: int = 1, **keywords: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, *options, **keywords), cwd=ROOT, env=environment(devices), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_address() -> str:
    """A host and port at which the processes of a run can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run(workdir: Path, *options: str, devices: int = 1, **keywords: str) -> tuple[int, str]:
    """Exit status and everything printed."""
    process = start(workdir, *options, devices=devices, **keywords)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def metrics(workdir: Path, stage: str, name: str = "loss") -> dict[int, float]:
    """The recorded values of one metric by step."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return {r["step"]: r[name] for r in records if r["stage"] == stage and name in r}
