"""The house: which package may import which, told by the imports themselves."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each package imports from those below it in this list, and none from above.
ORDER = (
    "main", "costs", "experiment", "objectives", "evaluation", "sampling", "components", "interop", "training", "data",
    "models", "flow", "files", "spelling",
)  # fmt: skip
MODULES = sorted((ROOT / "rae_jax").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that `path` imports, inside functions too, by its dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def ours(path: Path) -> set[str]:
    """The modules of the package that `path` imports; a name taken from a package is that package's module."""
    known = {name_of(module) for module in MODULES} - {"rae_jax"}
    return {module for module in imports_of(path) if module in known}


def test_every_package_has_its_place_in_the_order():
    inside = (ROOT / "rae_jax").iterdir()
    there = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) != "rae_jax"], ids=name_of)
def test_a_module_imports_nothing_from_above_it(path):
    here = ORDER.index(room(name_of(path)))
    above = [module for module in ours(path) if ORDER.index(room(module)) < here]
    assert not above, f"{name_of(path)} reaches up to {sorted(above)}"


def test_no_modules_import_each_other_in_a_circle():
    # Packages hold nothing themselves, so that naming one is importing no more than the module asked for.
    assert not [path for path in MODULES if path.name == "__init__.py" and path.read_text()]
    packages = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    TopologicalSorter({name_of(path): ours(path) - packages for path in MODULES}).prepare()  # CycleError names it


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_package_needs_no_experiment_and_no_tool(path):
    assert not {m for m in imports_of(path) if m.split(".")[0] in ("configs", "tools", "tests")}
