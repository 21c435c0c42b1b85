"""RPiAE on digits: what the pivot keeps, how it is weighted, and what each stage and the latent's width do."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.sampling.samples import read_samples
from tools.findings.common_encoder import CommonEncoder
from tools.findings.runs import Run, from_digits, lasting, run
from tools.findings.seeds import shown, verdict

CONFIG = "configs/digits_rpiae.py"
SEEDS = (0, 1, 2)
STEPS = {"decoder": 600, "pivot": 600, "bridge": 600, "specialisation": 400, "flow": 1600}
AT_ONCE = STEPS["pivot"] + STEPS["bridge"] + STEPS["specialisation"]
BRIDGED = ("feature_stats", "bridge", "specialisation", "stats", "flow")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A tokenizer, and the generator on its latents if `stages` have one.

    Attributes:
      stages: that are trained, from the encoder that `configs/digits.py` pretrains.
      fields: of the config.
      tokens: whether the latents are the encoder's tokens, without a bridge.
    """

    stages: tuple[str, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: bool = False


def _pivoted(*stages: str, **fields: Any) -> Variant:
    return Variant(stages, {f"pivot.pivot_{name}": value for name, value in fields.items()}, tokens=True)


FROZEN, PIVOT, FREE = "frozen", "unfrozen, pivot", "unfrozen, no pivot"
WEIGHTS = {weight: f"weight {weight:g}" for weight in (1.0, 0.5, 0.25)}
OTHERS = [(features, balance) for features in ("plain", "normalised") for balance in ("adaptive", "fixed")][1:]
LOSSES = {pair: ", ".join(pair) for pair in OTHERS}
WIDTHS = {width: f"{width} channels" for width in (16, 32, 64)}
UNSPECIALISED, STAGES, JOINT = "I, II", WIDTHS[16], "all at once"
VARIANTS = {
    FROZEN: Variant(("decoder", "stats", "flow"), tokens=True),
    PIVOT: _pivoted("pivot", "stats", "flow"),
    FREE: _pivoted("pivot", "stats", "flow", weight=0.0),
    **{name: _pivoted("pivot", weight=weight) for weight, name in WEIGHTS.items()},
    **{
        name: _pivoted("feature_stats", "pivot", features=features, balance=balance)
        for (features, balance), name in LOSSES.items()
    },
    **{
        name: Variant(BRIDGED, {"bridge_encoder.model.latent_channels": width, "flow.shift_base": 4 * width})
        for width, name in WIDTHS.items()
    },
    UNSPECIALISED: Variant(()),
    JOINT: Variant(
        ("feature_stats", "pivot", "stats", "flow"),
        lasting("pivot", AT_ONCE) | {"pivot.trains": "('encoder','decoder','bridge_encoder','bridge_decoder')"},
    ),
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One number a seed; what a variant has not is empty.

    Attributes:
      psnr: of reconstructed held-out digits, in dB.
      probe: accuracy of a linear probe on the encoder's features.
      head: accuracy of the probe of the encoder as it was, on the tuned one's features.
      agreement: the share of the samples that are the digit asked for.
      distance: their Fréchet distance, in one encoder for all.
    """

    psnr: np.ndarray
    probe: np.ndarray
    head: np.ndarray
    agreement: np.ndarray
    distance: np.ndarray


class Bench:
    """Trains every variant from every seed, and judges its samples in the encoder that all start from."""

    def __init__(self, workdir: Path, digits: Path):
        self._workdir, self._given = workdir, from_digits(digits, "encoder")

    def numbers(self, name: str) -> Numbers:
        """Of one of `VARIANTS`.

        Raises:
          ValueError: a run diverged.
        """
        runs = [self._run(name, seed) for seed in SEEDS]
        if stopped := [run for run in runs if run.stopped]:
            raise ValueError(f"{stopped[0].workdir} diverged: {stopped[0].stopped}")
        keys = ("psnr", "linear_probe_accuracy", "attached_head_accuracy", "label_agreement")
        found = [np.array([run.results[key] for run in runs if key in run.results], float) for key in keys]
        generates = bool(len(found[-1]))
        return Numbers(*found, np.array([self._distance(run) for run in runs] if generates else [], float))

    def _distance(self, generated: Run) -> float:
        originals = np.load(generated.workdir / "reconstructions.npz")["originals"]
        common = CommonEncoder(self._given["encoder.weights"], originals)
        return common.distance(read_samples(generated.workdir / "samples.npz").images)

    def _run(self, name: str, seed: int) -> Run:
        variant = VARIANTS[name]
        fields: dict[str, Any] = {}
        for stage, steps in STEPS.items():
            fields |= lasting(stage, steps)
        fields |= {
            # The decoder alone learns at the rate that it has beside the encoder.
            "decoder.train.optimizer.learning_rate": 1e-3,
            "decoder.train.optimizer.final_learning_rate": 1e-4,
            "pivot.pivot_fixed_steps": 50,
            "seed": seed,
            "stages": f"{variant.stages}",
        }
        fields |= {"autoencoder": "rae", "flow.shift_base": 256} if variant.tokens else {}
        fields |= self._given | self._parts(name, seed) | dict(variant.fields)
        return run(self._workdir / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}", CONFIG, fields)

    def _parts(self, name: str, seed: int) -> dict[str, str]:
        """Weights of other variants that this one goes on from: of stage I, and of the stages after it."""
        parts = {}
        if name in (*WIDTHS.values(), UNSPECIALISED):
            first = self._weights(PIVOT, seed)
            parts |= {part: first / "pivot" / "weights" / part for part in ("encoder", "decoder")}
        if name == UNSPECIALISED:
            rest = self._weights(STAGES, seed)
            parts |= {part: rest / part / "weights" for part in ("feature_stats", "stats", "flow")}
            parts |= {part: rest / "bridge" / "weights" / part for part in ("bridge_encoder", "bridge_decoder")}
        return {f"{part}.weights": str(place) for part, place in parts.items()}

    def _weights(self, name: str, seed: int) -> Path:
        return self._run(name, seed).workdir.resolve()


def reproduce(workdir: Path, digits: Path) -> str:
    """Trains 13 tokenizers from three seeds, and generators on eight of them; returns the section."""
    bench = Bench(workdir, digits)
    return section({name: bench.numbers(name) for name in VARIANTS})


def section(found: Mapping[str, Numbers]) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""

    def beside(name: str, other: str, *names: str) -> str:
        better = {"distance": "lower"}
        said = [
            f"{KNOWN[key]} {verdict(getattr(found[name], key), getattr(found[other], key), better.get(key, 'higher'))}"
            for key in names
        ]
        return f"- {name[0].upper()}{name[1:]} beside {other}: {', '.join(said)}."

    generation, features = ("agreement", "distance"), ("psnr", "probe")
    heaviest, *lighter = WEIGHTS.values()
    return "\n".join(
        [
            "## RPiAE on digits",
            "",
            "`python -m tools.reproduce rpiae`. Every run starts from the encoder that `configs/digits.py` pretrains. "
            "Steps: "
            + ", ".join(f"{stage} {steps:,}" for stage, steps in STEPS.items())
            + f"; everything at once {AT_ONCE:,}, as many as stages I to III. Mean and deviation of {len(SEEDS)} "
            "seeds of everything but the pretrained encoder, which is one. The Fréchet distance is in its mean tokens. "
            "The probe is trained on each run's encoder; the attached head on the encoder as the run found it, where "
            "it tunes it. What is said below a table follows from it: no different is within two standard errors.",
            "",
            "(a) Frozen encoder, unfrozen with the pivot, unfrozen without. The paper: the pivot keeps the probe and "
            "the generation while reconstruction improves.",
            "",
            *_table(found, [FROZEN, PIVOT, FREE]),
            "",
            beside(PIVOT, FROZEN, *features, *generation),
            beside(FREE, FROZEN, *features, *generation),
            beside(FREE, PIVOT, *features, "head", *generation),
            "",
            "(b) The pivot's weight (stage I alone; 0.75 is that of (a), 0 the run without a pivot).",
            "",
            *_table(found, [*WEIGHTS.values(), FREE], generation=False),
            "",
            *(beside(heaviest, name, *features, "head") for name in (*lighter, FREE)),
            "",
            "(c) Plain or normalised tokens in the pivot's loss, adaptive or fixed weight of 0.75 (stage I alone; "
            "plain and adaptive is that of (a)).",
            "",
            *_table(found, [PIVOT, *LOSSES.values()], generation=False),
            "",
            *(beside(name, PIVOT, *features, "head") for name in LOSSES.values()),
            "",
            f"(d) The stages, with a bridge of {min(WIDTHS)} channels, and everything trained at once.",
            "",
            *_table(found, [PIVOT, UNSPECIALISED, STAGES, JOINT], {PIVOT: "I", STAGES: "I, II, III"}),
            "",
            beside(STAGES, PIVOT, "psnr", *generation),
            beside(STAGES, UNSPECIALISED, "psnr", *generation),
            beside(JOINT, STAGES, *features, *generation),
            "",
            "(e) Channels of the bridge's latent, of the encoder's 64.",
            "",
            *_table(found, list(WIDTHS.values())),
            "",
            *(beside(WIDTHS[width], STAGES, "psnr", *generation) for width in WIDTHS if WIDTHS[width] != STAGES),
        ]
    )


KNOWN = {
    "psnr": "reconstruction",
    "probe": "probe",
    "head": "attached head",
    "agreement": "agreement",
    "distance": "distance",
}


def _table(
    found: Mapping[str, Numbers],
    names: Sequence[str],
    called: Mapping[str, str] | None = None,
    *,
    generation: bool = True,
) -> list[str]:
    """A row a variant; the attached head is of those that tune the encoder."""
    columns = ["run", "reconstruction PSNR, dB", "linear probe", "attached head"]
    columns += ["label agreement", "Fréchet distance"] * generation
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        of = found[name]
        head = _share(of.head) if len(of.head) else "—"
        cells = [(called or {}).get(name, name), shown(of.psnr, ".2f"), _share(of.probe), head]
        cells += [_share(of.agreement), shown(of.distance)] if generation else []
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _share(values: np.ndarray) -> str:
    return shown(100 * values, ".1f", " %")
