"""The finding about RAE's generator: what it runs, and what it writes of the results, without running anything."""

import types
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from rae_jax.components.generators import time_shift
from rae_jax.experiment.configuration import trace
from tools.findings import rae_generation
from tools.findings.judged_digits import Judged
from tools.findings.rae_generation import (
    BASE,
    HEADED,
    NARROW,
    PLAIN,
    SEEDS,
    SHIFTS,
    STEPS,
    TAUS,
    VARIANTS,
    Bench,
    million_operations,
    section,
)
from tools.findings.runs import Run


def numbers(agreement: float, distance: float) -> Judged:
    return Judged(*(np.array([x - 0.01, x, x + 0.01]) for x in (agreement, distance, 2.2)))


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The runs that all numbers ask for, by their place: config and fields."""
    runs = {}

    def run(workdir: Path, config: str, fields: dict) -> Run:
        runs[workdir.name] = config, fields
        return Run(workdir, {"psnr": 30.0}, "")

    monkeypatch.setattr(rae_generation, "run", run)
    bench = Bench.__new__(Bench)
    bench._workdir = tmp_path
    bench._given = {f"{part}.weights": f"given/{part}" for part in ("encoder", "decoder", "stats")}
    bench._judge = types.SimpleNamespace(judged=lambda files: [file.parent.name for file in files])
    judged = {name: bench.numbers(name) for name in VARIANTS}
    return runs, judged, {tau: bench.decoded(tau) for tau in TAUS}


def place(name: str, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def test_each_generator_is_trained_as_long_on_the_latents_that_it_names(asked):
    runs, judged, _ = asked
    assert len(runs) == len(SEEDS) * (len(VARIANTS) + len(TAUS)) + 2
    for name, variant in VARIANTS.items():
        assert judged[name] == [place(name, seed) for seed in SEEDS]
        for seed in SEEDS:
            config, fields = runs[place(name, seed)]
            steps = 4700 if name.endswith("whole") else STEPS
            assert fields["flow.train.steps"] == fields["flow.train.optimizer.decay_end_step"] == steps
            assert config == variant.config and fields["seed"] == seed and fields["stages"] == "('flow',)"
            own = f"encoder_{variant.channels}" if variant.channels != 64 else "given"
            assert all(own in fields[f"{part}.weights"] for part in ("encoder", "decoder", "stats"))
    assert runs["encoder_32"][1]["stages"] == "('encoder', 'decoder', 'stats')"


def test_decoders_differ_in_noise_and_decode_the_same_flows(asked):
    runs, _, decoded = asked
    for tau in TAUS:
        assert decoded[tau][1] == [f"tau_{tau:g}_{seed}" for seed in SEEDS]
        for seed in SEEDS:
            _, fields = runs[f"tau_{tau:g}_{seed}"]
            assert fields["flow.weights"].endswith(f"{place(BASE, seed)}/flow/weights")
            assert fields["decoder.noise_tau"] == tau and not fields["decoder.weights"]
            assert fields["stages"] == "('decoder',)" and fields["evaluation.reconstruction"]


def test_every_run_is_a_change_of_its_config_that_can_run(asked):
    runs, _, _ = asked
    for name, variant in VARIANTS.items():
        path, fields = runs[place(name, 0)]
        config = digits.get_config(path.partition(":")[2])
        config.update_from_flattened_dict({key: value for key, value in fields.items() if key != "stages"})
        assert time_shift(config) == SHIFTS.get(name.removesuffix(", whole"), 1.0)
        if variant.channels == 96:
            trace(config, "flow")


def test_the_narrow_networks_cost_the_same_on_every_encoder():
    for of_width in ("", ", 32 channels", ", 96 channels"):
        narrow, headed = (million_operations(VARIANTS[f"{name}{of_width}"]) for name in (NARROW, HEADED))
        assert headed == pytest.approx(narrow, rel=0.05)


def test_what_is_said_follows_from_the_numbers(monkeypatch):
    monkeypatch.setattr(rae_generation, "million_operations", lambda variant: 2.0)
    found = {name: numbers(0.9, 0.2) for name in VARIANTS}
    found[PLAIN], found[f"{HEADED}, 96 channels"] = numbers(0.8, 0.3), numbers(0.97, 0.2)
    found[f"{PLAIN}, whole"] = numbers(0.9, 0.4)
    decoded = {tau: (np.array([28.0, 28.1, 28.2]) - 4 * tau, numbers(0.9, 0.2 - 0.1 * tau)) for tau in TAUS}
    written = section(found, decoded)
    same = "no different (within two standard errors)"
    assert f"- {PLAIN}, beside {BASE}: agreement worse, distance worse, diversity {same}." in written
    assert f"- {HEADED}, beside {NARROW} (96 channels): agreement better, distance {same}, " in written
    assert f"| 96 | — | {HEADED} | 97.0 ± 1.0 % |" in written and f"| 64 | 0.25 | {NARROW} |" in written
    assert "- 0, beside 0.5: reconstruction better, agreement no different" in written
    assert "- 1, beside 0.5: reconstruction worse" in written and "distance better" in written
    assert "| 1 | 90.0 ± 1.0 % | 0.200 ± 0.010 |" in written and "that of the config is 1, none" in written
    assert f"- {PLAIN}, beside {BASE}: agreement {same}, distance worse, diversity {same}." in written
    assert f"| {BASE}, shift 2 | 90.0 ± 1.0 % |" in written
