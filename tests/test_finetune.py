"""`configs/finetune.py`, on a folder of one's own images."""

import numpy as np
import pytest
import runs
from PIL import Image

from configs import finetune
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.stages import open_sources


def write_images(folder, classes, count=12):
    """Images of many shapes, `count` in each class folder."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (70 + 5 * i, 150 - 9 * i, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(("classes", "count"), [(("",), 0), (("ant",), 1), (("ant", "bee", "cat"), 3)])
def test_the_classes_are_those_of_the_folder_and_without_any_samples_are_unconditional(classes, count, tmp_path):
    write_images(tmp_path / "images", classes)
    config = finetune.get_config("tiny")
    config.data.path, config.data.held_out_share = str(tmp_path / "images"), 0.2
    config = resolved(config, tmp_path / "run")
    assert config.flow.num_classes == count
    assert config.sampling.labels == ("permuted" if count else "unconditional")
    check(config, file="configs/finetune.py", num_devices=1)
    sources = open_sources(config)
    assert len(sources["train"]) == 10 * len(classes) and len(sources["test"]) == 2 * len(classes)


@pytest.mark.parametrize("classes", [("",), ("ant", "bee")])
def test_of_one_image_a_class_none_is_held_out(classes, tmp_path):
    write_images(tmp_path, classes, count=1)
    config = finetune.get_config("tiny")
    config.data.path = str(tmp_path)
    sources = open_sources(resolved(config, tmp_path / "run"))
    assert sources["test"] is sources["train"] and len(sources["train"]) == len(classes)


def test_a_model_of_fewer_classes_than_the_images_have_is_refused_unless_it_learns_none(tmp_path):
    write_images(tmp_path, ("ant", "bee", "cat"))
    config = finetune.get_config("tiny")
    config.data.path, config.flow.num_classes = str(tmp_path), 2
    with pytest.raises(ValueError, match=r"flow\.num_classes=2, but the images have 3 classes, which 'flow' learns"):
        open_sources(config)
    for advised in (3, -1):
        followed = config.copy_and_resolve_references()
        followed.flow.num_classes = advised
        open_sources(resolved(followed, tmp_path / "run"))
    config.flow.label_dropout = 1.0
    open_sources(config)


def test_samples_of_classes_are_refused_where_there_are_none():
    config = finetune.get_config("tiny")
    config.flow.num_classes = 0
    with pytest.raises(ValueError, match=r"sampling\.labels='permuted', but there are no classes"):
        check(config, file="configs/finetune.py", num_devices=1)


@pytest.mark.parametrize(("variant", "text"), [("medium", "no variant 'medium'"), ("s-xl", "exclude each other")])
def test_unknown_words_are_errors(variant, text):
    with pytest.raises(ValueError, match=text):
        finetune.get_config(variant)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "said"), [(1, "there are no held-out images"), (5, "there is only one held-out")])
def test_one_image_or_five_are_trained_on_and_what_they_cannot_tell_is_said(count, said, tmp_path):
    write_images(tmp_path / "images", ("",), count)
    path = f"--config.data.path={tmp_path / 'images'}"
    for _ in range(2):  # the second time nothing is left to train
        status, output = runs.run(tmp_path / "run", path, "--num_samples=1", config="configs/finetune.py:tiny")
        assert status == 0 and said in " ".join(output.split()), output
    assert (tmp_path / "run" / "samples.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [("",), ("ant", "bee")])
def test_the_whole_pipeline_runs_on_a_folder_with_and_without_classes(classes, tmp_path):
    write_images(tmp_path / "images", classes)
    workdir, path = tmp_path / "run", f"--config.data.path={tmp_path / 'images'}"
    status, output = runs.run(workdir, path, "--config.data.held_out_share=0.2", config="configs/finetune.py:tiny")
    assert status == 0, output
    assert (workdir / "decoder_tuning" / "weights" / "weights.safetensors").exists()
    with np.load(workdir / "samples.npz") as samples:
        assert samples["arr_0"].shape == (16, 64, 64, 3)
        assert ("labels" in samples) == (len(classes) > 1)
    (tmp_path / "images").rename(tmp_path / "moved")  # sampling needs no images, not even to count classes
    more = ("--config.data.held_out_share=0.2", "--mode=sample", "--num_samples=6")
    status, output = runs.run(workdir, path, *more, config="configs/finetune.py:tiny")
    assert status == 0, output
