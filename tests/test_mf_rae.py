"""The pipeline with flow maps, run as a user runs it."""

import json

import numpy as np
import pytest
import runs

CONFIG = "configs/digits_mf_rae.py:tiny"
SHORT = [f"--config.{stage}.train.steps=2" for stage in ("encoder", "decoder", "flow", "mid_training", "flow_map")]


@pytest.mark.slow
def test_one_and_two_step_samples_lie_beside_the_teachers_and_are_judged_likewise(tmp_path):
    status, output = runs.run(tmp_path / "run", *SHORT, "--config.evaluation.linear_probe=False", config=CONFIG)
    assert status == 0, output
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    for end in ("", "_1step", "_2step"):
        with np.load(tmp_path / "run" / f"samples{end}.npz") as samples:
            assert samples["arr_0"].shape == (20, 32, 32, 3) and samples["arr_0"].dtype == np.uint8
            assert np.bincount(samples["labels"]).tolist() == [2] * 10
        assert (tmp_path / "run" / f"samples{end}.png").exists()
        assert {f"label_agreement{end}", f"frechet_samples{end}"} <= results.keys()
    assert "mean_squared_error" in (tmp_path / "run" / "metrics.jsonl").read_text()

    # More jumps from the same weights, and nothing of the teacher.
    options = [
        "--mode=sample",
        "--config.sampling.num_steps=0",
        "--config.sampling.flow_map_times=((1.0,0.7,0.3,0.0),)",
    ]
    (tmp_path / "run" / "samples.npz").unlink()
    status, output = runs.run(
        tmp_path / "run", *SHORT, "--config.evaluation.linear_probe=False", *options, config=CONFIG
    )
    assert status == 0, output
    assert (tmp_path / "run" / "samples_3step.npz").exists() and not (tmp_path / "run" / "samples.npz").exists()


def test_a_flow_map_without_its_teacher_says_which_stage_makes_one(tmp_path):
    stages = "--config.stages=('encoder', 'decoder', 'stats', 'flow_map')"
    for initial, needed in (("", "flow"), ("flow", "flow"), ("mid_training", "flow")):
        options = [stages, f"--config.flow_map.initial={initial}"]
        status, output = runs.run(tmp_path / "run", *options, config=CONFIG)
        assert status != 0 and "Traceback" not in output
        assert f"stage 'flow_map' needs trained weights of {needed!r}: put {needed!r} before it in stages" in output
