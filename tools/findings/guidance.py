"""Guidance on digits: classifier-free and AutoGuidance, with and without an interval; generation without classes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from configs import digits as experiment
from rae_jax.components.catalogue import component
from rae_jax.components.conditions import condition
from rae_jax.components.latent_spaces import latent_space, stats
from rae_jax.data.sources import load_split
from rae_jax.evaluation.class_diversity import class_diversity, small_images
from rae_jax.evaluation.judge import train_judge
from rae_jax.experiment.stages import Stages, open_sources
from rae_jax.files import whole_file
from rae_jax.sampling.batches import sample_batches, sampling_program
from rae_jax.sampling.generator import generator, guiding_component
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog
from tools.findings.common_encoder import CommonEncoder
from tools.findings.runs import ROOT, from_digits, run, unmeasured
from tools.findings.seeds import changed, shown

PLOT = ROOT / "docs" / "guidance.png"
SCALES = (1.5, 2.0, 3.0)
WHOLE, MIDDLE = (0.0, 1.0), (0.2, 0.8)
CURVES = {
    "classifier-free": ("classifier_free", WHOLE),
    "classifier-free, 0.2 <= t <= 0.8": ("classifier_free", MIDDLE),
    "AutoGuidance": ("autoguidance", WHOLE),
    "AutoGuidance, 0.2 <= t <= 0.8": ("autoguidance", MIDDLE),
}
NUM_SAMPLES, NUM_STEPS = 1000, 25
SETS = 3  # of so many samples, of other noises


@dataclasses.dataclass(frozen=True)
class Point:
    """What one setting reached, a number for each set of samples.

    Attributes:
      frechet: distances.
      agreement: shares; none where no class was asked for.
      diversity: within a class, see `evaluation.class_diversity`; likewise.
      classes: share of each class that is seen, over all sets.
    """

    frechet: list[float]
    agreement: list[float]
    diversity: list[float]
    classes: list[float]

    def row(self, name: str, scale: float) -> str:
        """The line of the table."""
        cells = [shown(100 * np.array(self.agreement), ".1f", " %"), shown(self.frechet), shown(self.diversity, ".2f")]
        return f"| {name} | {scale:g} | {' | '.join(cells)} |"


class Sweep:
    """Samples with any guidance, and their numbers; those found before are read from `file`."""

    def __init__(self, workdir: Path, weights: dict[str, str]):
        self._file = workdir / "sweep.json"
        self._known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._workdir, self._weights, self._judges = workdir, weights, None

    def point(self, name: str, **fields: object) -> Point:
        """The numbers of the setting `name`: `configs/digits.py` with `fields` changed."""
        name = f"{name}, {SETS} x {NUM_SAMPLES} samples in {NUM_STEPS} steps"
        if name not in self._known:
            self._known[name] = dataclasses.asdict(self._measure(fields))
            print(f"{name}: {self._known[name]}", flush=True)
            with whole_file(self._file) as file:
                file.write(json.dumps(self._known, indent=1).encode())
        return Point(**self._known[name])

    def _measure(self, fields: dict[str, object]) -> Point:
        config = experiment.get_config()
        changes = {"sampling.num_steps": NUM_STEPS, "sampling.batch_size": 250} | self._weights | fields
        config.update_from_flattened_dict(changes)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        log = RunLog(self._workdir, active=False)
        sources, told = open_sources(config), condition(config)
        stages = Stages(config, {}, sources, self._workdir, mesh, log)
        load, labels, guide = stages.weights.load, np.tile(told.chosen(NUM_SAMPLES), SETS), guiding_component(config)
        beside = {"stats": stats(config), **latent_space(config).decoding}
        beside |= {guide: component(config, guide)} if guide else {}
        with sharding.use(mesh):
            batches = sample_batches(
                sampling_program(generator(config, guide=guide), config.seed),
                load(component(config, "flow")),
                {name: load(part) for name, part in beside.items()},
                labels,
                np.arange(SETS * NUM_SAMPLES),
                batch_size=config.sampling.batch_size,
                mesh=mesh,
            )
            images = np.concatenate(list(batches))
        if self._judges is None:
            held_out, _ = load_split(sources["test"])
            distances = CommonEncoder(self._weights["encoder.weights"], held_out)
            self._judges = train_judge(*load_split(sources["train"])), distances
        judge, distances = self._judges
        seen = np.bincount(judge.predict(images), minlength=10) / len(images)
        sets = np.split(images, SETS)
        point = Point([distances.distance(each) for each in sets], [], [], seen.tolist())
        if not told.unconditional:
            for each, asked in zip(sets, np.split(np.asarray(labels), SETS), strict=True):
                point.agreement.append(float(judge.agrees(each, asked).mean()))
                point.diversity.append(class_diversity(np.asarray(small_images(each)), asked))
        return point


def reproduce(workdir: Path, digits: Path) -> str:
    """The section: table and plot of the sweep; trains the weak network and the one without classes."""
    run(digits, "configs/digits.py", {})
    parts = from_digits(digits, "encoder", "decoder", "stats")
    flow = from_digits(digits, "flow")
    few = {"sampling.num_samples": 100} | unmeasured(experiment.get_config())
    run(workdir / "weak", "configs/digits.py", parts | flow | few | {"stages": "('guide',)"})
    without = {"flow.label_dropout": 1.0, "sampling.labels": "unconditional"}
    run(workdir / "unconditional", "configs/digits.py", parts | without | few | {"stages": "('flow',)"})
    weak = str((workdir / "weak" / "guide" / "weights").resolve())
    sweep = Sweep(workdir, parts | flow | {"guide.weights": weak})
    plain = sweep.point("no guidance")
    small, strong = experiment.get_config().guide, experiment.get_config().flow
    alone = sweep.point("the weak network alone", **{"flow.weights": weak, "flow.model": small.model})
    curves = {
        name: [
            sweep.point(
                f"{name}, {scale}",
                **{
                    "sampling.guidance": kind,
                    "sampling.guidance_scale": scale,
                    "sampling.guidance_interval": interval,
                },
            )
            for scale in SCALES
        ]
        for name, (kind, interval) in CURVES.items()
    }
    free = {"sampling.labels": "unconditional"}
    unconditional = sweep.point(
        "without classes", **free, **{"flow.weights": str((workdir / "unconditional/flow/weights").resolve())}
    )
    null = sweep.point("the conditional network's null label", **free)
    plot(plain, curves)
    results = json.loads((digits / "summary.json").read_text())["results"]
    (real,) = (value for key, value in results.items() if key.startswith("class_diversity_train"))
    named = [(name, scale, p) for name, points in curves.items() for scale, p in zip(SCALES, points, strict=True)]
    return "\n".join(
        [
            "## Guidance on digits",
            "",
            f"`python -m tools.reproduce guidance`. {SETS} sets of {NUM_SAMPLES:,} digits each, mean and deviation;",
            f"{NUM_STEPS} Euler steps, the same noises everywhere, one training of each network. The weak network of",
            f"AutoGuidance is {small.model.width} wide and {small.model.depth} blocks deep, the strong one",
            f"{strong.model.width} and {strong.model.depth}, in front of the same head (a narrow head cannot carry the",
            f"noise at all), and is trained for {small.train.steps:,} steps instead of {strong.train.steps:,}.",
            "Agreement is that of a classifier of real digits with the class asked for; the Fréchet distance is to the",
            "held-out digits in the encoder's mean tokens; diversity is the deviation of a pixel (from 0 to 16) within",
            "a class.",
            "",
            "| guidance | scale | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|",
            plain.row("none", 1),
            alone.row("none, the weak network", 1),
            *(point.row(name, scale) for name, scale, point in named),
            "",
            "Beside no guidance, where two means are different if more than two standard errors of the sets apart; the",
            f"training digits' own diversity is {real:.2f}:",
            "",
            *_readings(plain, named),
            "",
            "![Label agreement, Fréchet distance and diversity against the scale](guidance.png)",
            "",
            "Without classes (`flow.label_dropout=1`, all labels null, as many steps): distance "
            f"{shown(unconditional.frechet)}; the classifier sees each digit in {_between(unconditional.classes)} % of "
            "the samples. The null label of the conditional network, which a tenth of its training saw: "
            f"{shown(null.frechet)}, {_between(null.classes)} %.",
        ]
    )


def _between(shares: list[float]) -> str:
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"


def _readings(plain: Point, named: list[tuple[str, float, Point]]) -> list[str]:
    """Which settings are higher and lower by each number."""
    lines = []
    for field, title in {"agreement": "agreement", "frechet": "distance", "diversity": "diversity"}.items():
        told = {"higher": [], "lower": []}
        for name, scale, point in named:
            if (word := changed(getattr(point, field), getattr(plain, field))) in told:
                told[word].append(f"{name} at {scale:g}")
        for word, which in told.items():
            all_or_none = {len(named): "every one", 0: "none"}
            lines.append(f"- {title} is {word} with: {all_or_none.get(len(which), '; '.join(which))}.")
    return lines


def plot(plain: Point, curves: dict[str, list[Point]]) -> None:
    """Writes the panels of the sweep to `PLOT`."""
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    panels = {
        "label agreement": lambda p: np.mean(p.agreement),
        "Fréchet distance": lambda p: np.mean(p.frechet),
        "diversity": lambda p: np.mean(p.diversity),
    }
    for axes, (title, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for i, (name, points) in enumerate(curves.items()):
            values = [value(plain), *map(value, points)]
            axes.plot((1, *SCALES), values, marker="o", color=f"C{i // 2}", linestyle="-:"[i % 2], label=name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("guidance scale", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=7, frameon=False)
    with whole_file(PLOT) as file:
        figure.savefig(file, format="png")
