"""What is found in a folder of images: layouts, labels, endings, and what is left out."""

import os
from pathlib import Path

import pytest
from PIL import Image

from rae_jax.data.decoding import ENDINGS, decode_image
from rae_jax.data.folders import Found, find_images, former_labels, printable


def touch(root: Path, *names: str) -> Path:
    """Files without content: nothing is decoded here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, split: str = "train", **options) -> tuple[str, dict[str, list[str]]]:
    """The folder of a split, relative to `root`, and the files of each class in it."""
    result: Found = find_images(root, split, **options)
    files = dict(zip(result.classes or ("",), result.files, strict=True))
    return str(result.root.relative_to(root)), files


def test_numbers_in_the_names_of_classes_count_as_numbers(tmp_path):
    touch(tmp_path, *(f"{i}/0.png" for i in (10, 2, 0, 11, 1, 9)))
    assert find_images(tmp_path, "train").classes == ("0", "1", "2", "9", "10", "11")
    imagenet = ("n01440764", "n01443537", "n09835506", "n15075141")
    touch(tmp_path / "imagenet", *(f"{name}/0.png" for name in reversed(imagenet)))
    assert find_images(tmp_path / "imagenet", "train").classes == imagenet


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Test", "VAL"])
def test_a_split_has_many_names_and_each_name_of_a_held_out_one_means_it(train, held_out, tmp_path):
    touch(
        tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{held_out}/dog/2.png", "annotations/a/3.png", "x/y.txt"
    )
    assert found(tmp_path) == (train, {"cat": ["0.png"], "dog": ["1.png"]})
    for split in ("test", "validation", "val"):
        assert found(tmp_path, split, held_out_share=0.3) == (held_out, {"cat": [], "dog": ["2.png"]})
    assert find_images(tmp_path, "train").left_out == {"folders beside the splits (annotations, x)": 2}


def test_of_several_held_out_folders_the_config_says_which_or_is_asked_to(tmp_path):
    touch(tmp_path, "train/a/0.png", "val/a/1.png", "test/a/2.png")
    assert [found(tmp_path, split)[0] for split in ("test", "val", "validation")] == ["test", "val", "val"]
    touch(tmp_path, "valid/a/3.png")
    assert [found(tmp_path, split)[0] for split in ("test", "val", "valid")] == ["test", "val", "valid"]
    with pytest.raises(ValueError, match=r"in val, valid, and 'validation' may mean any .*data\.test_split"):
        find_images(tmp_path, "validation")
    (tmp_path / "test").rename(tmp_path / "train.old")
    with pytest.raises(ValueError, match=r"in val, valid, and 'test' may mean any"):
        find_images(tmp_path, "test")


def test_held_out_images_without_class_folders_do_not_hide_those_that_have_some(tmp_path):
    touch(tmp_path, "train/a/0.png", "train/b/0.png", "test/1.png", "val/b/2.png")
    assert found(tmp_path, "test") == ("val", {"a": [], "b": ["2.png"]})
    assert "folders of held-out images without class folders (test)" in find_images(tmp_path, "test").left_out
    (tmp_path / "val" / "b" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"no held-out images; test has no class folders"):
        find_images(tmp_path, "test")
    touch(tmp_path, *(f"train/a/{i}.png" for i in range(10)))
    assert len(found(tmp_path, "test", held_out_share=0.3)[1]["a"]) == 3


def test_a_folder_named_as_a_split_may_be_a_class_and_in_doubt_is_an_error(tmp_path):
    touch(tmp_path / "vehicles", "train/0.png", "bus/1.png", "car/2.png")
    assert found(tmp_path / "vehicles")[1] == {"bus": ["1.png"], "car": ["2.png"], "train": ["0.png"]}
    touch(tmp_path / "doubt", "train/a/0.png", "masks/1.png")
    with pytest.raises(ValueError, match=r"has 'train', which holds class folders, beside masks"):
        find_images(tmp_path / "doubt", "train")
    touch(tmp_path / "two", "train/a/0.png", "training/a/1.png")
    with pytest.raises(ValueError, match=r"training images in .*train.*; keep one"):
        find_images(tmp_path / "two", "train")
    touch(tmp_path / "half", "Validation/a/0.png", "Test/a/0.png")
    with pytest.raises(ValueError, match=r"has \['Test', 'Validation'\] and lacks the folder 'train'"):
        find_images(tmp_path / "half", "train")


def test_what_holds_no_image_is_no_class_and_what_is_left_out_is_counted(tmp_path):
    touch(tmp_path, "a/0.png", "b/deep/er/1.JFIF", "c/2.heic", "__MACOSX/a/._0.png", "__MACOSX/b/3.png", ".cache/4.png")
    touch(tmp_path, "a/.5.png", "a/notes.txt", "a/more.TXT", "a/Thumbs.db", "a/README", "6.png", "list.csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result = find_images(tmp_path, "train")
    assert found(tmp_path)[1] == {"a": ["0.png"], "b": ["deep/er/1.JFIF"]}
    assert result.left_out == {
        "hidden and system files and folders": 3,
        "files ending in .txt": 2,
        "files ending in .db": 1,
        "files ending in .csv": 1,
        "files without an ending": 1,
        "links that lead nowhere": 1,
        "images beside the class folders": 1,
        "folders without images (c, empty)": 2,
    }
    touch(tmp_path / "only", *(f"a/0.{i}" for i in range(20)), "a/1.png")
    many = find_images(tmp_path / "only", "train").left_out
    assert sum(many.values()) == 20 and len(many) == 9 and many["files with other endings"] == 12


def test_more_images_beside_the_class_folders_than_in_them_are_refused(tmp_path):
    touch(tmp_path, *(f"{i}.jpg" for i in range(50)), *(f"drafts/{i}.jpg" for i in range(4)))
    with pytest.raises(ValueError, match=r"50 images beside the class folders drafts, which have 4; put every image"):
        find_images(tmp_path, "train")


ALIKE = {".jpg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".tif": "tiff", ".j2k": "jpeg2000", ".jpf": "jpeg2000",
         ".jpx": "jpeg2000", ".jp2": "jpeg2000", ".pgm": "ppm", ".pbm": "ppm", ".pnm": "ppm",
         ".apng": "png"}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_found_in_any_case_and_what_it_stands_for_is_decoded(ending, tmp_path):
    mode = "1" if ending == ".pbm" else "L" if ending == ".pgm" else "RGB"
    for name in (f"0{ending}", f"1{ending.upper()}"):
        Image.new(mode, (8, 8)).save(tmp_path / name, format=ALIKE.get(ending, ending[1:]))
    assert find_images(tmp_path, "train").files == [[f"0{ending}", f"1{ending.upper()}"]]
    assert decode_image((tmp_path / f"0{ending}").read_bytes()).shape == (8, 8, 3)


def test_links_do_not_find_an_image_twice_or_in_another_class(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, *(f"{name}/{i}.png" for name in "abc" for i in range(5)))
    touch(outside, "far/0.png", "near/1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "further").symlink_to(tmp_path)
    (root / "a" / "itself").symlink_to(root / "a" / "itself")
    (root / "b" / "other").symlink_to(root / "c")
    (root / "d").symlink_to(outside / "far")  # classes may be elsewhere
    (root / "twin").symlink_to(root / "a")
    (root / "b" / "more").symlink_to(outside / "near")
    (outside / "near" / "back").symlink_to(outside)
    five = [f"{i}.png" for i in range(5)]
    expected = {"a": five, "b": [*five, "more/1.png"], "c": five, "d": ["0.png"]}
    assert found(root)[1] == expected
    left_out = find_images(root, "train").left_out
    assert left_out["links to folders that are read already, or that hold all of it"] >= 4
    assert left_out["folders without images (twin)"] == 1
    (root / "e").mkdir()
    (root / "e" / "all").symlink_to(root / "c")
    assert found(root)[1] == expected  # nothing but what is another's


NAMES = ["x" * 250, "猫 und Hund", "with\nnewline", "[bold]", "back\\slash", os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_that_a_folder_can_have_is_a_class_and_is_shown_in_one_line(name, tmp_path):
    touch(tmp_path, f"{name}/0.png")
    result = find_images(tmp_path, "train")
    assert result.classes == (name,) and result.files == [["0.png"]]
    assert len(printable(name).encode().splitlines()) == 1 and len(printable(name)) <= 60


def test_labels_stay_with_a_run_and_another_class_is_named(tmp_path):
    touch(tmp_path, *(f"{i}/0.png" for i in (1, 2, 10)))
    before = former_labels(tmp_path, "train")
    assert before == ("1", "10", "2")
    assert find_images(tmp_path, "train", classes=before).classes == before
    touch(tmp_path, "3/0.png")
    (tmp_path / "2").rename(tmp_path / "two")
    with pytest.raises(ValueError, match=r"other classes than when .*: '3' is new, 'two' is new, '2' is gone; put"):
        find_images(tmp_path, "train", classes=before)
    (tmp_path / "two").rename(tmp_path / "2")
    (tmp_path / "3" / "0.png").unlink()
    (tmp_path / "10" / "0.png").unlink()  # labels mean the same still
    assert found(tmp_path, classes=before)[1] == {"1": ["0.png"], "10": [], "2": ["0.png"]}
