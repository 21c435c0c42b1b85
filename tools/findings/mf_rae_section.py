"""The section about MF-RAE: tables of its runs, and readings that follow from them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from configs import base
from configs import digits as digits_config
from rae_jax.evaluation.metrics import METRICS, named
from tools.findings.derivative_errors import BFLOAT16, FLOAT32, POINTS, PRECISIONS, ROUNDED, TF32, TRUNCATED, Errors
from tools.findings.mf_rae_cells import (
    CELLS,
    CONFIG,
    DEFAULT_DT,
    DISTILLATION_STEPS,
    DTS,
    MID_TRAINING_STEPS,
    RATE,
    SEEDS,
    Cells,
)  # fmt: skip
from tools.findings.runs import Run
from tools.findings.seeds import shown, verdict

LARGE_NORM = 1e3  # of gradients; the paper has 1e5 without mid-training
# Of samples: what the number is multiplied by, and how it is written.
METRICS_SHOWN = {"label_agreement": (100, ".1f", " %"), "fd_encoder": (1, ".3f", ""), "class_diversity": (1, ".2f", "")}
# Rows of the tables.
FLOAT32_ROWS = {f"float32, dt = {dt:g}": "distilled" if dt == DEFAULT_DT else f"dt_{dt:g}" for dt in DTS}
FLOAT32_ROWS |= {"float32, `jax.jvp`": "jvp"}
BFLOAT16_ROWS = {
    row.replace("float32", "bfloat16"): "bfloat16" if cell == "distilled" else f"bfloat16_{cell}"
    for row, cell in FLOAT32_ROWS.items()
}
STARTS = {"mid-training": "distilled", "the teacher's weights": "from_teacher", "random weights": "from_random"}
VELOCITIES = {
    "1 (MFD), {own}": "distilled", "0.5, {own}": "eta_0.5", "0 (MFT), {own}": "eta_0",
    "1 (MFD), 0.25": "share_0.25", "0 (MFT), 0.25": "share_0.25_eta_0",
}  # fmt: skip
LABELS = {"true": "labels_true", "evenly spaced (released)": "labels_released"}


def section(cells: Cells, teacher: dict[str, Any], errors: Errors) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""
    own = f"{digits_config.get_config().flow_map.unequal_share:g}"
    velocities = {row.format(own=own): cell for row, cell in VELOCITIES.items()}
    return f"""## MF-RAE: flow maps of digits

`python -m tools.reproduce mf_rae` makes this section from a finished run of `{CONFIG}` (`--digits`). Unless a row says
otherwise, a cell is that config's `flow_map` stage from its mid-trained weights, cut to {DISTILLATION_STEPS} steps
at a rate of {RATE:g}, in
float32; mean and deviation of the seeds {", ".join(map(str, SEEDS))}, which differ in batches and in samples, not in
the teacher. Agreement is the judge's, of {_count():,} digits; the Fréchet distance is to held-out digits, in the
encoder's mean tokens; diversity is the deviation of a pixel (from 0 to 16) within a class, and shows what a high
agreement can hide. Two cells are called different if more than two standard errors of their difference apart, which
chance alone gives in one comparison of nine.

### What is distilled

{_origins(cells, teacher)}

### The error of the time derivative

{_error_table(errors)}

![Error of the time derivative against dt](finite_difference.png)

Error of du/dt relative to `jax.jvp` in float32, the median over {POINTS} points of the distillation of digits, with the
distilled flow map of the finished run. TF32 is emulated: the factors of every matrix product have 10 mantissa bits, and
sums are float32. In bfloat16 they have 7, but for the embeddings of times and the last layer, which stay float32, as
may the results of products where the compiler leaves them so.

{_error_readings(errors)}

### The time derivative in distillation

In bfloat16 the products of flow map and teacher are meant; encoder, decoder and metrics stay float32.

{_table("derivative", FLOAT32_ROWS | BFLOAT16_ROWS, cells)}

{_derivative_readings(cells)}

### The start of distillation

{_table("start", STARTS, cells, norms=True)}

Gradient norms are of every step, before clipping; a first, a median and a highest one are means over the seeds.

![Gradient norms of distillation from three starts](mf_rae_gradients.png)

{_start_readings(cells)}

### The velocity to learn from

The second number is the share of a batch that has r < t: {own} in this config, as in all other tables,
{base.get_config().flow_map.unequal_share:g} in the paper and by default.

{_table("eta, share", velocities, cells)}

{_velocity_readings(cells, own)}
{_of_highest_agreement(cells, velocities)}

### The times of mid-training's points

Mid-training alone, {MID_TRAINING_STEPS} steps, sampled as a flow map. The digits have no time shift, without which both
are the same; here mid-training has one of 2.

{_table("labels", LABELS, cells)}

- Evenly spaced labels, beside true ones, one step: {_beside(cells, "labels_released", "labels_true")}.
- In two steps: {_beside(cells, "labels_released", "labels_true", "_2step")}.
"""


def _count() -> int:
    return digits_config.get_config().sampling.num_samples


def result(metric: str, end: str = "") -> str:
    """What a run calls the metric of its samples with that end."""
    return named(METRICS[metric], _count(), end)


def _values(runs: Sequence[Run], metric: str, end: str) -> np.ndarray:
    """A result of each run; NaN of one that diverged."""
    return np.array([np.nan if r.stopped else r.results[result(metric, end)] for r in runs])


def _formatted(metric: str, values: Sequence[float] | np.ndarray) -> str:
    scale, form, unit = METRICS_SHOWN[metric]
    return shown(scale * np.asarray(values), form, unit)


def _quality(runs: Sequence[Run], end: str) -> list[str]:
    return [_formatted(metric, _values(runs, metric, end)) for metric in METRICS_SHOWN]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _origins(cells: Cells, teacher: dict[str, Any]) -> str:
    """The teacher, and what mid-training and distillation make of it; the digits themselves for comparison."""
    results, sampled = teacher["results"], teacher["sampled"]
    own = [_formatted(metric, [results[result(metric)]]) for metric in METRICS_SHOWN]
    rows = [["the teacher", f"{sampled['num_steps']} ({sampled['method']})", *own]]
    for name, cell in {"mid-training alone": "mid_training", "distillation": "distilled"}.items():
        rows += [[name, steps, *_quality(cells[cell], f"_{steps}step")] for steps in ("1", "2")]
    for key, value in results.items():
        if key.startswith("class_diversity_train"):
            rows.append(["digits that are trained on", "", "", "", _formatted("class_diversity", [value])])
    return _markdown(["samples of", "steps", "agreement", "Fréchet", "diversity"], rows)


def _table(title: str, rows: dict[str, str], cells: Cells, *, norms: bool = False) -> str:
    columns = [title, "1 step: agreement", "Fréchet", "diversity", "2 steps: agreement", "Fréchet", "diversity"]
    columns += ["gradient norm: first, median, highest", f"runs above {LARGE_NORM:g}"] if norms else []
    lines = []
    for name, cell in rows.items():
        line = [name, *_quality(cells[cell], "_1step"), *_quality(cells[cell], "_2step")]
        if norms:
            seen = _gradient_norms(cells[cell])
            line.append(", ".join(f"{value:.3g}" for value in seen.mean(axis=0)))
            line.append(f"{(seen[:, 2] > LARGE_NORM).sum()} of {len(seen)}")
        lines.append(line)
    return _markdown(columns, lines)


def _gradient_norms(runs: Sequence[Run]) -> np.ndarray:
    """First, median and highest gradient norm of each run, `[runs, 3]`."""
    seen = [list(r.metric("flow_map", "gradient_norm").values()) or [np.nan] for r in runs]
    return np.array([(norms[0], np.median(norms), max(norms)) for norms in seen])


def _error_table(errors: Errors) -> str:
    rows = [[f"dt = {dt:g}", *(f"{errors.at(precision, dt):.2g}" for precision in PRECISIONS)] for dt in DTS]
    jvp = ["the reference" if precision == FLOAT32 else f"{errors.jvp[precision]:.2g}" for precision in PRECISIONS]
    return _markdown(["derivative", *PRECISIONS], [*rows, ["`jax.jvp`", *jvp]])


def _error_readings(errors: Errors) -> str:
    lines = [
        f"- float32: between dt = {TRUNCATED[0]:g} and {TRUNCATED[1]:g} the error grows with the power "
        f"{errors.power(TRUNCATED):.2f} of dt (a central difference gives 2), between {ROUNDED[0]:g} and "
        f"{ROUNDED[1]:g} with the power {errors.power(ROUNDED):.2f} (rounding over 2 dt gives -1)."
    ]
    for precision in PRECISIONS:
        smallest, usual = errors.at(precision, DTS[0]), errors.at(precision, DEFAULT_DT)
        best = errors.dts[np.argmin(errors.difference[precision])]
        lines.append(
            f"- {precision}: {smallest:.2g} at dt = {DTS[0]:g}, {'more' if smallest > 1 else 'less'} than the "
            f"derivative itself, and {usual:.2g} at {DEFAULT_DT:g}; least at {best:.1g}, with "
            f"{errors.difference[precision].min():.2g}."
        )
    for precision in (TF32, BFLOAT16):
        jvp, least = errors.jvp[precision], errors.difference[precision].min()
        lines.append(
            f"- {precision}: `jax.jvp` is {'more' if jvp < least else 'no more'} exact than a difference at any dt "
            f"({jvp:.2g})."
        )
    return "\n".join(lines)


def _beside(cells: Cells, cell: str, other: str, end: str = "_1step") -> str:
    """Agreement and Fréchet distance of `cell` against those of `other`, and what may be said of the differences."""
    said = []
    kinds: dict[str, tuple[str, Literal["lower", "higher"]]] = {
        "fd_encoder": ("distance", "lower"), "label_agreement": ("agreement", "higher"),
    }  # fmt: skip
    for metric, (name, better) in kinds.items():
        values, others = (_values(cells[each], metric, end) for each in (cell, other))
        said.append(
            f"{name} {_formatted(metric, values)} against {_formatted(metric, others)}, "
            f"{verdict(values, others, better)}"
        )
    return "; ".join(said)


def _derivative_readings(cells: Cells) -> str:
    lines = [
        f"One step, beside dt = {DEFAULT_DT:g} in the same precision; the paper has FID 5.63 at 1e-4 against 2.03:",
        "",
    ]
    for rows, usual in ((FLOAT32_ROWS, "distilled"), (BFLOAT16_ROWS, "bfloat16")):
        lines += [f"- {row}: {_beside(cells, cell, usual)}." for row, cell in rows.items() if cell != usual]
    lines.append(
        f"- bfloat16 beside float32, both with dt = {DEFAULT_DT:g}: {_beside(cells, 'bfloat16', 'distilled')}."
    )
    return "\n".join(lines)


def _start_readings(cells: Cells) -> str:
    lines = []
    for row, cell in STARTS.items():
        if cell != "distilled":
            lines.append(f"- From {row}, beside mid-training, one step: {_beside(cells, cell, 'distilled')}.")
    norms, usual = (_gradient_norms(cells[cell])[:, 1] for cell in ("from_teacher", "distilled"))
    lines.append(
        f"- Median gradient norm from the teacher's weights: {shown(norms, '.3g')}, {norms.mean() / usual.mean():.2g} "
        f"times that from mid-training ({shown(usual, '.3g')}): {verdict(norms, usual, 'lower')}."
    )
    highest = np.nanmax([_gradient_norms(cells[cell])[:, 2] for cell in STARTS.values()])
    lines.append(f"- The highest norm of any of these runs is {highest:.3g}; the paper has 1e5 without mid-training.")
    return "\n".join(lines)


def _velocity_readings(cells: Cells, own: str) -> str:
    lines = ["The paper has MFD ahead, with FID 2.03 against 2.81:", ""]
    for share, mfd, mft in ((own, "distilled", "eta_0"), ("0.25", "share_0.25", "share_0.25_eta_0")):
        for end, steps in (("_1step", "one step"), ("_2step", "two steps")):
            lines.append(f"- MFD beside MFT, share {share}, {steps}: {_beside(cells, mfd, mft, end)}.")
    lines.append(f"- MFD with a share of 0.25 beside {own}, one step: {_beside(cells, 'share_0.25', 'distilled')}.")
    return "\n".join(lines)


def _of_highest_agreement(cells: Cells, velocities: dict[str, str]) -> str:
    """Whether the distillation whose digits are most often those asked for is also good by the other numbers."""
    tables = ({f"eta, share: {row}": cell for row, cell in velocities.items()}, STARTS, BFLOAT16_ROWS, FLOAT32_ROWS)
    rows = {cell: row for table in tables for row, cell in table.items()}
    names = [name for name in CELLS if name in rows]
    of = {metric: {name: _values(cells[name], metric, "_1step").mean() for name in names} for metric in METRICS_SHOWN}
    best = max(names, key=lambda name: np.nan_to_num(of["label_agreement"][name], nan=-1))
    rank = {
        metric: 1 + sum(sign * of[metric][name] > sign * of[metric][best] for name in names)
        for metric, sign in (("fd_encoder", -1), ("class_diversity", 1))
    }
    agreement = 100 * of["label_agreement"][best]
    return (
        f"- Of all {len(names)} distillations the one with the highest agreement in one step ({agreement:.1f} %) is "
        f'"{rows[best]}": by distance it is number {rank["fd_encoder"]}, by diversity number {rank["class_diversity"]}.'
    )
