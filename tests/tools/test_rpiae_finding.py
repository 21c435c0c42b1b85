"""The finding about RPiAE: what it runs, and what it writes of the results, without running anything."""

from pathlib import Path

import numpy as np
import pytest

from configs import digits_rpiae
from rae_jax.experiment.configuration import trace
from tools.findings import rpiae
from tools.findings.rpiae import (
    AT_ONCE,
    FREE,
    FROZEN,
    JOINT,
    LOSSES,
    PIVOT,
    SEEDS,
    STAGES,
    UNSPECIALISED,
    VARIANTS,
    WEIGHTS,
    WIDTHS,
    Bench,
    Numbers,
)
from tools.findings.runs import Run

RESULTS = {"psnr": 30.0, "linear_probe_accuracy": 0.9}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What each variant has measured, and the runs that all of them ask for, by their place: config and fields."""
    runs = {}

    def run(workdir: Path, config: str, fields: dict) -> Run:
        runs[workdir.name] = config, fields
        generates = "flow" in fields["stages"] or fields["stages"] == "()"
        return Run(workdir, RESULTS | ({"label_agreement": 0.8} if generates else {}), "")

    monkeypatch.setattr(rpiae, "run", run)
    monkeypatch.setattr(Bench, "_distance", lambda self, generated: 0.2)
    bench = Bench.__new__(Bench)
    bench._workdir, bench._given = tmp_path, {"encoder.weights": "given/encoder"}
    return {name: bench.numbers(name) for name in VARIANTS}, runs


def test_every_tokenizer_begins_as_one_encoder_and_its_generator_has_the_same_budget(asked):
    found, runs = asked
    assert len(runs) == len(SEEDS) * len(VARIANTS) and len(VARIANTS) == 14
    for name, variant in VARIANTS.items():
        for seed in SEEDS:
            _, fields = runs[f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"]
            assert fields["seed"] == seed and fields["flow.train.steps"] == 1600
            after = name in (*WIDTHS.values(), UNSPECIALISED)
            first = f"unfrozen_pivot_{seed}/pivot/weights/encoder" if after else "given/encoder"
            assert fields["encoder.weights"].endswith(first)
            assert fields["pivot.train.steps"] == (AT_ONCE if name == JOINT else 600)
            assert (fields.get("autoencoder") == "rae") == variant.tokens
    _, without = runs[f"I_II_{SEEDS[1]}"]
    assert without["stages"] == "()" and without["decoder.weights"].endswith("unfrozen_pivot_1/pivot/weights/decoder")
    assert without["bridge_decoder.weights"].endswith("16_channels_1/bridge/weights/bridge_decoder")
    assert without["flow.weights"].endswith("16_channels_1/flow/weights") and AT_ONCE == 600 + 600 + 400
    assert found[STAGES].agreement.tolist() == [0.8] * 3 and not len(found[WEIGHTS[0.5]].distance)


def test_every_run_is_a_change_of_its_config_that_can_run(asked):
    _, runs = asked
    for name, variant in VARIANTS.items():
        _, fields = runs[f"{name.replace(', ', '_').replace(' ', '_')}_0"]
        config = digits_rpiae.get_config("tiny")
        changes = {field: value for field, value in fields.items() if field not in ("stages", "pivot.trains")}
        config.update_from_flattened_dict(changes)
        if "pivot.trains" in fields:
            config.pivot.trains = tuple(fields["pivot.trains"].strip("()").replace("'", "").split(","))
        for stage in variant.stages[:2]:  # the others are those of the config
            trace(config, stage)


def test_a_run_that_diverged_has_no_row(monkeypatch, tmp_path):
    monkeypatch.setattr(rpiae, "run", lambda workdir, config, fields: Run(workdir, {}, "pivot: loss became non-finite"))
    bench = Bench.__new__(Bench)
    bench._workdir, bench._given = tmp_path, {}
    with pytest.raises(ValueError, match="frozen_0 diverged: pivot: loss became non-finite"):
        bench.numbers(FROZEN)


def test_what_is_said_follows_from_the_numbers():
    def numbers(psnr: float, probe: float, head: float, agreement: float, distance: float) -> Numbers:
        each = (psnr, probe, head, agreement, distance)
        return Numbers(*(np.array([x - 0.01, x, x + 0.01]) for x in each))

    found = {name: numbers(30.0, 0.9, 0.8, 0.7, 0.5) for name in VARIANTS}
    found[PIVOT] = numbers(31.0, 0.9, 0.8, 0.8, 0.4)
    found[FREE] = numbers(32.0, 0.7, 0.1, 0.6, 0.4)
    nothing = np.array([])
    found[FROZEN] = Numbers(*(np.array([x - 0.01, x, x + 0.01]) for x in (30.0, 0.9)), nothing, *[np.full(3, 0.7)] * 2)
    written = rpiae.section(found)
    same = "no different (within two standard errors)"
    assert f"| {FROZEN} | 30.00 ± 0.01 | 90.0 ± 1.0 % | — | 70.0 ± 0.0 % | 0.700 ± 0.000 |" in written
    assert "| weight 0.5 | 30.00 ± 0.01 | 90.0 ± 1.0 % | 80.0 ± 1.0 % |\n" in written
    line = f"- Unfrozen, pivot beside frozen: reconstruction better, probe {same}"
    assert f"{line}, agreement better, distance better." in written
    line = "- Unfrozen, no pivot beside unfrozen, pivot: reconstruction better, probe worse, attached head worse"
    assert f"{line}, agreement worse, distance {same}." in written
    assert "- Weight 1 beside unfrozen, no pivot: reconstruction worse, probe better, attached head better." in written
    assert "| I | 31.00 ± 0.01 |" in written and "| I, II, III | 30.00 ± 0.01 |" in written
    assert f"- 64 channels beside 16 channels: reconstruction {same}" in written
    assert all(f"- {name[0].upper()}{name[1:]} beside" in written for name in (*LOSSES.values(), JOINT))
