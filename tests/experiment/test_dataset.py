"""What a run keeps and says of its images."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import digits
from rae_jax.data.latents import describe
from rae_jax.experiment import dataset, latent_cache
from rae_jax.experiment.run import open_run
from rae_jax.experiment.stages import open_sources


def write_images(folder: Path, **counts: int) -> Path:
    """So many images of each class, and a file that is none."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4)).save(folder / name / f"{i}.png")
        (folder / name / "notes.txt").touch()
    return folder


def config_of(folder: Path):
    config = digits.get_config("tiny")
    config.stages = ()
    config.data.source, config.data.path, config.data.held_out_share = "folder", str(folder), 0.2
    config.evaluation = {name: False for name in config.evaluation}
    return config


def start(folder: Path, workdir: Path) -> None:
    with open_run(config_of(folder), "configs/digits.py:tiny", workdir, keep_programs=False):
        (workdir / "samples.npz").touch()  # something that the run has made


def test_a_run_keeps_and_shows_its_classes_what_there_is_of_each_and_what_was_left_out(tmp_path, capsys):
    folder = write_images(tmp_path / "images", **{"2": 5, "10": 60})
    start(folder, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert f"training: 52 images of 2 classes in {folder}" in said and "held out: 13 images of 2 classes" in said
    assert "label, class and images: 0 2 (4), 1 10 (48)" in said
    assert said.count("left out: files ending in .txt: 2") == 1
    assert "warning: classes are very unequal: 48 images of '10', 4 of '2'" in said
    assert dataset.class_names(tmp_path / "run") == ("2", "10")
    kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert kept["path"] == str(folder) and kept["splits"]["test"]["classes"] == {"2": 1, "10": 12}
    assert kept["splits"]["train"]["left_out"] == {"files ending in .txt": 2}


def test_images_of_which_none_is_held_out_are_named_once(tmp_path, capsys):
    start(write_images(tmp_path / "images", ant=1), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "training: 1 images of 1 classes" in said and "held out:" not in said
    assert "warning: left out: nothing of config.evaluation, for there are no held-out images" in said
    assert json.loads((tmp_path / "run" / "data.json").read_text())["splits"].keys() == {"train"}


def test_another_class_at_a_later_start_is_an_error_that_names_it(tmp_path):
    folder = write_images(tmp_path / "images", ant=4, cat=4)
    start(folder, tmp_path / "run")
    write_images(folder, bee=4)
    with pytest.raises(ValueError, match=r"other classes than when this run began.*: 'bee' is new; put"):
        start(folder, tmp_path / "run")
    (folder / "cat").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'bee' is new, 'cat' is gone"):
        start(folder, tmp_path / "run")
    start(folder, tmp_path / "another")


def test_a_run_that_began_before_labels_were_kept_keeps_the_order_of_strings(tmp_path):
    folder, workdir = write_images(tmp_path / "images", **{"2": 4, "10": 4}), tmp_path / "run"
    config = config_of(folder)
    config.stages = ("flow",)
    assert dataset.labelled(config, workdir) is None
    assert open_sources(config, workdir)["test"].class_names == ("2", "10")
    (workdir / "flow").mkdir(parents=True)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    assert open_sources(config, workdir)["test"].class_names == ("2", "10")  # nothing has been made yet
    (workdir / "flow" / "finished.json").touch()
    assert open_sources(config, workdir)["test"].class_names == ("10", "2")
    dataset.record(workdir, config, open_sources(config, workdir))
    assert dataset.labelled(config, workdir) == ("10", "2")


@pytest.mark.parametrize(("names", "fits"), [(("2", "10"), True), (("10", "2"), False), ((), False)])
def test_cached_latents_with_another_class_under_a_label_are_refused(names, fits, tmp_path, monkeypatch):
    config = config_of(write_images(tmp_path / "images", **{"2": 4, "10": 4}))
    source, config.data.latents = open_sources(config)["train"], str(tmp_path / "latents")
    cache = describe(len(source), 2, (4, 8), {}, {}, names)  # no names: of the time when the order was that of strings
    monkeypatch.setattr(latent_cache, "read_description", lambda directory: cache)
    with (
        contextlib.nullcontext() if fits else pytest.raises(ValueError, match=r"another class .*: '10', not '2'; make")
    ):
        latent_cache.check_data(config, source)


def test_names_stand_beside_labels_where_they_say_more():
    names, members = ("2", "1", "tench\n" + 30 * "x"), np.arange(3)
    rows = dataset.captioned([(label, members) for label in ("0", "1", "2", "7", "a cat")], names)
    assert [caption for caption, _ in rows] == ["0 2", "1", r"2 tench\n" + 14 * "x" + "...", "7", "a cat"]
    assert dataset.captioned([("0", members)], None) == [("0", members)]
