"""Sets of images on disk: the order and pairing of names, and files of pairs that are written batch by batch."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from rae_jax.evaluation.image_sets import check_pairs, holds_pairs, images_of, open_images, stream_pairs
from rae_jax.sampling.samples import write_png_folder


def folder_of(folder, *names):
    """A folder of pictures: the one at place i of `names` has the colour i."""
    folder.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (4, 4), (i, i, i)).save(folder / name)
    return open_images(folder)


def colours(images):
    return [int(image[0, 0, 0]) for batch in images.batches(2) for image in batch]


def test_files_are_in_the_natural_order_of_their_names(tmp_path):
    images = folder_of(tmp_path / "a", "img_10.png", "img_2.png", "img_1.png", "9.png", "10.png")
    assert images.names == ("9.png", "10.png", "img_1.png", "img_2.png", "img_10.png")
    assert colours(images) == [3, 4, 2, 1, 0]


def test_names_correspond_but_for_endings_and_zeros_before_numbers(tmp_path):
    a = folder_of(tmp_path / "a", *(f"img_{i}.png" for i in range(1, 13)))
    b = folder_of(tmp_path / "b", *(f"img_{i:02}.bmp" for i in range(1, 13)))
    check_pairs(a, b)
    assert colours(a) == colours(b) == list(range(12))
    check_pairs(a, images_of(np.zeros((12, 4, 4, 3), np.uint8), "array"))  # which has no names


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("img_1.png", "img_3.png"), r"image 2 of .*a is img_2\.png and of .*b img_3\.png"),
        (("other_1.png", "other_2.png"), r"image 1 of .*a is img_1\.png and of .*b other_1\.png"),
        (("img_1.png",), "as many and as large"),
    ],
)
def test_images_that_do_not_correspond_are_refused_by_the_first_that_differ(names, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        check_pairs(folder_of(tmp_path / "a", "img_1.png", "img_2.png"), folder_of(tmp_path / "b", *names))


@pytest.mark.parametrize("kind", ["folder", "stored.npz", "compressed.npz", "memory"])
def test_only_the_positions_that_are_asked_for_are_read(kind, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / kind
    if kind == "folder":
        write_png_folder(path, images)
    elif kind != "memory":
        {"stored.npz": np.savez, "compressed.npz": np.savez_compressed}[kind](path, arr_0=images)
    opened = images_of(images, kind) if kind == "memory" else open_images(path)
    first, second, third = opened.parts([[1, 2], [4], [7, 8, 8]])
    for part, positions in ((first, [1, 2]), (second, [4]), (third, [7, 8, 8])):
        np.testing.assert_array_equal(part, images[positions])


def test_a_file_that_ends_early_is_named_with_the_image_that_is_missing(tmp_path):
    path = tmp_path / "short.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (5, 4, 4, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(3 * 48))
    with pytest.raises(ValueError, match=r"short\.npz is not a readable \.npz of arrays: it ends before image 4 of 5"):
        list(open_images(path).batches(2))


def test_pairs_are_written_in_parts_and_read_by_numpy(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 4, 4, 3), dtype=np.uint8)
    with stream_pairs(tmp_path / "pairs.npz", (10, 4, 4, 3)) as add:
        for part in (slice(0, 3), slice(3, 9), slice(9, 10)):
            add(images[0, part], images[1, part])
        assert not (tmp_path / "pairs.npz").exists()
    with np.load(tmp_path / "pairs.npz") as stored:
        np.testing.assert_array_equal(stored["originals"], images[0])
        np.testing.assert_array_equal(stored["reconstructions"], images[1])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.npz"]
    assert holds_pairs(tmp_path / "pairs.npz")
    for i, name in enumerate(("originals", "reconstructions")):
        read = np.concatenate(list(open_images(tmp_path / "pairs.npz", name).batches(4)))
        np.testing.assert_array_equal(read, images[i])


def test_a_writer_that_fails_or_ends_early_leaves_the_former_file_and_nothing_else(tmp_path):
    path, image = tmp_path / "pairs.npz", np.zeros((2, 4, 4, 3), np.uint8)
    path.write_bytes(b"before")
    few = pytest.raises(ValueError, match="was to hold 5 pairs of images, but there are 2")
    with few, stream_pairs(path, (5, 4, 4, 3)) as add:
        add(image, image)
    with pytest.raises(RuntimeError), stream_pairs(path, (5, 4, 4, 3)) as add:
        add(image, image)
        raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    assert not holds_pairs(path)


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path):
    batch = np.zeros((8, 64, 64, 3), np.uint8)
    tracemalloc.start()
    with stream_pairs(tmp_path / "pairs.npz", (8 * 100, 64, 64, 3)) as add:
        for _ in range(100):
            add(batch, batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6 < 2 * 100 * batch.nbytes


def test_a_folder_of_pngs_keeps_none_of_another_set_and_nothing_else_is_touched(tmp_path):
    images = np.zeros((5, 4, 4, 3), np.uint8)
    write_png_folder(tmp_path, images, np.arange(5))
    (tmp_path / "mine.png").touch()
    (tmp_path / "notes.txt").touch()
    write_png_folder(tmp_path, images[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png", "mine.png", "notes.txt"]
