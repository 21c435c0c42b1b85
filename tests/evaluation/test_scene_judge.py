"""The judge of scenes: right about held-out scenes, and fair about what a prompt or an edit asks for."""

import math

import numpy as np
import pytest

from rae_jax.data import scene_words, scenes
from rae_jax.data.scenes import Item, SceneSource, described, randomness
from rae_jax.evaluation.scene_judge import exactly, judge_edit, painted, train_scene_judge


@pytest.fixture(scope="module")
def judge():
    return train_scene_judge()


def test_held_out_scenes_are_seen_as_they_are(judge):
    source = SceneSource("test")
    seen = judge.look(np.stack([source[i]["image"] for i in range(500)]))
    right = [exactly(described(source.scene(i)), found) for i, found in enumerate(seen)]
    assert np.mean(right) >= 0.97


def test_empty_cells_are_empty(judge):
    image = scenes.render((Item(8, "cyan", 1, 1),), "test")
    (seen,) = judge.look(image[None])
    assert seen == {(1, 1): (8, "cyan")}
    (seen,) = judge.look(np.full_like(image, 40)[None])  # grey haze is nothing
    assert seen == {}


RED_3, BLUE_3, GREEN_5 = (
    dict(digit=d, colour=c, row=r, column=k) for d, c, r, k in [(3, "red", 0, 0), (3, "blue", 0, 1), (5, "green", 1, 1)]
)


@pytest.mark.parametrize(
    "category, wanted, seen, expected",
    [
        ("single_object", [RED_3], {(1, 0): (3, "cyan")}, True),
        ("single_object", [RED_3], {(0, 0): (8, "red")}, False),
        ("two_object", [RED_3, GREEN_5], {(1, 0): (5, "red"), (0, 0): (3, "red")}, True),
        ("two_object", [RED_3, GREEN_5], {(1, 0): (5, "red")}, False),
        ("counting", [RED_3, BLUE_3], {(1, 0): (3, "red"), (1, 1): (3, "cyan")}, True),
        ("counting", [RED_3, BLUE_3], {(i // 2, i % 2): (3, "red") for i in range(3)}, False),
        ("colors", [RED_3], {(1, 1): (3, "red")}, True),
        ("colors", [RED_3], {(0, 0): (3, "blue")}, False),
        ("color_attr", [RED_3, GREEN_5], {(0, 0): (3, "green"), (1, 1): (5, "red")}, False),
        ("color_attr", [RED_3, GREEN_5], {(0, 1): (3, "red"), (0, 0): (5, "green")}, True),
        ("position", [RED_3, GREEN_5], {(0, 0): (3, "blue"), (1, 1): (5, "blue")}, True),
        ("position", [RED_3, GREEN_5], {(1, 1): (3, "red"), (0, 0): (5, "green")}, False),
    ],
)
def test_what_a_prompt_asks_for(category, wanted, seen, expected):
    assert painted(category, wanted, seen) is expected


def test_an_unknown_category():
    with pytest.raises(ValueError, match="no category 'colour'"):
        painted("colour", [RED_3], {})


def test_real_edits_are_followed_and_keep_the_rest_and_lazy_ones_do_not(judge):
    source, rows = SceneSource("test"), []
    for i in range(60):
        items = source.scene(i)
        edit = scene_words.edit(items, randomness(i))
        before, after = scenes.render(items, "test"), scenes.render(edit.target, "test")
        blank = np.zeros_like(before)
        args = described(items), described(edit.target)
        looks = judge.look(np.stack([after, before, blank]))
        rows.append(
            [judge_edit(*args, (before, made), seen) for made, seen in zip((after, before, blank), looks, strict=True)]
        )
    real, copied, ignored = (list(column) for column in zip(*rows, strict=True))
    assert np.mean([e.followed for e in real]) >= 0.95 and np.mean([e.kept for e in real]) >= 0.95
    assert all(e.psnr == 100 or math.isnan(e.psnr) for e in real + copied)
    assert not any(e.followed for e in copied)
    assert np.mean([e.kept for e in copied]) >= 0.95
    assert np.mean([e.kept for e in ignored]) < 0.5
