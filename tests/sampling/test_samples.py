import os

import numpy as np
import pytest

from rae_jax.files import whole_file
from rae_jax.sampling.samples import read_samples, write_samples

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
LABELS = np.arange(5)


def test_samples_come_back_as_they_were_written(tmp_path):
    write_samples(tmp_path / "new" / "samples.npz", IMAGES, LABELS)
    samples = read_samples(tmp_path / "new" / "samples.npz")
    np.testing.assert_array_equal(samples.images, IMAGES)
    np.testing.assert_array_equal(samples.labels, LABELS)
    assert os.listdir(tmp_path / "new") == ["samples.npz"]


def test_images_are_under_the_name_that_adms_evaluator_reads(tmp_path):
    write_samples(tmp_path / "samples.npz", IMAGES)
    with np.load(tmp_path / "samples.npz") as archive:
        assert list(archive) == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
    assert read_samples(tmp_path / "samples.npz").labels is None


def test_whatever_else_samples_were_asked_for_is_stored_under_its_name_if_there_is_one_for_each(tmp_path):
    colours = np.random.default_rng(1).random((5, 3), dtype=np.float32)
    write_samples(tmp_path / "samples.npz", IMAGES, LABELS, colours=colours)
    with np.load(tmp_path / "samples.npz") as archive:
        assert set(archive) == {"arr_0", "labels", "colours"}
        np.testing.assert_array_equal(archive["colours"], colours)
    with pytest.raises(ValueError, match=r"colours for .*few\.npz have shape \(4, 3\); there are 5 images"):
        write_samples(tmp_path / "few.npz", IMAGES, colours=colours[:4])
    assert not (tmp_path / "few.npz").exists()


def test_labels_of_adms_own_sampler_are_read(tmp_path):
    np.savez(tmp_path / "adm.npz", IMAGES, LABELS)
    np.testing.assert_array_equal(read_samples(tmp_path / "adm.npz").labels, LABELS)


def test_an_interrupted_write_leaves_the_previous_file_whole(tmp_path):
    write_samples(tmp_path / "samples.npz", IMAGES)
    with pytest.raises(RuntimeError), whole_file(tmp_path / "samples.npz") as file:
        file.write(b"half of it")
        raise RuntimeError
    np.testing.assert_array_equal(read_samples(tmp_path / "samples.npz").images, IMAGES)
    assert os.listdir(tmp_path) == ["samples.npz"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES / 255}, r"bad\.npz are float64, expected uint8"),
        ({"arr_0": IMAGES[..., 0]}, r"bad\.npz have shape \(5, 4, 6\), expected \[N, H, W, 3\]"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, r"bad\.npz have shape \(5, 3, 4, 6\)"),
        ({"arr_0": IMAGES[:0]}, r"bad\.npz are empty"),
        ({"images": IMAGES}, r"bad\.npz has no images: it holds \['images'\], expected arr_0"),
        ({"arr_0": IMAGES, "labels": LABELS[:4]}, r"labels in .*bad\.npz .* one integer for each of 5 images"),
        ({"arr_0": IMAGES, "labels": LABELS / 2}, r"labels in .*bad\.npz are float64"),
        ({"arr_0": np.array([None])}, r"bad\.npz is not a readable \.npz"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / "bad.npz")


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "bad.npz"
    write_samples(path, IMAGES)
    whole = path.read_bytes()
    at = whole.index(IMAGES.tobytes())
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "text": b"not an archive",
            "flipped": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"bad\.npz is not a readable \.npz"):
        read_samples(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_samples(tmp_path / "none.npz")


@pytest.mark.parametrize("images", [IMAGES / 255, IMAGES[0], IMAGES[:0]])
def test_nothing_is_written_that_could_not_be_read(tmp_path, images):
    with pytest.raises(ValueError, match=r"samples for .*samples\.npz"):
        write_samples(tmp_path / "samples.npz", images)
    assert not os.listdir(tmp_path)
