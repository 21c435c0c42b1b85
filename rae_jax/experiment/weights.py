"""Where the weights of a run's components are: left by its stages, or given by its config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rae_jax.components.catalogue import trained_by, trained_components
from rae_jax.components.component import RANDOM, Component, Params
from rae_jax.components.latent_spaces import IDENTITY, identity_statistics
from rae_jax.experiment.workdir import FINISHED
from rae_jax.files import whole_file
from rae_jax.interop import hub
from rae_jax.interop.weights import save_weights
from rae_jax.objectives.objective import stage_key
from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import find, is_of

WEIGHTS = "weights"
WORKDIR = "{workdir}"  # at the beginning of a config's weights: this run's working directory


class Weights:
    """The weights of one run, found, loaded and kept by component.

    Each stage leaves those of what it trains in `<stage>/weights`, in a directory each if it trains several; the
    description beside them names the component.
    """

    def __init__(
        self,
        config: ConfigDict,
        plain: dict[str, Any],
        workdir: Path,
        mesh: jax.sharding.Mesh,
        warn: Callable[[str], None],
        say: Callable[[str], None] = lambda text: None,
    ):
        self._config, self._plain, self._workdir, self._mesh = config, plain, workdir, mesh
        self._warn, self._say, self._said = warn, say, set()

    def finished(self, stage: str) -> bool:
        """Whether `stage` has left its weights in the working directory."""
        return (self._workdir / stage / FINISHED).exists()

    def available(self, component: str, before: str | None = None) -> bool:
        """Whether there are trained weights of a component, for the stage `before` or for what follows all stages."""
        given, stage = self._where(component, before)
        return bool(given or stage)

    def place(self, component: str, before: str | None = None) -> str:
        """Where the weights of a component are: left by the last stage that trains it, or as the config says.

        With `before`, as that stage finds them. What the config gives is where the first stage that trains the
        component begins, and what that leaves comes afterwards; but a checkpoint of the stage itself, in this working
        directory, is a choice among what it has trained.

        Returns:
          A path, or one of the words that stand for weights without a file.

        Raises:
          ValueError: there are none yet.
        """
        given, stage = self._where(component, before)
        if not given and not stage:
            trainer = trained_by(self._config, component, before) or component
            raise ValueError(
                f"{component} has no weights: the stage {trainer!r} has not finished in {self._workdir}, "
                f"and config.{component}.weights is empty"
            )
        return given or str(self._directories(stage)[component])

    def _where(self, component: str, before: str | None) -> tuple[str, str]:
        """The weights that the config gives, if they count, else the finished stage that has left some."""
        given, stage = self._config[component].weights, trained_by(self._config, component, before)
        given = given.replace(WORKDIR, str(self._workdir), 1) if given.startswith(WORKDIR) else given
        given = str(hub.local(given))
        if stage and self.finished(stage) and not self._is_of(stage, given):
            if given:
                self._say_once(
                    f"{component}: the weights that the stage {stage!r} has left; it began with what "
                    f"config.{component}.weights={given!r} gives"
                )
            return "", stage
        if given or not self.finished(component):
            return given, ""
        return "", component  # of a stage that the config does not list any more

    def _is_of(self, stage: str, place: str) -> bool:
        """Whether `place` is a checkpoint that `stage` of this run has made."""
        return place not in ("", RANDOM, IDENTITY) and is_of(place, self._workdir / stage)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _directories(self, stage: str) -> dict[str, Path]:
        folder, trained = self._workdir / stage / WEIGHTS, trained_components(self._config, stage)
        return {name: folder / name if len(trained) > 1 else folder for name in trained}

    def identity(self, component: str) -> str:
        """Tells one version of a component's weights from another."""
        place = self.place(component)
        if place in (RANDOM, IDENTITY):
            return place
        average = ""
        if checkpoint := find(place):
            place, average = str(checkpoint.directory), f"average with decay {checkpoint.decay}, "
        path = Path(place)
        if not path.exists():
            return place
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = (f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        return f"{path}: {average}" + ", ".join(stats)

    def load(self, component: Component, before: str | None = None) -> Params:
        """A component's weights on the devices, as the stage `before` finds them."""
        place = self.place(component.name, before)
        if place == RANDOM:
            return self._random(component)
        if checkpoint := find(place):
            self._say_once(f"{component.name}: the weights of {checkpoint.said}")
        host = identity_statistics(component.structure()) if place == IDENTITY else component.load(place)
        places = sharding.shardings_of(jax.eval_shape(component.init, jax.random.key(0)), self._mesh)
        return jax.tree.map(
            lambda value, where: jax.make_array_from_callback(value.shape, where, lambda index: value[index]),
            host,
            places,
        )

    def _random(self, component: Component) -> Params:
        """Untrained weights, the same in every stage and at every start of the run."""
        name = component.name
        self._warn(f"{name}: untrained, random weights, as config.{name}.weights={RANDOM!r} asks")
        key = stage_key(self._config.seed, f"{name}/{RANDOM}")
        places = sharding.shardings_of(jax.eval_shape(component.init, key), self._mesh)
        draw = sharding.jit_for_one_call(lambda key: sharding.unbox(component.init(key)), self._mesh, places)
        return draw(key)

    def save(self, stage: str, params: Params, finished: dict[str, Any]) -> None:
        """Keeps what `stage` has trained, by component if it trains several, and then that it has `finished`."""
        directories = self._directories(stage)
        for name, directory in directories.items():
            description = {"component": name, "stage": stage, "config": self._plain}
            save_weights(directory, params[name] if len(directories) > 1 else params, description)
        with whole_file(self._workdir / stage / FINISHED) as file:
            file.write((json.dumps(finished, indent=2) + "\n").encode())

    def finished_with(self, stage: str) -> dict[str, Any]:
        """What was said when `stage` finished."""
        return json.loads((self._workdir / stage / FINISHED).read_text())

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took."""
        return {stage: self.finished_with(stage)["seconds"] for stage in self._config.stages if self.finished(stage)}
