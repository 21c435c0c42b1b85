"""Batches of packs: what is in them, whoever reads which rows, and that they go on exactly."""

import numpy as np
import pytest

from rae_jax.data.pack_batches import PackBatches, Rows, markers_of, shapes
from rae_jax.data.packing import QWEN, Markers
from rae_jax.data.scenes import SceneSource, render
from rae_jax.data.tokenizer import open_tokenizer
from rae_jax.data.told_images import ToldScenes, answered, captioned, edited, texts_first
from rae_jax.models.pack import Places, visible

NOTHING = {"text": 0.0, "clean": 0.0, "semantic": 0.0}
SHAPE = Rows(grid=2, images=2, sources=2, texts=190, semantic=False, dropout=NOTHING)
SCENES = SceneSource("train")


def batches(shape=SHAPE, *, task="edit", seed=0, batch_size=4, rows=None):
    source = ToldScenes(SCENES, task)
    return PackBatches(source, open_tokenizer(), shape, read=lambda x: x, batch_size=batch_size, seed=seed, rows=rows)


def take(stream, count):
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_row_tells_what_is_to_be_made_of_which_image():
    stream = batches()
    example = stream.example()
    (batch,) = take(stream, 1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (value.shape, value.dtype) for name, value in example.items()
    }
    assert example == shapes(SHAPE, (32, 32, 3), np.uint8, 4)
    tokenizer, told = open_tokenizer(), ToldScenes(SCENES, "edit")
    markers = markers_of(tokenizer)
    texts = set()
    for row in range(4):
        ids = batch["text_ids"][row]
        starts = np.flatnonzero(ids == markers.text_start)
        assert len(starts) == 2
        for start in starts:
            end = start + np.flatnonzero(ids[start:] == markers.text_end)[0]
            texts.add(tokenizer.decode(ids[start + 1 : end]))
    verbs = ("make", "paint", "replace", "turn", "remove", "take", "add", "put", "move", "swap")
    assert len(texts) == 8 and all(text.startswith(verbs) for text in texts)
    # An example's own images are beside each other: the first of each kind in a row are of its first sample.
    stream = batches()
    planned = stream._planned(next(stream._filling)[0][1])
    (source,), (target,) = ([image for kind, image in planned.images if kind == k] for k in ("clean", "noised"))
    np.testing.assert_array_equal(batch["clean_image"][0, 0], told.image(source))
    np.testing.assert_array_equal(batch["noised_image"][0, 0], render(target, "train"))


def test_images_to_be_made_see_their_own_sample_and_no_other_image_to_be_made():
    (batch,) = take(batches(), 1)
    kinds = ("text", "clean", "noised")
    places = Places(*np.moveaxis(np.concatenate([batch[f"{kind}_places"] for kind in kinds], axis=1), -1, 0))
    seen = visible(places, places)
    kind = np.repeat(kinds, [batch[f"{kind}_places"].shape[1] for kind in kinds])
    first, second = (np.flatnonzero(kind == "noised")[i * 4 : (i + 1) * 4] for i in range(2))
    full = (places.noise[:, second[0]] >= 0) & (places.noise[:, first[0]] >= 0)
    assert full.all()
    for row in np.flatnonzero(full):
        assert seen[row][np.ix_(first, first)].all() and not seen[row][np.ix_(first, second)].any()
        clean = np.flatnonzero(kind == "clean")
        assert seen[row][first[0], clean[:4]].all() and not seen[row][first[0], clean[4:]].any()


@pytest.mark.parametrize("task", ["caption", "edit"])
def test_neither_rows_nor_processes_change_a_batch(task):
    shape = SHAPE if task == "edit" else Rows(2, 3, 0, 300, False, NOTHING | {"text": 0.5})
    whole = take(batches(shape, task=task), 3)
    part = take(batches(shape, task=task, rows=[3, 1]), 3)
    for each, half in zip(whole, part, strict=True):
        same({name: value[[3, 1]] for name, value in each.items()}, half)
    assert not np.array_equal(whole[0]["text_ids"], whole[1]["text_ids"])
    assert not np.array_equal(whole[0]["text_ids"], take(batches(shape, task=task, seed=1), 1)[0]["text_ids"])


def test_they_go_on_exactly_with_another_batch_size_too():
    stream = batches()
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    following = take(stream, 2)
    again = batches()
    again.set_state(state)
    for one, other in zip(following, take(again, 2), strict=True):
        same(one, other)
    half = batches(batch_size=2)
    half.set_state(state)
    first = take(half, 2)
    same(following[0], {name: np.concatenate([x[name] for x in first]) for name in first[0]})
    assert state["position"] >= 12


def test_what_is_dropped_leaves_no_token_and_no_image():
    shape = Rows(2, 2, 2, 190, True, {"text": 1.0, "clean": 1.0, "semantic": 0.0})
    (batch,) = take(batches(shape), 1)
    markers = markers_of(open_tokenizer())
    assert not (batch["text_ids"] == markers.text_start).any() and not batch["clean_image"].any()
    assert (batch["semantic_places"][..., 1] >= 0).all()
    assert (batch["text_ids"] == markers.image_start).sum() == 4 * 4  # two samples a row of semantic tokens and target


def test_chains_alternate_and_mistakes_are_named():
    kinds = [part.kind for part in edited(["a", "b", "c"], ["one", "two"])]
    assert kinds == ["clean", "text", "noised"] * 2
    assert [part.image for part in edited(["a", "b", "c"], ["one", "two"])] == ["a", None, "b", "b", None, "c"]
    assert captioned("", "a")[0].text == " "
    with pytest.raises(ValueError, match="a chain of 2 images with 2 instructions"):
        edited(["a", "b"], ["one", "two"])
    with pytest.raises(ValueError, match=r"example \d+ has .* more than the .* of a row; raise mixture.pack_texts"):
        next(batches(Rows(2, 1, 1, 20, False, NOTHING)))
    with pytest.raises(ValueError, match="semantic tokens are of given images"):
        Rows(2, 1, 0, 20, True, NOTHING)
    with pytest.raises(ValueError, match="told by one of"):
        ToldScenes(SCENES, "song")


def test_texts_may_stand_before_the_images_that_they_are_about():
    def order(parts):
        return [part.image or part.text for part in texts_first(parts)]

    assert order(edited(["a", "b", "c"], ["one", "two"])) == ["one", "a", "b", "two", "b", "c"]
    assert order(answered("a", "what?", "that")) == ["what?", "a", "that"]
    assert order(captioned("words", "a")) == ["words", "a"]
    for text_first in (False, True):
        (batch,) = take(batches(Rows(2, 1, 1, 190, False, NOTHING, text_first=text_first)), 1)
        text, source, target = (Places(*batch[f"{kind}_places"][0].T) for kind in ("text", "clean", "noised"))
        words = (text.sample == source.sample[0]) & (batch["text_ids"][0] < 256)  # bytes, no markers
        assert words.sum() > 8
        assert np.all(visible(source, text)[:, words] == text_first)
        assert np.all(visible(text, source)[words] != text_first)
        assert np.all(visible(target, text)[:, words]) and np.all(visible(target, source))


def test_qwens_own_markers_are_used_with_its_vocabulary():
    class Qwen:
        turn_start = QWEN.text_start

    assert markers_of(Qwen()) == QWEN
    tokenizer = open_tokenizer()
    assert markers_of(tokenizer) == Markers(
        tokenizer.turn_start, tokenizer.turn_end, tokenizer.image_start, tokenizer.image_end
    )
