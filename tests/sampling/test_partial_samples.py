"""Samples under way, on disks that are full and after ends that cut files short."""

import json
import resource
import signal

import numpy as np
import pytest

from rae_jax.sampling.batches import PartialSamples
from rae_jax.sampling.samples import write_samples

SHAPE = (6, 4, 4, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def begin(tmp_path):
    """Opens the partial samples of one path; what it warns of is in `begin.warnings`."""

    def open_them(request="a"):
        return PartialSamples(tmp_path / "samples.npz", SHAPE, {"of": request}, open_them.warnings.append)

    open_them.warnings = []
    return open_them


def test_rows_appended_before_an_end_are_there_after_it_and_all_become_the_file(begin, tmp_path):
    first = begin()
    assert first.done == 0
    first.append(IMAGES[:2])
    first.append(IMAGES[2:3])
    again = begin()
    assert again.done == 3
    again.append(IMAGES[3:])
    write_samples(tmp_path / "samples.npz", again.images)
    again.remove()
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"] and not begin.warnings


def test_rows_of_another_request_are_not_taken(begin):
    begin("a").append(IMAGES[:2])
    assert begin("b").done == 0 and not begin.warnings


DAMAGES = {
    "rows cut short": ("npy", lambda data: data[: 128 + 48 + 20], 1, 0),
    "rows empty": ("npy", lambda data: b"", 0, 0),
    "progress cut short": ("json", lambda data: data[:12], 0, 1),
    "progress empty": ("json", lambda data: b"", 0, 1),
    "progress of another kind": ("json", lambda data: b"[1]", 0, 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_damage_has_left_is_used_and_the_next_start_goes_on(damage, begin, tmp_path):
    ending, change, left, warnings = DAMAGES[damage]
    begin().append(IMAGES[:3])
    file = tmp_path / f"samples.partial.{ending}"
    file.write_bytes(change(file.read_bytes()))
    again = begin()
    assert again.done == left and len(begin.warnings) == warnings
    again.append(IMAGES[left:])
    np.testing.assert_array_equal(again.images, IMAGES)


def test_a_full_disk_is_one_error_that_keeps_the_rows_before(begin, tmp_path):
    samples = begin()
    samples.append(IMAGES[:3])
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError, match=r"samples could not be written to .*\.npy \(.*\); the 3 before are kept"):
            samples.append(IMAGES[3:])
        with pytest.raises(OSError, match=r"samples.npz"):
            write_samples(tmp_path / "samples.npz", IMAGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    again = begin()
    assert again.done == 3 and json.loads((tmp_path / "samples.partial.json").read_text())["done"] == 3
    assert not (tmp_path / "samples.npz").exists()
    again.append(IMAGES[3:])
    np.testing.assert_array_equal(again.images, IMAGES)
