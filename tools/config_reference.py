"""Writes docs/config.md: every field of configs/base.py and architectures.py, its default, and the comment beside it.

python -m tools.config_reference
"""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "configs" / "base.py", ROOT / "configs" / "architectures.py")
PAGE = ROOT / "docs" / "config.md"
HEAD = """# Every field of a config

Generated from the comments of [configs/base.py](../configs/base.py) and of
[configs/architectures.py](../configs/architectures.py) by `python -m tools.config_reference`; change them there.
Experiments start from these values and set others; any field can be set on the command line:
`--config.flow.train.steps=500`. Defaults that are calls, such as `train(...)`, are sections of their own, below.

A duration has three fields, in epochs, images and steps (`epochs`, `images`, `steps`; `gan_from_epoch`, ...), of which
one is set and the others are 0. It becomes steps where the run starts: an epoch is as many steps as the training images
fill batches. What the command line says of a duration replaces what the experiment says, whatever the unit.
"""


def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(reference(*(source.read_text() for source in SOURCES)))


def reference(*sources: str) -> str:
    """The page, from the texts of the files with the fields."""
    return "\n".join([HEAD, *(line for source in sources for line in tables(source))]).rstrip() + "\n"


def tables(source: str) -> list[str]:
    """Lines of a heading and a table for each function of a file that sets fields."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines, parts = source.splitlines(), []
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and function.name[0] != "_" and (rows := fields(function)):
            title = "config" if function.name == "get_config" else f"{function.name}(...)"
            parts.append(f"## `{title}`\n\n{ast.get_docstring(function).splitlines()[0]}\n")
            parts.append("| field | default | meaning |\n|---|---|---|")
            parts += [row(name, value, meaning(node, comments, lines)) for name, value, node in rows]
            parts.append("")
    return parts


def fields(function: ast.FunctionDef) -> list[tuple[str, str, ast.AST]]:
    """Name, default as written, and node of every field that a function sets."""
    found = []
    for statement in function.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):  # config.decoder.update(...)
            call = statement.value
            if isinstance(call.func, ast.Attribute) and call.func.attr == "update":
                found.append((_name(call.func.value), ast.unparse(call.args[0]), statement))
        if not isinstance(statement, ast.Assign):
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Attribute) and _root(target) in ("config", "section"):
            found.append((_name(target), ast.unparse(value), statement))
        elif ast.unparse(target) == "fields":
            found += [(keyword.arg, ast.unparse(keyword.value), keyword) for keyword in value.keywords]
    return found if function.name == "get_config" or not any(name.startswith("config") for name, *_ in found) else []


def _root(node: ast.expr) -> str:
    return ast.unparse(node).split(".")[0]


def _name(node: ast.expr) -> str:
    return ast.unparse(node).removeprefix("section.")


def meaning(node: ast.AST, comments: dict[int, str], lines: list[str]) -> str:
    """The comment at the end of a field's line, or the lines of comment right above it."""
    if node.end_lineno in comments:
        return comments[node.end_lineno]
    above, line = [], node.lineno - 1
    while line in comments and lines[line - 1].lstrip().startswith("#"):
        above.insert(0, comments[line])
        line -= 1
    return " ".join(above)


def row(name: str, default: str, comment: str) -> str:
    """A line of a table; a section has no default of its own."""
    shown = "" if default == "ConfigDict()" else f"`{default}`"
    return f"| `{name}` | {shown} | {comment} |".replace("||", "\\|\\|")


if __name__ == "__main__":
    main()
