"""Files of edits: what was made of which images by which instructions, and how a judge of scenes scores them.

edits.npz    `sources` and `edited`, uint8 `[N, H, W, 3]`
edits.jsonl  a line an edit: its `instruction`, and of scenes the `kind`, `source_scene` and `target_scene`
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.evaluation.scene_judge import Edited, SceneJudge, judge_edit
from rae_jax.files import read_json_lines, whole_file, write_json_lines
from rae_jax.sampling.samples import check_images, open_npz

Rows = Sequence[Mapping[str, Any]]


def write_edits(path: Path, sources: np.ndarray, edited: np.ndarray, rows: Rows) -> None:
    """Writes the `.npz` at `path` and the lines beside it.

    Raises:
      ValueError: not one row, one source and one edited image for each edit.
    """
    for images, name in ((sources, "sources"), (edited, "edited images")):
        check_images(images, name)
        if len(images) != len(rows):
            raise ValueError(f"there are {len(images)} {name} for {len(rows)} edits")
    write_json_lines(path.with_suffix(".jsonl"), rows)
    with whole_file(path) as file:
        np.savez(file, sources=sources, edited=edited)


def read_edits(path: Path) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """The sources, the edited images and the rows of `write_edits`.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or not of the same edits as the other.
    """
    with open_npz(path) as file:
        if not {"sources", "edited"} <= set(file):
            raise ValueError(f"{path} holds {sorted(file)}; edits are 'sources' and 'edited'")
        sources, edited = file["sources"], file["edited"]
    rows = [row for _, row in read_json_lines(path.with_suffix(".jsonl"))]
    if not len(sources) == len(edited) == len(rows):
        raise ValueError(f"{path} has {len(sources)} sources and {len(edited)} edited images for {len(rows)} lines")
    return sources, edited, rows


def edit_scores(sources: np.ndarray, edited: np.ndarray, rows: Rows, judge: SceneJudge) -> dict[str, float]:
    """How often the instruction was followed, everything else kept, and `overall = sqrt(followed x kept)`.

    `kept_psnr` is the mean over edits of the PSNR, in dB, of what the instruction does not name, to the source.
    """
    verdicts: list[Edited] = [
        judge_edit(row["source_scene"], row["target_scene"], (source, image), seen)
        for source, image, row, seen in zip(sources, edited, rows, judge.look(edited), strict=True)
    ]
    followed, kept = (float(np.mean([getattr(v, name) for v in verdicts])) for name in ("followed", "kept"))
    finite = [v.psnr for v in verdicts if math.isfinite(v.psnr)]
    distance = {"kept_psnr": float(np.mean(finite))} if finite else {}
    return {"followed": followed, "kept": kept, "overall": math.sqrt(followed * kept)} | distance


def baselines(sources: np.ndarray, edited: np.ndarray, rows: Rows, judge: SceneJudge) -> dict[str, float]:
    """The `edit_scores` of two ways to edit that are none, "copying" the source and "ignoring" it, as `copying_kept`.

    The latter is what was made of another source: every edit is judged by the image of the one after it.
    """
    versions = {"copying": sources, "ignoring": np.roll(edited, -1, axis=0)}
    return {
        f"{name}_{score}": value
        for name, images in versions.items()
        for score, value in edit_scores(sources, images, rows, judge).items()
    }
