"""The averaged weights in a checkpoint, found by its path and read without the run that made it.

<workdir>/flow/checkpoints/500    after 500 steps
<workdir>/flow/checkpoints        the newest
<workdir>/flow/checkpoints/best   the best by the stage's `train.best_metric`
any of these with @0.999          averaged with that decay, one of the stage's `train.more_ema_decays`
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np

CHECKPOINTS = "checkpoints"  # the folder of a stage's checkpoints
BEST, DECAY = "best", "@"  # in a path


class About(TypedDict):
    """What a checkpoint says of itself: how its averaged parameters are those of components.

    Keys:
      stage: that made it.
      components: for each component that it trains, the entry of the averaged parameters; "" for all of them.
      ema_decays: of the averages: the one that is used, and then the others.
      best: the metric by which the best is kept, and whether "higher" or "lower" is better; None if there is none.
    """

    stage: str
    components: dict[str, str]
    ema_decays: list[float]
    best: tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class CheckpointWeights:
    """The averaged weights of one checkpoint.

    Attributes:
      directory: of this checkpoint.
      about: what it says of itself.
      decay: of the average, one of `about["ema_decays"]`.
    """

    directory: Path
    about: About
    decay: float

    @property
    def said(self) -> str:
        """What messages call them."""
        return f"step {self.directory.name} of {self.directory.parent}, averaged with decay {self.decay:g}"

    @property
    def config(self) -> dict[str, Any]:
        """That of the run."""
        return json.loads((self.directory / "config" / "metadata").read_text())

    def shapes(self, component: str) -> Any:
        """Arrays of the parameters' shapes, which take no memory: of `component`, or of the only one there is.

        Raises:
          ValueError: the checkpoint holds several components, none of which is it; or it is damaged.
        """
        return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), self._described(component))

    def read(self, component: str) -> Any:
        """The parameters, as NumPy arrays: of `component`, or of the only one there is.

        Raises:
          ValueError: as `shapes`.
        """
        path = self._path(component)
        item = self._described(component)
        for name in reversed(path):
            item = {name: item}
        with self._said_plainly(), self._open() as (handler, directory):
            found = handler.restore(directory, args=_only(item))
        for name in path:
            found = found[name]
        self._check(found, path)
        return found

    def _path(self, component: str) -> tuple[str, ...]:
        """Where in the state the parameters are."""
        components = self.about["components"]
        if component not in components and len(components) != 1:
            raise ValueError(f"{self.directory} holds weights of {' and '.join(components) or 'nothing'}, which are "
                             f"none of {component}")  # fmt: skip
        entry = components.get(component, next(iter(components.values())))
        return (*_average(self.decay, first=self.about["ema_decays"][0]), *([entry] if entry else []))

    def _described(self, component: str) -> Any:
        """What the checkpoint says of every array of the parameters."""
        with self._said_plainly():
            described = self._tree()
            for name in self._path(component):
                described = described[name]
            return described

    def _tree(self) -> dict[str, Any]:
        with self._open() as (handler, directory):
            return handler.metadata(directory).tree

    def _check(self, found: Any, path: tuple[str, ...]) -> None:
        """Raises ValueError unless the sum of each array's bits is the one that was saved."""
        with self._said_plainly():
            leaves = [names for names, _ in jax.tree.leaves_with_path(self._tree())]
            sums = json.loads((self.directory / "checksums" / "metadata").read_text())
            saved = {_names(names): value for names, value in zip(leaves, sums, strict=True)}
            for names, value in jax.tree.leaves_with_path(found):
                if np.sum(value.view(np.uint32), dtype=np.uint32) != saved[(*path, *_names(names))]:
                    raise ValueError(f"{'/'.join(_names(names))} is not what was saved")

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """Reads without the manager of checkpoints, which would wait for the other processes of a run."""
        import orbax.checkpoint as ocp  # takes seconds, and most weights are no checkpoints
        from etils import epath

        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            yield handler, epath.Path(self.directory / "state")

    @contextlib.contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a broken file raises
            what = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"the checkpoint {self.directory} cannot be read: {what[0][:300]}") from error


def find(source: str | Path) -> CheckpointWeights | None:
    """The weights in the checkpoint that `source` names, or None if it names none; see above.

    Raises:
      ValueError: there is no best, no average of that decay, or the checkpoint does not say what it holds.
    """
    folder, which, decay = _parts(source)
    steps = steps_in(folder)
    if not steps or (which.isdigit() and int(which) not in steps):
        return None
    step = int(which) if which.isdigit() else _best(folder, steps) if which == BEST else steps[-1]
    directory = folder / str(step)
    said = about(directory)
    if not said:
        raise ValueError(
            f"the checkpoint {directory} does not say what it holds: it is of an older version. Train the stage a "
            "few steps further, or use the weights that it left"
        )
    decays = said["ema_decays"]
    if decay and float(decay) not in decays:
        raise ValueError(f"{directory} holds no average with decay {decay}, but {' and '.join(map(str, decays))}")
    return CheckpointWeights(directory, said, decays[0] if not decay else float(decay))


def is_of(source: str | Path, stage: Path) -> bool:
    """Whether `source` names a checkpoint that the stage in the directory `stage` has made."""
    return _parts(source)[0].resolve() == (stage / CHECKPOINTS).resolve()


def _parts(source: str | Path) -> tuple[Path, str, str]:
    """The folder of checkpoints that `source` would name; the step, "best", or ""; the decay, or ""."""
    place, _, decay = str(source).rpartition(DECAY)
    try:
        place, decay = (place, str(float(decay))) if place else (decay, "")
    except ValueError:  # a path with that sign in it
        place, decay = str(source), ""
    path = Path(place)
    return (path.parent, path.name, decay) if path.name == BEST or path.name.isdigit() else (path, "", decay)


def steps_in(directory: Path) -> list[int]:
    """The steps of the checkpoints in `directory`, ascending."""
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").is_file()
    )


def about(directory: Path) -> dict[str, Any]:
    """What the checkpoint in `directory` says of itself; nothing if it is of an older version."""
    file = directory / "about" / "metadata"
    return json.loads(file.read_text()) if file.is_file() else {}


def images_seen(directory: Path) -> int:
    """How many images the run had seen at the checkpoint in `directory`: its position in the data."""
    return int(json.loads((directory / "data" / "metadata").read_text())["position"])


def _best(folder: Path, steps: list[int]) -> int:
    """The step of the best checkpoint by the metric that the newest names."""
    best = about(folder / str(steps[-1])).get("best")
    if best is None:
        raise ValueError(f"{folder} has no best checkpoint: the stage has no train.best_metric")
    files = {step: folder / str(step) / "metrics" / "metrics" for step in steps}
    good = goodness(*best)
    found = {step: good(json.loads(file.read_text())) for step, file in files.items() if file.is_file()}
    if not any(value > -math.inf for value in found.values()):
        raise ValueError(f"{folder} has no best checkpoint: none was evaluated yet")
    return max(found, key=lambda step: (found[step], step))


def goodness(metric: str, better: str) -> Callable[[dict[str, float]], float]:
    """What is largest for the best checkpoint; one that was not evaluated is worse than any.

    The name of a metric may end in the number of images that were judged, as in `fid_5000`.
    """
    name = re.compile(rf"{re.escape(metric)}(_\d+)?")

    def goodness(metrics: dict[str, float]) -> float:
        value = next((value for found, value in metrics.items() if name.fullmatch(found)), math.nan)
        return -math.inf if math.isnan(value) else value if better == "higher" else -value

    return goodness


def _average(decay: float, first: float) -> tuple[str, ...]:
    """Where in the state the average with `decay` is, if the one that is used has the decay `first`."""
    return ("ema_params",) if decay == first else ("more_ema", str(decay))


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def _only(item: Any) -> Any:
    """The arguments that restore the arrays of `item`, and nothing else of a checkpoint, on the host."""
    import orbax.checkpoint as ocp

    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    return ocp.args.PyTreeRestore(item=item, restore_args=as_arrays, partial_restore=True)
