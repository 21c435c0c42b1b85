"""The finding about MF-RAE: what it runs, and what it writes of the results, without running anything."""

import json

import pytest

from configs import digits
from rae_jax.experiment.configuration import trace
from tools.findings import mf_rae
from tools.findings.runs import Run


@pytest.fixture
def cells(monkeypatch, tmp_path):
    """The runs that the finding asks for, by their place below `tmp_path`; each seems to give what its seed says."""
    asked = {}

    def run(workdir, config, options):
        asked[str(workdir.relative_to(tmp_path))] = options
        seed = options.get("seed", 0)
        workdir.mkdir(parents=True)
        records = [{"stage": "flow_map", "step": i, "gradient_norm": 10.0**i} for i in (1, 2, 3)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        results = {
            name.format(end): value
            for end in ("1step", "2step")
            for name, value in (("label_agreement_{}", 0.9 + 0.02 * seed), ("fd_encoder_{}_1000", 0.25 + seed))
        }
        stopped = "flow_map: loss became non-finite" if "from_random" in str(workdir) else ""
        return Run(workdir, {} if stopped else results, stopped)

    monkeypatch.setattr(mf_rae, "run", run)
    monkeypatch.setattr(mf_rae, "from_digits", lambda digits, *names: {f"{name}.weights": "" for name in names})
    monkeypatch.setattr(mf_rae, "_draw_derivative_errors", lambda digits, path: 1.96)
    monkeypatch.setattr(mf_rae, "ROOT", tmp_path)
    monkeypatch.setattr(mf_rae, "SEEDS", (0, 1))
    section = mf_rae.reproduce(tmp_path, tmp_path / "digits")
    return asked, section, tmp_path / "docs" / "mf_rae_gradients.png"


def test_every_cell_is_a_change_of_the_digits_config_that_can_run(cells):
    asked, _, _ = cells
    assert {"distilled/seed_0", "jvp/seed_1", "eta_0.5/seed_0", "from_teacher/seed_1", "dt_0.0001/seed_0"} <= set(asked)
    for name in ("distilled/seed_0", "jvp/seed_1", "labels_released/seed_0"):
        config = digits.get_config("tiny")
        fields = {field: value for field, value in asked[name].items() if field != "stages"}
        config.update_from_flattened_dict(fields)
        trace(config, "mid_training" if "labels" in name else "flow_map")


def test_a_cell_shows_the_mean_and_each_seed_and_divergence_by_its_name(cells):
    _, section, picture = cells
    assert "| 0.5 | 91.0 % (90.0 %, 92.0 %) | 0.750 (0.250, 1.250) |" in section
    assert "| random | diverged | diverged | diverged | diverged | 10, 100, 1e+03; 10, 100, 1e+03 |" in section
    assert "power 1.96 of dt" in section
    assert picture.read_bytes().startswith(b"\x89PNG")
