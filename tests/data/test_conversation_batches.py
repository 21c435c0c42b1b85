"""Batches of conversations: the same rows for everybody, in proportion, and what cannot be used left out by name."""

import contextlib
import logging

import numpy as np
import pytest

from rae_jax.data.conversation_batches import SceneConversations, conversation_batches, shapes
from rae_jax.data.conversation_shards import ConversationShards, ShardWriter, encode
from rae_jax.data.conversations import Layout, laid_out, request
from rae_jax.data.scene_tokens import scene_tokenizer
from rae_jax.data.scenes import SceneSource, render
from rae_jax.data.transforms import transform

LAYOUT = Layout(80, 16, tokens_read=4)


class Talk:
    """Conversations without images; the `broken`-th has no text."""

    def __init__(self, text, count=5, broken=()):
        self.text, self.count, self.broken = text, count, broken

    def __len__(self):
        return self.count

    def conversation(self, index, rng):
        turns = [{"from": "human", "value": f"{self.text} {index}"}, {"from": "gpt", "value": "yes"}]
        return [], ([] if index in self.broken else turns)


def batches(mixture, size=8, **options):
    return conversation_batches(
        mixture,
        batch_size=size,
        seed=3,
        tokenizer=scene_tokenizer(),
        layout=LAYOUT,
        transform=transform("none", 32),
        image_size=32,
        **options,
    )


def first(mixture, count=2, **options):
    with contextlib.closing(batches(mixture, **options)) as stream:
        return [next(stream) for _ in range(count)]


def test_rows_do_not_depend_on_who_reads_them_and_go_on_where_they_stopped():
    scenes = [(SceneConversations("train", 0.5), 1.0)]
    whole = first(scenes)
    assert whole[0]["image"].shape == (8, 1, 32, 32, 3)
    said = {name: (array.shape, array.dtype) for name, array in shapes(LAYOUT, 32, 8).items()}
    assert {name: (array.shape, array.dtype) for name, array in whole[0].items()} == said
    assert 0 < whole[0]["answer_img_mask"].sum() < 8
    for rows in ([0, 3], [7]):
        for part, all_of_it in zip(first(scenes, rows=rows), whole, strict=True):
            for name, value in part.items():
                np.testing.assert_array_equal(value, all_of_it[name][rows], err_msg=name)
    with contextlib.closing(batches(scenes)) as stream:
        stream.set_state({"position": 8})
        np.testing.assert_array_equal(next(stream)["input_ids"], whole[1]["input_ids"])


def test_conversations_about_a_scene_are_one_description_or_two_other_questions_and_fit_the_context():
    source, described = SceneConversations("train", question_share=1.0), 0
    for index in range(400):
        (image,), turns = source.conversation(index, np.random.default_rng(index))
        np.testing.assert_array_equal(image, render(SceneSource("train").scene(index), "train"))
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n") and not any("<image>" in turn["value"] for turn in turns[1:])
        asked = [turn["value"].removeprefix("<image>\n") for turn in turns[::2]]
        whole = asked == ["what is there?"]
        described += whole
        assert whole or (len(set(asked)) == len(asked) in (1, 2) and "what is there?" not in asked)
        laid_out(scene_tokenizer(), turns, 1, LAYOUT)  # raises where it is too long
        _, wanted = SceneConversations("train", question_share=0.0).conversation(index, np.random.default_rng(index))
        laid_out(scene_tokenizer(), wanted, 1, LAYOUT)
    assert 70 < described < 130  # a quarter


def test_sources_are_mixed_by_weight_with_text_questions_and_requests_in_one_batch():
    mixture = [(SceneConversations("train", 0.5), 3.0), (Talk("hello"), 1.0)]
    (batch,) = first(mixture, count=1, size=40)
    with_image = batch["image"].any(axis=(1, 2, 3, 4))
    assert with_image.sum() == 30
    assert not batch["answer_img_mask"][~with_image].any()


def test_what_cannot_be_used_stands_for_the_next_and_is_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        (batch,) = first([(Talk("hello", broken=(1, 2)), 1.0)], count=1, size=10)
    texts = [scene_tokenizer().decode(row[row >= 0]) for row in batch["input_ids"]]
    assert sum("hello 3" in text for text in texts) == 6 and not any("hello 1" in text for text in texts)
    assert sum("without text" in record.message for record in caplog.records) == 1
    with pytest.raises(ValueError, match="not one of the 2 conversations"):
        first([(Talk("hello", count=2, broken=(0, 1)), 1.0)])
    with pytest.raises(ValueError, match="there are 0 conversations"):
        batches([(Talk("hello", count=0), 1.0)])


def test_shards_give_back_what_was_written(tmp_path):
    records = [encode(request(f"café {i}"), [bytes([i]) * i], f"key{i}") for i in range(7)]
    writer = ShardWriter(tmp_path, size=3)
    for record in records:
        writer.append(record)
    writer.finish({})
    shards = ConversationShards(tmp_path)
    assert len(shards) == 7
    for i in (6, 0, 3):
        turns, images, key = shards.record(i)
        assert turns == request(f"café {i}") and images == [bytes([i]) * i] and key == f"key{i}"
    with pytest.raises(ValueError, match="holds conversations already"):
        ShardWriter(tmp_path, size=3)
    (tmp_path / "00001.array_record").write_bytes((tmp_path / "00001.array_record").read_bytes()[:-70000])
    with pytest.raises(ValueError, match=r"00001\.array_record"):
        ConversationShards(tmp_path)
    (tmp_path / "00001.array_record").unlink()
    with pytest.raises(ValueError, match="is missing"):
        ConversationShards(tmp_path)
    with pytest.raises(ValueError, match="prepare_captions"):
        ConversationShards(tmp_path / "elsewhere")
