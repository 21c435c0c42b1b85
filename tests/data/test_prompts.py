"""Prompts from files, and those of scenes."""

import pytest

from rae_jax.data.prompts import OF_EACH, read_prompts, scene_prompts
from rae_jax.data.scene_words import CATEGORIES
from rae_jax.data.scenes import seen


def test_lines_and_json_lines_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("a red cube\n\n  two dogs \n")
    assert read_prompts(tmp_path / "a.txt") == ("a red cube", "two dogs")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a café"}\n{"prompt": "b", "tag": 1}\n')
    assert read_prompts(tmp_path / "a.jsonl") == ("a café", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no file of prompts"),
        ("empty.txt", b"\n \n", "holds no prompts"),
        ("latin.txt", "good\ncaf\u00e9".encode("latin-1"), "line 2 is not UTF-8"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("b.jsonl", b'{"text": "a"}', r'line 1 has no text "prompt"; there are \[.text.\]'),
        ("c.jsonl", b'\n{"prompt": 5}', 'line 2 has no text "prompt"'),
        ("d.jsonl", b"5", "line 1 is no JSON object"),
        ("e.jsonl", "caf\u00e9".encode("latin-1"), "line 1 is not UTF-8"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_scenes_are_asked_for_in_every_category_seen_and_unseen():
    for category in CATEGORIES:
        for of_seen in (True, False):
            mine = [p for p in scene_prompts() if p.category == category and seen(p.items) == of_seen]
            assert len(mine) == OF_EACH
