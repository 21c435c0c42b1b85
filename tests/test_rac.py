"""The pipeline with a rectified coder, run as a user runs it."""

import json

import numpy as np
import pytest
import runs

CONFIG = "configs/digits_rac.py:tiny"
STAGES = ("encoder", "teacher", "coder", "flow")
SHORT = [f"--config.{stage}.train.steps=2" for stage in STAGES]


@pytest.mark.slow
def test_samples_and_reconstructions_are_the_coders_and_the_teachers_when_asked(tmp_path):
    status, output = runs.run(tmp_path / "run", *SHORT, config=CONFIG)
    assert status == 0, output
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert {"reconstruction_psnr", "label_agreement", "frechet_samples"} <= results.keys()
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        coders = samples["arr_0"]
        assert coders.shape == (20, 8, 8, 3) and coders.dtype == np.uint8
    with np.load(tmp_path / "run" / "reconstructions.npz") as pairs:
        assert pairs["originals"].shape == pairs["reconstructions"].shape == (359, 8, 8, 3)

    # The number of decoding steps belongs to sampling: the same working directory, other images.
    status, output = runs.run(
        tmp_path / "run", *SHORT, "--mode=sample", "--config.sampling.coder_steps=4", config=CONFIG
    )
    assert status == 0, output
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert not np.array_equal(samples["arr_0"], coders)


def test_a_coder_without_its_teacher_says_which_stage_makes_one(tmp_path):
    status, output = runs.run(tmp_path / "run", "--config.stages=('coder',)", config=CONFIG)
    assert status != 0 and "Traceback" not in output
    assert "stage 'coder' needs trained weights of 'teacher': put 'teacher' before it in stages" in output
