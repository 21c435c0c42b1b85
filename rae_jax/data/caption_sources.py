"""Captions and conversations as people have them: JSON lines, WebDataset tars, parquet, Hugging Face's Arrow folders.

jsonl    a row a line: `conversations` (LLaVA, Cambrian), or a caption; `image` is a path or several, in a folder
wds      tars of NAME.json or NAME.txt beside NAME.jpg, one tar, a folder of them, or a manifest {"tars": [...]}
parquet  a file or a folder of them, with a column of images (bytes, or {"bytes", "path"}) and one of text
arrow    a folder that `datasets` has saved, with such columns; a class `label` is a caption by its name

A row comes out with what is wrong with it, if anything is, so that the reader can count.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rae_jax.data.conversations import ROLES, UnusableError, request
from rae_jax.data.decoding import ENDINGS, decode_image
from rae_jax.data.tables import Rows, arrow_rows, image_bytes, parquet_rows

TEXTS = ("conversations", "caption", "text", "prompt", "caption_llava", "label")  # columns, the wanted first
IMAGES = ("image", "images", "jpg", "png", "image_filename", "file_name")


class Row(NamedTuple):
    """One row of a source.

    Attributes:
      key: where it is, for messages.
      turns: of the conversation; none if `problem` says why.
      images: bytes of files.
      problem: what is wrong with it, the same words for all of its kind; "": nothing.
    """

    key: str
    turns: list[dict[str, str]] | None
    images: list[bytes]
    problem: str = ""


def rows(
    source: str | Path, images: str | Path = "", *, text_column: str = "", image_column: str = "", template: str = "{}"
) -> Iterator[Row]:
    """The rows of a source of any kind of the module's table, told by what it is called and holds.

    Args:
      images: the folder that paths of images start from; the source's own by default.
      text_column, image_column: found by the usual names where not given.
      template: of the request that a caption becomes, "{}" for the caption.

    Raises:
      ValueError: there is no such source, a file is damaged or cut short, or a column is missing.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"there is no {path}")
    names = dict(text=text_column, image=image_column)
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path, Path(images or path.parent), names, template)
    elif tars := _tars(path):
        for tar in tars:
            yield from _tar(tar, names, template)
    elif path.suffix == ".parquet" or _files(path, "*.parquet"):
        for file in [path] if path.is_file() else _files(path, "*.parquet"):
            yield from _table(file, parquet_rows(file), names, template, {})
    elif path.suffix == ".arrow" or _files(path, "*.arrow"):
        folder = path.parent if path.is_file() else path
        classes = _class_names(folder)
        for file in [path] if path.is_file() else _files(path, "*.arrow"):
            yield from _table(file, arrow_rows(file), names, template, classes)
    else:
        raise ValueError(f"{path} is neither .jsonl, .tar, .parquet nor .arrow, and no folder of such files")


def checked(images: list[bytes], turns: list[dict[str, str]]) -> None:
    """Raises UnusableError unless the images can be read, and the turns are some and of known roles, with text."""
    for image in images:
        try:
            decode_image(image)
        except ValueError:
            raise UnusableError("an image that cannot be read") from None
    if not turns or not any(str(turn.get("value", "")).strip() for turn in turns):
        raise UnusableError("no text")
    if any(turn.get("from") not in ROLES or not isinstance(turn.get("value"), str) for turn in turns):
        raise UnusableError(f"a turn that is not from one of {', '.join(ROLES)}")


def _row(key: str, make: Callable[[], tuple[list[dict[str, str]], list[bytes]]]) -> Row:
    try:
        turns, images = make()
        checked(images, turns)
    except UnusableError as error:
        return Row(key, None, [], str(error))
    return Row(key, turns, images)


def _turns(text: Any, template: str) -> list[dict[str, str]]:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            raise UnusableError("a caption that is not UTF-8") from None
    if isinstance(text, str):
        if not text.strip():
            raise UnusableError("no text")
        return request(template.format(text.strip()))
    if not text:
        raise UnusableError("no text")
    return [dict(turn) for turn in text]


def _found(row: Iterable[str], names: Mapping[str, str], kind: str, usual: tuple[str, ...]) -> str | None:
    return names[kind] if names[kind] in row else next((n for n in usual if not names[kind] and n in row), None)


def _json_lines(path: Path, folder: Path, names: Mapping[str, str], template: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(f"{path}, line {number}", lambda line=line: _of_json(line, folder, names, template))


def _of_json(
    line: bytes, folder: Path, names: Mapping[str, str], template: str
) -> tuple[list[dict[str, str]], list[bytes]]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UnusableError("a caption that is not UTF-8") from None
    except ValueError:
        raise UnusableError("a line that is no JSON") from None
    if not isinstance(row, dict):
        raise UnusableError("a line that is no JSON object")
    text, image = _found(row, names, "text", TEXTS), _found(row, names, "image", IMAGES)
    given = row[image] if image else None
    images = [_bytes(name, folder) for name in (given if isinstance(given, list) else [given] * bool(given))]
    return _turns(row[text] if text else None, template), images


def _tars(path: Path) -> list[Path]:
    if path.suffix == ".tar":
        return [path]
    if path.suffix == ".json":
        try:
            listed = json.loads(path.read_text())["tars"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is no manifest {{"tars": [...]}}: {error!r}') from None
        return [path.parent / name for name in listed]
    return _files(path, "*.tar")


def _tar(path: Path, names: Mapping[str, str], template: str) -> Iterator[Row]:
    """The samples of one tar: files that follow each other and differ in their ending alone, in the order of names."""
    if not path.is_file():
        raise ValueError(f"there is no tar {path}")
    samples: dict[str, dict[str, bytes]] = {}
    try:
        if path.stat().st_size % 512:
            raise tarfile.ReadError("its size is no multiple of 512 bytes")
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    base, _, ending = member.name.rpartition("/")[2].partition(".")
                    stem = f"{member.name.rpartition('/')[0]}/{base}".lstrip("/")
                    data = tar.extractfile(member).read()
                    if len(data) < member.size:
                        raise tarfile.ReadError(f"{member.name} ends early")
                    samples.setdefault(stem, {})[ending.lower()] = data
            end = tar.offset
        if path.stat().st_size < end + 512:
            raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short after {len(samples)} samples: {error}") from None
    for stem in sorted(samples):
        yield _row(f"{path}: {stem}", lambda sample=samples[stem]: _of_sample(sample, names, template))


def _of_sample(
    sample: Mapping[str, bytes], names: Mapping[str, str], template: str
) -> tuple[list[dict[str, str]], list[bytes]]:
    images = [sample[ending] for ending in sorted(sample) if f".{ending}" in ENDINGS]
    if "json" in sample:
        try:
            row = json.loads(sample["json"].decode("utf-8"))
        except UnicodeDecodeError:
            raise UnusableError("a caption that is not UTF-8") from None
        except ValueError:
            raise UnusableError("a .json that is no JSON") from None
        text = _found(row, names, "text", TEXTS) if isinstance(row, dict) else None
        if text:
            return _turns(row[text], template), images
    return _turns(sample.get("txt"), template), images


def _class_names(folder: Path) -> dict[str, list[str]]:
    """The names of the classes of each column of classes, from the description beside the files."""
    described = folder / "dataset_info.json"
    features = json.loads(described.read_text()).get("features") or {} if described.is_file() else {}
    return {name: f["names"] for name, f in features.items() if isinstance(f, dict) and "names" in f}


def _table(
    path: Path,
    batches: Iterable[Rows],
    names: Mapping[str, str],
    template: str,
    classes: Mapping[str, list[str]],
) -> Iterator[Row]:
    number = 0
    for columns, batch in batches:
        text, image = _found(columns, names, "text", TEXTS), _found(columns, names, "image", IMAGES)
        if text is None:
            wanted = names["text"] or " or ".join(map(repr, TEXTS))
            raise ValueError(f"{path} has no column of text, {wanted}; there are {', '.join(columns)}")
        if names["image"] and image is None:
            raise ValueError(f"{path} has no column {names['image']!r}; there are {', '.join(columns)}")
        for row in batch:
            key = f"{path}, row {number}"
            yield _row(key, lambda row=row, t=text, i=image: _of_row(row, t, i, path.parent, template, classes))
            number += 1


def _of_row(
    row: Mapping[str, Any], text: str, image: str | None, folder: Path, template: str,
    classes: Mapping[str, list[str]],
) -> tuple[list[dict[str, str]], list[bytes]]:  # fmt: skip
    said = row[text]
    if isinstance(said, int) and not isinstance(said, bool):
        if text not in classes or not 0 <= said < len(classes[text]):
            raise UnusableError("a class without a name")
        said = re.split(r",\s*", classes[text][said])[0]
    given = row[image] if image else None
    images = [_bytes(each, folder) for each in (given if isinstance(given, list) else [given] * (given is not None))]
    return _turns(said, template), images


def _bytes(image: Any, folder: Path) -> bytes:
    try:
        return image_bytes(image, folder)
    except ValueError:
        raise UnusableError("an image that is not there") from None


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern), key=os.fspath) if folder.is_dir() else []
