"""The command line, run as a user runs it."""

import json
import time

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from rae_jax import main
from rae_jax.experiment.workdir import locked
from rae_jax.training import stopping

WITHOUT_JUDGES = ("--config.evaluation.judge=False", "--config.evaluation.linear_probe=False")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working directory in which the tiny pipeline ran from nothing to the end, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    status, output = runs.run(workdir)
    assert status == 0, output
    return workdir, output


def test_the_pipeline_leaves_what_the_readme_promises(finished):
    workdir, output = finished
    for stage in ("encoder", "decoder", "flow", "mid_training", "flow_map"):
        assert (workdir / stage / "weights" / "weights.safetensors").exists()
        assert list((workdir / stage).glob("step_*.png"))
        assert sorted(runs.metrics(workdir, stage)) == list(range(1, 21))
    assert list((workdir / "tensorboard").iterdir())
    for name in ("samples", "samples_1step", "samples_2step", "reconstructions"):
        assert (workdir / f"{name}.png").exists()
    report = (workdir / "report.html").read_text()
    assert "6 of 6 stages finished" in report and "label agreement" in report
    assert report.count("data:image/png;base64,") == 9  # a picture of five stages, three of samples, reconstructions
    summary = json.loads((workdir / "summary.json").read_text())
    results = summary["results"]
    assert summary["samples"].keys() == {"samples", "samples_1step", "samples_2step"}
    assert summary["samples"]["samples"]["sampling"]["num_steps"] == 4
    assert results.keys() >= {
        "psnr", "ssim", "rfd_encoder_359", "linear_probe_accuracy", "fd_encoder_20", "fd_encoder_train_1438",
        "judge_accuracy", "label_agreement", "fd_encoder_1step_20", "label_agreement_1step", "fd_encoder_2step_20",
        "label_agreement_2step", "class_diversity_20", "class_diversity_1step_20", "class_diversity_2step_20",
        "class_diversity_train_1438",
    }  # fmt: skip
    assert "label agreement" in output and "images/s" in output


@pytest.mark.parametrize("name", ["samples", "samples_1step", "samples_2step"])
def test_samples_are_bytes_with_equal_numbers_of_each_label_in_an_order_of_the_seed(name, finished):
    workdir, _ = finished
    with np.load(workdir / f"{name}.npz") as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3) and samples["arr_0"].dtype == np.uint8
        assert np.bincount(samples["labels"]).tolist() == [2] * 10
        np.testing.assert_array_equal(samples["labels"], np.random.RandomState(0).permutation(np.arange(20) % 10))
    assert json.loads((workdir / f"{name}.json").read_text())["sampling"]["labels"] == "permuted"


def test_a_finished_stage_is_not_run_again_and_samples_of_the_same_place_and_class_are_the_same(finished):
    workdir, _ = finished
    recorded = (workdir / "metrics.jsonl").read_text()
    with np.load(workdir / "samples.npz") as samples:
        before, labels_before = samples["arr_0"], samples["labels"]
    more = ("--num_samples=30", "--config.sampling.flow_map_times=()", *WITHOUT_JUDGES)
    status, output = runs.run(workdir, *more)
    assert status == 0, output
    assert output.count("already finished") == 6
    assert (workdir / "metrics.jsonl").read_text() == recorded
    with np.load(workdir / "samples.npz") as samples:
        after, labels = samples["arr_0"], samples["labels"]
    assert len(after) == 30 and np.bincount(labels).tolist() == [3] * 10
    same = np.flatnonzero(labels[:20] == labels_before)
    assert len(same)
    np.testing.assert_array_equal(after[same], before[same])  # of one class, drawn from the same noise


@pytest.mark.slow
def test_sampling_continues_after_a_kill_and_equals_sampling_in_one_go(finished):
    workdir, _ = finished
    options = ("--mode=sample", "--num_samples=24", "--config.sampling.batch_size=2", "--config.sampling.png=True",
               "--config.sampling.flow_map_times=()")  # fmt: skip
    process = runs.start(workdir, *options)
    progress = workdir / "samples.partial.json"
    while not progress.exists() or json.loads(progress.read_text())["done"] < 4:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    done = json.loads(progress.read_text())["done"]
    assert 4 <= done < 24
    other_batches = "--config.sampling.batch_size=8"
    status, output = runs.run(workdir, *options, other_batches)
    assert status == 0, output
    assert f"continuing after {done} samples" in output and not progress.exists()
    with np.load(workdir / "samples.npz") as samples:
        cut, labels = samples["arr_0"], samples["labels"]
    status, output = runs.run(workdir, *options, other_batches)
    assert "continuing" not in output
    with np.load(workdir / "samples.npz") as samples:
        assert np.abs(samples["arr_0"].astype(int) - cut).max() <= 1  # a last digit may round otherwise
        assert samples["arr_0"].shape == (24, 32, 32, 3)
    files = sorted((workdir / "samples").glob("*.png"))
    assert [file.name for file in files] == [f"{i:06d}_{label}.png" for i, label in enumerate(labels)]
    np.testing.assert_array_equal(np.stack([Image.open(file) for file in files]), samples_of(workdir))


def samples_of(workdir):
    with np.load(workdir / "samples.npz") as samples:
        return samples["arr_0"]


@pytest.mark.slow
def test_a_seed_grid_has_a_row_a_class_and_refuses_others(finished):
    workdir, _ = finished
    status, output = runs.run(workdir, "--mode=sample", "--seed_grid=3,7")
    assert status == 0, output
    width, height = Image.open(workdir / "seed_grid.png").size
    assert width > 8 * 64 and 2 * 64 < height < 3 * 64
    status, output = runs.run(workdir, "--mode=sample", "--seed_grid=3,10")
    assert status != 0 and "Traceback" not in output
    assert "there are no classes 10, but 0 to 9" in output


def test_a_flow_map_is_sampled_in_other_jumps_without_its_teacher(finished):
    workdir, _ = finished
    before = {name: (workdir / f"{name}.npz").stat().st_mtime_ns for name in ("samples", "samples_1step")}
    options = ("--config.sampling.num_steps=0", "--config.sampling.flow_map_times=((1.0,0.7,0.3,0.0),)")
    status, output = runs.run(workdir, "--mode=sample", *options)
    assert status == 0, output
    with np.load(workdir / "samples_3step.npz") as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3)
    assert before == {name: (workdir / f"{name}.npz").stat().st_mtime_ns for name in before}


def test_help_explains_itself():
    _, shown = runs.run_module("rae_jax.main", "--help")
    for text in ("--config=configs/digits.py", "--workdir", "--mode", "--num_samples", "the same command continues"):
        assert text in shown


BAD = {
    "--config.flow.train.stepz=5": ("--config.flow.train.stepz", "steps"),
    "--config.flow.trian.steps=5": ("--config.flow.trian.steps", "train"),
    "--config.flow.train.steps=many": ("--config.flow.train.steps", "many"),
    "--config.flow.train.epochs=-2": ("flow.train.epochs=-2.0", "0 or more"),
    "--config.data.source=folder": ("config.data.path", "<class>"),
    "--config.encoder.input_size=30": ("encoder.input_size=30", "encoder.model.patch_size=8", "use 24 or 32"),
}


@pytest.mark.parametrize("option", BAD)
def test_a_mistake_is_one_line_at_start_and_leaves_nothing_behind(option, tmp_path):
    status, output = runs.run(tmp_path / "run", option, "--config.stages=('encoder',)")
    assert status != 0
    assert "Traceback" not in output, output
    for text in BAD[option]:
        assert text in output, output
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices_names_the_nearest_that_do(tmp_path):
    status, output = runs.run(tmp_path / "run", "--config.flow.train.batch_size=100", devices=8)
    assert status != 0
    assert "configs/digits.py" in output
    assert "flow.train.batch_size=100 is not divisible by the 8 data-parallel devices; use 96 or 104" in output


def test_a_working_directory_of_another_config_is_left_alone(finished):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    status, output = runs.run(workdir, "--config.flow.train.optimizer.learning_rate=0.5")
    assert status != 0
    assert (
        "was made by another config" in output and "flow.train.optimizer.learning_rate: 0.001 there, 0.5 now" in output
    )
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_second_run_in_a_working_directory_is_refused_and_a_killed_ones_lock_is_gone(tmp_path):
    workdir = tmp_path / "run"
    only_encoder = "--config.stages=('encoder',)"
    first = runs.start(
        workdir, only_encoder, "--config.encoder.train.steps=100000", "--config.encoder.train.log_every=1000"
    )
    while not (workdir / "encoder" / "checkpoints").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    status, output = runs.run(workdir, only_encoder)
    assert status == 1 and "Traceback" not in output
    assert f"{workdir} is in use by process {first.pid} on " in output
    first.kill()
    first.communicate()
    with locked(workdir):
        pass


def test_an_error_that_comes_from_a_collective_with_a_process_that_is_gone_is_told_from_others(monkeypatch):
    def error(cause):
        try:
            try:
                raise cause
            except Exception as below:
                raise OSError("a checkpoint could not be written") from below
        except OSError as above:
            return above

    gone, full = (jax.errors.JaxRuntimeError(text) for text in ("Gloo: connection closed", "RESOURCE_EXHAUSTED: ..."))
    assert not main.lost_another(error(gone))  # there is nobody to lose
    monkeypatch.setattr(stopping, "several", lambda: True)
    untyped = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")  # as a checkpoint's write had it
    for lost in (gone, untyped):
        assert main.lost_another(error(lost)) is main.lost_another(lost) is lost
    assert not any(map(main.lost_another, (error(full), full, error(ValueError("bad")), ValueError("bad"))))


@pytest.mark.slow
def test_the_quick_look_draws_digits_that_the_judge_can_read(tmp_path):
    status, output = runs.run(tmp_path / "quick", config="configs/digits.py:quick")
    assert status == 0, output
    results = json.loads((tmp_path / "quick/summary.json").read_text())["results"]
    assert results["label_agreement"] > 0.75
    assert (tmp_path / "quick/report.html").exists()
