"""Files of edits, and their scores against the two ways to edit that are none."""

import json

import numpy as np
import pytest

from rae_jax.data.scenes import SceneSource, described, render
from rae_jax.data.told_images import ToldScenes
from rae_jax.evaluation.edits import baselines, edit_scores, read_edits, write_edits
from rae_jax.evaluation.scene_judge import train_scene_judge


def edits(count=24):
    told, rows, sources, targets = ToldScenes(SceneSource("test"), "edit"), [], [], []
    for index in range(count):
        items, edit = told.edit(index, 0)
        sources.append(render(items, "test"))
        targets.append(render(edit.target, "test"))
        scenes = {"source_scene": described(items), "target_scene": described(edit.target)}
        rows.append({"instruction": edit.instruction, "kind": edit.kind} | scenes)
    return np.stack(sources), np.stack(targets), rows


def test_an_edit_as_it_should_be_follows_and_keeps_and_a_copy_only_keeps(tmp_path):
    sources, targets, rows = edits()
    write_edits(tmp_path / "edits.npz", sources, targets, rows)
    found = read_edits(tmp_path / "edits.npz")
    np.testing.assert_array_equal(found[0], sources)
    assert found[2] == json.loads(json.dumps(rows))
    judge = train_scene_judge()
    scores, trivial = edit_scores(*found, judge), baselines(*found, judge)
    assert scores["followed"] > 0.85 and scores["kept"] > 0.85 and scores["overall"] > 0.85
    assert scores["kept_psnr"] > 50  # nothing else has changed
    assert trivial["copying_followed"] < 0.1 < 0.85 < trivial["copying_kept"]
    assert trivial["ignoring_overall"] < 0.3


def test_edits_and_lines_have_to_be_of_the_same(tmp_path):
    sources, targets, rows = edits(3)
    with pytest.raises(ValueError, match="there are 3 sources for 2 edits"):
        write_edits(tmp_path / "edits.npz", sources, targets, rows[:2])
    write_edits(tmp_path / "edits.npz", sources, targets, rows)
    (tmp_path / "edits.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="has 3 sources and 3 edited images for 1 lines"):
        read_edits(tmp_path / "edits.npz")
