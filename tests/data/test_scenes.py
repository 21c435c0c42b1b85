"""Scenes of digits: what may be in them, how they look, and that every sentence about them is true."""

import re

import numpy as np
import pytest

from rae_jax.data import scene_words, scenes
from rae_jax.data.conversations import Layout, laid_out
from rae_jax.data.digits import digits
from rae_jax.data.scene_tokens import scene_tokenizer
from rae_jax.data.scene_words import CATEGORIES, EDITS, NUMBERS, PLACES
from rae_jax.data.scenes import CELL, CELLS, COLOURS, Item, SceneSource, described, randomness
from rae_jax.data.sources import open_source
from rae_jax.data.told_images import ToldScenes

TEST_SCENES = [SceneSource("test").scene(i) for i in range(200)]
NOUN = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(NUMBERS)})\b(?: at the ({'|'.join(PLACES.values())}))?")


def read(sentence: str) -> set[tuple[int, str, str]]:
    """Digit, colour and place of everything that a full caption names."""
    if several := re.search(rf"({'|'.join(NUMBERS)}) ({'|'.join(NUMBERS)})e?s, (.*)", sentence):
        digit = NUMBERS.index(several[2])
        return {(digit, *part.split(" at the ")) for part in re.split(r", | and ", several[3])}
    return {(NUMBERS.index(number), colour, place) for colour, number, place in NOUN.findall(sentence)}


def test_training_scenes_hold_no_unseen_combination_and_held_out_ones_do():
    train, test = SceneSource("train"), SceneSource("test")
    pairs = {item.pair for i in range(1000) for item in train.scene(i)}
    assert pairs == set(scenes.SEEN_PAIRS)  # all others are met
    assert any(not scenes.seen(test.scene(i)) for i in range(100))
    assert {len(train.scene(i)) for i in range(50)} == {1, 2, 3, 4}


def test_a_scene_is_the_same_whoever_draws_it_and_another_for_another_seed():
    assert SceneSource("train").scene(7) == SceneSource("train").scene(7)
    assert SceneSource("train").scene(7) != SceneSource("train", seed=1).scene(7)
    assert SceneSource("train").scene(7) != SceneSource("test").scene(7)


def test_each_item_is_a_digit_of_its_split_in_its_colour_and_cell():
    item = Item(3, "purple", 1, 0, glyph=5)
    image = scenes.render((item,), "test")
    source = digits("test")
    digit = source.images[source.labels == 3][5][..., 0].astype(float)
    expected = digit.reshape(CELL, 2, CELL, 2).mean((1, 3))  # a box filter of 2 x 2 pixels
    cell = image[CELL:, :CELL].astype(float)
    np.testing.assert_allclose(cell[..., 0], expected, atol=1)
    np.testing.assert_array_equal(cell[..., 2], cell[..., 0])
    assert not cell[..., 1].any()
    assert not image[:CELL].any() and not image[CELL:, CELL:].any()


def test_the_source_gives_images_without_classes():
    source = open_source("scenes", "test")
    assert source.num_classes == 0 and len(source) == source.contents()["images"] == 2000
    np.testing.assert_array_equal(source[3]["image"], scenes.render(source.scene(3), "test"))
    with pytest.raises(ValueError, match="splits 'train' and 'test', not 'validation'"):
        open_source("scenes", "validation")
    with pytest.raises(IndexError):
        source[2000]


@pytest.mark.parametrize(
    "items, message",
    [
        ([], "one item at least"),
        ([Item(1, "red", 0, 0), Item(2, "blue", 0, 0)], "in one cell"),
        ([Item(10, "red", 0, 0)], "no item of a scene"),
        ([Item(1, "pink", 0, 0)], "no item of a scene"),
        ([Item(1, "red", 2, 0)], "no item of a scene"),
    ],
)
def test_what_is_no_scene(items, message):
    with pytest.raises(ValueError, match=message):
        scenes.scene(items)


def test_a_caption_tells_the_whole_scene():
    for i, items in enumerate(TEST_SCENES):
        expected = {(item.digit, item.colour, PLACES[item.cell]) for item in items}
        assert read(scene_words.caption(items, randomness(i))) == expected


def test_a_description_tells_the_whole_scene_cell_by_cell_and_fits_beside_its_image():
    for items in TEST_SCENES:
        asked, answer = scene_words.description(items)
        told = [(colour, number, place) for colour, number, place in NOUN.findall(answer)]
        assert told == [(item.colour, NUMBERS[item.digit], PLACES[item.cell]) for item in items]
        turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answer}]
        laid_out(scene_tokenizer(), turns, 1, Layout(80, 16, tokens_read=4))  # raises where it is too long


def test_a_partial_caption_is_true():
    for i, items in enumerate(TEST_SCENES):
        sentence = scene_words.partial_caption(items, randomness(i))
        for colour, number, place in NOUN.findall(sentence):
            here = [item for item in items if item.pair == (NUMBERS.index(number), colour)]
            assert here and (not place or place in {PLACES[item.cell] for item in here}), sentence
        order = re.search(r"(\w+ \w+) (to the left of|to the right of|above|below) an? (\w+ \w+)", sentence)
        if order:
            find = {f"{item.colour} {NUMBERS[item.digit]}": item for item in items}
            first, second = find[order[1]], find[order[3]]
            if first.pair != second.pair:
                axis, sign = {"left": (1, 1), "right": (1, -1), "above": (0, 1), "below": (0, -1)}[
                    order[2].split()[-2 if "to" in order[2] else 0]
                ]
                assert sign * (second.cell[axis] - first.cell[axis]) == 1, sentence


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("of_seen", [True, False])
def test_prompts_tell_their_scene(category, of_seen):
    for i in range(20):
        prompt = scene_words.prompt(category, randomness(i), of_seen=of_seen)
        assert scenes.seen(prompt.items) == of_seen
        assert len(prompt.items) in CATEGORIES[category]
        assert read(prompt.text) == {(item.digit, item.colour, PLACES[item.cell]) for item in prompt.items}
        kinds = {item.digit for item in prompt.items}
        assert len(kinds) == (1 if category == "counting" else len(prompt.items))


def test_answers_are_right():
    """Each form of question is answered again from what can be seen, by other means."""
    forms = set()
    for i, items in enumerate(TEST_SCENES * 5):
        asked, answer = scene_words.question(items, randomness(i))
        at = {PLACES[item.cell]: item for item in items}
        words = asked.rstrip("?").split()
        place = next((p for p in at if asked.endswith(f"{p}?")), None)
        number = next((n for n in words if n in NUMBERS), None)
        match words:
            case ["how", "many", "digits", *_]:
                right = f"the number of digits is {NUMBERS[len(items)]}"
            case ["how", "many", colour, "digits", *_]:
                count = len([x for x in items if x.colour == colour])
                right = f"the number of {colour} digits is {NUMBERS[count]}"
            case ["how", "many", digit, *_]:
                single = next(n for n in NUMBERS if digit in (f"{n}s", f"{n}es"))
                right = f"the number of {digit} is {NUMBERS[len([x for x in items if NUMBERS[x.digit] == single])]}"
            case ["what", "is", "at", "the", row, column]:
                seen = with_article(f"{at[place].colour} {NUMBERS[at[place].digit]}") if place else "nothing"
                right = f"at the {row} {column} is {seen}"
            case ["which", *_]:
                right = f"at the {place} is {with_article(NUMBERS[at[place].digit])}"
            case ["what", "color", "is", "the", "digit", *_]:
                right = f"the digit at the {place} is {at[place].colour}"
            case ["what", "color", *_]:
                (colour,) = [x.colour for x in items if NUMBERS[x.digit] == number]
                right = f"the {number} is {colour}"
            case ["where", *_]:
                (where,) = [PLACES[x.cell] for x in items if NUMBERS[x.digit] == number]
                right = f"the {number} is at the {where}"
            case ["is", "there", _, colour, digit]:
                is_there = any(x.colour == colour and NUMBERS[x.digit] == digit for x in items)
                right = f"a {colour} {digit} is {'there' if is_there else 'not there'}"
        forms.add(tuple(words[:3]))
        assert answer == right, (asked, items)
    assert len(forms) > 8


def with_article(noun: str) -> str:
    return f"an {noun}" if noun == "eight" else f"a {noun}"


def test_edits_change_what_they_say_and_nothing_else():
    """The handwriting of what is kept is kept; the instruction names every cell or pair that changes."""
    kinds = set()
    for i, items in enumerate(TEST_SCENES * 3):
        edit = scene_words.edit(items, randomness(i))
        kinds.add(edit.kind)
        assert described(edit.target) != described(items)
        before, after = {x.cell: x for x in items}, {x.cell: x for x in edit.target}
        changed = [cell for cell in CELLS if before.get(cell) != after.get(cell)]
        number = {"recolour": 1, "replace": 1, "remove": 1, "add": 1, "move": 2, "swap": 2}.get(edit.kind)
        assert number is None or len(changed) == number, edit
        if edit.kind == "swap":
            first, second = changed
            assert before[first].glyph == after[second].glyph and before[first].pair == after[second].pair
        if edit.kind == "recolour":
            (cell,) = changed
            assert (before[cell].digit, before[cell].glyph) == (after[cell].digit, after[cell].glyph)
            assert edit.instruction.endswith(after[cell].colour)
        if edit.kind in ("add", "move"):
            new = next(cell for cell in changed if cell in after)
            assert edit.instruction.endswith(PLACES[new])
        if edit.kind in ("remove", "recolour", "replace", "move"):  # there is one thing that it can mean
            colour, noun, place = NOUN.search(edit.instruction).groups()
            meant = [x for x in items if x.pair == (NUMBERS.index(noun), colour)]
            meant = [x for x in meant if PLACES[x.cell] == place] if len(meant) > 1 else meant
            assert len(meant) == 1 and meant[0].cell in changed, edit
    assert kinds == set(EDITS)


def test_brief_instructions_name_a_digit_without_its_colour_where_that_is_enough():
    found = set()
    for i, items in enumerate(TEST_SCENES):
        edit, brief = (scene_words.edit(items, randomness(i), brief=brief) for brief in (False, True))
        assert (edit.kind, edit.target) == (brief.kind, brief.target)
        named = re.compile(rf"the (?:({'|'.join(COLOURS)}) )?({'|'.join(NUMBERS)})\b")
        assert named.sub(r"the \2", edit.instruction) == named.sub(r"the \2", brief.instruction)
        if edit.kind != "chain":  # whose second names what the first has left
            for colour, noun in named.findall(brief.instruction):
                alone = sum(x.digit == NUMBERS.index(noun) for x in items) == 1
                assert alone == (not colour), (brief, items)
                found.add((edit.kind, alone))
    kinds = ("recolour", "replace", "remove", "move", "swap")
    assert found == {(kind, alone) for kind in kinds for alone in (True, False)}


def test_half_of_the_edits_to_learn_from_are_told_briefly_and_none_that_are_judged():
    for split, share in (("train", scene_words.BRIEF), ("test", 0.0)):
        source = SceneSource(split)
        told, found = ToldScenes(source, "edit"), []
        for i in range(600):
            items, edit = told.edit(i, 0)
            alone = edit.kind == "remove" and sum(x.digit == y.digit for x in items for y in items) == len(items)
            if alone:
                found.append(not any(colour in edit.instruction for colour in COLOURS))
        assert len(found) > 20 and abs(np.mean(found) - share) <= (0.25 if share else 0)
