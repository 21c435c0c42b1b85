"""Captions and edits from parquet files in each of the layouts."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from rae_jax.data.decoding import decode_image
from rae_jax.data.sources import open_source
from rae_jax.data.told_files import ToldFiles


def png(shade):
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), shade, np.uint8)).save(encoded, format="png")
    return encoded.getvalue()


def write(folder, name, columns, group=2):
    (folder / "train").mkdir(exist_ok=True, parents=True)
    parquet.write_table(pa.table(columns), folder / "train" / name, row_group_size=group)


def shade(source, image):
    return int(decode_image(source.image(image))[0, 0, 0])


def test_a_caption_is_one_of_several_at_random(tmp_path):
    for number in (0, 1):
        shades = [10 * number + i for i in range(3)]
        captions = [json.dumps({"long": f"long {s}", "short": f"short {s}"}) for s in shades]
        write(tmp_path, f"{number}.parquet", {"image": [png(s) for s in shades], "captions": captions})
    source = open_source("captions", "train", str(tmp_path))
    assert len(source) == 6 and source.contents()["images"] == 6 and source.num_classes == 0
    for index, expected in enumerate((0, 1, 2, 10, 11, 12)):
        texts = {source.parts(index, draw)[0].text for draw in range(20)}
        assert texts == {f"long {expected}", f"short {expected}"}
        text, image = source.parts(index, 0)
        assert (text.kind, image.kind) == ("text", "noised") and shade(source, image.image) == expected
        assert decode_image(source[index]["image"])[0, 0, 0] == expected
    with pytest.raises(IndexError):
        source.parts(6, 0)


def test_captions_of_cc12m_llava_next_and_none_at_all(tmp_path):
    images = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}]
    write(tmp_path, "a.parquet", {"image": images, "caption_llava": ["long", ""], "caption_llava_short": ["short", ""]})
    source = ToldFiles("captions", str(tmp_path), "train")
    assert {source.parts(0, draw)[0].text for draw in range(20)} == {"long", "short"}
    assert source.parts(1, 0)[0].text == " " and shade(source, (1, 0)) == 2


def test_a_pair_is_a_source_an_instruction_and_a_target(tmp_path):
    columns = {"image_list": [[png(1), png(2)]], "instruction_list": [[["say it so", "or so"]]]}
    write(tmp_path, "a.parquet", columns)
    source = open_source("edits", "train", str(tmp_path))
    parts = source.parts(0, 0)
    assert [(part.kind, part.droppable) for part in parts] == [("clean", True), ("text", True), ("noised", False)]
    assert [shade(source, parts[i].image) for i in (0, 2)] == [1, 2]
    assert {source.parts(0, draw)[1].text for draw in range(20)} == {"say it so", "or so"}


def test_of_a_long_chain_one_or_two_edits_are_taken_joined_or_in_turns(tmp_path):
    columns = {"image_list": [[png(i) for i in range(4)]], "instruction_list": [[["a"], ["b"], ["c"]]]}
    write(tmp_path, "a.parquet", columns)
    source, found = ToldFiles("edits", str(tmp_path), "train"), set()
    for draw in range(200):
        parts = source.parts(0, draw)
        found.add(tuple(part.text or shade(source, part.image) for part in parts))
    single = {(i, text, i + 1) for i, text in enumerate("abc")}
    turns = {(0, "a", 1, 1, "b", 2), (1, "b", 2, 2, "c", 3)}
    joined = {(0, "a. b", 2), (1, "b. c", 3)}
    assert found == single | turns | joined


def test_pairs_of_omniedit(tmp_path):
    columns = {"src_img": [{"bytes": png(1)}], "edited_img": [{"bytes": png(2)}], "edited_prompt_list": [["x", "y"]]}
    write(tmp_path, "a.parquet", columns)
    source = ToldFiles("edits", str(tmp_path), "train")
    parts = source.parts(0, 3)
    assert parts[1].text in ("x", "y") and [shade(source, parts[i].image) for i in (0, 2)] == [1, 2]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"where there are none; set config\.data\.path"):
        open_source("captions", "train", str(tmp_path))
    write(tmp_path, "a.parquet", {"image": [png(1)], "words": ["x"]})
    with pytest.raises(ValueError, match=r"has the columns \['image', 'words'\]; captions have image and captions or"):
        ToldFiles("captions", str(tmp_path), "train")
    write(tmp_path, "a.parquet", {"image_list": [[png(1), png(2)]], "instruction_list": [[["a"], ["b"]]]})
    source = ToldFiles("edits", str(tmp_path), "train")
    with pytest.raises(ValueError, match="has 2 images, and instructions for more"):
        source.image((0, 2))
    write(tmp_path, "a.parquet", {"image_list": [[png(1), png(2)]], "instruction_list": [[[]]]}, 1)
    with pytest.raises(ValueError, match="an edit without an instruction"):
        ToldFiles("edits", str(tmp_path / "..") + f"/{tmp_path.name}", "train").parts(0, 0)
    (tmp_path / "train" / "b.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b.parquet is no readable parquet file"):
        ToldFiles("edits", str(tmp_path), "train")
