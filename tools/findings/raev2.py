"""RAEv2 on digits: what each of its changes to RAE is worth in equal time, and its generator in one step."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from configs import digits as digits_config
from rae_jax.files import whole_file
from tools.findings.judged_digits import REAL_DIVERSITY, DigitJudge, Judged
from tools.findings.runs import ROOT, Run, from_digits, lasting, left_in, run, unmeasured
from tools.findings.seeds import verdict

CONFIG, IN_CONTEXT = "configs/digits.py", "configs/digits.py:in_context"
SEEDS = (0, 1, 2)
SECONDS = (15, 45)  # of the generator's training
PACE_STEPS = 300  # to find out how long a step takes
LAYERS = (1, 2, 3)  # of the encoder's four blocks, counted from 0
INTERNAL = 1.5  # the scale of internal guidance
ENDS = {"_1step": "1 step", "_2step": "2 steps"}
PLOT = ROOT / "docs" / "raev2.png"
UNMEASURED = unmeasured(digits_config.get_config())


@dataclasses.dataclass(frozen=True)
class Variant:
    """A generator that is trained and sampled.

    Attributes:
      config: that it is of.
      fields: what is changed in it.
      means: the latents are means of `LAYERS`.
      sampling: what is changed for the samples alone; what is trained is the variant without it.
    """

    config: str = CONFIG
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    means: bool = False
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_X = {"flow.prediction": "x", "flow.t_eps": 0.05}
_MUON = {"flow.train.optimizer.name": "muon"}
_GUIDED = {"sampling.internal_guidance_scale": INTERNAL}
BASE = "DiT^DH, as in the config"
VARIANTS = {
    BASE: Variant(),
    "means of three blocks": Variant(means=True),
    "x-prediction": Variant(fields=_X),
    "Muon": Variant(fields=_MUON),
    "in-context conditions": Variant(IN_CONTEXT, {"flow.model.base_depth": 0}),
    "in-context conditions, early output": Variant(IN_CONTEXT),
    "the same, guided by that": Variant(IN_CONTEXT, sampling=_GUIDED),
    "all of it": Variant(IN_CONTEXT, _X | _MUON, means=True),
    "all of it, guided": Variant(IN_CONTEXT, _X | _MUON, means=True, sampling=_GUIDED),
}
FEW_STEPS = {"DiT^DH": VARIANTS[BASE], "RAEv2's generator": VARIANTS["in-context conditions, early output"]}


class Bench:
    """Trains generators on the latents of finished digits, and judges their samples by one classifier and encoder."""

    def __init__(self, workdir: Path, digits: Path):
        self._workdir, self._given = workdir, from_digits(digits, "encoder", "decoder", "stats")
        self._judge = DigitJudge(self._given["encoder.weights"])

    def numbers(self, variant: Variant, seconds: float) -> Judged:
        """Of samples in 50 steps after so long a training."""
        return self._judge.judged([self._sampled(variant, seconds, seed) / "samples.npz" for seed in SEEDS])

    def few_steps(self, variant: Variant) -> dict[str, Judged]:
        """Of flow maps that start from the longest training, are mid-trained and distilled; by `ENDS`."""
        places = []
        for seed in SEEDS:
            flow = left_in(self._sampled(variant, SECONDS[-1], seed), "flow")
            fields = flow | {"seed": seed, "stages": "('mid_training','flow_map')"}
            places.append(self._run(variant, f"few_steps_{seed}", fields | {"sampling.num_steps": 0}).workdir)
        return {end: self._judge.judged([place / f"samples{end}.npz" for place in places]) for end in ENDS}

    def pace(self, variant: Variant) -> float:
        """Seconds of a step of training."""
        fields = lasting("flow", PACE_STEPS) | {"sampling.num_steps": 0}
        each = self._run(dataclasses.replace(variant, sampling={}), "pace", fields).metric("flow", "step_seconds")
        return float(np.median(list(each.values())[1:]))

    def _sampled(self, variant: Variant, seconds: float, seed: int) -> Path:
        """Where the samples of a flow are that was trained for so long."""
        trained, name = dataclasses.replace(variant, sampling={}), f"{seconds:g}_{seed}"
        flow = self._run(trained, name, lasting("flow", round(seconds / self.pace(variant))) | {"seed": seed}).workdir
        if not variant.sampling:
            return flow
        weights = left_in(flow, "flow") | {"stages": "()", "seed": seed}
        return self._run(variant, name, weights).workdir

    def _run(self, variant: Variant, name: str, fields: Mapping[str, Any]) -> Run:
        """A run of the variant, of its flow unless `fields` has other stages."""
        folder = next(key for key, known in VARIANTS.items() if known == variant).replace(" ", "_")
        means = self._means if variant.means else {}
        changes = UNMEASURED | self._given | means | {"stages": "('flow',)"} | dict(variant.fields)
        return run(self._workdir / folder / name, variant.config, changes | dict(variant.sampling) | dict(fields))

    @functools.cached_property
    def _means(self) -> dict[str, Any]:
        """Fields that make the latents means of blocks, with a decoder and statistics of their own."""
        means = {"encoder.model.layers": LAYERS, "encoder.weights": self._given["encoder.weights"]}
        place = run(self._workdir / "means", CONFIG, UNMEASURED | means | {"stages": "('decoder','stats')"}).workdir
        return means | left_in(place, "decoder", "stats")


def reproduce(workdir: Path, digits: Path) -> str:
    """Trains seven generators for two lengths of time from three seeds, an hour on one core; returns the section."""
    bench = Bench(workdir, digits)
    found = {name: [bench.numbers(variant, s) for s in SECONDS] for name, variant in VARIANTS.items()}
    draw(found)
    paces = {name: bench.pace(variant) for name, variant in VARIANTS.items()}
    return section(found, paces, {name: bench.few_steps(variant) for name, variant in FEW_STEPS.items()})


def section(
    found: Mapping[str, Sequence[Judged]], paces: Mapping[str, float], few: Mapping[str, Mapping[str, Judged]]
) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""
    last = {name: numbers[-1] for name, numbers in found.items()}
    rows = [f"| {name} | {1 / paces[name]:.0f} | {last[name].cells()} |" for name in found]
    jumps = [f"| {name} | {ENDS[end]} | {each[end].cells()} |" for name, each in few.items() for end in ENDS]
    compared = [f"- {name[0].upper()}{name[1:]}: {last[name].beside(last[BASE])}." for name in found if name != BASE]
    first, second = few
    of_one = [few[name]["_1step"] for name in (second, first)]
    return "\n".join(
        [
            "## RAEv2 on digits: one thing at a time",
            "",
            "`python -m tools.reproduce raev2`. On the latents of a finished run of `configs/digits.py`, generators of "
            "the same sizes are trained for the same time: the number of steps is that time over what a step of each "
            f"took beforehand. Mean and deviation of {len(SEEDS)} seeds; 1,000 digits each, 50 Euler steps. The "
            "Fréchet distance is to held-out digits in one encoder for all, its last block's mean token; diversity is "
            f"the deviation of a pixel within a class (real digits: {REAL_DIVERSITY}). Means are those of blocks "
            f"{_listed(LAYERS)} of four, counted from 0, plus the last one's mean token; they have a decoder and "
            "statistics of their own, whose training is not counted. All else is as in the config: no rate was looked "
            f"for. Internal guidance has a scale of {INTERNAL:g}; the early output is that of two blocks of three.",
            "",
            f"After {SECONDS[-1]} seconds:",
            "",
            "| generator | steps a second | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "![Label agreement and Fréchet distance against seconds of training](raev2.png)",
            "",
            f"Beside {BASE} (no different: within two standard errors of the difference of {len(SEEDS)} seeds; of "
            f"{3 * len(compared)} such comparisons chance alone would call {3 * len(compared) / 9:.0f} different):",
            "",
            *compared,
            "",
            "In few steps, after mid-training and distillation as in the config:",
            "",
            "| teacher | steps | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|",
            *jumps,
            "",
            f"- In one step {second} is {verdict(*(n.agreement for n in of_one), 'higher')} in agreement than {first}, "
            f"and {verdict(*(n.distance for n in of_one), 'lower')} in distance.",
        ]
    )


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def draw(found: Mapping[str, Sequence[Judged]]) -> None:
    """Label agreement and Fréchet distance against seconds of training."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    panels = {"label agreement": lambda n: n.agreement, "Fréchet distance": lambda n: n.distance}
    for axes, (title, value) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for i, (name, numbers) in enumerate(found.items()):
            each = np.array([value(n) for n in numbers])
            axes.errorbar(SECONDS, each.mean(axis=1), each.std(axis=1, ddof=1), marker=".", linewidth=1, color=f"C{i}",
                          capsize=2, label=name)  # fmt: skip
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("seconds of training", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.axes[1].set_yscale("log")
    with whole_file(PLOT) as file:
        figure.savefig(file, format="png")
