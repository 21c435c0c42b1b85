"""What a run shows and records: the live display, `metrics.jsonl`, the TensorBoard files of a working directory, and
Weights & Biases when asked.
"""

import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from tensorboardX import SummaryWriter

from rae_jax.files import read_json_lines, whole_file, write_json_lines

REPORT_SECONDS = 20  # between two reports, at least


def open_wandb(project: str, workdir: Path, config: dict[str, Any]) -> Any:
    """The run of Weights & Biases that belongs to `workdir`: a new one, or the same again after an interruption.

    Raises:
      ValueError: the package is not installed, or it refuses the run (it names the reason).
    """
    try:
        import wandb  # optional, and slow to import: only when asked
    except ImportError:
        raise ValueError("--wandb needs Weights & Biases: pip install wandb") from None
    file = workdir / "wandb_run.txt"
    identity = file.read_text().strip() if file.exists() else secrets.token_hex(4)
    try:
        run = wandb.init(
            project=project, name=workdir.name, id=identity, resume="allow", dir=str(workdir), config=config
        )
    except wandb.errors.Error as error:
        raise ValueError(f"--wandb={project}: {error}") from error
    with whole_file(file) as stream:
        stream.write(f"{identity}\n".encode())
    for stage in config["stages"]:  # each stage counts its steps from 0
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run


class RunLog:
    """Writes for one working directory; on every process but the first of several it does nothing.

    `report` is called as metrics come, so rarely that it takes no more than a hundredth of the time, and at the end.
    `wandb` is a run of Weights & Biases that gets the same scalars and pictures.
    """

    def __init__(self, workdir: Path, *, active: bool, report: Callable[[], Any] = lambda: None, wandb: Any = None):
        self._active = active
        self._report, self._report_due = report, 0.0
        self._path = workdir / "metrics.jsonl"
        self._console = Console(quiet=not active, soft_wrap=True)
        self._board = SummaryWriter(str(workdir / "tensorboard"), flush_secs=10) if active else None
        self._wandb = wandb
        self._started = time.monotonic()
        self._picture = ""

    def say(self, text: str) -> None:
        """One line for the person watching."""
        self._print(text)

    def warn(self, text: str) -> None:
        """One line that should not be overlooked."""
        self._print(("warning:", "yellow"), f" {text}")

    def _print(self, *parts: str | tuple[str, str]) -> None:
        # Not as markup: a path may have brackets.
        self._console.print(Text.assemble((self._clock(), "dim"), " ", *parts))

    def metrics(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Appends scalars to `metrics.jsonl` and TensorBoard."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})
        if (began := time.monotonic()) >= self._report_due:
            self._report()
            ended = time.monotonic()
            self._report_due = ended + max(REPORT_SECONDS, 100 * (ended - began))

    def image(self, stage: str, path: Path, picture: np.ndarray, step: int) -> None:
        """Takes note of a picture `[H, W, 3]` of bytes that lies at `path`."""
        if not self._active:
            return
        self._picture = str(path)
        self._board.add_image(f"{stage}/pictures", picture, step, dataformats="HWC")
        if self._wandb:
            import wandb

            self._wandb.log({f"{stage}/pictures": wandb.Image(picture), f"{stage}/step": step})
        self.say(f"{stage}: picture {path}")

    def rewind(self, stage: str, step: int) -> None:
        """Removes metrics of updates after `step`, which a resumed stage is about to make again."""
        if not self._active or not self._path.exists():
            return
        records = (record for _, record in read_json_lines(self._path, cut_short=True))
        kept = [record for record in records if record["stage"] != stage or record["step"] <= step]
        write_json_lines(self._path, kept)

    def has(self, stage: str, step: int, group: str) -> bool:
        """Whether a metric whose name begins with `group` is recorded of this step; False where nothing is recorded."""
        if not self._active or not self._path.exists():
            return False
        records = (record for _, record in read_json_lines(self._path, cut_short=True))
        return any(
            record["stage"] == stage and record["step"] == step and any(name.startswith(group) for name in record)
            for record in records
        )

    def progress(self, stage: str, total: int, done: int) -> "StepDisplay":
        """The live display of one stage, as a context manager."""
        return StepDisplay(self._console, stage, total, done, lambda: self._picture)

    def close(self) -> None:
        """Flushes the TensorBoard files, and reports a last time."""
        if self._active:
            self._board.close()
            if self._wandb:
                self._wandb.finish()
            self._report()

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"


class StepDisplay:
    """Step, loss, learning rate, images a second, time left and the last picture: a live bar on a terminal, a line per
    report elsewhere.
    """

    def __init__(self, console: Console, stage: str, total: int, done: int, picture: Callable[[], str]):
        self._console, self._stage, self._total = console, stage, total
        self._reported, self._picture = False, picture
        self._live = console.is_terminal and not console.quiet
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[report]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[picture]}", style="dim", markup=False),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(stage, total=total, completed=done, report="compiling", picture=picture())

    def __enter__(self) -> "StepDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """The run has made `step` updates."""
        waiting = {} if self._reported else {"report": ""}  # the first step is made, so compiling is over
        self._progress.update(self._task, completed=step, picture=self._picture(), **waiting)

    def report(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a logging step."""
        loss = f"loss {values['loss']:.4f}  " if "loss" in values else ""
        rate = f"rate {values['learning_rate']:.2g}  " if "learning_rate" in values else ""
        text = f"{loss}{rate}{values['images_per_second']:.0f} images/s"
        if "model_flops_utilisation" in values:
            text += f"  MFU {values['model_flops_utilisation']:.0%}"
        if values["data_wait_share"] >= 0.05:
            text += f"  {values['data_wait_share']:.0%} waiting for data"
        self._reported = True
        self._progress.update(self._task, completed=step, report=text)
        if not self._live:
            left = values["seconds_left"]
            self._console.print(
                f"{self._stage} step {step}/{self._total}  {text}  {left / 60:.1f} min left", highlight=False
            )
            sys.stdout.flush()
