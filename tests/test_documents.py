"""The commands of the documents and docstrings: what they name exists, their parsers take them, runs could begin."""

import argparse
import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import runs
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict
from PIL import Image

from rae_jax.components.catalogue import CATALOGUE
from rae_jax.components.component import RANDOM
from rae_jax.components.language import SCENES
from rae_jax.components.latent_spaces import IDENTITY
from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import check as check_config
from rae_jax.experiment.configuration import resolved, trace
from rae_jax.experiment.flags import read_config
from rae_jax.experiment.stages import open_sources
from rae_jax.experiment.weights import WORKDIR
from rae_jax.training.durations import resolve

DOCUMENTS = [
    runs.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tools/README.md", "launch/README.md")
] + sorted((runs.ROOT / "docs").glob("*.md"))
MODULES = sorted(path for room in ("configs", "tools", "rae_jax") for path in (runs.ROOT / room).rglob("*.py"))
TABLE = r"\|[^|\n]*`(python -m [^`]+)`\.\.\. \|\n\|[-|]+\|\n((?:\|.*\n)+)"  # whose header has how its commands begin
OTHERS = {"pip", "hf", "ruff", ".", "tensorboard", "python3"}  # programs that are not the project's


def commands(document: Path) -> list[list[str]]:
    """Every command of a document, of its bash blocks, sentences and tables; or of a module's docstring."""
    text = document.read_text()
    if document.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text)) or ""
        lines = re.findall(r"^    (python -m (?:.*\\\n)*.*)", docstring, flags=re.MULTILINE)
        return [shlex.split(line.replace("\\\n", " ")) for line in lines]
    blocks = re.split(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    inside = "".join(text for kind, text in zip(blocks[1::3], blocks[2::3], strict=True) if kind == "bash")
    lines = inside.replace("\\\n", " ").splitlines()
    lines += [" ".join(code.split()) for text in blocks[::3] for code in re.findall(r"`(python -m [^`]+)`", text)]
    for beginning, rows in re.findall(TABLE, text):
        cells = [row.strip("| ").split(" | ")[1] for row in rows.splitlines()]
        lines += [beginning + ending for cell in cells for ending in re.findall("`([^`]+)`", cell)]
    lines += [f"python -m rae_jax.main {ending}" for ending in re.findall(r"\| `(--config=[^`]+)` \|", text)]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


COMMANDS = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS + MODULES
    if document.exists()
    for words in commands(document)
]


EXPERIMENTS = re.findall(r"`(configs/[^`]+)`", (runs.ROOT / "docs" / "papers.md").read_text())  # of its tables


def source_of(words: list[str]) -> str:
    """The source of the module that a command runs."""
    return (runs.ROOT / f"{words[2].replace('.', '/')}.py").read_text()


def check(words: list[str]) -> None:
    """Fails if a command names what there is not."""
    if words[0] in OTHERS or words[:3] == ["python", "-m", "pytest"]:
        return
    if words[:2] == ["python", "-m"]:
        source = source_of(words)
    else:
        assert re.fullmatch(r"launch/\w+\.sh|\.ci/run", words[0]), f"{words[0]} is unknown"
        source = (runs.ROOT / words[0]).read_text()
        if "--" in words:
            run = words[words.index("--") :]
            words = words[: words.index("--")]
            check(["python", "-m", "rae_jax.main", *run[1:]])
            return
    for word in words[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag.split(".")[0] not in ("--help", "--config"):
            assert re.search(rf"""["'( ]-{{0,2}}{flag[2:]}["'=) ]""", source), f"{flag} is no flag"
    config_of(words)
    if "parse_args(" in source and "..." not in words and len(words) > 3:
        parse(words)


def config_of(words: list[str]) -> ConfigDict | None:
    """The config that a command's flags give, by the parser that reads them; None if it names none."""
    arguments = [word for word in words if re.match(r"--config[=.]", word) and "..." not in word]
    named = [argument for argument in arguments if re.match("--config=.+[^:]$", argument)]
    if not named or "parse_args(" in source_of(words):
        return None
    sys.modules.pop("config_config", None)  # what the flag has loaded before
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        flags.FLAGS.unparse_flags()
        patch.setattr(sys, "argv", ["program", *arguments])  # where the flag looks for fields
        experiment.parse(["program", *arguments])
        return experiment.config()


class Parsed(Exception):
    """The arguments have been taken."""


def parse(words: list[str]) -> None:
    """Gives a command to its program, up to where it has read the arguments."""
    module, read = importlib.import_module(words[2]), argparse.ArgumentParser.parse_args

    def parse_args(parser, arguments=None, namespace=None):
        read(parser, arguments, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", words[2:])
        module.main(*([words[3:]] if module.main.__code__.co_argcount else []))


@pytest.mark.parametrize("words", COMMANDS)
def test_what_a_command_of_the_documents_names_exists(words):
    check(words)


RUNS = {" ".join(p.values[0][3:]): p.values[0] for p in COMMANDS if p.values[0][:3] == ["python", "-m", "rae_jax.main"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images as a user may have them: of two classes, some of them held out."""
    path = tmp_path_factory.mktemp("images")
    for split, name in (("train", "ant"), ("train", "bee"), ("val", "ant"), ("val", "bee")):
        (path / split / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(path / split / name / f"{i}.png")
    return path


@pytest.mark.parametrize("command", RUNS)
def test_the_images_of_every_run_of_the_documents_on_a_folder_are_found(command, folder):
    config = config_of(RUNS[command])
    if config is None or config.data.source != "folder":
        return
    config.data.path = str(folder)
    sources = open_sources(resolved(config))
    assert len(sources["train"]) == len(sources["test"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_every_run_of_the_documents_could_begin(command, folder):
    """All that is checked before anything is computed, with random weights and bytes in place of files."""
    config = config_of(RUNS[command])
    if config is None or "..." in RUNS[command]:  # no whole command
        return
    for name in CATALOGUE:
        if config[name].weights not in ("", IDENTITY) and not config[name].weights.startswith(WORKDIR):
            config[name].weights = RANDOM
    for section in (config.language_model, config.mixture):
        if section.tokenizer != SCENES:  # a file's
            section.tokenizer = ""
    for model in (config.flow.model, config.guide.model, config.encoder.model, config.decoder.model):
        if "scan" in model:
            model.scan = True  # the same parameters, traced in a fraction of the time
    config.data.path = str(folder) if config.data.source == "folder" else config.data.path
    config.data.latents = ""  # a cache that there is not
    config.data.train_images = config.data.train_images or IMAGENET_TRAIN_IMAGES
    devices = abs(config.mesh.data * config.mesh.fsdp * config.mesh.tensor)
    check_config(resolved(config), file=command, num_devices=devices, weights="--dry_run" not in RUNS[command])


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_every_experiment_of_the_papers_names_a_config_and_its_fields(command):
    check(shlex.split(f"python -m rae_jax.main --config={command}"))


@pytest.mark.slow
@pytest.mark.parametrize("command", EXPERIMENTS)
def test_every_experiment_of_the_papers_can_be_traced_at_full_size(command):
    """Every stage, from the batch to the updated parameters, on abstract values: nothing is allocated."""
    name, *changes = shlex.split(command)
    config = read_config(name)
    for change in changes:
        field, _, value = change.removeprefix("--config.").partition("=")
        before = config
        for part in field.split("."):
            before = before[part]
        config.update_from_flattened_dict({field: value if isinstance(before, str) else type(before)(float(value))})
    for model in (config.flow.model, config.guide.model):
        if model:
            model.scan = True  # the same parameters, traced in a fraction of the time
    config = resolve(config, IMAGENET_TRAIN_IMAGES)
    for stage in config.stages:
        trace(config, stage)


@pytest.mark.parametrize(
    "command",
    [
        "python -m rae_jax.main --config=configs/digits.py --config.flow.train.setps=5",
        "python -m rae_jax.main --config=configs/digit.py",
        "python -m rae_jax.main --config=configs/digits.py --mod=sample",
        "python -m tools.convrt list",
        "launch/tpu.sh up --nam=rae",
        "launch/local.sh --processes=2 -- --config=configs/digits.py:small",
    ],
)
def test_a_misspelt_command_is_found(command):
    with pytest.raises((AssertionError, OSError, ValueError, KeyError, SystemExit)):
        check(shlex.split(command))


def test_documents_link_to_files_that_there_are():
    for document in filter(Path.exists, DOCUMENTS):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "tools.convert list",
        "tools.reproduce list",
        "tools.cost --config=configs/dith_xl.py",
        "rae_jax.main --help",
    ],
)
def test_the_cheap_commands_of_the_documents_run(command):
    assert any(command.split() == param.values[0][2:] for param in COMMANDS)
    status, output = runs.run_module(*command.split())
    assert status == (1 if command.endswith("--help") else 0) and "Traceback" not in output and output
