"""What a folder of images holds: splits, classes in the order of their labels, files, and what is left out and why.

`sources.py` reads the images that are found here. The layouts:

<path>/<class>/**/<image>                     a subfolder a class
<path>/train/<class>/, <path>/test/<class>/   two splits; `TRAINING` and `HELD_OUT` have their names, in any case
<path>/<image>, <path>/train/<image> ...      without class folders: the images have no classes
"""

import collections
import dataclasses
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rae_jax.data.decoding import ENDINGS

TRAINING = ("train", "training")
HELD_OUT = {"validation": "validation", "val": "validation", "valid": "validation", "test": "test"}  # names and kinds
LAYOUT = (
    "expected one subfolder a class, <path>/<class>/**/<image>, "
    "or <path>/train/<class>/ and <path>/test/<class>/ (or validation/) for two splits, or images without class "
    f"folders; images end in {', '.join(ENDINGS)}"
)

_SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information")  # other programs' folders
_NAMED = 5  # names in a message
_KINDS = 8  # endings that are counted one by one


class NothingHeldOut(ValueError):
    """No class has images enough for one to be held out."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The images of one split.

    Attributes:
      root: the folder that holds the class folders, or the images if there are no classes.
      classes: names of the class folders; their places are the labels.
      files: of each class, or of the one folder without classes, the sorted paths of its images, relative to it.
      left_out: how many files or folders were left out, by reason.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[list[str]]
    left_out: dict[str, int]


def find_images(path: Path, split: str, *, held_out_share: float = 0.0, classes: Sequence[str] | None = None) -> Found:
    """The images of `split` below `path`. A folder without images is no class; hidden and system folders are none.

    Args:
      split: one of `TRAINING` and `HELD_OUT`, in any case. Whatever held-out split a folder has is meant by any name of
        one; if it has several, by the same name or kind ("val" and "valid" are "validation").
      held_out_share: of each class of a folder that has no held-out images of its own; 0: such a folder has none.
      classes: the classes in the order of their labels, as they were when a run began; in natural order otherwise.

    Raises:
      ValueError: there are no such images, it is not clear which they are, or the classes are not `classes`.
      NothingHeldOut: there are images, but too few to hold any out.
    """
    training = split.casefold() in TRAINING
    if not training and split.casefold() not in HELD_OUT:
        known = ", ".join((*TRAINING, *HELD_OUT))
        raise ValueError(f"a folder of images has the splits {known}, not {split!r}")
    if not path.is_dir():
        raise ValueError(f"there is no folder {str(path)!r}; {LAYOUT}")
    left_out: collections.Counter[str] = collections.Counter()
    train, held_out, beside = _splits(path)
    if beside:
        left_out[f"folders beside the splits ({shown(beside)})"] = len(beside)
    there = _with_images(train)
    labels = _in_order(train, there, classes)
    usable = [name for name in held_out if not labels or _with_images(path / name)]
    if flat := [name for name in held_out if name not in usable]:
        left_out[f"folders of held-out images without class folders ({shown(flat)})"] = len(flat)
    shared = not usable
    if shared and not training and not held_out_share:
        what = f"{shown(flat)} has no class folders; put its images into some" if flat else (
            f"move the others to {path / 'train'} and put held-out ones into {path / 'test'}, in folders of the same "
            "names"
        )  # fmt: skip
        share = "set held_out_share (config.data.held_out_share)"
        raise ValueError(f"{path} holds no held-out images; {what}, or {share}")
    root = train if training or shared else path / _chosen(path, split, usable)
    if root != train and labels and (strangers := [name for name in _with_images(root) if name not in labels]):
        raise ValueError(f"{root} has classes that {train} lacks: {strangers[:_NAMED]}")
    files = _files(root, labels, left_out)
    if shared and held_out_share:
        whole, files = files, [_part(names, training, held_out_share) for names in files]
        if any(whole) and not any(files):
            raise NothingHeldOut(f"{path} has no class of two images or more, of which one could be held out")
    if not any(files):
        below = f"below the {len(labels)} folders of" if labels else "in"
        share = f" for the split {split!r} with held_out_share={held_out_share:g}" if shared and held_out_share else ""
        rest = f"; left out: {told(left_out)}" if left_out else ""
        raise ValueError(f"no images {below} {root}{share}{rest}; {LAYOUT}")
    return Found(root, labels, files, dict(left_out))


def natural(name: str) -> tuple[str | int, ...]:
    """What names are ordered by so that numbers in them count as numbers: "2" comes before "10"."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name))


def shown(names: Sequence[str], most: int = _NAMED) -> str:
    """The first of `names` in one line, whatever characters are in them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def printable(name: str, most: int = 60) -> str:
    """`name` in one line of no more than `most` characters, all of which can be written."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)  # an undecodable byte is not printable
    return text if len(text) <= most else f"{text[: most - 3]}..."


def told(left_out: Mapping[str, int]) -> str:
    """What was left out, in one line."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items())


def former_labels(path: Path, split: str) -> tuple[str, ...]:
    """The classes in the order of their labels in runs that began before this order was kept: as strings.

    Errors as `find_images`, of the training split `split`.
    """
    return tuple(sorted(_subfolders(find_images(path, split, held_out_share=0.5).root)))


def _splits(path: Path) -> tuple[Path, list[str], list[str]]:
    """The folder of the training images, the names of folders of held-out ones, and those of folders that are neither.

    Raises:
      ValueError: it is not clear which folder has the training images.
    """
    full = [name for name in sorted(_subfolders(path)) if _holds_images(path, name)]
    training = [name for name in full if name.casefold() in TRAINING]
    held_out = [name for name in full if name.casefold() in HELD_OUT]
    others = [name for name in full if name not in training + held_out]
    if len(training) > 1:
        raise ValueError(f"{path} has the training images in {shown(training)}; keep one of these folders there")
    if held_out and not training and not others:
        raise ValueError(f"{path} has {held_out} and lacks the folder 'train'; {LAYOUT}")
    if training and others and not held_out and _with_images(path / training[0]):
        raise ValueError(
            f"{path} has {training[0]!r}, which holds class folders, beside {shown(others)}: either take these away, "
            f"or put images held out into {path / 'test'}; or, if all are classes, images straight into {training[0]!r}"
        )
    if not training or (others and not held_out):
        return path, [], []
    return path / training[0], held_out, sorted(_subfolders(path) - {*training, *held_out})


def _chosen(path: Path, split: str, candidates: list[str]) -> str:
    """The one of the held-out folders `candidates` that `split` names."""
    same_kind = [name for name in candidates if HELD_OUT[name.casefold()] == HELD_OUT[split.casefold()]]
    same_name = [name for name in same_kind if name.casefold() == split.casefold()]
    groups = ([name for name in same_name if name == split], same_name, same_kind, candidates)
    meant = next(group for group in groups if group)
    if len(meant) > 1:
        raise ValueError(
            f"{path} has held-out images in {shown(meant)}, and {split!r} may mean any of them; set "
            "config.data.test_split to the name of one, or take the others away"
        )
    return meant[0]


def _in_order(root: Path, there: list[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of their labels, given those that have images.

    Raises:
      ValueError: `classes` are others.
    """
    if classes is None:
        return tuple(sorted(there, key=lambda name: (natural(name), name)))
    folders = _subfolders(root)
    differing = [f"{printable(name)!r} is new" for name in there if name not in classes]
    differing += [f"{printable(name)!r} is gone" for name in classes if name not in folders]
    if differing:
        raise ValueError(
            f"{root} has other classes than when this run began, and labels would no longer mean the same: "
            f"{shown(differing)}; put the class folders back as they were, or begin another run (--workdir)"
        )
    return tuple(classes)


def _files(root: Path, classes: tuple[str, ...], left_out: collections.Counter[str]) -> list[list[str]]:
    """The images of each class, or of `root` without any; counts what is left out."""
    found: dict[str, list[str]] = {name: [] for name in classes or ("",)}
    for folder, name in _images(root, list(found), left_out):
        found[folder].append(name)
    if classes:
        with os.scandir(root) as scanned:
            entries = list(scanned)
        loose = [entry.name for entry in entries if not _is_folder(entry)]
        inside = sum(map(len, found.values()))
        if (beside := sum(map(is_image, loose))) > inside:
            raise ValueError(
                f"{root} has {beside} images beside the class folders {shown(classes)}, which have {inside}; put every "
                "image into the folder of its class, or take the folders away to train without classes"
            )
        left_out.update(_reason(name) if not is_image(name) else "images beside the class folders" for name in loose)
        if empty := sorted(_subfolders(root) - set(classes)):
            left_out[f"folders without images ({shown(empty)})"] += len(empty)
        system = sum(1 for entry in entries if _is_folder(entry) and _is_hidden(entry.name))
        left_out.update({"hidden and system files and folders": system} if system else {})
    kinds = [reason for reason in left_out if reason.startswith(_ENDING)]
    for reason in sorted(kinds, key=lambda reason: -left_out[reason])[_KINDS:]:
        left_out["files with other endings"] += left_out.pop(reason)
    return [sorted(names) for names in found.values()]


def _images(
    root: Path, folders: Sequence[str], left_out: collections.Counter[str], *, follow: bool = True
) -> Iterator[tuple[str, str]]:
    """The images at any depth below `root/<folder>`, as `(folder, path below it)`; counts what is left out.

    A link to a folder is followed when everything that is no link has been read, unless it leads to what has been read
    already, to `root`, or to a folder above it: no image is found twice, however links go round. Without `follow`, none
    is.
    """
    home = os.path.realpath(root)
    waiting = collections.deque((folder, "") for folder in folders if not os.path.islink(root / folder))
    links = collections.deque((folder, "") for folder in folders if os.path.islink(root / folder))
    seen: set[str] = set()
    while waiting or (links and follow):
        folder, below = (waiting or links).popleft()
        place = os.path.join(root, folder, below)
        real = os.path.realpath(place)
        around = real != home and os.path.commonpath((real, home)) == real
        if real in seen or around or (real == home and folder):
            left_out["links to folders that are read already, or that hold all of it"] += 1
            continue
        seen.add(real)
        try:
            with os.scandir(place) as scanned:
                entries = list(scanned)
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for entry in entries:
            name = os.path.join(below, entry.name)
            if _is_hidden(entry.name):
                left_out["hidden and system files and folders"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else waiting).append((folder, name))
            elif not is_image(entry.name):
                left_out[_reason(entry.name)] += 1
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out["links that lead nowhere"] += 1
            else:
                yield folder, name


def _part(names: list[str], training: bool, held_out_share: float) -> list[str]:
    """Those of `names`, sorted, that are trained on or held out: chosen by their names alone, at least one of two each.

    Adding a file changes the split of at most one other.
    """
    count = min(max(round(held_out_share * len(names)), 1), len(names) - 1)
    held_out = set(sorted(names, key=lambda name: (zlib.crc32(os.fsencode(name)), name))[: max(count, 0)])
    return [name for name in names if (name in held_out) != training]


def _with_images(path: Path) -> list[str]:
    """The names of the subfolders of `path` in which `_images`, given them all, finds images."""
    names = sorted(_subfolders(path))
    there = {name for name in names if _holds_images(path, name, links=False)}
    if any(_holds_images(path, name) for name in names if name not in there):  # if no other folder's
        there = {name for name, _ in _images(path, names, collections.Counter())}
    return [name for name in names if name in there]


def _holds_images(root: Path, folder: str, *, links: bool = True) -> bool:
    return next(_images(root, [folder], collections.Counter(), follow=links), None) is not None


def _subfolders(path: Path) -> set[str]:
    with os.scandir(path) as entries:
        return {entry.name for entry in entries if _is_folder(entry) and not _is_hidden(entry.name)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


_ENDING = "files ending in "


def _reason(name: str) -> str:
    if name.startswith("."):
        return "hidden and system files and folders"
    ending = Path(name).suffix.lower()
    return f"{_ENDING}{printable(ending)}" if ending else "files without an ending"
