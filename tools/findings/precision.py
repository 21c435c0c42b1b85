"""Bfloat16 against float32: the loss of the same flow, step by step, and how far seeds are apart."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rae_jax.files import whole_file
from tools.findings.runs import ROOT, Run, from_digits, run

CONFIG = "configs/digits.py"
STEPS, WINDOW, SEEDS = 500, 25, (0, 1, 2)
PLOT = ROOT / "docs" / "precision.png"


def reproduce(workdir: Path, digits: Path) -> str:
    """Runs 500 steps of the flow for three seeds in both precisions, about ten minutes, and returns the section."""
    given = from_digits(digits, "encoder", "decoder", "stats")
    runs = {
        dtype: [_run(workdir / f"{dtype}_{seed}", given, seed, dtype) for seed in SEEDS]
        for dtype in ("float32", "bfloat16")
    }
    losses = {dtype: np.stack([_losses(this) for this in same]) for dtype, same in runs.items()}
    smooth = {dtype: _smooth(loss) for dtype, loss in losses.items()}
    between = np.abs(smooth["bfloat16"] - smooth["float32"])  # of one seed: the same batches and noise
    spread = smooth["float32"].max(axis=0) - smooth["float32"].min(axis=0)
    _draw(smooth)
    rows = [
        f"| {seed} | {smooth['float32'][i, -1]:.4f} | {smooth['bfloat16'][i, -1]:.4f} | {between[i].max():.4f} |"
        for i, seed in enumerate(SEEDS)
    ]
    finite = all(np.isfinite(loss).all() for loss in losses.values())
    return "\n".join(
        [
            "## Bfloat16 and float32",
            "",
            f"`python -m tools.reproduce precision`. The flow of `{CONFIG}` for {STEPS} steps, encoder included, with "
            "`config.dtype` float32 and bfloat16: the dtype of matrix products, everything else is float32 in both. "
            f"Losses are means of {WINDOW} steps.",
            "",
            "| seed | last loss, float32 | bfloat16 | largest difference at any step |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Three seeds in float32 lie {spread.mean():.4f} apart on average over the steps and {spread[-1]:.4f} at "
            f"the last; one seed's two precisions {between.mean():.4f} and {between[:, -1].mean():.4f}. "
            f"{'Every' if finite else 'Not every'} loss of every step is finite.",
            "",
            "![Loss against step, both precisions](precision.png)",
        ]
    )


def _run(workdir: Path, given: dict[str, str], seed: int, dtype: str) -> Run:
    fields: dict[str, Any] = given | {
        "stages": "('flow',)", "seed": seed, "dtype": dtype, "sampling.num_steps": 0, "sampling.flow_map_times": "()",
        "flow.train.steps": STEPS, "flow.train.optimizer.decay_end_step": STEPS, "flow.train.log_every": 1,
    }  # fmt: skip
    fields |= {f"evaluation.{name}": False for name in ("judge", "linear_probe", "reconstruction", "frechet")}
    return run(workdir, CONFIG, fields)


def _losses(this: Run) -> np.ndarray:
    return np.array([value for _, value in sorted(this.metric("flow", "loss").items())])


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Means of `WINDOW` steps in a row: `[N, T] -> [N, T - WINDOW + 1]`."""
    return np.lib.stride_tricks.sliding_window_view(losses, WINDOW, axis=1).mean(axis=2)


def _draw(smooth: dict[str, np.ndarray]) -> None:
    figure = Figure(figsize=(6, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps = np.arange(WINDOW, STEPS + 1)
    for i, seed in enumerate(SEEDS):
        for dtype, style in (("float32", "-"), ("bfloat16", ":")):
            axes.plot(steps, smooth[dtype][i], style, color=f"C{i}", label=f"seed {seed}, {dtype}", linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(PLOT) as file:
        figure.savefig(file, format="png")
