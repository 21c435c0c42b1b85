"""The commands of the documents: the modules, flags, configs and fields they name exist; cheap ones are run."""

import re
import shlex
from pathlib import Path

import pytest
import runs

from rae_jax.data.sources import IMAGENET_TRAIN_IMAGES
from rae_jax.experiment.configuration import trace
from rae_jax.experiment.flags import read_config
from rae_jax.training.durations import resolve

DOCUMENTS = [
    runs.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tools/README.md", "launch/README.md")
] + sorted((runs.ROOT / "docs").glob("*.md"))
OTHERS = {"pip", "hf", "ruff", ".", "tensorboard", "python3"}  # programs that are not the project's


def commands(document: Path) -> list[list[str]]:
    """Every command of a document: of its bash blocks, and of its sentences and tables."""
    blocks = re.split(r"```(\w*)\n(.*?)```", document.read_text(), flags=re.DOTALL)
    inside = "".join(text for kind, text in zip(blocks[1::3], blocks[2::3], strict=True) if kind == "bash")
    lines = inside.replace("\\\n", " ").splitlines()
    lines += [" ".join(code.split()) for text in blocks[::3] for code in re.findall(r"`(python -m [^`]+)`", text)]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


COMMANDS = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS
    if document.exists()
    for words in commands(document)
]


EXPERIMENTS = re.findall(r"`(configs/[^`]+)`", (runs.ROOT / "docs" / "papers.md").read_text())  # of its tables


def check(words: list[str]) -> None:
    """Fails if a command names what there is not."""
    if words[0] in OTHERS or words[:3] == ["python", "-m", "pytest"]:
        return
    if words[:2] == ["python", "-m"]:
        source = (runs.ROOT / f"{words[2].replace('.', '/')}.py").read_text()
    else:
        assert re.fullmatch(r"launch/\w+\.sh|\.ci/run", words[0]), f"{words[0]} is unknown"
        source = (runs.ROOT / words[0]).read_text()
        if "--" in words:
            run = words[words.index("--") :]
            words = words[: words.index("--")]
            check(["python", "-m", "rae_jax.main", *run[1:]])
    config = None
    for word in words[1:]:
        flag, _, value = word.partition("=")
        if not flag.startswith("--") or (flag in ("--help", "--config") and value in ("", "...")):
            continue
        if flag == "--config":
            config = read_config(value)
        elif flag.startswith("--config."):
            *sections, field = flag.split(".")[1:]
            section = config
            for name in sections if config is not None else ():
                section = section[name]
            assert config is None or field in section, f"{flag} is no field"
        else:
            assert re.search(rf"""["'( ]-{{0,2}}{flag[2:]}["'=) ]""", source), f"{flag} is no flag"


@pytest.mark.parametrize("words", COMMANDS)
def test_what_a_command_of_the_documents_names_exists(words):
    check(words)


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
    with pytest.raises((AssertionError, OSError, ValueError, KeyError)):
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
