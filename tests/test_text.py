"""The tiny run of text to image as a user has it: the same on any devices, killed or not, asked and sampled."""

import numpy as np
import pytest
import runs
from PIL import Image
from test_resume import wait_for_checkpoint

from rae_jax.data.scenes import SceneSource

CONFIG = "configs/digits_text.py:tiny-few_steps"
STAGE = "text_to_image"
FLOW_MAPS = {"mid_training": ("loss", "gradient_norm"), "flow_map": ("loss", "mean_squared_error", "gradient_norm")}
MESHES = {
    "data=8": (8, "--config.mesh.data=8"),
    "fsdp=8": (8, "--config.mesh.data=1", "--config.mesh.fsdp=8"),
    "data=2 x fsdp=2 x tensor=2": (8, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("text") / "whole"
    status, output = runs.run(workdir, config=CONFIG)
    assert status == 0, output
    return workdir


def stage_alone(whole):
    """Options with which the last stage begins from the parts of another run."""
    weights = [f"--config.{name}.weights={whole / name / 'weights'}" for name in ("encoder", "decoder", "stats")]
    return [f"--config.stages=('{STAGE}',)", "--config.evaluation.scenes=False", *weights]


def assert_same_losses(workdir, whole, stage=STAGE, names=("loss", "language_loss", "image_loss", "gradient_norm")):
    for name in names:
        losses, expected = runs.metrics(workdir, stage, name), runs.metrics(whole, stage, name)
        assert sorted(losses) == list(range(1, 21))
        for step, loss in losses.items():
            assert abs(loss - expected[step]) <= 1e-4 * abs(expected[step]), (name, step, loss, expected[step])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_do_not_depend_on_the_mesh(mesh, whole, tmp_path):
    devices, *options = MESHES[mesh]
    status, output = runs.run(tmp_path / "run", *stage_alone(whole), *options, devices=devices, config=CONFIG)
    assert status == 0, output
    assert_same_losses(tmp_path / "run", whole)


@pytest.mark.slow
def test_losses_of_flow_maps_do_not_depend_on_the_mesh(whole, tmp_path):
    # What a hardly trained teacher says, a flow map that starts from it knows: its errors would be rounding alone.
    options = ["--config.mid_training.initial=", "--config.flow_map.eta=0.5", "--config.evaluation.scenes=False"]
    options += [f"--config.stages={tuple(FLOW_MAPS)}", "--config.sampling.flow_map_times=()", *weights_of(whole)]
    devices, *mesh = MESHES["data=2 x fsdp=2 x tensor=2"]
    for name, others in (("one", {}), ("eight", {"devices": devices})):
        status, output = runs.run(tmp_path / name, *options, *(mesh if others else ()), **others, config=CONFIG)
        assert status == 0, output
    for stage, names in FLOW_MAPS.items():
        assert_same_losses(tmp_path / "eight", tmp_path / "one", stage, names)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(whole, tmp_path):
    common = ("--distributed", f"--coordinator_address={runs.free_address()}", "--num_processes=2")
    common = (*common, "--config.mesh.data=2", *stage_alone(whole))
    processes = [runs.start(tmp_path / "run", *common, f"--process_id={i}", config=CONFIG) for i in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert_same_losses(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    process = runs.start(tmp_path / "cut", *stage_alone(whole), config=CONFIG)
    wait_for_checkpoint(tmp_path / "cut", STAGE, 10, process)
    process.kill()
    process.communicate()
    status, output = runs.run(tmp_path / "cut", *stage_alone(whole), config=CONFIG)
    assert status == 0, output
    assert f"{STAGE}: continuing from step" in output
    for name in ("loss", "language_loss", "image_loss", "gradient_norm"):
        assert runs.metrics(tmp_path / "cut", STAGE, name) == runs.metrics(whole, STAGE, name)
    assert (tmp_path / "cut" / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()


@pytest.mark.slow
def test_a_run_samples_prompts_and_answers_questions(whole, tmp_path):
    for way in ("samples", "samples_1step", "samples_2step"):
        images, prompts = (np.load(whole / f"{way}.npz")[name] for name in ("arr_0", "prompts"))
        assert images.shape == (12, 32, 32, 3) and len(set(prompts)) == 12
        assert (whole / f"{way}.jsonl").stat().st_size and (whole / f"{way}.png").stat().st_size
    for name in ("answers.jsonl", "scenes.json"):
        assert (whole / name).stat().st_size
    (tmp_path / "prompts.txt").write_text("a red two\n\n")
    ask = ("--mode=sample", f"--prompts={tmp_path / 'prompts.txt'}")
    status, output = runs.run(tmp_path / "run", *ask, *sampled_from(whole), config=CONFIG)
    assert status == 0, output
    assert np.load(tmp_path / "run" / "samples.npz")["prompts"].tolist() == ["a red two"]
    Image.fromarray(SceneSource("test")[0]["image"]).save(tmp_path / "scene.png")
    ask = ("--mode=ask", f"--image={tmp_path / 'scene.png'}", "--question=how many digits are there?")
    status, output = runs.run(whole, *ask, config=CONFIG)
    assert status == 0, output


def weights_of(whole):
    """Options with the parts of another run up to the DiT."""
    parts = [f"--config.{name}.weights={whole / name / 'weights'}" for name in ("encoder", "decoder", "stats")]
    trained = ("language_model", "adapters", "text_dit")
    return [*parts, *(f"--config.{name}.weights={whole / STAGE / 'weights' / name}" for name in trained)]


def sampled_from(whole):
    return ["--config.stages=()", *weights_of(whole)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode=ask", "--image=a.png"), "needs --image=FILE and --question=TEXT"),
        (("--mode=train", "--prompt=a"), "go with --mode=sample"),
        (("--mode=sample", "--prompt=a", "--prompts=b"), "exclude each other"),
        (("--mode=sample", "--prompts=nowhere.txt"), "there is no file of prompts"),
        (("--mode=sample", f"--prompt={'a red two ' * 40}"), "room is for 64"),
        (("--mode=sample", "--question=a"), "--question goes with --mode=ask"),
    ],
)
def test_what_cannot_be_painted_or_asked_is_said_in_a_line(options, message, tmp_path):
    status, output = runs.run(tmp_path / "run", *options, config=CONFIG)
    assert status == 1 and message in output.splitlines()[-1], output
    assert not (tmp_path / "run" / "samples.npz").exists()


def test_prompts_need_a_language_model(tmp_path):
    for options in (("--mode=sample", "--prompt=a"), ("--mode=ask", "--image=a", "--question=b")):
        status, output = runs.run(tmp_path / "run", *options)
        assert status == 1 and "language_model.model is empty" in output.splitlines()[-1], output
