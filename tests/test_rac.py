"""The pipeline with a rectified coder, run as a user runs it."""

import json

import numpy as np
import pytest
import runs

from configs import rac_256
from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.objectives.catalogue import objective_of
from rae_jax.training.durations import resolve

CONFIG = "configs/digits_rac.py:tiny"
STAGES = ("encoder", "teacher", "coder", "flow")
SHORT = [f"--config.{stage}.train.steps=2" for stage in STAGES]


@pytest.mark.slow
def test_samples_and_reconstructions_are_the_coders_and_the_teachers_when_asked(tmp_path):
    status, output = runs.run(tmp_path / "run", *SHORT, config=CONFIG)
    assert status == 0, output
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert {"psnr", "label_agreement", "fd_encoder_20"} <= results.keys()
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        coders = samples["arr_0"]
        assert coders.shape == (20, 32, 32, 3) and coders.dtype == np.uint8
    with np.load(tmp_path / "run" / "reconstructions.npz") as pairs:
        assert pairs["originals"].shape == pairs["reconstructions"].shape == (359, 32, 32, 3)

    # The number of decoding steps belongs to sampling: the same working directory, other images.
    status, output = runs.run(
        tmp_path / "run", *SHORT, "--mode=sample", "--config.sampling.coder_steps=4", config=CONFIG
    )
    assert status == 0, output
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert not np.array_equal(samples["arr_0"], coders)


@pytest.mark.slow
def test_teacher_and_coder_are_trained_together_and_what_follows_finds_both(tmp_path):
    stages = ("encoder", "joint_coder", "flow")
    short = [f"--config.{stage}.train.steps=2" for stage in stages]
    status, output = runs.run(tmp_path / "run", *short, config="configs/digits_rac.py:tiny-joint")
    assert status == 0, output
    for name in ("teacher", "coder"):
        assert (tmp_path / "run" / "joint_coder" / "weights" / name / "weights.safetensors").is_file()
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3)


def test_a_coder_without_its_teacher_says_which_stage_makes_one(tmp_path):
    status, output = runs.run(tmp_path / "run", "--config.stages=('coder',)", config=CONFIG)
    assert status != 0 and "Traceback" not in output
    assert "stage 'coder' needs trained weights of 'teacher': put 'teacher' before it in stages" in output


@pytest.mark.parametrize(
    "variant", ["coder_0.1x", "coder_f16_32", "joint_0.1x", "state_1x", "sit_B_0.1x", "tuning_B", "scratch_XL"]
)
def test_only_a_generator_from_scratch_needs_a_coder_that_encodes(variant):
    config = rac_256.get_config(variant)
    assert config.stages
    for stage in config.stages:
        objective = objective_of(resolve(config, IMAGENET_TRAIN_IMAGES), stage)
        assert ("coder" in objective.frozen) == (variant == "scratch_XL")


def test_a_variant_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"no variant 'sit_S'; nearest: sit_L; there are coder_.*scratch_XL_1x"):
        rac_256.get_config("sit_S")
