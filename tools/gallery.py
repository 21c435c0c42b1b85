"""One page of what several runs have made: their pictures and their numbers beside each other.

    python -m tools.gallery runs/digits runs/digits_rpiae runs/digits_rac --output=gallery.html

The page is one file that opens without a server or a network, as each run's own `report.html`, which has the curves.
"""

import argparse
import html
import sys
from pathlib import Path

from rae_jax.evaluation.report import STYLE, duration, newest_picture, numbers, picture, read_json
from rae_jax.files import local_path, whole_file


def gallery(runs: list[Path]) -> str:
    """The page, HTML, of finished or unfinished runs in the order given.

    Raises:
      ValueError: a directory is no run's, or a run has no pictures yet.
    """
    return _PAGE.format(style=STYLE + _STYLE, sections="".join(map(_section, runs)))


def _section(run: Path) -> str:
    config = read_json(run / "config.json")
    if not config:
        raise ValueError(f"{run} is not the working directory of a run: there is no config.json")
    stages = [stage for stage in config["stages"] if (run / stage).is_dir()]
    made = sorted(run.glob("*.png"))
    while_training = {stage: newest_picture(run / stage) for stage in stages}
    if not made and not any(while_training.values()):
        raise ValueError(f"{run} has no pictures yet; train it further, or sample with --mode=sample")
    results = read_json(run / "summary.json").get("results", {})
    seconds = sum(read_json(run / stage / "finished.json").get("seconds", 0.0) for stage in stages)
    shown = "".join(picture(path) for path in made)
    steps = "".join(
        f"<div><h3>{html.escape(stage)}</h3>{picture(path)}</div>" for stage, path in while_training.items() if path
    )
    opened = "" if made else " open"
    return (
        f'<section><h2>{html.escape(run.resolve().name)} <span class="note">{html.escape(", ".join(stages))}; '
        f"trained for {duration(seconds)}</span></h2>{numbers(results)}"
        f'<div class="pictures">{shown}</div>'
        f'<details{opened}><summary>while it was trained</summary><div class="pictures">{steps}</div></details>'
        "</section>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>rae_jax: gallery</title><style>{style}</style></head><body>
<header><h1>What these runs have made</h1></header><main>{sections}</main></body></html>
"""

_STYLE = """
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:6px 22px;
align-items:start}
h3{margin:12px 0 0;font-size:15px}
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=local_path, help="working directories")
    parser.add_argument("--output", type=local_path, required=True, help="the page, gallery.html say")
    given = parser.parse_args(arguments)
    try:
        page = gallery(given.runs)
        with whole_file(given.output) as file:
            file.write(page.encode())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{given.output}: {len(given.runs)} runs")


if __name__ == "__main__":
    main()
