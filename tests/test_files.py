"""Paths that users give, and files that are whole or not there."""

import argparse
import importlib.util
import os
from pathlib import Path

import pytest

from rae_jax.files import NotLocal, local_path, whole_file


@pytest.mark.parametrize(
    "address", ["gs://bucket/x", "gs:/bucket", "s3://bucket", "https://host/x", Path("gs://bucket")]
)
def test_an_address_is_refused_with_what_to_use_and_makes_no_folder_of_its_name(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotLocal, match=r"--output=.* is an address, .*mount the bucket"):
        local_path(address, "--output")
    with pytest.raises(ValueError, match="is an address"), whole_file(address):
        pass
    assert not list(tmp_path.iterdir())


def test_a_parser_of_arguments_shows_the_error(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=local_path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--output=gs://bucket"])
    assert "gs://bucket is an address" in capsys.readouterr().err


def test_the_home_directory_has_its_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x") == Path("/home/me/x") and local_path("a:b/c") == Path("a:b/c")


def test_a_system_that_is_not_posix_is_told_where_it_runs(monkeypatch):
    spec = importlib.util.find_spec("rae_jax.files")
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(ImportError, match="runs on Linux and macOS; on Windows use it in WSL"):
            spec.loader.exec_module(module)
