"""The tools that look at an experiment's models count the classes where the config leaves that to the data."""

import importlib
from types import SimpleNamespace

import pytest
from PIL import Image

from configs import finetune
from rae_jax.experiment import flags as experiment

WORK = {"cost": "costs", "benchmark": "benchmark", "compile_report": "report"}  # what does the work of each tool


class Reached(Exception):
    """The tool hands its config to what does the work."""


@pytest.mark.parametrize("name", WORK)
def test_a_tool_works_with_as_many_classes_as_the_folder_has_and_says_so_if_there_is_none(name, tmp_path, monkeypatch):
    for folder in ("ant", "bee", "cat"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / folder / "0.png")
    config, tool = finetune.get_config("tiny"), importlib.import_module(f"tools.{name}")

    def work(given, *_, **__):
        assert given.flow.num_classes == 3
        raise Reached

    monkeypatch.setattr(tool, WORK[name], work)
    monkeypatch.setattr(experiment, "config", lambda: config)
    monkeypatch.setattr(experiment, "workdir", lambda: tmp_path / "run")
    for flag in ("STAGE", "BATCH", "STEPS", "LATENTS", "JSON", "TOPOLOGY", "PROGRAM"):
        monkeypatch.setattr(tool, flag, SimpleNamespace(value=""), raising=False)
    monkeypatch.setattr("jax.config.update", lambda *setting: None)
    with pytest.raises(SystemExit, match=r"needs the folder's path \(config\.data\.path\)"):
        tool.main([])
    config.data.path = str(tmp_path / "images")
    with pytest.raises(Reached):
        tool.main([])
