"""What the flags and fields that name places are taken for."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from packaging.requirements import Requirement
from runs import ROOT

from configs import digits
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved
from rae_jax.files import NotLocal


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def test_an_experiment_of_the_project_is_found_from_anywhere_and_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    assert experiment.located("--config=digits:tiny") == "--config=configs/digits.py:tiny"
    assert experiment.located("--config=configs/digits.py:tiny") == "--config=configs/digits.py:tiny"
    monkeypatch.chdir(tmp_path)
    whole = Path(digits.__file__).resolve()
    for name in ("digits", "configs/digits.py"):
        assert experiment.located(f"--config={name}:tiny") == f"--config={whole}:tiny"
    Path("digits.py").touch()
    assert experiment.located("--config=digits.py:tiny") == "--config=digits.py:tiny"
    for argument in ("--config=nothing", "--config=base", "--workdir=digits", "--config.seed=1", "digits"):
        assert experiment.located(argument) == argument


def test_what_the_project_says_it_needs_can_be_read_by_an_installer_and_its_configs_and_tools_come_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (name,) = next(each["file"] for each in project["tool"]["setuptools"]["dynamic"].values())
    needed = [Requirement(line).name for line in (ROOT / name).read_text().splitlines()]
    assert {"jax", "flax", "optax"} <= set(needed)
    assert set(project["tool"]["setuptools"]["packages"]["find"]["include"]) == {"rae_jax*", "configs*", "tools*"}


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


@pytest.mark.parametrize(("xla_flags", "devices"), [("", 3), ("--xla_force_host_platform_device_count=2", 2)])
def test_the_cores_of_a_cpu_become_devices_as_the_config_says_unless_the_environment_says_how_many(xla_flags, devices):
    program = "\n".join([
        "import jax", "from configs import digits", "from rae_jax.experiment import flags",
        "config = digits.get_config('tiny')", "config.cpu_devices = 3", "flags.divide_cpu(config)",
        "print(jax.device_count())",
    ])  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == devices


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


MISTAKES = {
    "digits.get_config('tinny')": r"configs/digits\.py has no variant 'tinny'; nearest: tiny; there are quick, tiny",
    "digits.get_config(": r"x\.py, line 3: '\(' was never closed",
    "digitz.get_config()": r"x\.py, line 3: NameError: name 'digitz' is not defined",
    "digits.get_config('tiny').flow.train.stepz": r"x\.py, line 3: AttributeError: .*Did you mean .steps. instead",
    "1 / 0": r"x\.py, line 3: ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_config_file_is_said_with_its_line(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text(f"from configs import digits\ndef get_config(variant=''):\n    return {mistake}\n")
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # what the flag has loaded before
    with pytest.raises(SystemExit, match=f"^error: .*{MISTAKES[mistake]}") as error, flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        experiment.parse(["program", "--config=x.py:some"])
    assert "\n" not in str(error.value)


def test_a_config_file_without_get_config_a_config_or_variants_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, said in (
        ("x = 1", "x.py defines no get_config"),
        ("def get_config(): return 1", "leave out :some"),
        ("def get_config(variant): pass", "x.py: get_config.. returns None, not a ConfigDict"),
    ):
        Path("x.py").write_text(text)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        with pytest.raises(SystemExit, match=said), flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            experiment.parse(["program", "--config=x.py:some"])


def test_tools_read_a_config_by_the_same_names_and_say_its_mistakes_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiment.read_config("digits:tiny").to_dict() == digits.get_config("tiny").to_dict()
    assert experiment.read_config("configs/digits.py").to_dict() == digits.get_config().to_dict()
    (tmp_path / "none.py").write_text("def get_config():\n    pass\n")
    (tmp_path / "mine.py").write_text("from configs import base\n\ndef get_config():\n    return base.nothing()\n")
    for name, text in {
        "mine.py": "mine.py, line 4: AttributeError",
        "mine.py:small": "takes no argument: leave out :small",
        "digits:huge": "has no variant 'huge'",
        "none.py": "none.py: get_config.. returns None, not a ConfigDict",
        "nowhere.py": "there is no file nowhere.py, and no experiment of that name; .*digits",
        "configs/digts.py:tiny": "there is no file configs/digts.py, and no .* name; nearest: digits",
    }.items():
        with pytest.raises(ValueError, match=text) as refused:
            experiment.read_config(name)
        assert "\n" not in str(refused.value)
