"""What a run is said to have learnt of scenes, told by runs that have learnt everything, half of it, or nothing."""

import json
import types

import numpy as np
import pytest

from configs import digits_edit, digits_text
from rae_jax.data.prompts import scene_prompts
from rae_jax.data.scene_words import question
from rae_jax.data.scenes import SceneSource, randomness, render
from rae_jax.evaluation.scene_judge import train_scene_judge
from rae_jax.experiment import scene_results
from rae_jax.experiment.scene_results import QUESTIONS, of_answers, of_judge, of_samples
from rae_jax.sampling.samples import write_samples


@pytest.fixture(scope="module")
def judge():
    return train_scene_judge()


def test_samples_that_show_what_was_asked_for_are_all_right_and_swapped_ones_are_not(judge, tmp_path):
    asked = scene_prompts()[:60]
    images = np.stack([render(each.items, "train") for each in asked])
    texts = np.array([each.text for each in asked])
    write_samples(tmp_path / "samples.npz", images, prompts=texts)
    results = of_samples(tmp_path, judge)
    assert all(value == 1.0 for value in results.values())
    assert {"scene_overall", "scene_overall_unseen", "scene_color_attr", "scene_exact"} <= results.keys()
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == texts.tolist()
    assert {line["seen"] for line in lines} == {True, False}
    assert json.loads((tmp_path / "scenes.json").read_text())["cell"] == 16
    write_samples(tmp_path / "samples.npz", np.roll(images, 1, axis=0), prompts=texts)
    assert of_samples(tmp_path, judge)["scene_overall"] < 0.5
    write_samples(tmp_path / "samples_1step.npz", images, prompts=texts)
    in_one_step = of_samples(tmp_path, judge, "samples_1step")
    assert {"scene_overall_1step", "scene_overall_unseen_1step", "scene_exact_1step"} <= in_one_step.keys()
    assert (tmp_path / "samples_1step.jsonl").stat().st_size and all(value == 1.0 for value in in_one_step.values())
    write_samples(tmp_path / "samples.npz", images[:2], prompts=np.array(["a house", ""]))
    assert of_samples(tmp_path, judge) == {}


def test_answers_are_counted_exactly(tmp_path):
    source, random = SceneSource("test"), randomness("scene questions")
    expected = [question(source.scene(i), random)[1] for i in range(QUESTIONS)]
    right = of_answers(tmp_path, lambda images, questions: expected)
    assert right == {"answers": 1.0}
    half = [words if i % 2 else "" for i, words in enumerate(expected)]
    assert of_answers(tmp_path, lambda images, questions: half) == {"answers": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["expected"] for line in lines] == expected and lines[0]["answer"] == ""


def test_the_judge_is_judged_on_held_out_scenes(judge):
    assert of_judge(judge)["scene_judge_accuracy"] > 0.97


def test_what_there_is_is_judged_and_nothing_else(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_results, "train_scene_judge", lambda: judge)
    nobody = types.SimpleNamespace(available=lambda name: False)  # has weights with which to answer
    painting, editing = (module.get_config("tiny") for module in (digits_text, digits_edit))
    assert scene_results.scene_results(painting, nobody, tmp_path) == {}
    asked = scene_prompts()[:3]
    images = np.stack([render(each.items, "train") for each in asked])
    write_samples(tmp_path / "samples.npz", images, prompts=np.array([each.text for each in asked]))
    found = scene_results.scene_results(painting, nobody, tmp_path)
    assert found["scene_exact"] == 1.0 and "scene_judge_accuracy" in found and "answers" not in found
    for name in ("samples_1step", "samples_7step"):  # the second is of another config
        write_samples(tmp_path / f"{name}.npz", images, prompts=np.array([each.text for each in asked]))
    found = scene_results.scene_results(painting, nobody, tmp_path)
    assert "scene_exact_1step" in found and "scene_exact_7step" not in found
    assert scene_results.scene_results(editing, nobody, tmp_path) == {}  # there are no edits
