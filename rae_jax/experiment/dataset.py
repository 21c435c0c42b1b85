"""What a run knows of its images: which class each label is, what there is of each, and what was left out.

classes.json  the names of the classes in the order of their labels
data.json     what the images were at the last start
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rae_jax.data.folders import former_labels, printable, told
from rae_jax.data.sources import Source
from rae_jax.experiment.workdir import begun
from rae_jax.files import whole_file

CLASSES, DATA = "classes.json", "data.json"
SHOWN = 12  # classes in the line at start
UNEQUAL = 10  # so many times as many images of one class as of another are worth a warning
CAPTION = 24  # characters of a class's name beside a picture


def class_names(workdir: Path) -> tuple[str, ...] | None:
    """The classes of the run in `workdir` in the order of their labels, or None if none are kept there."""
    path = workdir / CLASSES
    return tuple(json.loads(path.read_text())) if path.exists() else None


def labelled(config: ConfigDict, workdir: Path) -> tuple[str, ...] | None:
    """The classes in the order that the images of the run in `workdir` must have; None if any will do.

    A run that began before this order was kept has that of its time, which is not the order of today for numbers.
    """
    data = config.data
    if not begun(workdir):
        return None
    known = class_names(workdir)
    if known is None and data.source == "folder" and data.path:
        return former_labels(Path(data.path), data.train_split)
    return known


def record(workdir: Path, config: ConfigDict, sources: Mapping[str, Source]) -> None:
    """Keeps the order of the classes and what the images are in `workdir`."""
    held = {split: source.contents() for split, source in _apart(sources)}
    about = {"source": config.data.source, "path": config.data.path, "splits": held}
    contents = {DATA: about, CLASSES: sources["train"].class_names}
    for name, values in contents.items():
        with whole_file(workdir / name) as file:
            file.write((json.dumps(values, indent=1) + "\n").encode())


def _apart(sources: Mapping[str, Source]) -> list[tuple[str, Source]]:
    """The splits, without the second where it is the first."""
    return [(split, source) for split, source in sources.items() if split == "train" or source is not sources["train"]]


def summary(sources: Mapping[str, Source]) -> tuple[list[str], list[str]]:
    """What the images are, in lines for the start of a run, and what of it deserves a warning."""
    lines, warnings = [], []
    for split, source in _apart(sources):
        held: dict[str, Any] = source.contents()
        place = f" in {printable(held['folder'], 200)}" if "folder" in held else ""
        of = f" of {source.num_classes} classes" if source.num_classes else ""
        lines.append(f"{'training' if split == 'train' else 'held out'}: {held['images']:,} images{of}{place}")
        counts = held.get("classes", {})
        if split == "train" and counts:
            each = [f"{i} {printable(name, CAPTION)} ({n:,})" for i, (name, n) in enumerate(counts.items())]
            more = f" and {len(each) - SHOWN:,} more, see {CLASSES}" if len(each) > SHOWN else ""
            lines.append(f"  label, class and images: {', '.join(each[:SHOWN])}{more}")
            fewest, most = (of(counts, key=counts.get) for of in (min, max))
            if counts[most] > UNEQUAL * counts[fewest]:
                warnings.append(
                    f"classes are very unequal: {counts[most]:,} images of {printable(most)!r}, {counts[fewest]:,} of "
                    f"{printable(fewest)!r}"
                )
        if held.get("left_out") and (split == "train" or held["folder"] != sources["train"].contents()["folder"]):
            lines.append(f"  left out: {told(held['left_out'])}")
    return lines, warnings


def captioned(groups: Sequence[tuple[str, np.ndarray]], names: Sequence[str] | None) -> list[tuple[str, np.ndarray]]:
    """Rows of a picture, `(label, samples)`, with the name of the class beside the label where it says more."""

    def caption(label: str) -> str:
        name = names[int(label)] if names and label.isdigit() and int(label) < len(names) else label
        return label if name == label else f"{label} {printable(name, CAPTION)}"

    return [(caption(label), members) for label, members in groups]
