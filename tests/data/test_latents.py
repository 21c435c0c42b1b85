"""A cache of latents that can be told apart, against the images that they stand for."""

import contextlib
import dataclasses
import json
import pickle
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from rae_jax.data import latents
from rae_jax.data.batches import latent_batches, training_batches
from rae_jax.data.digits import ArraySource
from rae_jax.data.latents import LatentSource, describe
from rae_jax.data.transforms import transform

COUNT, SHAPE = 11, (4, 3)
DESCRIPTION = dataclasses.replace(describe(COUNT, 200, SHAPE, {"autoencoder": "rae"}, {}), images_a_shard=4)


def latent_of(index: int, mirrored: bool) -> np.ndarray:
    """Random numbers of their own for every image and its mirror image; the first says whose they are."""
    values = np.random.default_rng((index, mirrored)).standard_normal(SHAPE, np.float32)
    values[0, 0] = -index - 1 if mirrored else index + 1
    return values.astype(ml_dtypes.bfloat16)


def encoded(number: int):
    return [(latent_of(i, False), latent_of(i, True), 100 + i) for i in DESCRIPTION.images_of(number)]


@pytest.fixture
def cache(tmp_path):
    directory = tmp_path / "cache"
    assert not latents.is_finished(directory, DESCRIPTION)
    latents.begin(directory, DESCRIPTION)
    for number in range(DESCRIPTION.shards):
        latents.write_shard(directory, DESCRIPTION, number, encoded(number))
    latents.finish(directory, DESCRIPTION)
    return directory


def numbered() -> ArraySource:
    """Images whose left column is their index, and whose right column is 255."""
    images = np.full((COUNT, 2, 2, 3), 255, np.uint8)
    images[:, :, 0] = np.arange(COUNT)[:, None, None]
    return ArraySource(images, np.arange(100, 100 + COUNT, dtype=np.int32), [str(i) for i in range(200)])


def taken(batches, number: int):
    return [next(batches) for _ in range(number)]


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() == {"latent", "label"}
        for name in e:
            np.testing.assert_array_equal(a[name], e[name])
            assert a[name].dtype == e[name].dtype


def test_every_latent_comes_back_to_the_bit(cache):
    assert sorted(path.name for path in cache.iterdir()) == [
        "latents-00000-of-00003.array_record",
        "latents-00001-of-00003.array_record",
        "latents-00002-of-00003.array_record",
        "latents.json",
    ]
    source = pickle.loads(pickle.dumps(LatentSource(cache)))
    assert len(source) == COUNT and source.description == DESCRIPTION
    for i in range(COUNT):
        for mirrored in (False, True):
            element = source.read(i, mirrored=mirrored)
            np.testing.assert_array_equal(element["latent"].view(np.uint16), latent_of(i, mirrored).view(np.uint16))
            assert element["label"] == 100 + i and element["label"].dtype == np.int32


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_of_the_same_images_mirrored_or_not_as_those_of_the_images(cache, flip):
    augmentation = transform("center_crop_flip" if flip else "center_crop", 2)
    of_images = taken(training_batches(numbered(), batch_size=4, seed=3, transform=augmentation), 8)
    of_latents = taken(latent_batches(LatentSource(cache), batch_size=4, seed=3, flip=flip), 8)
    seen = set()
    for images, cached in zip(of_images, of_latents, strict=True):
        np.testing.assert_array_equal(images["label"], cached["label"])
        assert cached["latent"].dtype == ml_dtypes.bfloat16 and cached["latent"].shape == (4, *SHAPE)
        for image, latent, label in zip(images["image"], cached["latent"], images["label"], strict=True):
            mirrored = bool(image[0, 0, 0] == 255)
            np.testing.assert_array_equal(latent, latent_of(label - 100, mirrored))
            seen.add(mirrored)
    assert seen == ({False, True} if flip else {False})


@pytest.mark.parametrize("workers, processes", [(0, 2), (2, 1)])
def test_a_state_continues_exactly_whoever_reads(cache, workers, processes):
    whole = taken(latent_batches(LatentSource(cache), batch_size=4, seed=3, flip=True), 7)
    batches = latent_batches(LatentSource(cache), batch_size=4, seed=3, flip=True)
    taken(batches, 3)
    state, parts = batches.get_state(), []
    assert state == {"position": 12}
    for process in range(processes):
        part = latent_batches(
            LatentSource(cache), batch_size=4, seed=3, flip=True, num_workers=workers,
            rows=range(4 * process // processes, 4 * (process + 1) // processes),
        )  # fmt: skip
        part.set_state(state)
        parts.append(taken(part, 4))
        part.close()
    joined = [{k: np.concatenate([batch[k] for batch in same]) for k in same[0]} for same in zip(*parts, strict=True)]
    assert_same(joined, whole[3:])


def damage(cache, how: str):
    shard, description = cache / DESCRIPTION.shard(1), cache / "latents.json"
    if how == "unfinished":
        description.rename(cache / "unfinished.json")
    elif how == "no description":
        description.unlink()
    elif how == "a shard is missing":
        shard.unlink()
    elif how == "a shard of others":
        shard.write_bytes((cache / DESCRIPTION.shard(2)).read_bytes())
    elif how == "a shard is cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif how == "not JSON":
        description.write_text(description.read_text()[:50])
    else:
        values = json.loads(description.read_text())
        values.update(how)
        description.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "how, said",
    [
        ("unfinished", "unfinished"),
        ("no description", "no latents.json"),
        ("a shard is missing", "1 of the 3 shards.*latents-00001"),
        ("a shard of others", "have 20 records, and 11 images need 22"),
        ("a shard is cut", "damaged"),
        ("not JSON", "latents.json is damaged"),
        ({"shape": 3}, "latents.json is damaged"),
        ({"images": 0}, "latents.json is damaged"),
        ({"dtype": "float32"}, "latents.json is damaged"),
        ({"unknown": 1}, "latents.json is damaged"),
    ],
)
def test_what_is_no_finished_cache_is_an_error_that_names_the_directory(cache, how, said):
    damage(cache, how)
    with pytest.raises(ValueError, match=said) as error:
        LatentSource(cache)
    assert str(cache) in str(error.value)


def test_a_damaged_record_is_an_error_that_names_the_image(cache):
    shard = cache / DESCRIPTION.shard(1)
    content = bytearray(shard.read_bytes())
    for i in range(64, len(content), 16):
        content[i] ^= 255
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{cache}"):
        source = LatentSource(cache)
        for i in range(COUNT):
            source.read(i, mirrored=False)


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    latents.begin(tmp_path, DESCRIPTION)

    def failing():
        yield from encoded(0)[:2]
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        latents.write_shard(tmp_path, DESCRIPTION, 0, failing())
    with pytest.raises(AssertionError, match="3 images"):
        latents.write_shard(tmp_path, DESCRIPTION, 0, encoded(0)[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.json"]
    with pytest.raises(ValueError, match="3 shards are missing"):
        latents.finish(tmp_path, DESCRIPTION)
    assert not (tmp_path / "latents.json").exists()


def test_a_full_disk_is_an_error_that_names_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "whole_path", lambda path: contextlib.nullcontext("/dev/full"))
    with pytest.raises(OSError, match=r"latents-00000-of-00003.array_record could not be written: .*No space left"):
        latents.write_shard(tmp_path, DESCRIPTION, 0, encoded(0))


def test_only_an_empty_directory_or_the_same_cache_is_written_to(cache, tmp_path, monkeypatch):
    assert latents.is_finished(cache, DESCRIPTION)
    with pytest.raises(ValueError, match="another config"):
        latents.is_finished(cache, dataclasses.replace(DESCRIPTION, weights={"encoder": "others"}))
    (cache / DESCRIPTION.shard(2)).unlink()
    assert not latents.is_finished(cache, DESCRIPTION)
    latents.begin(cache, DESCRIPTION)
    assert not (cache / "latents.json").exists()

    with pytest.raises(ValueError, match="not empty"):
        latents.is_finished(tmp_path, DESCRIPTION)
    with pytest.raises(ValueError, match="is a file"):
        latents.is_finished(cache / DESCRIPTION.shard(0), DESCRIPTION)
    usage = namedtuple("usage", "total used free")(0, 0, 100)
    monkeypatch.setattr(latents.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"the disk of .*new"):
        latents.is_finished(tmp_path / "new" / "cache", DESCRIPTION)
    assert not (tmp_path / "new").exists()


def test_imagenets_latents_are_a_terabyte_in_shards_of_two_gigabytes():
    found = describe(1_281_167, 1000, (256, 768), {}, {})
    assert found.record_bytes == 256 * 768 * 2 + 4
    assert 2 * found.images * found.record_bytes == pytest.approx(1.0076e12, rel=1e-3)
    assert found.shards == 470
    assert sum(len(found.images_of(number)) for number in range(found.shards)) == found.images
