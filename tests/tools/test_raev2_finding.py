"""The finding about RAEv2's changes: what it runs, and what it writes of the results, without running anything."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from rae_jax.experiment.configuration import trace
from tools.findings import raev2
from tools.findings.judged_digits import Judged
from tools.findings.raev2 import BASE, FEW_STEPS, SECONDS, SEEDS, VARIANTS, Bench, section
from tools.findings.runs import Run

STEP = {"Muon": 0.04}  # seconds; of all others 0.02


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The runs that all numbers ask for, by their place: config and fields."""
    runs = {}

    def run(workdir: Path, config: str, fields: dict) -> Run:
        runs[str(workdir.relative_to(tmp_path))] = config, fields
        workdir.mkdir(parents=True, exist_ok=True)
        step = STEP.get(workdir.parent.name, 0.02)
        records = [{"stage": "flow", "step": i, "step_seconds": 9 if i == 1 else step} for i in (1, 2, 3)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return Run(workdir, {}, "")

    bench = Bench.__new__(Bench)
    bench._workdir = tmp_path
    bench._given = {f"{part}.weights": f"given/{part}" for part in ("encoder", "decoder", "stats")}
    files = []
    bench._judge = types.SimpleNamespace(judged=files.extend)
    monkeypatch.setattr(raev2, "run", run)
    for variant in VARIANTS.values():
        for seconds in SECONDS:
            bench.numbers(variant, seconds)
    for variant in FEW_STEPS.values():
        bench.few_steps(variant)
    return runs, {str(file.relative_to(tmp_path)) for file in files}


def test_every_variant_is_trained_for_the_same_time_and_guidance_changes_the_samples_alone(asked):
    runs, files = asked
    steps = {place: fields.get("flow.train.steps") for place, (_, fields) in runs.items()}
    first, last = SECONDS[0], SECONDS[-1]
    assert steps[f"Muon/{last}_0"] == 25 * last and steps[f"x-prediction/{last}_2"] == 50 * last
    assert steps[f"x-prediction/{first}_0"] == 50 * first
    _, guided = runs[f"the_same,_guided_by_that/{last}_1"]
    assert guided["stages"] == "()" and guided["sampling.internal_guidance_scale"] == raev2.INTERNAL
    assert guided["flow.weights"].endswith(f"in-context_conditions,_early_output/{last}_1/flow/weights")
    assert "the_same,_guided_by_that/pace" not in runs and guided["seed"] == 1
    _, means = runs[f"means_of_three_blocks/{first}_0"]
    assert means["encoder.weights"] == "given/encoder" and means["encoder.model.layers"] == raev2.LAYERS
    assert all("means/" in means[f"{part}.weights"] for part in ("decoder", "stats"))
    assert runs["means"][1]["stages"] == "('decoder','stats')"
    _, few = runs["in-context_conditions,_early_output/few_steps_2"]
    assert few["stages"] == "('mid_training','flow_map')"
    assert few["flow.weights"].endswith(f"early_output/{last}_2/flow/weights")
    folders = [f"{name.replace(' ', '_')}/{s}" for name in VARIANTS for s in SECONDS]
    trained = {f"{folder}_{seed}/samples.npz" for folder in folders for seed in SEEDS}
    assert trained < files and len(files - trained) == 2 * 2 * len(SEEDS)  # of two flow maps, in one step and in two


def test_every_run_is_a_change_of_its_config_that_can_run(asked):
    runs, _ = asked
    for name in (name for name, variant in VARIANTS.items() if not variant.sampling):
        path, fields = runs[f"{name.replace(' ', '_')}/{SECONDS[0]}_0"]
        config = digits.get_config(path.partition(":")[2])
        config.update_from_flattened_dict({name: x for name, x in fields.items() if name != "stages"})
        trace(config, "flow")


def test_what_is_said_follows_from_the_numbers():
    def numbers(agreement: float, distance: float) -> Judged:
        return Judged(*(np.array([x - 0.01, x, x + 0.01]) for x in (agreement, distance, 2.2)))

    found = {name: [numbers(0.9, 0.2)] * len(SECONDS) for name in VARIANTS}
    found["Muon"] = [numbers(0.95, 0.2)] * len(SECONDS)
    found["x-prediction"] = [numbers(0.9, 0.3)] * len(SECONDS)
    first, second = FEW_STEPS
    few = {name: {"_1step": numbers(x, 0.2), "_2step": numbers(0.9, 0.2)} for name, x in ((first, 0.8), (second, 0.9))}
    text = section(found, dict.fromkeys(VARIANTS, 0.02) | {"Muon": 0.04}, few)
    same = "no different (within two standard errors)"
    assert f"| {BASE} | 50 | 90.0 ± 1.0 % | 0.200 ± 0.010 | 2.20 ± 0.01 |" in text and "| Muon | 25 | 95.0" in text
    assert f"- Muon: agreement better, distance {same}, diversity {same}." in text
    assert f"- X-prediction: agreement {same}, distance worse, diversity {same}." in text
    assert f"In one step RAEv2's generator is better in agreement than DiT^DH, and {same} in distance." in text
