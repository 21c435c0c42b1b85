"""Reproduces findings: runs the experiments behind a section of docs/findings.md, and writes the section.

    python -m tools.reproduce list
    python -m tools.reproduce mf_rae

Each finding is a module of `tools/findings/` with a function `reproduce(workdir, digits) -> str`, which runs what it
needs below `workdir`, starting from the finished working directory `digits` of configs/digits.py, and returns the
section as Markdown. What it has finished there is not run again. The section replaces what stands between the
finding's markers in docs/findings.md.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from rae_jax.files import local_path, whole_file
from tools import findings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "findings.md"


def names() -> list[str]:
    """The findings that there are: the modules that have `reproduce`."""
    modules = [module.name for module in pkgutil.iter_modules(findings.__path__)]
    return [name for name in modules if hasattr(importlib.import_module(f"tools.findings.{name}"), "reproduce")]


def with_section(document: str, name: str, section: str) -> str:
    """`document` with `section` between the markers of the finding `name`, or at the end if it has none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    marked = f"{begin}\n{section.strip()}\n{end}"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{marked}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"the document has {begin!r} without {end!r}: put it after the section")
    return f"{before}{marked}{after}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.reproduce", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=["list", *names()], help="the finding, or `list`")
    parser.add_argument("--workdir", type=local_path, help="where its runs are kept; runs/findings/<name> by default")
    parser.add_argument(
        "--digits",
        type=local_path,
        default=Path("runs/digits"),
        help="a finished working directory of configs/digits.py",
    )
    options = parser.parse_args(arguments)
    if options.name == "list":
        for name in names():
            print(f"{name:15} {importlib.import_module(f'tools.findings.{name}').__doc__.splitlines()[0]}")
        return
    finding = importlib.import_module(f"tools.findings.{options.name}")
    try:
        section = finding.reproduce(options.workdir or Path("runs/findings") / options.name, options.digits)
        document = with_section(DOCUMENT.read_text(), options.name, section)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with whole_file(DOCUMENT) as file:
        file.write(document.encode())
    print(f"{options.name}: the section is in {DOCUMENT}")


if __name__ == "__main__":
    main()
