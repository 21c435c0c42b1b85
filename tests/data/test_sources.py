import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rae_jax.data.digits import ArraySource
from rae_jax.data.sources import count_classes, load_split, open_source
from rae_jax.data.transforms import transform
from tests.data.tiny_digits import TinyDigits, digit


def write(path: Path, value: int, size: tuple[int, int] = (6, 4)) -> None:
    """A uniform grey image of `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def values(source) -> list[int]:
    """The grey value of every image."""
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def labels(source) -> list[int]:
    return [source[i]["label"] for i in range(len(source))]


# Digits


def test_the_digits_are_split_by_class_and_the_split_never_changes():
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    share = np.bincount(test.labels) / np.bincount(load_digits().target)
    assert abs(share - 0.2).max() < 0.005
    assert hashlib.sha256(test.labels.tobytes()).hexdigest()[:16] == "9b160f0d84f8fd28"
    assert hashlib.sha256(test.images.tobytes()).hexdigest()[:16] == "cf2b00cf5a3894ce"


def test_no_digit_is_in_both_splits_or_in_none():
    both = np.concatenate([open_source("digits", split).images for split in ("train", "test")])
    assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in enlarged(load_digits().images))


def enlarged(images: np.ndarray) -> list[np.ndarray]:
    grey = [Image.fromarray(np.round(x / 16 * 255).astype(np.uint8)) for x in images]
    return [np.asarray(x.resize((32, 32), Image.Resampling.NEAREST).convert("RGB")) for x in grey]


def test_digits_are_the_originals_when_shrunk_again():
    train = open_source("digits", "train")
    assert train.images.shape == (1438, 32, 32, 3) and train.images.dtype == np.uint8
    assert train.num_classes == 10 and train.class_names == tuple("0123456789")
    small = train.images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    originals = load_digits()
    distances = [abs(originals.images * 255 / 16 - x).max((1, 2)) for x in small[:50]]
    assert max(x.min() for x in distances) <= 0.5  # that of rounding: nothing is smoothed
    nearest = [np.argmin(x) for x in distances]
    np.testing.assert_array_equal(originals.target[nearest], train.labels[:50])


def test_a_whole_split_comes_as_arrays():
    test = open_source("digits", "test")
    images, numbers = load_split(test)
    assert images.shape == (359, 32, 32, 3) and numbers.shape == (359,) and numbers.dtype == np.int32
    np.testing.assert_array_equal(images[7], test[7]["image"])
    assert numbers[7] == test[7]["label"]


@pytest.mark.parametrize("arguments", [("digits", "validation"), ("folder", "dev", "."), ("digit", "train")])
def test_unknown_sources_and_splits_are_errors(arguments):
    with pytest.raises(ValueError, match=r"splits .*test.*, not '(validation|dev)'|no data source 'digit'"):
        open_source(*arguments)


# Folders


def test_sorted_subfolders_are_the_labels_and_images_are_found_at_any_depth(tmp_path):
    write(tmp_path / "cat" / "b.png", 20)
    write(tmp_path / "cat" / "a" / "deep" / "z.JPG", 10)
    write(tmp_path / "ant" / "x.webp", 30)
    write(tmp_path / "dog" / "y.tiff", 40)
    write(tmp_path / ".cache" / "hidden.png", 50)
    write(tmp_path / "dog" / ".thumbnails" / "hidden.png", 60)
    write(tmp_path / "loose.png", 70)
    (tmp_path / "dog" / "notes.txt").write_text("not an image, and no candidate for one")
    source = open_source("folder", "train", str(tmp_path))
    assert source.class_names == ("ant", "cat", "dog") and source.num_classes == 3
    assert labels(source) == [0, 1, 1, 2]
    np.testing.assert_allclose(values(source), [30, 10, 20, 40], atol=1)
    assert source.path(1) == tmp_path / "cat" / "a" / "deep" / "z.JPG"
    with pytest.raises(IndexError):
        source[4]


def test_folder_names_may_be_in_any_script(tmp_path):
    names = ["éclair", "Ōsaka", "кошка", "猫", "with space"]
    for i, name in enumerate(names):
        write(tmp_path / name / f"{name} ß.png", 10 * i)
    source = pickle.loads(pickle.dumps(open_source("folder", "train", str(tmp_path))))
    assert source.class_names == tuple(sorted(names))
    assert values(source) == [10 * names.index(name) for name in sorted(names)]


def test_held_out_images_have_the_labels_of_the_training_classes(tmp_path):
    for split, name, value in [
        ("train", "a", 1),
        ("train", "b", 2),
        ("train", "c", 3),
        ("val", "b", 4),
        ("val", "c", 5),
    ]:
        write(tmp_path / split / name / "0.png", value)
    test = open_source("folder", "test", str(tmp_path))
    assert values(open_source("folder", "train", str(tmp_path))) == [1, 2, 3]
    assert (values(test), labels(test), test.num_classes) == ([4, 5], [1, 2], 3)
    write(tmp_path / "test" / "a" / "0.png", 6)
    assert values(open_source("folder", "test", str(tmp_path))) == [6]
    write(tmp_path / "test" / "d" / "0.png", 7)
    with pytest.raises(ValueError, match=r"classes that .*train lacks: \['d'\]"):
        open_source("folder", "test", str(tmp_path))


def test_layouts_that_cannot_be_read_are_errors_that_show_the_right_one(tmp_path):
    def opened(folder, split="train"):
        return open_source("folder", split, str(folder))

    with pytest.raises(ValueError, match=r"there is no folder .*missing'; expected one subfolder a class"):
        opened(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no images in .*; expected one subfolder a class, <path>/"):
        opened(tmp_path)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "empty" / "class" / "readme.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*; left out: files ending in \.txt: 1; expected one"):
        opened(tmp_path / "empty")
    write(tmp_path / "flat" / "a" / "0.png", 1)
    with pytest.raises(
        ValueError, match=r"no held-out images; move the others to .*train and put held-out ones into .*test"
    ):
        opened(tmp_path / "flat", "test")
    write(tmp_path / "half" / "val" / "a" / "0.png", 1)
    with pytest.raises(ValueError, match=r"has \['val'\] and lacks the folder 'train'"):
        opened(tmp_path / "half", "test")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*bare; "):
        opened(tmp_path / "bare")


def test_a_folder_of_images_has_no_classes_and_every_label_is_the_null_label(tmp_path):
    for split, value in (("train", 10), ("train", 20), ("test", 30)):
        write(tmp_path / split / f"{value}.png", value)
    train, test = (open_source("folder", split, str(tmp_path)) for split in ("train", "test"))
    assert train.class_names == () and train.num_classes == count_classes("folder", "train", str(tmp_path)) == 0
    assert values(train) == [10, 20] and labels(train) == [0, 0] and train.path(1) == tmp_path / "train" / "20.png"
    assert values(test) == [30]


@pytest.mark.parametrize("classes", [("",), ("ant", "bee")])
def test_held_out_images_are_chosen_by_name_from_every_class_and_adding_one_moves_at_most_one(classes, tmp_path):
    for name in classes:
        for i in range(20):
            write(tmp_path / name / f"{i:02}.png", 10 * i)

    def names(split):
        source = open_source("folder", split, str(tmp_path), held_out_share=0.2)
        return {source.path(i).relative_to(tmp_path) for i in range(len(source))}

    train, test = names("train"), names("test")
    assert not train & test and len(train | test) == 20 * len(classes)
    assert sorted(path.parent.name for path in test) == sorted(4 * [*classes])
    assert test != {Path(name) / f"{i:02}.png" for name in classes for i in range(4)}  # not the first by name
    write(tmp_path / classes[0] / "new.png", 5)
    assert len(names("test") - test) <= 1 and len(test - names("test")) <= 1
    assert count_classes("folder", "test", str(tmp_path)) == (0 if classes == ("",) else 2)


def test_a_single_image_is_trained_on(tmp_path):
    write(tmp_path / "0.png", 1)
    assert len(open_source("folder", "train", str(tmp_path), held_out_share=0.5)) == 1
    with pytest.raises(ValueError, match="has no class of two images or more, of which one could be held out"):
        open_source("folder", "test", str(tmp_path), held_out_share=0.5)


def broken_folder(folder: Path, count: int = 12) -> Path:
    """`count` images of grey value 10 i, of which 3 (no bytes), 4 (half a JPEG) and 11 (text) are unreadable."""
    for i in range(count):
        write(folder / f"class {i // 6}" / f"{i:02}.png", 10 * i)
    (folder / "class 0" / "03.png").write_bytes(b"")
    (folder / "class 0" / "04.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "class 0" / "04.jpg")
    data = (folder / "class 0" / "04.jpg").read_bytes()
    (folder / "class 0" / "04.jpg").write_bytes(data[: len(data) // 2])
    if count > 11:
        (folder / "class 1" / "11.png").write_text("I am not an image.")
    return folder


def test_an_unreadable_image_stands_for_the_next_readable_one_and_is_named_once(tmp_path, caplog):
    source = open_source("folder", "train", str(broken_folder(tmp_path)), max_unreadable_share=0.3, check_images=0)
    assert not caplog.records
    for _ in range(2):
        assert values(source) == [0, 10, 20, 50, 50, 50, 60, 70, 80, 90, 100, 0]
        assert labels(source) == [0] * 6 + [1] * 5 + [0]
    assert source.unreadable == {3, 4, 11}
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 3 and all(record.levelno == logging.WARNING for record in caplog.records)
    assert "03.png is skipped: not a readable image (0 bytes)" in warned[0]
    assert "04.jpg is skipped" in warned[1] and "11.png is skipped" in warned[2]


def test_elements_do_not_depend_on_the_order_of_reading(tmp_path):
    source = open_source("folder", "train", str(broken_folder(tmp_path)), max_unreadable_share=0.3, check_images=0)
    backwards = [int(source[i]["image"][0, 0, 0]) for i in reversed(range(12))]
    assert backwards[::-1] == [0, 10, 20, 50, 50, 50, 60, 70, 80, 90, 100, 0]


def test_too_many_unreadable_images_stop_the_run_when_they_are_met(tmp_path):
    source = open_source("folder", "train", str(broken_folder(tmp_path)), max_unreadable_share=0.2, check_images=0)
    for i in range(11):
        source[i]
    with pytest.raises(ValueError, match=r"3 of the 12 images .* cannot be read, more than max_unreadable_share=0.2"):
        source[11]


def test_a_broken_folder_is_an_error_before_training(tmp_path):
    broken_folder(tmp_path)
    with pytest.raises(
        ValueError, match=r"3 of 12 checked images .*0\.2 allows: .*03\.png.*04\.jpg.*11\.png"
    ) as caught:
        open_source("folder", "train", str(tmp_path), max_unreadable_share=0.2, check_images=100)
    assert "the first: not a readable image (0 bytes)" in str(caught.value)
    with pytest.raises(ValueError, match=r"1 of 4 checked images"):
        open_source("folder", "train", str(tmp_path), max_unreadable_share=0.2, check_images=4)  # 0, 3, 6, 9


def test_a_few_unreadable_images_are_named_before_training(tmp_path, caplog):
    source = open_source("folder", "train", str(broken_folder(tmp_path)), max_unreadable_share=0.3, check_images=100)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 of 12 checked images" in record.getMessage() and "03.png" in record.getMessage()
    assert len(source) == 12


def test_a_folder_of_nothing_readable_is_an_error_even_if_all_may_be_skipped(tmp_path):
    for i in range(3):
        write(tmp_path / "a" / f"{i}.png", 0)
        (tmp_path / "a" / f"{i}.png").write_bytes(b"")
    source = open_source("folder", "train", str(tmp_path), max_unreadable_share=1.0)
    with pytest.raises(ValueError, match="not one of the 3 images"):
        source[1]
    with pytest.raises(ValueError, match="a share between 0 and 1, not 5"):
        open_source("folder", "train", str(tmp_path), max_unreadable_share=5)


def test_a_file_that_vanishes_is_skipped_like_an_unreadable_one(tmp_path):
    for i in range(4):
        write(tmp_path / "a" / f"{i}.png", i)
    source = open_source("folder", "train", str(tmp_path), max_unreadable_share=0.5)
    (tmp_path / "a" / "1.png").unlink()
    assert values(source) == [0, 2, 2, 3]


def test_a_split_of_differing_sizes_needs_a_transform_to_become_one_array(tmp_path):
    write(tmp_path / "a" / "0.png", 1, (30, 20))
    write(tmp_path / "a" / "1.png", 2, (20, 25))
    source = open_source("folder", "train", str(tmp_path))
    with pytest.raises(ValueError, match="same shape"):
        load_split(source)
    images, numbers = load_split(source, transform("center_crop", 16))
    assert images.shape == (2, 16, 16, 3) and numbers.tolist() == [0, 0]


# TensorFlow Datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A TFDS data directory with `tiny_digits` in ArrayRecord files."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyDigits(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("below", ["", "tiny_digits/1.0.0"])
def test_tfds_gives_encoded_images_from_a_data_directory_or_a_prepared_one(prepared, below):
    source = open_source("tfds:tiny_digits", "validation", str(prepared / below))
    assert len(source) == 10 and source.num_classes == 10 and source.class_names[3] == "digit 3"
    element = pickle.loads(pickle.dumps(source))[0]
    assert set(element) == {"image", "label"}
    assert isinstance(element["image"], bytes) and element["image"].startswith(b"\x89PNG")
    images, numbers = load_split(source)
    expected = {digit(i)[0].tobytes(): digit(i)[1] for i in range(30, 40)}
    assert {x.tobytes(): y for x, y in zip(images, numbers, strict=True)} == expected


def test_tfds_understands_split_expressions(prepared):
    assert len(open_source("tfds:tiny_digits", "train[:20%]+validation", str(prepared))) == 16


def test_tfds_errors_say_what_to_do(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"TFDS tiny_digits, split 'tset': prepared are the splits \['test', 'train'"):
        open_source("tfds:tiny_digits", "tset", str(prepared))
    with pytest.raises(ValueError, match="TFDS no_such_set, split 'train': not found under"):
        open_source("tfds:no_such_set", "train", str(prepared))
    with pytest.raises(ValueError, match=r"nothing is prepared .*tfds build tiny_digits --file_format=array_record"):
        open_source("tfds:tiny_digits", "train", str(tmp_path))
    with pytest.raises(ValueError, match="image 0 has no label"):
        open_source("tfds:tiny_digits", "test", str(prepared))[0]

    shutil.copytree(prepared / "tiny_digits", tmp_path / "tiny_digits")
    info = tmp_path / "tiny_digits" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="allow no random access; prepare it with `tfds build tiny_digits"):
        open_source("tfds:tiny_digits", "train", str(tmp_path))


def test_an_undecodable_element_is_named():
    class Broken(ArraySource):
        def __getitem__(self, index):
            return {"image": b"text", "label": 0}

        def __repr__(self):
            return "a broken source"

    with pytest.raises(ValueError, match=r"image 0 of a broken source: not a readable image \(4 bytes\)"):
        load_split(Broken(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32), "a"), transform("resize", 4))


def test_reading_tfds_does_not_import_tensorflow(prepared):
    code = (
        "import sys\n"
        "from rae_jax.data.sources import open_source\n"
        "from rae_jax.data.batches import evaluation_batches\n"
        "from rae_jax.data.transforms import transform\n"
        "source = open_source('tfds:tiny_digits', 'train', sys.argv[1])\n"
        "batches = evaluation_batches(source, batch_size=16, transform=transform('center_crop', 8))\n"
        "assert [int(b['mask'].sum()) for b in batches] == [16, 14]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", code, str(prepared / "tiny_digits" / "1.0.0")], env=environment, check=True, timeout=120
    )
