"""Files of the public benchmarks of text to image and of editing: their prompts in, images where their judges look.

GenEval (Ghosh et al., 2023)   a JSON line a prompt; NNNNN/metadata.jsonl beside NNNNN/samples/NNNN.png
DPG-Bench (Hu et al., 2024)    a text file a prompt; one PNG a prompt with its images in a square grid, NAME.png
GEdit-Bench (Liu et al., 2025) rows with an image; fullset/TASK/LANGUAGE/KEY.png beside KEY_SRCIMG.png

The judges themselves are models that their authors publish; they are run on these files by their own code.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rae_jax.data.decoding import decode_image
from rae_jax.data.tables import image_bytes, parquet_rows
from rae_jax.files import read_json_lines, whole_file
from rae_jax.sampling.samples import check_images, save_png


@dataclasses.dataclass(frozen=True)
class Request:
    """What one row of a benchmark asks for.

    Attributes:
      text: the prompt or the instruction.
      place: where its images belong, under the folder of the results, in the benchmark's own layout.
      metadata: the row as the benchmark has it.
      image: the image to edit, uint8 `[H, W, 3]`; None where there is none.
    """

    text: str
    place: Path
    metadata: dict[str, Any]
    image: np.ndarray | None = None


def geneval(path: str | Path) -> list[Request]:
    """The prompts of GenEval's `evaluation_metadata.jsonl`; Bagel's rewritten prompts have the same form.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no JSON, or has no "prompt"; names the line.
    """
    rows = [row for _, row in read_json_lines(path)]
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("prompt"), str):
            raise ValueError(f"{path}, line {number}: a row of GenEval has a 'prompt', this has {sorted(row)}")
    return [Request(row["prompt"], Path(f"{i:05d}"), row) for i, row in enumerate(rows)]


def write_geneval(folder: str | Path, request: Request, images: np.ndarray) -> None:
    """Writes the images uint8 `[N, H, W, 3]` of one prompt, usually four, and its metadata last."""
    check_images(images, f"images of {request.text!r}")
    place = Path(folder) / request.place
    for i, image in enumerate(images):
        save_png(place / "samples" / f"{i:05d}.png", image)
    with whole_file(place / "metadata.jsonl") as file:
        file.write((json.dumps(request.metadata) + "\n").encode())


def dpg(folder: str | Path) -> list[Request]:
    """The prompts of DPG-Bench's folder of text files, in the order of their names.

    Raises:
      ValueError: there is no text file, or one is empty or not UTF-8.
    """
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise ValueError(f"{folder} has no text files; DPG-Bench's prompts are a folder of them, one a prompt")
    requests = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        if not text:
            raise ValueError(f"{path} is empty")
        requests.append(Request(text, Path(f"{path.stem}.png"), {"file": path.name}))
    return requests


def write_dpg(folder: str | Path, request: Request, images: np.ndarray) -> None:
    """Writes the images uint8 `[N, H, W, 3]` of one prompt as one square grid, rows first.

    Raises:
      ValueError: N is no square number; DPG-Bench takes four.
    """
    check_images(images, f"images of {request.text!r}")
    side = math.isqrt(len(images))
    if side * side != len(images):
        raise ValueError(f"{len(images)} images fill no square grid; DPG-Bench takes 4 images a prompt")
    grid = np.concatenate([np.concatenate(images[i * side : (i + 1) * side], axis=1) for i in range(side)])
    save_png(Path(folder) / request.place, grid)


def gedit(path: str | Path, languages: Sequence[str] = ("en",)) -> list[Request]:
    """The rows of GEdit-Bench from its parquet files, or from JSON lines whose `input_image` is a path beside them.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a column is missing, a table or an image cannot be read, or there is no row in these languages.
    """
    path = Path(path)
    requests = []
    for where, row in read_json_lines(path) if path.suffix == ".jsonl" else _parquet_rows(path):
        needed = {"key", "task_type", "instruction", "instruction_language", "input_image"}
        if missing := needed - row.keys():
            raise ValueError(f"{where}: no {', '.join(sorted(missing))}; there are {sorted(row)}")
        if row["instruction_language"] not in languages:
            continue
        try:
            pixels = decode_image(image_bytes(row["input_image"], path.parent))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        place = Path("fullset") / row["task_type"] / row["instruction_language"] / f"{row['key']}.png"
        about = {name: row[name] for name in sorted(needed - {"input_image"})}
        requests.append(Request(row["instruction"], place, about, pixels))
    if not requests:
        raise ValueError(f"{path} has no row whose instruction_language is one of {list(languages)}")
    return requests


def write_gedit(folder: str | Path, request: Request, image: np.ndarray) -> None:
    """Writes an edited image uint8 `[H, W, 3]` beside its source."""
    check_images(image[None], f"the image of {request.text!r}")
    place = Path(folder) / request.place
    save_png(place.with_name(f"{place.stem}_SRCIMG.png"), request.image)
    save_png(place, image)


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of parquet files, each with where it stands."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} has no parquet files")
    for file in files:
        for number, row in enumerate(itertools.chain.from_iterable(rows for _, rows in parquet_rows(file)), 1):
            yield f"{file}, row {number}", row
