"""MF-RAE on digits: how a flow map should start, which velocity to learn from, and how to take the time derivative."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import digits as digits_config
from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.generators import time_shift
from rae_jax.components.latent_spaces import latent_space
from rae_jax.evaluation.metrics import METRICS, named
from rae_jax.files import whole_file
from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.objectives.meanflow import exact_derivative, finite_difference
from tools.findings.runs import ROOT, Run, from_digits, run

CONFIG = "configs/digits.py"
SEEDS = (0,)  # more of them show how much chance there is in a cell, at as many times the cost
DISTILLATION_STEPS, MID_TRAINING_STEPS, BATCH_SIZE = 200, 60, 32
DTS = (1e-4, 1e-3, 5e-3, 1e-2)
DEFAULT_DT = 0.005
FITTED = (3e-3, 3e-2)  # where the error of the difference is the truncation, not the rounding
INK, FADED = ("#2a6f97", "#c1666b", "#4f772d"), "#9a9a9a"


def reproduce(workdir: Path, digits: Path) -> str:
    """The section, from runs below `workdir` that start from the finished digits run `digits`."""
    mid_trained = run(workdir / "mid_training", CONFIG, _evaluation() | {"stages": "()"} | _weights(digits))
    distilled = _cells(workdir / "distilled", digits, {})
    starts = {
        "mid-training": distilled,
        "the teacher's weights": _cells(workdir / "from_teacher", digits, {"flow_map.initial": "flow"}),
        "random": _cells(workdir / "from_random", digits, {"flow_map.initial": ""}),
    }
    derivatives = {
        f"finite difference, dt = {dt:g}": distilled
        if dt == DEFAULT_DT
        else _cells(workdir / f"dt_{dt:g}", digits, {"flow_map.dt": dt})
        for dt in DTS
    }
    derivatives["exact (`jax.jvp`)"] = _cells(workdir / "jvp", digits, {"flow_map.derivative": "jvp"})
    velocities = {
        "1 (MFD)": distilled,
        "0.5": _cells(workdir / "eta_0.5", digits, {"flow_map.eta": 0.5}),
        "0 (MFT)": _cells(workdir / "eta_0", digits, {"flow_map.eta": 0.0}),
    }
    labels = {
        "true": _cells(workdir / "labels_true", digits, {}, stage="mid_training"),
        "evenly spaced (released)": _cells(
            workdir / "labels_released", digits, {"mid_training.time_labels": "released"}, stage="mid_training"
        ),
    }
    slope = _draw_derivative_errors(digits, ROOT / "docs" / "finite_difference.png")
    _draw_gradient_norms(starts, ROOT / "docs" / "mf_rae_gradients.png")
    return f"""## MF-RAE: flow maps of digits

`python -m tools.reproduce mf_rae` makes this section from a finished run of `{CONFIG}` (`--digits`). Unless a row says
otherwise, a cell is that config's `flow_map` stage from its mid-trained weights, cut to {DISTILLATION_STEPS} steps of
{BATCH_SIZE}, run with the {"seeds" if len(SEEDS) > 1 else "seed"} {", ".join(map(str, SEEDS))} (of several seeds, the
mean and each in brackets). Of 1,000 digits, chance alone moves an agreement of 97 % by 0.5 % (standard deviation).
Agreement is the judge's, of 1,000 digits; the Fréchet distance is to held-out digits, in the encoder's mean
tokens. After mid-training alone: {_quality([mid_trained], "_1step")[0]} agreement in one step and
{_quality([mid_trained], "_2step")[0]} in two, Fréchet distances {_quality([mid_trained], "_1step")[1]} and
{_quality([mid_trained], "_2step")[1]}.

### The time derivative

{_table("derivative", derivatives)}

![Error of the finite difference against dt](finite_difference.png)

Error of du/dt by central differences against `jax.jvp`, relative, over 256 points between noise and Gaussian latents,
with the distilled flow map of the digits in float32. Between dt = {FITTED[0]:g} and {FITTED[1]:g} it falls with the
power {slope:.2f} of dt (a central difference gives 2); below, rounding grows as 1 / dt.

### The start of distillation

{_table("start", starts, norms=True)}

![Gradient norms of distillation from three starts](mf_rae_gradients.png)

### The velocity to learn from

{_table("eta", velocities)}

### The times of mid-training's points

Mid-training alone, {MID_TRAINING_STEPS} steps, sampled as a flow map; the digits' time shift is 2.

{_table("labels", labels)}
"""


def _weights(digits: Path) -> dict[str, str]:
    return from_digits(digits, "encoder", "decoder", "stats", "flow", "mid_training")


def _evaluation() -> dict[str, Any]:
    """Few-step samples only, and only what the tables show of them."""
    return {"sampling.num_steps": 0, "evaluation.linear_probe": False, "evaluation.reconstruction": False}


def _cells(workdir: Path, digits: Path, options: dict[str, Any], stage: str = "flow_map") -> list[Run]:
    steps = DISTILLATION_STEPS if stage == "flow_map" else MID_TRAINING_STEPS
    weights = _weights(digits)
    if stage == "mid_training":
        del weights["mid_training.weights"]
    schedule = {
        "steps": steps, "log_every": 5,
        "optimizer.decay_end_step": steps, "optimizer.warmup_steps": steps // 20,
    }  # fmt: skip
    if stage == "flow_map":
        # Divergence is what some cells are there to show: only numbers that are no numbers stop them.
        schedule |= {"batch_size": BATCH_SIZE, "max_gradient_norm": 0.0}
    fields = _evaluation() | weights | {"stages": f"('{stage}',)"}
    fields |= {f"{stage}.train.{name}": value for name, value in schedule.items()} | options
    return [run(workdir / f"seed_{seed}", CONFIG, fields | {"seed": seed}) for seed in SEEDS]


def _spread(values: Sequence[float], form: str) -> str:
    each = ", ".join(form.format(value) for value in values)
    return each if len(values) == 1 else f"{form.format(np.mean(values))} ({each})"


def _quality(runs: Sequence[Run], end: str) -> tuple[str, str]:
    """Label agreement and Fréchet distance of the samples whose name ends in `end`."""
    if any(r.stopped for r in runs):
        return "diverged", "diverged"
    distance = named(METRICS["fd_encoder"], digits_config.get_config().sampling.num_samples, end)
    return (
        _spread([100 * r.results[f"label_agreement{end}"] for r in runs], "{:.1f} %"),
        _spread([r.results[distance] for r in runs], "{:.3f}"),
    )


def _table(title: str, rows: dict[str, list[Run]], *, norms: bool = False) -> str:
    columns = [title, "1 step: agreement", "Fréchet", "2 steps: agreement", "Fréchet"]
    columns += ["gradient norm: first, median, highest"] if norms else []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, runs in rows.items():
        cells = [name, *_quality(runs, "_1step"), *_quality(runs, "_2step")]
        if norms:
            seen = [list(r.metric("flow_map", "gradient_norm").values()) for r in runs]
            cells.append("; ".join(f"{s[0]:.3g}, {np.median(s):.3g}, {max(s):.3g}" for s in seen))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw_gradient_norms(starts: dict[str, list[Run]], path: Path) -> None:
    figure, axes = _axes("step", "gradient norm, before clipping")
    for (name, runs), color in zip(starts.items(), INK, strict=True):
        for i, r in enumerate(runs):
            norms = r.metric("flow_map", "gradient_norm")
            axes.plot(norms.keys(), norms.values(), color=color, linewidth=1, label=None if i else f"from {name}")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _draw_derivative_errors(digits: Path, path: Path) -> float:
    """Draws the error of the finite difference against dt, and returns its slope where truncation rules."""
    dts = np.geomspace(1e-5, 1e-1, 17)
    errors = derivative_errors(digits_config.get_config(), digits, dts)
    inside = (dts >= FITTED[0]) & (dts <= FITTED[1])
    slope, offset = np.polyfit(np.log(dts[inside]), np.log(errors[inside]), 1)
    figure, axes = _axes("dt", "relative error of du/dt")
    axes.loglog(dts, errors, color=INK[0], marker=".", linewidth=1)
    axes.loglog(dts[inside], np.exp(offset) * dts[inside] ** slope, color=INK[1], label=f"slope {slope:.2f}")
    axes.axvline(DEFAULT_DT, color=FADED, linestyle=":", label=f"the default, {DEFAULT_DT}")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
    return float(slope)


def derivative_errors(config: ConfigDict, digits: Path, dts: np.ndarray) -> np.ndarray:
    """Relative error of du/dt at each dt, over 256 points between noise and Gaussian latents."""
    network = flow_map_network(config)
    params = network.load(from_digits(digits, "flow_map")["flow_map.weights"])
    data_key, noise_key, time_key = jax.random.split(jax.random.key(0), 3)
    z, eps = (jax.random.normal(key, (256, *latent_space(config).shape)) for key in (data_key, noise_key))
    r, t = jnp.sort(shift_times(jax.random.uniform(time_key, (2, 256)), time_shift(config)), axis=0)
    arguments = (interpolate(z, eps, t), velocity_target(z, eps), r, t, jnp.arange(256) % config.flow.num_classes)

    def flow_map(params: Any, z: jax.Array, r: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return network.apply(params, z, t, labels, r)

    _, exact = jax.jit(lambda params: exact_derivative(flow_map, params, *arguments))(params)
    difference = jax.jit(lambda params, dt: finite_difference(flow_map, params, *arguments, dt)[1])
    return np.array([float(jnp.linalg.norm(difference(params, dt) - exact) / jnp.linalg.norm(exact)) for dt in dts])


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
