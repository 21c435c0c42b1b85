"""Runs of `rae_jax.main` that findings are made of: each in a process and a working directory of its own."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rae_jax.files import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = "stopped.txt"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left: `results` of `summary.json` (empty if it stopped), and why it stopped (empty if it did not)."""

    workdir: Path
    results: dict[str, float]
    stopped: str

    def metric(self, stage: str, name: str) -> dict[int, float]:
        """The recorded values of a stage's metric, by step."""
        records = read_json_lines(self.workdir / "metrics.jsonl")
        return {r["step"]: r[name] for _, r in records if r["stage"] == stage and name in r}


def run(workdir: Path, config: str, options: dict[str, Any]) -> Run:
    """Runs `config` with the config fields `options` changed, unless `workdir` holds what the same run has left.

    A run that diverges is a result too: it is kept, with its message.

    Raises:
      ValueError: the run failed for another reason; the message has its last line.
    """
    flags = [f"--config={config}", *(f"--config.{name}={value}" for name, value in options.items())]
    summary, stopped = workdir / "summary.json", workdir / MESSAGE
    if not summary.exists() and not stopped.exists():
        command = [sys.executable, "-m", "rae_jax.main", f"--workdir={workdir.resolve()}", *flags]
        print(f"{workdir}: {' '.join(flags)}", flush=True)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = done.stdout.strip().splitlines()[-1]
            if " reached " not in last and "became non-finite" not in last:
                raise ValueError(f"{workdir}: {last}")
            stopped.write_text(last)
    results = json.loads(summary.read_text())["results"] if summary.exists() else {}
    return Run(workdir, results, stopped.read_text() if stopped.exists() else "")


def lasting(stage: str, steps: int) -> dict[str, Any]:
    """Config fields that fit the schedule of a stage of the digits' configs to so many steps."""
    train = f"{stage}.train"
    return {
        f"{train}.steps": steps,
        f"{train}.optimizer.decay_end_step": steps,
        f"{train}.optimizer.warmup_steps": steps // 20,
    }


def unmeasured(config: ConfigDict) -> dict[str, bool]:
    """Config fields that leave out every number at the end of a run."""
    return {f"evaluation.{name}": False for name in config.evaluation}


def from_digits(digits: Path, *components: str) -> dict[str, str]:
    """Config fields that take `components` from the finished working directory `digits`.

    Raises:
      ValueError: a component has not been trained there.
    """
    for name in components:
        if not (digits / name / "weights").is_dir():
            raise ValueError(
                f"{digits} has no trained {name!r}: run `python -m rae_jax.main --config=configs/digits.py "
                f"--workdir={digits}` first, or give another directory with --digits"
            )
    return left_in(digits, *components)


def left_in(workdir: Path, *components: str) -> dict[str, str]:
    """Config fields that take `components` from the working directory whose stages of their names have trained them."""
    return {f"{name}.weights": str((workdir / name / "weights").resolve()) for name in components}
