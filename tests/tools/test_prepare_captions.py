"""Captions in every form that people have come out as the same conversations; what is broken is named, in a line."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from rae_jax.data.conversation_shards import ConversationShards
from rae_jax.data.conversations import request
from tools.prepare_captions import main

CAPTIONS = ("a red cube", "a café", "two dogs")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


PICTURES = [picture(i) for i in range(3)]


def json_lines(folder, rows=None):
    for i, data in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(data)
    rows = [{"image": f"{i}.png", "caption": text} for i, text in enumerate(CAPTIONS)] if rows is None else rows
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tar(folder, name="wds-0.tar", samples=None):
    path = folder / name
    samples = samples or [(f"{i}", {"txt": text.encode(), "png": PICTURES[i]}) for i, text in enumerate(CAPTIONS)]
    with tarfile.open(path, "w") as file:
        for stem, parts in reversed(samples):
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{stem}.{ending}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


def manifest(folder):
    tar(folder, "b.tar")
    (folder / "my-wds.json").write_text(json.dumps({"tars": ["b.tar"]}))
    return folder / "my-wds.json"


def table():
    pa = pytest.importorskip("pyarrow")
    images = [{"bytes": data, "path": None} for data in PICTURES]
    return pa.table({"image": images, "caption": list(CAPTIONS)})


def parquet(folder):
    import pyarrow.parquet as pq

    pq.write_table(table(), folder / "part.parquet")
    return folder


def write_arrow(path, whole):
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, whole.schema) as out:
        out.write_table(whole)


def arrow(folder):
    write_arrow(folder / "data-00000-of-00001.arrow", table())
    return folder


def prepared(folder, source, *options):
    main([f"--source={source}", f"--output={folder / 'out'}", *options])
    shards = ConversationShards(folder / "out")
    return [shards.record(i) for i in range(len(shards))]


def refused(folder, source, *options):
    with pytest.raises(SystemExit) as error:
        main([f"--source={source}", f"--output={folder / 'out'}", *options])
    assert {p.name for p in folder.iterdir() if p.name.startswith((".out", "out"))} == set()
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("make", [json_lines, tar, manifest, parquet, arrow])
def test_every_form_gives_the_same_conversations(make, tmp_path):
    (tmp_path / "in").mkdir()
    records = prepared(tmp_path, make(tmp_path / "in"), "--shard_size=2")
    assert [(turns, images) for turns, images, _ in records] == [
        (request(text), [data]) for text, data in zip(CAPTIONS, PICTURES, strict=True)
    ]


def test_conversations_stay_as_they_are_with_several_images_and_none(tmp_path):
    talk = [{"from": "human", "value": "<image> <image> which?"}, {"from": "gpt", "value": "the first"}]
    rows = [{"image": ["0.png", "2.png"], "conversations": talk}, {"conversations": talk[1:]}]
    records = prepared(tmp_path, json_lines(tmp_path, rows))
    assert [turns for turns, _, _ in records] == [talk, talk[1:]]
    assert [len(images) for _, images, _ in records] == [2, 0]


def test_classes_of_an_arrow_folder_are_captions_by_their_names(tmp_path):
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    whole = pa.table({"image": [{"bytes": data, "path": ""} for data in PICTURES], "label": [1, 0, 1]})
    write_arrow(tmp_path / "in/train.arrow", whole)
    names = {"features": {"label": {"names": ["tench, Tinca tinca", "goldfish"], "_type": "ClassLabel"}}}
    (tmp_path / "in/dataset_info.json").write_text(json.dumps(names))
    records = prepared(tmp_path, tmp_path / "in", "--template=a photo of a {}")
    assert [turns[0]["value"] for turns, _, _ in records] == [
        f"a photo of a {n}" for n in ("goldfish", "tench", "goldfish")
    ]


def test_unusable_rows_are_named_left_out_and_counted(tmp_path, capsys):
    path = json_lines(tmp_path, [{"image": "0.png", "caption": text} for text in CAPTIONS])
    (tmp_path / "broken.png").write_bytes(PICTURES[0][:40])
    bad = [{"image": "broken.png", "caption": "x"}, {"image": "0.png"}, {"image": "nowhere.png", "caption": "y"}]
    with path.open("ab") as file:
        file.write("".join(json.dumps(row) + "\n" for row in bad).encode() + b"{\n" + b'{"caption": "caf\xe9"}\n')
    assert len(prepared(tmp_path, path, "--max_left_out=0.7")) == 3
    said = capsys.readouterr().out
    for line, problem in ((4, "cannot be read"), (5, "no text"), (6, "is not there"), (7, "no JSON"), (8, "not UTF-8")):
        assert any(f"line {line}:" in each and problem in each for each in said.splitlines()), problem
    index = json.loads((tmp_path / "out/conversations.json").read_text())
    assert index["records"] == 3 and sum(index["left_out"].values()) == 5
    (tmp_path / "again").mkdir()
    with pytest.raises(SystemExit, match=r"5 of the 8 rows .* are left out"):
        main([f"--source={path}", f"--output={tmp_path / 'other'}"])


def test_a_tar_cut_short_is_refused(tmp_path):
    path = tar(tmp_path)
    whole = path.read_bytes()
    for length in (700, 1536, 2000):
        path.write_bytes(whole[:length])
        assert "cut short" in refused(tmp_path, path), length


def test_missing_columns_sources_and_rows_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "in").mkdir()
    pq.write_table(table().rename_columns(["picture", "words"]), tmp_path / "in/a.parquet")
    assert "there are picture, words" in refused(tmp_path, tmp_path / "in")
    assert "no column 'photo'" in refused(tmp_path, tmp_path / "in", "--text=words", "--image=photo")
    assert "there is no" in refused(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no usable row" in refused(tmp_path, tmp_path / "empty.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    assert "no readable parquet" in refused(tmp_path, tmp_path / "a.parquet")
    (tmp_path / "words.csv").write_text("a")
    assert "neither .jsonl" in refused(tmp_path, tmp_path / "words.csv")
    assert "has no {}" in refused(tmp_path, tmp_path / "words.csv", "--template=a photo")
