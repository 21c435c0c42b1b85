"""docs/extending.md to the letter: its changes are made in a copy of the project, where its experiment runs."""

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import runs

from rae_jax.components.conditions import CaptionCondition, ClassCondition
from rae_jax.components.latent_spaces import teacher

TEXT = (runs.ROOT / "docs" / "extending.md").read_text()
# A line that names a file, then what the file is, or the changes of it.
NAMED = r"^`([\w/]+\.py)`, (new|changed)[^\n]*:\n((?:\n```(?:python|diff)\n.*?^```\n)+)"
BLOCK = r"^```(?:python|diff)\n(.*?)^```$"
CHANGES = [
    (name, way, block)
    for name, way, blocks in re.findall(NAMED, TEXT, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(BLOCK, blocks, flags=re.DOTALL | re.MULTILINE)
]
(SAVING,) = re.findall(r"^```python\n(from rae_jax[^`]*save_weights[^`]*)```", TEXT, flags=re.MULTILINE)
(QUOTED,) = re.findall(r"^   ```python\n(.*?)^   ```$", TEXT, flags=re.DOTALL | re.MULTILINE)
WEIGHTS = f"""
import jax
from configs import mine
from rae_jax.components.encoders import encoder
from rae_jax.training.sharding import unbox

part = encoder(mine.get_config("tiny"))
params = unbox(part.init(jax.random.key(0)))
{SAVING}
part.check(part.weights)
"""
TRACED = """
from rae_jax.experiment.configuration import trace

trace(mine.get_config("tiny"), "flow")
"""


def changed(source: str, difference: str) -> str:
    """`source` after the change; the lines of `difference` that stay or go are in one place of it."""
    lines = difference.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    assert source.count(before) == 1, f"{source.count(before)} places for the change\n{difference}"
    return source.replace(before, after)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all changes of the document."""
    root = tmp_path_factory.mktemp("extended")
    for part in ("configs", "rae_jax", "tests"):
        shutil.copytree(runs.ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, way, block in CHANGES:
        path = root / name
        assert path.exists() == (way == "changed"), f"{name} is not {way}"
        path.write_text(block if way == "new" else changed(path.read_text(), block))
    shutil.copy(runs.ROOT / "pyproject.toml", root)
    return root


def run(root, *command: str) -> None:
    """Runs a Python command in the copy, which succeeds."""
    environment = runs.environment() | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_block_of_code_is_tried():
    blocks = re.findall(r"^ *```(?:python|diff)$", TEXT, flags=re.MULTILINE)
    assert len(CHANGES) + len([SAVING, QUOTED]) == len(blocks)


def test_what_it_quotes_is_in_the_code():
    assert textwrap.dedent(QUOTED) == inspect.getsource(teacher)


def test_the_conditions_of_velocity_networks_answer_what_it_lists():
    (rows,) = re.findall(r"\| name \| what it is \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT)
    names = set(re.findall(r"^\| `(\w+)", rows, flags=re.MULTILINE))
    for kind in (ClassCondition, CaptionCondition):
        fields = {field.name for field in dataclasses.fields(kind)}
        own = {name for name in dir(kind) if name[0] != "_"} - {"words"} | fields  # words: captions' own
        assert names <= own <= names | fields


def test_its_changes_fit_the_code_and_what_they_make_can_be_traced(extended):
    run(extended, "-c", WEIGHTS + TRACED)


@pytest.mark.slow
def test_its_experiment_runs_from_end_to_end(extended):
    run(extended, "-c", WEIGHTS)
    main = ("-m", "rae_jax.main", "--config=configs/mine.py:tiny", "--workdir=run")
    run(extended, *main)
    run(extended, *main, "--mode=sample", "--seed_grid=0:0:0,1:0.5:0")
    assert np.load(extended / "run" / "samples.npz")["colours"].shape == (20, 3)
    assert (extended / "run" / "seed_grid.png").exists()


@pytest.mark.slow
def test_its_objective_keeps_the_contract(extended):
    run(extended, "-m", "pytest", "-n", "0", "tests/objectives/test_contract.py", "-k", "penalised")
