"""What the flags and fields that name places are taken for."""

from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from configs import digits
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved
from rae_jax.files import NotLocal


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize("name", ["run[lr=1e-3]", "[ab]/run", "sweep[/lr]", "a\\b", "what?", "all*"])
def test_a_working_directory_whose_checkpoints_could_not_be_read_again_is_refused_by_its_characters(name, tmp_path):
    with flagsaver.flagsaver(workdir=str(tmp_path / name)), pytest.raises(ValueError, match="for a pattern") as refused:
        experiment.workdir()
    assert str(tmp_path / name) in str(refused.value)


def test_the_place_where_a_relative_working_directory_is_counts_too(tmp_path, monkeypatch):
    (tmp_path / "a[b]").mkdir()
    monkeypatch.chdir(tmp_path / "a[b]")
    with flagsaver.flagsaver(workdir="run"), pytest.raises(ValueError, match=r"takes \[ \] in the path"):
        experiment.workdir()


def test_working_directories_with_other_odd_characters_and_the_home_directory_are_taken(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    with flagsaver.flagsaver(workdir="~/runs/ünicode (lr=1e-3), #2 'x' {y}"):
        assert experiment.workdir() == Path("/home/me/runs/ünicode (lr=1e-3), #2 'x' {y}")


def test_an_address_as_working_directory_data_or_weights_is_refused_by_its_name(monkeypatch):
    with flagsaver.flagsaver(workdir="gs://bucket/run"), pytest.raises(NotLocal, match="--workdir=gs://bucket/run is"):
        experiment.workdir()
    for section, field in (("data", "path"), ("data", "latents"), ("flow", "weights")):
        config = digits.get_config("tiny")
        config[section][field] = "gs://bucket/x"
        with pytest.raises(NotLocal, match=rf"{section}\.{field}=gs://bucket/x is an address"):
            resolved(config)
    monkeypatch.setenv("HOME", "/home/me")
    config = digits.get_config("tiny")
    config.encoder.weights, config.decoder.weights = "~/weights", "random"
    found = resolved(config)
    assert found.encoder.weights == "/home/me/weights" and found.decoder.weights == "random"
