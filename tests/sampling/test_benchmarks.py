"""Benchmarks' files: prompts as they are published in, images where the official judges look for them."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rae_jax.sampling import benchmarks

IMAGES = np.random.RandomState(0).randint(0, 256, (4, 6, 8, 3)).astype(np.uint8)
ROW = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def opened(path):
    return np.asarray(Image.open(path))


def test_geneval_finds_its_samples_and_metadata(tmp_path):
    """Its judge walks the folders, reads metadata.jsonl and looks at samples/*.png."""
    prompts = tmp_path / "evaluation_metadata.jsonl"
    prompts.write_text("\n".join(json.dumps(ROW | {"prompt": f"{i} dogs"}) for i in range(3)) + "\n")
    requests = benchmarks.geneval(prompts)
    assert [r.text for r in requests] == ["0 dogs", "1 dogs", "2 dogs"]
    out = tmp_path / "images"
    for request in requests:
        benchmarks.write_geneval(out, request, IMAGES)
    for i, folder in enumerate(sorted(out.iterdir())):
        assert folder.name == f"0000{i}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == ROW | {"prompt": f"{i} dogs"}
        samples = sorted((folder / "samples").iterdir())
        np.testing.assert_array_equal([opened(s) for s in samples], IMAGES)


def test_dpg_finds_one_square_grid_a_prompt(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "b7.txt").write_text("a long prompt\n")
    (folder / "a3.txt").write_text("another")
    requests = benchmarks.dpg(folder)
    assert [(r.text, r.place.name) for r in requests] == [("another", "a3.png"), ("a long prompt", "b7.png")]
    benchmarks.write_dpg(tmp_path / "out", requests[0], IMAGES)
    grid = opened(tmp_path / "out" / "a3.png")
    np.testing.assert_array_equal(grid, np.block([[[IMAGES[0]], [IMAGES[1]]], [[IMAGES[2]], [IMAGES[3]]]]))
    with pytest.raises(ValueError, match="3 images fill no square grid"):
        benchmarks.write_dpg(tmp_path / "out", requests[1], IMAGES[:3])
    assert not (tmp_path / "out" / "b7.png").exists()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_gedit_finds_edited_images_beside_their_sources(tmp_path, form):
    rows = [
        {"key": f"k{i}", "task_type": task, "instruction": f"do {i}", "instruction_language": language}
        for i, (task, language) in enumerate([("color_alter", "en"), ("ps_human", "cn"), ("subject-add", "en")])
    ]
    if form == "parquet":
        table = [row | {"input_image": {"bytes": png(IMAGES[i]), "path": None}} for i, row in enumerate(rows)]
        path = tmp_path / "gedit"
        path.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path / "0.parquet")
    else:
        path = tmp_path / "gedit.jsonl"
        for i in range(3):
            (tmp_path / f"{i}.png").write_bytes(png(IMAGES[i]))
        path.write_text("\n".join(json.dumps(row | {"input_image": f"{i}.png"}) for i, row in enumerate(rows)))
    requests = benchmarks.gedit(path)
    assert [r.text for r in requests] == ["do 0", "do 2"]
    benchmarks.write_gedit(tmp_path / "out", requests[1], IMAGES[3])
    place = tmp_path / "out" / "fullset" / "subject-add" / "en"
    np.testing.assert_array_equal(opened(place / "k2.png"), IMAGES[3])
    np.testing.assert_array_equal(opened(place / "k2_SRCIMG.png"), IMAGES[2])
    with pytest.raises(ValueError, match="instruction_language is one of \\['fr'\\]"):
        benchmarks.gedit(path, ["fr"])


def test_what_is_no_benchmark_is_said(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2: a row of GenEval has a 'prompt', this has \['text'\]"):
        benchmarks.geneval(path)
    path.write_text('{"prompt": "a"}\n{"prompt"')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        benchmarks.geneval(path)
    with pytest.raises(ValueError, match="has no text files"):
        benchmarks.dpg(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        benchmarks.dpg(tmp_path)
    path.write_text('{"key": "k", "instruction": "x"}\n')
    with pytest.raises(ValueError, match="line 1: no input_image, instruction_language, task_type"):
        benchmarks.gedit(path)
    row = {"key": "k", "task_type": "t", "instruction": "x", "instruction_language": "en", "input_image": "no.png"}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1: an image that is not there: .*no\.png"):
        benchmarks.gedit(path)
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.parquet is no readable parquet file"):
        benchmarks.gedit(tmp_path / "x.parquet")
