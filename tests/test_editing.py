"""Editing as a user does it: images and instructions in, edits out, and mistakes in a line each."""

import json

import numpy as np
import pytest
import runs
from PIL import Image

from configs import digits_edit, rpiae_edit, rpiae_t2i
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.scenes import SceneSource, render
from rae_jax.evaluation.edits import read_edits
from rae_jax.evaluation.pictures import image_grid
from rae_jax.experiment.configuration import trace
from rae_jax.training.durations import resolve
from tools import demo

CONFIG = "configs/digits_edit.py:tiny"
PARTS = ("encoder", "decoder", "stats", "mixture")
FLOW_MAPS = ("mid_training", "flow_map")
UNTRAINED = ["--config.stages=()", "--config.sampling.num_steps=2", "--config.stats.weights=identity"]
UNTRAINED += [f"--config.{name}.weights=random" for name in PARTS if name != "stats"]


def run(workdir, *options, config=CONFIG):
    return runs.run(workdir, *options, config=config)


@pytest.fixture
def picture(tmp_path):
    image = Image.fromarray(render(SceneSource("test").scene(0), "test"))
    image.resize((50, 40)).convert("RGBA").save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.mark.slow
def test_scenes_are_learnt_to_be_edited_and_the_edits_judged(tmp_path):
    short = [f"--config.{name}.train.steps=2" for name in (*PARTS, *FLOW_MAPS) if name != "stats"]
    status, output = run(tmp_path, *short, config=f"{CONFIG}-few_steps")
    assert status == 0, output
    made = {}
    for way in ("", "_1step", "_2step"):
        sources, made[way], rows = read_edits(tmp_path / f"edits{way}.npz")
        assert sources.shape == made[way].shape == (8, 32, 32, 3) and made[way].dtype == np.uint8
        assert {"instruction", "kind", "source_scene", "target_scene"} == rows[0].keys()
        assert (tmp_path / f"edits{way}.png").exists()
    assert len({images.tobytes() for images in made.values()}) == 3
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    ways = ("edit_{}", "edit_{}_1step", "edit_{}_2step", "copying_{}", "ignoring_{}")
    assert {way.format(score) for way in ways for score in ("followed", "kept", "overall")} <= results.keys()
    page = demo.Session(tmp_path)
    assert page.steps == {4: "", 1: "_1step", 2: "_2step"}
    request = json.loads((tmp_path / "edits.jsonl").read_text().splitlines()[0])["instruction"]
    Image.fromarray(sources[0]).save(tmp_path / "first.png")
    for steps, way in page.steps.items():
        _, after = page.edit(str(tmp_path / "first.png"), request, steps, 3.0, 1.5, seed=0)
        np.testing.assert_array_equal(after[0], made[way][0])  # the first noise


@pytest.mark.slow
def test_an_image_of_any_size_is_edited_as_told_and_a_file_of_requests_one_by_one(tmp_path, picture):
    status, output = run(
        tmp_path / "a", *UNTRAINED, "--mode=edit", f"--image={picture}", "--instruction=remove the two"
    )
    assert status == 0, output
    before, after = demo.Session(tmp_path / "a").edit(str(picture), "remove the two", 2, 2.0, 1.0, seed=0)
    names = ["before", *(f"noise {i}" for i in range(4))]  # of the page, from the same noises
    sheet = image_grid(np.stack([before, *after]), columns=5, captions=names, title="remove the two")
    np.testing.assert_array_equal(sheet, np.asarray(Image.open(tmp_path / "a" / "edit.png")))
    requests = tmp_path / "requests.jsonl"
    rows = [{"instruction": text, "image": "scene.png"} for text in ("make it red", "add a green one", "swap them")]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, output = run(tmp_path / "a", *UNTRAINED, "--mode=sample", f"--prompts={requests}")
    assert status == 0, output
    sources, edited, told = read_edits(tmp_path / "a" / "edits.npz")
    assert len(edited) == 3 and [row["instruction"] for row in told] == [row["instruction"] for row in rows]
    np.testing.assert_array_equal(sources[0], sources[1])
    assert not np.array_equal(edited[0], edited[1])
    about = {"key": "k", "task_type": "color", "instruction_language": "en", "input_image": "scene.png"}
    (tmp_path / "gedit.jsonl").write_text(json.dumps(about | {"instruction": "make it red"}) + "\n")
    benchmark = f"--config.sampling.benchmark=gedit:{tmp_path / 'gedit.jsonl'}"
    status, output = run(tmp_path / "a", *UNTRAINED, "--mode=sample", benchmark)
    assert status == 0, output
    place = tmp_path / "a" / "gedit" / "fullset" / "color" / "en"
    assert {file.name for file in place.iterdir()} == {"k.png", "k_SRCIMG.png"}
    assert Image.open(place / "k.png").size == (32, 32) and Image.open(place / "k_SRCIMG.png").size == (50, 40)


def test_mistakes_end_in_a_line_each(tmp_path, picture):
    (tmp_path / "no.png").write_bytes(b"no image")
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"instruction": "make it red"}\n')
    edit = ["--mode=edit", f"--image={picture}"]
    wrong = {
        "--mode=edit needs --image=FILE and --instruction=TEXT": ["--mode=edit", "--instruction=paint it"],
        "--instruction goes with --mode=edit": ["--mode=sample", "--instruction=paint it"],
        "sampling.prompt=['a red two'] asks for images from nothing, and this mixture edits": [
            "--mode=sample", "--prompt=a red two",
        ],
        "sampling.prompt=['a blue one'] asks for images": ["--config.sampling.prompt=('a blue one',)"],
        "no.png cannot be read": ["--mode=edit", f"--image={tmp_path / 'no.png'}", "--instruction=paint it"],
        "line 1 has no image; there are ['instruction']": ["--mode=sample", f"--prompts={requests}"],
        "makes images from texts alone; it edits none": [
            *edit, "--instruction=paint it", "--config.mixture.task=caption", "--config.mixture.pack_sources=0",
        ],
        "is not one of ['gedit', 'geneval', 'dpg'] and where": ["--mode=sample", "--config.sampling.benchmark=gedit"],
        "the benchmark 'dpg' is for mixture.task='caption'": ["--mode=sample", "--config.sampling.benchmark=dpg:x"],
        "has 82 tokens with its markers, and room is for": [*edit, f"--instruction={'q ' * 40}"],
        "rows have no room for images to edit; set mixture.pack_sources": [
            "--config.stages=('mixture',)", "--config.mixture.pack_sources=0",
        ],
    }  # fmt: skip
    for number, (said, options) in enumerate(wrong.items()):
        status, output = run(tmp_path / str(number), *UNTRAINED, *options)
        assert status != 0 and said in output and "Traceback" not in output, output
        assert "untrained" not in output, output  # nothing has been loaded


def test_scenes_are_painted_by_the_same_mixture():
    config = digits_edit.get_config("tiny-caption")
    trace(config, "mixture")
    assert config.mixture.task == "caption" and not config.mixture.pack_sources and config.evaluation.scenes


@pytest.mark.parametrize("word", ["rpiae", "kl"])
def test_every_stage_of_the_other_latents_of_scenes_is_whole(word):
    config = digits_edit.get_config(f"tiny-{word}")
    for stage in config.stages:
        trace(config, stage)
    assert latent_space(config).shape[0] == latent_space(digits_edit.get_config("tiny")).shape[0]


@pytest.mark.parametrize("variant", ["", "head", "vae"])
def test_the_papers_configs_are_whole(variant):
    for module in (rpiae_t2i, rpiae_edit):
        config = resolve(module.get_config(variant), 1000)
        config.mixture.model.depth = config.language_model.model.depth = 1  # are traced in a fraction of the time
        objective = trace(config, "mixture")
        assert list(objective.initial) == (["language_model"] if module is rpiae_t2i else [])
