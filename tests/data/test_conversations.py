"""From conversations to integers, exactly as the official code has them; and what is no conversation."""

import json
import pickle

import numpy as np
import pytest
from golden import cases

from rae_jax.data.conversations import (
    IGNORED,
    PLACEHOLDER,
    Layout,
    UnusableError,
    asked,
    laid_out,
    prompt,
    question,
    request,
    tables,
)
from rae_jax.data.tokenizer import IMAGE_END, IMAGE_START, open_tokenizer

LAYOUT = Layout(length=190, tokens_per_image=4)
HUMAN, GPT = {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}


def layout_of(case):
    constructor = case.constructor
    assert constructor["mm_use_im_start_end"]
    return Layout(
        constructor["model_max_length"], constructor["tokens_per_image"], constructor["max_images_per_sample"]
    )


def images_in(call):
    """How many images a sample has: those that its text has places for, and at least one if it has any."""
    places = sum(turn["value"].count("<image>") for turn in call.inputs["conversations"])
    return max(places, 1) if call.inputs["has_image"] else 0


@cases("scale_rae_tokens")
def test_samples_batches_and_prompts_are_the_references(case):
    tokenizer, layout = open_tokenizer(), layout_of(case)
    for text, token in case.constructor["tokenizer"]["special_tokens"].items():
        assert tokenizer.encode(text.split(" ")[0]) == [token]
    samples = []
    for call in case.calls("sample.*"):
        ids, labels = laid_out(tokenizer, call.inputs["conversations"], images_in(call), layout)
        np.testing.assert_array_equal(ids, call.outputs["input_ids"])
        np.testing.assert_array_equal(labels, call.outputs["labels"])
        order = np.arange(layout.max_images * layout.tokens_per_image)
        np.testing.assert_array_equal(order, call.outputs["order of the sample's image tokens"])
        samples.append(tables(tokenizer, ids, labels, layout))
    for call in case.calls("collate.*"):
        for name, expected in call.outputs.items():
            np.testing.assert_array_equal(np.stack([s[name] for s in samples]), expected, err_msg=name)
    for call in case.calls("inference prompt"):
        np.testing.assert_array_equal(prompt(tokenizer, call.inputs["user"]), call.outputs["input_ids"])


def test_a_question_is_asked_of_the_image_before_it():
    ids = prompt(open_tokenizer(), question("What?"))
    assert ids.count(PLACEHOLDER) == 1
    assert ids == prompt(open_tokenizer(), "<im_start><image><im_end>\nWhat?")


@pytest.mark.parametrize(
    ("conversation", "images", "layout", "reason"),
    [
        ([], 0, LAYOUT, "without text"),
        ([{"from": "human"}], 0, LAYOUT, "without text"),
        ([{"from": "robot", "value": ""}], 0, LAYOUT, "a turn of 'robot'"),
        ([{**HUMAN, "value": "<image> <image>"}, GPT], 1, LAYOUT, "differ in number"),
        (request("a cube"), 0, LAYOUT, "differ in number"),
        ([GPT, HUMAN], 1, LAYOUT, "differ in number"),  # the leading turn is dropped with its place
        ([{**HUMAN, "value": "<image> <image>"}, GPT], 2, LAYOUT, "more images than the 1"),
        (request("a cube"), 1, Layout(80, 4), "longer than 80 tokens"),
        ([HUMAN], 0, Layout(0, 4), "nothing to be learned"),
    ],
)
def test_what_cannot_be_trained_on_is_said(conversation, images, layout, reason):
    with pytest.raises(UnusableError, match=reason):
        laid_out(open_tokenizer(), conversation, images, layout)


def test_text_is_cut_off_at_the_length_and_two_images_have_their_own_slots():
    tokenizer = open_tokenizer()
    whole = laid_out(tokenizer, [HUMAN, GPT], 0, LAYOUT)
    cut = laid_out(tokenizer, [HUMAN, GPT], 0, Layout(20, 4))
    for all_of_it, part in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(part, all_of_it[:20])
    layout = Layout(200, 3, 3)
    conversation = [{**HUMAN, "value": "<image>\nAnother one."}, {**GPT, "value": "<image> there"}]
    ids, labels = laid_out(tokenizer, conversation, 2, layout)
    sample = tables(tokenizer, ids, labels, layout)
    where = np.flatnonzero(sample["input_ids"] == PLACEHOLDER)
    assert sample["answer_img_mask"].tolist() == [0, 1, 0]
    assert sample["answer_token_mask"][where].tolist() == [0, 0, 0, 1, 1, 1]
    assert sample["vision_token_indices"][where].tolist() == [200 + k for k in range(6)]
    assert sample["reverse_vti"].tolist() == [*(9 + where), 6, 7, 8]
    assert (sample["labels"][where] == IGNORED).all()
    assert sample["labels"][where[-1] + 1] == tokenizer.image_end


def test_an_image_of_a_question_may_have_fewer_tokens_than_an_answer():
    tokenizer, layout = open_tokenizer(), Layout(200, 4, 3, tokens_read=2)
    conversation = [{**HUMAN, "value": "<image>\nAnother one."}, {**GPT, "value": "<image> there"}]
    sample = tables(tokenizer, *laid_out(tokenizer, conversation, 2, layout), layout)
    where = np.flatnonzero(sample["input_ids"] == PLACEHOLDER)
    assert sample["answer_img_mask"].tolist() == [0, 1, 0]
    assert sample["answer_token_mask"][where].tolist() == [0, 0, 1, 1, 1, 1]
    assert sample["vision_token_indices"][where].tolist() == [200, 201, 204, 205, 206, 207]
    assert sample["reverse_vti"].tolist() == [*(12 + where[:2]), 2, 3, *(12 + where[2:]), 8, 9, 10, 11]
    assert (asked(tokenizer, "What?", layout)["input_ids"] == PLACEHOLDER).sum() == 2


def test_bytes_come_back_as_text_and_the_tokenizer_pickles():
    tokenizer = pickle.loads(pickle.dumps(open_tokenizer()))
    text = "a café,\n  7 ÷ 3 — 数字 🙂"
    ids = tokenizer.encode(text + IMAGE_START + IMAGE_END)
    assert ids[-2:] == [tokenizer.image_start, tokenizer.image_end] and max(ids[:-2]) < 256
    assert tokenizer.decode(ids) == text
    assert (tokenizer.newline, tokenizer.size) == (198, 261)


def test_a_published_tokenizer_is_read_and_its_image_marks_appended(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers

    base = open_tokenizer()
    byte = base._vocabulary.id_to_token
    vocabulary = {byte(i): i for i in range(256)} | {"ab": 256}
    published = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    published.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    published.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box|>"])
    published.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = open_tokenizer(path)
        assert tokenizer.encode("ab<|im_end|>") == [256, 259]
        assert (tokenizer.image_start, tokenizer.image_end, tokenizer.size) == (261, 262, 263)
    with pytest.raises(ValueError, match="there is no tokenizer"):
        open_tokenizer(tmp_path / "nothing.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(ValueError, match="is no tokenizer"):
        open_tokenizer(tmp_path)
