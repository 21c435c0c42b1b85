"""The finding about MF-RAE: what it runs, and what it writes of the results, without running anything."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits
from rae_jax.components.component import dtype_of
from rae_jax.experiment.configuration import trace
from rae_jax.interop.weights import save_weights
from rae_jax.objectives.velocity import encoding_parts
from rae_jax.training import sharding
from tools.findings import derivative_errors, mf_rae, mf_rae_cells, mf_rae_section
from tools.findings.derivative_errors import BFLOAT16, FLOAT32, TF32, Errors
from tools.findings.mf_rae_cells import CELLS, DEFAULT_DT
from tools.findings.runs import Run

ENDS = ("1step", "2step")


def results(agreement: float, distance: float, diversity: float) -> dict[str, float]:
    """Of one run."""
    return {
        name.format(end): value
        for end in ENDS
        for name, value in (
            ("label_agreement_{}", agreement), ("fd_encoder_{}_1000", distance), ("class_diversity_{}_1000", diversity),
        )
    }  # fmt: skip


def errors() -> Errors:
    """Of a central difference that truncation and rounding spoil as theory has it."""
    dts = mf_rae.PLOTTED
    rounding = {FLOAT32: 1e-8, TF32: 3e-4, BFLOAT16: 2e-3}
    difference = {precision: 40 * dts**2 + error / dts for precision, error in rounding.items()}
    return Errors(dts, difference, {FLOAT32: 0.0, TF32: 0.001, BFLOAT16: 0.5})


def untrained(digits: Path, *names: str) -> dict[str, str]:
    """In place of `from_digits`: no weights."""
    return {f"{name}.weights": "" for name in names}


@pytest.fixture(scope="module")
def finding(tmp_path_factory):
    """What each run was asked, by its place below `tmp_path`, and the section of made-up results."""
    asked, tmp_path = {}, tmp_path_factory.mktemp("finding")

    def run(workdir, config, options):
        name = str(workdir.relative_to(tmp_path))
        asked[name] = options
        workdir.mkdir(parents=True)
        records = [{"stage": "flow_map", "step": i, "gradient_norm": 10.0**i} for i in (1, 2, 3)]
        records += [{"stage": "flow_map", "step": 4, "gradient_norm": 2000.0}] * ("from_teacher/seed_1" in name)
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        seed = options["seed"]
        far = 5.0 if "bfloat16_dt_0.0001" in name else 0.0
        stopped = "flow_map: loss became non-finite" if "from_random" in name or name == "jvp/seed_2" else ""
        found = results(0.9 + 0.02 * seed, 0.25 + seed + far, 1.5 + 0.1 * seed)
        return Run(workdir, {} if stopped else found, stopped)

    folder = tmp_path / "digits"
    folder.mkdir()
    of_teacher = {
        "label_agreement": 0.995, "fd_encoder_1000": 0.0125, "class_diversity_1000": 1.875,
        "class_diversity_train_1438": 1.9,
    }  # fmt: skip
    sampled = {"samples": {"sampling": {"num_steps": 50, "method": "euler"}}}
    (folder / "summary.json").write_text(json.dumps({"results": of_teacher, "samples": sampled}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mf_rae_cells, "run", run)
        patch.setattr(mf_rae_cells, "from_digits", untrained)
        patch.setattr(mf_rae, "derivative_errors", lambda config, digits, dts: errors())
        patch.setattr(mf_rae, "ROOT", tmp_path)
        return asked, mf_rae.reproduce(tmp_path, folder), tmp_path / "docs"


def test_every_cell_is_run_from_every_seed(finding):
    asked, _, _ = finding
    assert set(asked) == {f"{name}/seed_{seed}" for name in (*CELLS, "mid_training") for seed in (0, 1, 2)}
    assert len(asked) == 57


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_a_change_of_the_digits_config_that_can_run(monkeypatch, tmp_path, name):
    monkeypatch.setattr(mf_rae_cells, "from_digits", untrained)
    config = digits.get_config("tiny")
    fields = {field: value for field, value in mf_rae_cells.fields(name, tmp_path).items() if field != "stages"}
    config.update_from_flattened_dict(fields)
    stage = "mid_training" if "labels" in name else "flow_map"
    assert config[stage].train.optimizer.decay_end_step == config[stage].train.steps in (100, 400)
    trace(config, stage)


def test_in_bfloat16_the_products_of_teacher_and_flow_map_are():
    """And those of the encoder, by which the samples are judged too, are not."""
    config = digits.get_config("tiny")
    config.update_from_flattened_dict(mf_rae_cells.IN_BFLOAT16)
    assert [dtype_of(config, name) for name in ("flow", "flow_map")] == ["bfloat16", "bfloat16"]
    assert [dtype_of(config, name) for name in ("encoder", "decoder")] == ["float32", "float32"]


def test_the_rows_name_what_the_config_has():
    config = digits.get_config()
    assert config.flow_map.dt == DEFAULT_DT and config.flow_map.eta == 1 and config.flow_map.unequal_share == 0.75
    assert config.flow_map.derivative == "finite_difference" and config.flow_map.initial == "mid_training"
    assert derivative_errors.time_shift(config) == 1
    config.update_from_flattened_dict(mf_rae_cells.SHIFTED)
    assert derivative_errors.time_shift(config) == 2
    shown = [*mf_rae_section.FLOAT32_ROWS.values(), *mf_rae_section.BFLOAT16_ROWS.values()]
    shown += [*mf_rae_section.STARTS.values(), *mf_rae_section.VELOCITIES.values(), *mf_rae_section.LABELS.values()]
    assert set(shown) == set(CELLS)


def test_the_tables_have_mean_and_deviation_and_divergence_by_its_name(finding):
    _, section, docs = finding
    cell = "92.0 ± 2.0 % | 1.250 ± 1.000 | 1.60 ± 0.10"
    assert "| the teacher | 50 (euler) | 99.5 % | 0.013 | 1.88 |" in section
    assert f"| mid-training alone | 2 | {cell} |" in section
    assert "| digits that are trained on |  |  |  | 1.90 |" in section
    assert f"| 0.5, 0.75 | {cell} | {cell} |" in section and f"| 0 (MFT), 0.25 | {cell} | {cell} |" in section
    assert f"| mid-training | {cell} | {cell} | 10, 100, 1e+03 | 0 of 3 |" in section
    assert f"| the teacher's weights | {cell} | {cell} | 10, 250, 1.33e+03 | 1 of 3 |" in section
    assert f"| random weights |{' diverged |' * 6} 10, 100, 1e+03 | 0 of 3 |" in section
    assert "| float32, `jax.jvp` | 91.0 ± 1.4 % (1 of 3 diverged) |" in section
    assert "0.75 in this config, as in all other tables,\n0.25 in the paper and by default" in section
    for name in ("mf_rae_gradients.png", "finite_difference.png"):
        assert (docs / name).read_bytes().startswith(b"\x89PNG")


def test_the_readings_follow_from_the_numbers(finding):
    _, section, _ = finding
    same = "no different (within two standard errors)"
    assert f"- float32, dt = 0.0001: distance 1.250 ± 1.000 against 1.250 ± 1.000, {same};" in section
    assert "- bfloat16, dt = 0.0001: distance 6.250 ± 1.000 against 1.250 ± 1.000, worse; agreement" in section
    assert "- From random weights, beside mid-training, one step: distance diverged against" in section
    assert "worse (3 of 3 runs diverged, against 0 of 3)" in section
    assert "The highest norm of any of these runs is 2e+03;" in section
    assert f"- MFD beside MFT, share 0.25, two steps: distance 1.250 ± 1.000 against 1.250 ± 1.000, {same};" in section
    assert "- TF32 (emulated): 3 at dt = 0.0001, more than the derivative itself, and 0.061 at 0.005;" in section
    assert "- float32: 0.0001 at dt = 0.0001, less than the derivative itself" in section
    assert "- TF32 (emulated): `jax.jvp` is more exact than a difference at any dt (0.001)." in section
    assert "- bfloat16: `jax.jvp` is no more exact than a difference at any dt (0.5)." in section
    assert "with the power 2.00 of dt (a central difference gives 2)" in section
    assert "with the power -1.00 (rounding over 2 dt gives -1)" in section


def test_a_finished_run_without_the_teachers_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not finished"):
        mf_rae.teacher(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"results": {"label_agreement": 1.0}, "samples": {}}))
    with pytest.raises(ValueError, match="has no fd_encoder_1000 or class_diversity_1000: make the run anew"):
        mf_rae.teacher(tmp_path)


def test_the_errors_are_those_of_each_precision(monkeypatch, tmp_path):
    """Of random networks: float32 is the nearest to the reference and bfloat16 the furthest, most so at a small dt."""
    config = digits.get_config("tiny")
    parts = encoding_parts(config)
    parts["flow"] = derivative_errors.velocity_network(config)
    parts["flow_map"] = derivative_errors.flow_map_network(config)
    for i, (name, part) in enumerate(parts.items()):
        params = sharding.unbox(part.init(jax.random.key(i)))
        if name == "flow_map":  # whose last layer is zero at first
            params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape), params)
        save_weights(tmp_path / name / "weights", jax.device_get(params), {"component": name})
    monkeypatch.setattr(derivative_errors, "POINTS", 8)
    found = derivative_errors.derivative_errors(config, tmp_path, np.array([1e-4, 5e-3]))
    small = [found.at(precision, 1e-4) for precision in (FLOAT32, TF32, BFLOAT16)]
    assert small[0] < 0.1 * small[1] and small[1] < small[2]
    assert all(found.at(precision, 5e-3) < 0.2 * found.at(precision, 1e-4) for precision in (TF32, BFLOAT16))
    assert found.jvp[FLOAT32] == 0 < found.jvp[TF32] < found.jvp[BFLOAT16] < small[2]
