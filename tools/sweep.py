"""Sweeps over what samples are made with: samples and numbers of every combination, a table, a plot, and the best.

    python -m tools.sweep --config=configs/digits.py --workdir=runs/digits --metrics=fd_encoder \\
        --config.sampling.num_samples=1000 \\
        --over=guidance_scale=1,1.5,2 --over=guidance_interval=0-1,0.2-0.8
    python -m tools.sweep --config=configs/dith_xl.py --workdir=runs/dith_xl --metrics=fid,is \\
        --config.sampling.num_samples=5000 \\
        --inception=pt_inception.pth --reference=VIRTUAL_imagenet256_labeled.npz --over=ema_decay=0.9995,0.9999

What `--over` may be, once each; the weights are those of the finished run in --workdir, or of the config:
  ema_decay          the averages that a checkpoint has (`flow.train.ema_decay`, `more_ema_decays`): of the checkpoint
                     in `config.flow.weights`, or the newest of the run
  guidance_scale     1 is no guidance
  guidance_interval  times at which it acts, LOW-HIGH
  num_steps          network evaluations of an Euler sampler

All else is as in the config. Metrics are those of `tools.evaluate`, the first says which point is best. Everything goes
to --output, `<workdir>/sweep`: `sweep.json`, `sweep.csv`, `sweep.png`, and a folder a point with a picture of samples.
The same command goes on where it stopped; a point that is there, of the same weights, settings and metrics, is not made
again. One process, on all of its devices.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from rae_jax.components.encoders import tokens_shape
from rae_jax.evaluation.features import INCEPTION, fingerprint
from rae_jax.evaluation.metrics import Metric, check_counts, named
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.experiment.workdir import locked
from rae_jax.files import local_path, whole_file
from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import CHECKPOINTS, DECAY, find
from rae_jax.training.progress import RunLog
from tools import evaluate

Point = dict[str, Any]  # a value of each field that is swept over

OFFERED = ("fid", "sfid", "is", "precision", "recall", "fd_encoder", "precision_encoder", "recall_encoder")
OVER = flags.DEFINE_multi_string("over", [], "FIELD=VALUE,VALUE...; several give every combination.")
METRICS = flags.DEFINE_string("metrics", "", f"Joined by commas, of {', '.join(OFFERED)}.")
REFERENCE = flags.DEFINE_string(
    "reference", "", "As of tools.evaluate; by default the originals in the run's reconstructions.npz."
)
INCEPTION_FILE = flags.DEFINE_string("inception", "", "The FID Inception file, pt_inception-2015-12-05*.pth.")
OUTPUT = flags.DEFINE_string("output", "", "The folder for everything; <workdir>/sweep by default.")
FILES = (REFERENCE, INCEPTION_FILE, OUTPUT)
KEEP_SAMPLES = flags.DEFINE_bool("keep_samples", False, "Keep samples.npz of every point once it has its numbers.")


def _interval(text: str) -> tuple[float, float]:
    low, high = map(float, text.split("-"))
    if low > high:
        raise ValueError
    return low, high


FIELDS: dict[str, Callable[[str], Any]] = {
    "ema_decay": float,
    "guidance_scale": float,
    "guidance_interval": _interval,
    "num_steps": int,
}


def main(arguments: list[str]) -> None:
    del arguments
    logging.set_verbosity(logging.WARNING)
    config, workdir = experiment.config(), experiment.workdir()
    originals = workdir / "reconstructions.npz"
    try:
        if experiment.DISTRIBUTED.value:
            raise ValueError("--distributed: a sweep is one process; start one on each host, with other points")
        axes = axes_of(OVER.value)
        given = {flag.name: local_path(flag.value, f"--{flag.name}") if flag.value else None for flag in FILES}
        reference = given["reference"] or (originals if originals.exists() else None)
        judged_by = argparse.Namespace(metrics=METRICS.value, reference=reference, inception=given["inception"])
        config = resolved(config, workdir)
        check(config, file=experiment.config_file(), num_devices=jax.device_count())
        sweep(config, workdir, axes, judged_by, given["output"] or workdir / "sweep", keep_samples=KEEP_SAMPLES.value)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def axes_of(given: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values of each field in `FIELD=VALUE,VALUE`.

    Raises:
      ValueError: there is no such field, it is given twice, or a value is none.
    """
    if not given:
        raise ValueError(f"--over=FIELD=VALUE,VALUE is missing; fields are {', '.join(FIELDS)}")
    axes: dict[str, tuple[Any, ...]] = {}
    for text in given:
        field, _, values = text.partition("=")
        if field not in FIELDS or field in axes:
            raise ValueError(f"--over={text}: {field!r} is not one of {', '.join(FIELDS)}, once each")
        try:
            axes[field] = tuple(dict.fromkeys(FIELDS[field](value) for value in values.split(",")))
        except ValueError:
            example = "0-1,0.2-0.8" if field == "guidance_interval" else "numbers, joined by commas"
            raise ValueError(f"--over={text}: {values!r} are no values of {field}, such as {example}") from None
    return axes


def sweep(
    config: ConfigDict,
    workdir: Path,
    axes: dict[str, tuple[Any, ...]],
    judged_by: argparse.Namespace,
    output: Path,
    *,
    keep_samples: bool = False,
) -> list[dict[str, Any]]:
    """Samples and judges every combination of values, with the weights of the run in `workdir`.

    Args:
      axes: the values of each of `FIELDS` that is swept over.
      judged_by: `metrics`, `reference` and `inception` as `tools.evaluate` takes them.
      output: the folder for everything.

    Returns:
      Of each point its fields and its metrics.

    Raises:
      ValueError: weights, images or options are missing; before anything is sampled, as far as that can be known.
    """
    mesh, log, points = sharding.make_mesh(config.mesh.to_dict()), RunLog(output, active=True), points_of(axes)

    def weights(config: ConfigDict) -> Weights:
        return Weights(config, {}, workdir, mesh, log.warn, log.say)

    options = _options(config, judged_by, weights(config), workdir)
    metrics = _metrics(config, options)
    judge: dict[str, Any] = {"metrics": options.metrics}
    for name in ("reference", "inception"):
        judge[name] = fingerprint(getattr(options, name)) if getattr(options, name) else ""
    judge["encoder"] = weights(config).identity("encoder") if options.encoder_config else ""
    file, generations, requests = output / "sweep.json", {}, {}
    with contextlib.closing(log), locked(output), sharding.use(mesh):
        known = json.loads(file.read_text()) if file.exists() else {}
        for point in points:
            name, each = said(point), _configured(config, workdir, point)
            generations[name] = Generation(each, weights(each), mesh, output / name, log)
            generations[name].require_weights()
            asked = generations[name].requests()
            if "samples" not in asked:
                raise ValueError(
                    f"{name}: no velocity network to sample: 'flow' has no weights, or sampling.num_steps=0"
                )
            made_of = {"samples": asked["samples"], "judged_by": judge}
            requests[name] = json.loads(json.dumps(made_of))  # as it is read again
        for name, made_of in requests.items():
            if known.get(name, {}).get("made_of") == made_of:
                log.say(f"{name}: already there")
                continue
            options.samples = output / name / "samples.npz"
            told = options.samples.with_suffix(".json")
            if not told.exists() or json.loads(told.read_text()) != made_of["samples"] or not options.samples.exists():
                generations[name].write_samples()
            known[name] = {"results": evaluate.evaluate(options), "made_of": made_of}
            with whole_file(file) as stream:
                stream.write((json.dumps(known, indent=2) + "\n").encode())
            if not keep_samples:
                options.samples.unlink()
    rows = [point | known[said(point)]["results"] for point in points]
    names = [named(metric, config.sampling.num_samples) for metric in metrics]
    _write_csv(output / "sweep.csv", rows)
    plot(output / "sweep.png", axes, rows, names)
    best = (min if metrics[0].better == "lower" else max)(rows, key=lambda row: row[names[0]])
    _show(rows, axes, names, best)
    return rows


def points_of(axes: dict[str, tuple[Any, ...]]) -> list[Point]:
    """Every combination of the values of each field."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def said(point: Point) -> str:
    """What a point is called, in messages and as a folder."""
    return ",".join(f"{field}={_shown(value)}" for field, value in point.items())


def _shown(value: Any) -> str:
    return "-".join(f"{end:g}" for end in value) if isinstance(value, tuple) else f"{value:g}"


def _configured(config: ConfigDict, workdir: Path, point: Point) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.sampling.update(flow_map_times=(), png=False)
    for field, value in point.items():
        if field == "ema_decay":
            given = config.flow.weights
            checkpoint = given if given and find(given) else workdir / "flow" / CHECKPOINTS
            config.flow.weights = f"{checkpoint}{DECAY}{value}"
        else:
            config.sampling[field] = value
    return config


def _options(config: ConfigDict, judged_by: argparse.Namespace, weights: Weights, workdir: Path) -> argparse.Namespace:
    """What `tools.evaluate` is asked, but for the samples."""
    encoder = None
    if "encoder" in judged_by.metrics:
        encoder = config.copy_and_resolve_references()
        encoder.encoder.weights = weights.place("encoder")
    return argparse.Namespace(
        **vars(judged_by),
        encoder_config=encoder,
        encoder=None,
        batch_size=config.sampling.batch_size,
        cache=workdir / "reference_statistics",
    )


def _metrics(config: ConfigDict, options: argparse.Namespace) -> list[Metric]:
    """What is asked for, if it can be had of so many samples.

    Raises:
      ValueError: see `sweep`.
    """
    if not options.metrics:
        raise ValueError(f"--metrics=NAME,NAME is missing; there are {', '.join(OFFERED)}")
    if others := [name for name in options.metrics.split(",") if name not in OFFERED]:
        raise ValueError(f"--metrics: {others} are not among those of samples, {', '.join(OFFERED)}")
    metrics, count = evaluate.asked_for(options), config.sampling.num_samples
    if comparing := [metric.name for metric in metrics if not metric.alone and options.reference is None]:
        raise ValueError(f"{', '.join(comparing)} need --reference: the run has no reconstructions.npz with originals")
    sizes = INCEPTION | ({"encoder.mean_token": tokens_shape(config)[1]} if options.encoder_config else {})
    check_counts(metrics, sizes, judged=count, reference=count, where="config.sampling.num_samples")
    return metrics


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(
        {name: _shown(value) if isinstance(value, tuple) else value for name, value in row.items()} for row in rows
    )
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def plot(path: Path, axes: dict[str, tuple[Any, ...]], rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """A panel a metric, against the field with the most values; a line for each combination of the others."""
    along = max(axes, key=lambda field: len(axes[field]))
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(said({field: row[field] for field in axes if field != along}), []).append(row)
    figure = Figure(figsize=(1 + 4 * len(names), 3.4), dpi=120, layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, members in lines.items():
            # Decays and intervals evenly spaced, in the order given; what is a quantity, where it lies.
            x = [row[along] if along in ("guidance_scale", "num_steps") else _shown(row[along]) for row in members]
            panel.plot(x, [row[name] for row in members], marker="o", label=label)
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_xlabel(along.replace("_", " "), fontsize=9)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        figure.axes[0].legend(fontsize=7, frameon=False)
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def _show(rows: Sequence[dict[str, Any]], axes: dict[str, Any], names: Sequence[str], best: dict[str, Any]) -> None:
    table = Table()
    for name in (*axes, *names):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [*(_shown(row[field]) for field in axes), *(f"{row[name]:.4f}" for name in names)]
        table.add_row(*cells, style="bold" if row is best else "")
    Console().print(table)
    Console().print(f"best {names[0]}: {best[names[0]]:.4f}, {said({field: best[field] for field in axes})}")


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
