import json

import numpy as np
import pytest
from pages import Page

from rae_jax.evaluation.report import thinned, write_environment, write_report
from rae_jax.sampling.samples import save_png


@pytest.fixture
def workdir(tmp_path):
    config = {"stages": ["decoder", "flow"], "decoder": {"objective": "<reconstruction>", "train": {"steps": 30}},
              "flow": {"objective": "velocity", "train": {"steps": 40}}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    records = [{"stage": "decoder", "step": step, "loss": 1 / step, "seconds_left": 9.0} for step in range(1, 31)]
    records += [{"stage": "flow", "step": step, "loss": float("nan")} for step in range(1, 3)]
    records += [{"stage": "flow", "step": step, "loss": 1000.0**-step, "seconds_left": 90.0} for step in range(3, 5)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"stage": "flow", "st')  # cut short by a kill
    for step in (9, 10, 30):
        save_png(tmp_path / "decoder" / f"step_{step}.png", np.full((4, 4, 3), step, np.uint8))
    (tmp_path / "decoder" / "finished.json").write_text(json.dumps({"steps": 30, "seconds": 75}))
    write_environment(tmp_path)
    return tmp_path


def test_the_report_shows_every_stage_and_names_nothing_outside_itself(workdir):
    text = write_report(workdir).read_text()
    page = Page(text)
    assert "1 of 2 stages finished" in page.text
    assert "finished, 30 steps in 1 min 15 s" in page.text and "step 4 of 40, 1 min 30 s left" in page.text
    assert "<reconstruction>" in page.text
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["step 30", "step 10", "step 9"]
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "://" not in text and "url(" not in text and "@import" not in text


def test_a_curve_holds_its_finite_points_and_is_logarithmic_where_they_span_decades(workdir):
    page = Page(write_report(workdir).read_text())
    decoder, flow = (json.loads(a["data-points"]) for tag, a in page.tags if tag == "svg")
    assert [(step, float(value)) for _, _, step, value in decoder] == [
        (step, float(f"{1 / step:.5g}")) for step in range(1, 31)
    ]
    assert [step for _, _, step, _ in flow] == [3, 4]
    assert page.text.count("logarithmic") == 1  # of the flow alone
    assert decoder[0][1] < decoder[-1][1], "the loss falls, so the line does, and y counts downwards"


def test_a_long_curve_is_thinned_without_losing_a_spike():
    points = [(step, 0.0) for step in range(100_000)]
    points[77_777] = (77_777, 5.0)
    kept = thinned(points, 400)
    assert len(kept) <= 402 and (77_777, 5.0) in kept and kept == sorted(kept)


def test_an_empty_working_directory_still_gives_a_report(tmp_path):
    assert "0 of 0 stages finished" in Page(write_report(tmp_path).read_text()).text
