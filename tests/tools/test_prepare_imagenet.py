"""A folder of JPEG files goes into shards and comes out byte for byte."""

import numpy as np
import pytest
from PIL import Image

from rae_jax.data.sources import TfdsSource
from tools import prepare_imagenet

COUNTS = {("train", "n01"): 3, ("train", "n02"): 2, ("val", "n01"): 1, ("val", "n02"): 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for (split, name), count in COUNTS.items():
        (folder / split / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{name}_{i}.JPEG")
    return folder, prepare_imagenet.prepare(folder, tmp_path_factory.mktemp("shards"))


def test_the_shards_hold_the_files_bytes_and_their_classes(prepared):
    folder, directory = prepared
    for split, ours in (("train", "train"), ("validation", "val")):
        source = TfdsSource("imagenet_folder", split, str(directory))
        assert source.class_names == ("n01", "n02")
        found = sorted((element["label"], element["image"]) for element in (source[i] for i in range(len(source))))
        files = sorted(
            (label, path.read_bytes())
            for label, name in enumerate(source.class_names)
            for path in (folder / ours / name).iterdir()
        )
        assert found == files


def test_a_folder_that_has_changed_since_is_noticed(prepared):
    folder, directory = prepared
    (folder / "train" / "n02" / "n02_9.JPEG").write_bytes((folder / "train" / "n01" / "n01_0.JPEG").read_bytes())
    with pytest.raises(ValueError, match="train: 1 classes differ from the folder: n02"):
        prepare_imagenet.prepare(folder, directory.parents[1])  # the shards are there already and are not written again
    (folder / "train" / "n02" / "n02_9.JPEG").unlink()


def test_what_is_not_all_of_imagenet_is_refused(prepared, capsys):
    _, directory = prepared
    with pytest.raises(SystemExit, match="train has 5 images of 2 classes, ImageNet has 1,281,167 of 1000"):
        prepare_imagenet.main([f"--check={directory}"])
    prepare_imagenet.main([f"--check={directory}", "--any"])
    assert "complete" in capsys.readouterr().out
