"""RPiAE on digits: what the pivot keeps, how it is weighted, and what each stage and the latent's width do."""

from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.sampling.samples import read_samples
from tools.findings.common_encoder import CommonEncoder
from tools.findings.runs import Run, from_digits, lasting, run

CONFIG = "configs/digits_rpiae.py"
STEPS = {"decoder": 600, "pivot": 600, "bridge": 600, "specialisation": 400, "flow": 1200}
ON_TOKENS = {"autoencoder": "rae", "flow.shift_base": 256}
JOINT = "('encoder','decoder','bridge_encoder','bridge_decoder')"
WIDTHS = (16, 32, 64)


def budget() -> dict[str, Any]:
    """Short stages: the fields of each one's schedule."""
    fields: dict[str, Any] = {}
    for stage, steps in STEPS.items():
        fields |= lasting(stage, steps)
    # The decoder alone learns at the rate that it has beside the encoder.
    return fields | {
        "decoder.train.optimizer.learning_rate": 1e-3,
        "decoder.train.optimizer.final_learning_rate": 1e-4,
        "pivot.pivot_fixed_steps": 50,
    }


def reproduce(workdir: Path, digits: Path) -> str:
    """Runs 14 short pipelines, two cores for about twenty minutes, and returns the section."""
    given = from_digits(digits, "encoder")
    common = budget() | given

    def of(name: str, stages: str, **fields: Any) -> Run:
        changes = {field.replace("__", "."): value for field, value in fields.items()}
        return run(workdir / name, CONFIG, common | {"stages": stages} | changes)

    pivoted, first = "('pivot','stats','flow')", "('pivot',)"
    frozen = of("frozen", "('decoder','stats','flow')", **ON_TOKENS)
    pivot = of("pivot", pivoted, **ON_TOKENS)
    free = of("free", pivoted, pivot__pivot_weight=0.0, **ON_TOKENS)
    originals = np.load(frozen.workdir / "reconstructions.npz")["originals"]
    common = CommonEncoder(given["encoder.weights"], originals)

    section = [
        "## RPiAE on digits",
        "",
        "`python -m tools.reproduce rpiae`. Every run starts from the encoder that `configs/digits.py` pretrains. "
        "Steps: "
        + ", ".join(f"{stage} {steps}" for stage, steps in STEPS.items())
        + ", so that generation is worse than that of the full pipelines; compare within a table. The Fréchet distance "
        "is taken in the mean tokens of that pretrained encoder. The probe is trained on each run's encoder; the "
        "attached head on the encoder as the run found it, where it tunes it. One seed each.",
        "",
        "(a) Frozen encoder, unfrozen with the pivot, unfrozen without. The paper: the pivot keeps the probe and the "
        "generation while reconstruction improves.",
        "",
        *table({"frozen": frozen, "unfrozen, pivot": pivot, "unfrozen, no pivot": free}, common),
    ]

    weights = {
        f"weight {w:g}": of(f"weight_{w:g}", first, pivot__pivot_weight=w, **ON_TOKENS) for w in (1.0, 0.5, 0.25)
    }
    section += ["", "(b) The pivot's weight (stage I alone).", "", *table(weights, None)]

    losses = {"plain, adaptive (as in a)": pivot}
    for features, balance in (("plain", "fixed"), ("normalised", "adaptive"), ("normalised", "fixed")):
        losses[f"{features}, {balance}"] = of(
            f"{features}_{balance}",
            "('feature_stats','pivot')",
            pivot__pivot_features=features,
            pivot__pivot_balance=balance,
            **ON_TOKENS,
        )
    section += ["", "(c) Plain or normalised tokens in the pivot's loss, adaptive or fixed weight 0.75.", ""]
    section += table(losses, None)

    trained = pivot.workdir.resolve() / "pivot" / "weights"
    parts = {f"{name}__weights": str(trained / name) for name in ("encoder", "decoder")}
    widths = {
        width: of(
            f"width_{width}",
            "('feature_stats','bridge','specialisation','stats','flow')",
            bridge_encoder__model__latent_channels=width,
            flow__shift_base=4 * width,
            **parts,
        )
        for width in WIDTHS
    }
    narrow = widths[WIDTHS[0]].workdir.resolve()
    left = {
        "feature_stats": narrow / "feature_stats" / "weights",
        "bridge_encoder": narrow / "bridge" / "weights" / "bridge_encoder",
        "bridge_decoder": narrow / "bridge" / "weights" / "bridge_decoder",
        "stats": narrow / "stats" / "weights",
        "flow": narrow / "flow" / "weights",
    }
    unspecialised = of("unspecialised", "()", **parts, **{f"{name}__weights": str(path) for name, path in left.items()})
    joint = of("joint", "('feature_stats','pivot','stats','flow')", pivot__trains=JOINT)
    stages = {
        "I": pivot,
        "I, II": unspecialised,
        "I, II, III": widths[WIDTHS[0]],
        "all at once": joint,
    }
    section += ["", f"(d) The stages, with a bridge of {WIDTHS[0]} channels, and everything trained at once.", ""]
    section += table(stages, common)
    section += ["", "(e) Channels of the bridge's latent, of the encoder's 64.", ""]
    section += table({str(width): this for width, this in widths.items()}, common)
    return "\n".join(section)


def table(runs: dict[str, Run], common: CommonEncoder | None) -> list[str]:
    """A row a run; with an encoder to judge by, generation too. The attached head is of runs that tune the encoder."""
    columns = ["run", "reconstruction PSNR, dB", "linear probe", "attached head"]
    columns += ["label agreement", "Fréchet distance"] if common else []
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, this in runs.items():
        if this.stopped:
            rows.append(f"| {name} | {this.stopped} |" + " |" * (len(columns) - 2))
            continue
        results = this.results
        cells = [name, f"{results['psnr']:.2f}", f"{100 * results['linear_probe_accuracy']:.1f} %"]
        head = results.get("attached_head_accuracy")
        cells.append("—" if head is None else f"{100 * head:.1f} %")
        if common:
            images = read_samples(this.workdir / "samples.npz").images
            cells += [f"{100 * results['label_agreement']:.1f} %", f"{common.distance(images):.3f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
