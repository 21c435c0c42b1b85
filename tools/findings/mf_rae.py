"""MF-RAE on digits: how a flow map should start, which velocity to learn from, and how to take the time derivative."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs import digits as digits_config
from rae_jax.files import whole_file
from tools.findings.derivative_errors import PRECISIONS, Errors, derivative_errors
from tools.findings.mf_rae_cells import CONFIG, DEFAULT_DT, DTS, Cells, all_runs
from tools.findings.mf_rae_section import METRICS_SHOWN, STARTS, result, section
from tools.findings.runs import ROOT

PLOTTED = np.array(sorted({float(f"{dt:.3g}") for dt in (*np.geomspace(1e-5, 1e-1, 17), *DTS)}))
INK, FADED = ("#2a6f97", "#c1666b", "#4f772d"), "#9a9a9a"


def reproduce(workdir: Path, digits: Path) -> str:
    """The section, from 57 runs below `workdir` that start from the finished run `digits`, 45 minutes on one core."""
    of_teacher = teacher(digits)
    errors = derivative_errors(digits_config.get_config(), digits, PLOTTED)
    cells = all_runs(workdir, digits)
    _draw_derivative_errors(errors, ROOT / "docs" / "finite_difference.png")
    _draw_gradient_norms({name: cells[cell] for name, cell in STARTS.items()}, ROOT / "docs" / "mf_rae_gradients.png")
    return section(cells, of_teacher, errors)


def teacher(digits: Path) -> dict[str, Any]:
    """What `summary.json` of the finished run says: the `results` of the samples, and how they were `sampled`.

    Raises:
      ValueError: it is not finished, or was before there were these results.
    """
    path = digits / "summary.json"
    if not path.exists():
        raise ValueError(f"{digits} is not finished: run `python -m rae_jax.main --config={CONFIG} --workdir={digits}`")
    summary = json.loads(path.read_text())
    missing = [name for name in map(result, METRICS_SHOWN) if name not in summary["results"]]
    if missing:
        raise ValueError(f"{path} has no {' or '.join(missing)}: make the run anew, in another directory")
    return {"results": summary["results"], "sampled": summary["samples"]["samples"]["sampling"]}


def _draw_gradient_norms(starts: Cells, path: Path) -> None:
    figure, axes = _axes("step", "gradient norm, before clipping")
    for (name, runs), color in zip(starts.items(), INK, strict=True):
        for i, r in enumerate(runs):
            norms = r.metric("flow_map", "gradient_norm")
            axes.plot(norms.keys(), norms.values(), color=color, linewidth=0.7, label=None if i else f"from {name}")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _draw_derivative_errors(errors: Errors, path: Path) -> None:
    figure, axes = _axes("dt", "relative error of du/dt")
    for precision, color in zip(PRECISIONS, INK, strict=True):
        axes.loglog(errors.dts, errors.difference[precision], color=color, marker=".", linewidth=1, label=precision)
        if errors.jvp[precision]:
            axes.axhline(errors.jvp[precision], color=color, linestyle="--", linewidth=0.8, label=f"jvp, {precision}")
    axes.axvline(DEFAULT_DT, color=FADED, linestyle=":", label=f"the default, {DEFAULT_DT}")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    with whole_file(path) as file:
        file.write(buffer.getbuffer())
