"""What the finding about MF-RAE runs: cells that each differ in one thing from configs/digits.py, for every seed."""

from pathlib import Path
from typing import Any

from tools.findings.runs import Run, from_digits, lasting, run

CONFIG = "configs/digits.py"
SEEDS = (0, 1, 2)
DISTILLATION_STEPS, MID_TRAINING_STEPS = 400, 100
# Twice the config's rate, where few steps come further and some runs diverge, and the average that goes with it.
RATE, EMA_DECAY = 4e-3, 0.99
DTS = (1e-4, 1e-3, 5e-3, 1e-2)
DEFAULT_DT = 0.005

IN_BFLOAT16 = {"flow.dtype": "bfloat16", "flow_map.dtype": "bfloat16"}  # teacher and student, all else as it was
OTHER_DERIVATIVES = {f"dt_{dt:g}": {"flow_map.dt": dt} for dt in DTS if dt != DEFAULT_DT} | {
    "jvp": {"flow_map.derivative": "jvp"}
}
SHIFTED = {"flow.shift_base": 64}  # a time shift of 2: without one, evenly spaced labels are the true times
# What each differs in from the config's distillation; of those called labels, from its mid-training.
CELLS: dict[str, dict[str, Any]] = {
    "distilled": {},
    **OTHER_DERIVATIVES,
    "bfloat16": IN_BFLOAT16,
    **{f"bfloat16_{name}": IN_BFLOAT16 | changed for name, changed in OTHER_DERIVATIVES.items()},
    "from_teacher": {"flow_map.initial": "flow"},
    "from_random": {"flow_map.initial": ""},
    "eta_0.5": {"flow_map.eta": 0.5},
    "eta_0": {"flow_map.eta": 0.0},
    "share_0.25": {"flow_map.unequal_share": 0.25},
    "share_0.25_eta_0": {"flow_map.unequal_share": 0.25, "flow_map.eta": 0.0},
    "labels_true": SHIFTED,
    "labels_released": SHIFTED | {"mid_training.time_labels": "released"},
}

Cells = dict[str, list[Run]]  # by cell: a run each seed


def all_runs(workdir: Path, digits: Path) -> Cells:
    """Runs of every cell, and of the mid-trained weights of `digits` as they are, "mid_training"."""
    cells = {"mid_training": _runs(workdir / "mid_training", {"stages": "()"} | weights(digits))}
    return cells | {name: _runs(workdir / name, fields(name, digits)) for name in CELLS}


def fields(cell: str, digits: Path) -> dict[str, Any]:
    """The fields of the config that a cell changes: its own, its schedule, and the weights that it starts from."""
    stage, steps = ("mid_training", MID_TRAINING_STEPS) if "labels" in cell else ("flow_map", DISTILLATION_STEPS)
    given, schedule = weights(digits), lasting(stage, steps) | {f"{stage}.train.log_every": 1}
    if stage == "mid_training":
        del given["mid_training.weights"]
    else:
        # Divergence is what some cells may show: the first number that is none stops them, and no large one.
        schedule |= {"flow_map.train.max_gradient_norm": 0.0, "flow_map.train.max_skipped_steps": 0}
        optimizer = "flow_map.train.optimizer"
        schedule |= {f"{optimizer}.learning_rate": RATE, f"{optimizer}.final_learning_rate": RATE / 10}
        schedule |= {"flow_map.train.ema_decay": EMA_DECAY}
    return given | {"stages": f"('{stage}',)"} | schedule | CELLS[cell]


def weights(digits: Path) -> dict[str, str]:
    """What the cells start from."""
    return from_digits(digits, "encoder", "decoder", "stats", "flow", "mid_training")


def _runs(workdir: Path, given: dict[str, Any]) -> list[Run]:
    """A run each seed, of which few-step samples are judged, and no more."""
    judged = {"sampling.num_steps": 0, "evaluation.linear_probe": False, "evaluation.reconstruction": False}
    return [run(workdir / f"seed_{seed}", CONFIG, judged | given | {"seed": seed}) for seed in SEEDS]
