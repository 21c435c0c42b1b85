"""What a run generates: samples by the thousand as files, and seed grids, each with its picture."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.catalogue import FLOW_MAPS, component
from rae_jax.components.component import Component
from rae_jax.components.conditions import Condition, condition
from rae_jax.components.language import speaks
from rae_jax.evaluation import pictures
from rae_jax.experiment.dataset import captioned, class_names
from rae_jax.experiment.weights import Weights
from rae_jax.files import whole_file
from rae_jax.sampling.batches import PartialSamples, Program, sample_batches, sampling_program
from rae_jax.sampling.generator import few_step_names, flow_map_generator, generator, guiding_component, parts_beside
from rae_jax.sampling.prompted import prompted_generator
from rae_jax.sampling.samples import save_png, write_png_folder, write_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SEEDS = 8  # columns of a seed grid
PICTURED = 10  # rows and columns of the picture of samples


@dataclasses.dataclass(frozen=True)
class Sampled:
    """One file of samples.

    Attributes:
      name: of the file.
      network: the component that is sampled.
      beside: the other components that `program` needs, by name.
      program: makes the images.
    """

    name: str
    network: Component
    beside: dict[str, Component]
    program: Program


class Generation:
    """Samples of one run, as `config.sampling` says.

    `samples.npz` is made with the velocity network, if there are weights of one and `num_steps` is not 0;
    `samples_1step.npz` and so on with a flow map, if there are weights of one.
    """

    def __init__(self, config: ConfigDict, weights: Weights, mesh: jax.sharding.Mesh, workdir: Path, log: RunLog):
        self._weights, self._mesh, self._workdir, self._log = weights, mesh, workdir, log
        self._seed, self._size = config.seed, config.data.image_size
        sampling = config.sampling
        self._count, self._batch_size, self._png = sampling.num_samples, sampling.batch_size, sampling.png
        self._asked = settings(config)
        self._condition, self._class_names = condition(config), class_names(workdir)
        beside = parts_beside(config)
        self._needed = list(beside)
        self._files, program = [], functools.partial(sampling_program, seed=config.seed)
        if sampling.num_steps and weights.available("flow"):
            guide = guiding_component(config)
            guided = beside | ({guide: component(config, guide)} if guide else {})
            generate = generator(config, guide=guide)
            self._files.append(Sampled("samples", component(config, "flow"), guided, program(generate)))
        if speaks(config) and sampling.num_steps and weights.available("text_dit"):
            generate = program(prompted_generator(config))
            self._files.append(Sampled("samples", component(config, "text_dit"), beside, generate))
        in_few_steps = few_step_programs(config, weights)
        self._files += [Sampled(f"samples{end}", part, beside, run) for end, (part, run) in in_few_steps.items()]
        self._networks = f"{'text_dit' if speaks(config) else 'flow'!r} or a flow map"
        self._network_trained = any(weights.available(name) for name in (*FLOW_MAPS, "flow", "text_dit"))

    @property
    def possible(self) -> bool:
        """Whether there are weights for everything that sampling needs."""
        return self._network_trained and all(self._weights.available(name) for name in self._needed)

    def require_weights(self) -> None:
        """Raises ValueError unless there are weights of a network, and of all that tells it and decodes."""
        if not self.possible:
            needed = " and ".join((self._networks, *map(repr, self._needed)))
            raise ValueError(
                f"sampling needs trained weights of {needed}: train these stages in {self._workdir}, "
                "or set weights in their sections of the config"
            )

    def requests(self) -> dict[str, dict[str, Any]]:
        """Of each file of samples, by its name, everything that decides what is in it.

        Raises:
          ValueError: see `Weights.place`.
        """
        return {
            file.name: {
                "seed": self._seed,
                "sampling": self._asked,
                "weights": {name: self._weights.identity(name) for name in (file.network.name, *file.beside)},
            }
            for file in self._files
        }

    def write_samples(self) -> None:
        """Writes the files of samples, each with a picture of some; with `config.sampling.png` also a folder of PNGs.

        What a killed run has made is not made again.

        Raises:
          ValueError: see `require_weights`.
        """
        self.require_weights()
        first, asked = jax.process_index() == 0, self._condition.chosen(self._count)
        arrays, requests = self._condition.arrays(asked), self.requests()
        if not all(arrays.get("prompts", ["-"])):
            self._log.say("the empty prompt asks for nothing: its samples are unconditional")
        for file in self._files:
            path, request = self._workdir / f"{file.name}.npz", requests[file.name]
            shape = (self._count, self._size, self._size, 3)
            partial = PartialSamples(path, shape, request, self._log.warn) if first else None
            done = sharding.of_first_process(partial.done if first else 0)
            if done:
                self._log.say(f"{file.name}: continuing after {done} samples")
            with self._log.progress(file.name, self._count, done) as display:
                for images in self._images(file, rows(asked, slice(done, None)), np.arange(done, self._count)):
                    done += len(images)
                    if first:
                        partial.append(images)
                    display.advance(done)
            if first:
                made = path.with_suffix(".json")
                made.unlink(missing_ok=True)  # until it tells of the new samples
                write_samples(path, partial.images, **arrays)
                with whole_file(made) as written:
                    written.write((json.dumps(request, indent=2) + "\n").encode())
                if self._png:
                    known = {name: arrays[name] for name in ("labels", "prompts") if name in arrays}
                    write_png_folder(self._workdir / file.name, partial.images, **known)
                save_png(path.with_suffix(".png"), self._picture(partial.images, asked))
                partial.remove()
            self._log.say(f"{file.name}: {self._count} in {path}, some of them in {path.with_suffix('.png')}")

    def write_seed_grids(self, names: Sequence[str]) -> None:
        """Writes `seed_grid.png` (and `seed_grid_1step.png`...): a row for each of `names`, a column for each noise.

        Args:
          names: what the rows are asked for, in a user's words.

        Raises:
          ValueError: the condition knows no such name, or see `require_weights`.
        """
        self.require_weights()
        try:
            asked = rows(self._condition.asked(names), np.repeat(np.arange(len(names)), SEEDS))
        except ValueError as error:
            raise ValueError(f"--seed_grid={','.join(names)}: {error}") from None
        indices = np.tile(np.arange(SEEDS), len(names))
        rows_of_names = [(name, np.arange(i * SEEDS, (i + 1) * SEEDS)) for i, name in enumerate(names)]
        groups = captioned(rows_of_names, self._class_names)
        for file in self._files:
            images = np.concatenate(list(self._images(file, asked, indices)))
            path = self._workdir / f"{file.name.replace('samples', 'seed_grid')}.png"
            if jax.process_index() == 0:
                save_png(path, pictures.grouped_grid(images, groups))
            self._log.say(f"{path}: {', '.join(caption for caption, _ in groups)}, a column a noise")

    @property
    def ways(self) -> tuple[str, ...]:
        """The names of the files of samples that there can be, a way to generate each: "samples", "samples_1step"..."""
        return tuple(file.name for file in self._files)

    def images(self, way: str, name: str, indices: np.ndarray) -> np.ndarray:
        """Images uint8 `[N, H, W, 3]` of the noises `indices: [N]`, asked for by `name` in a user's words.

        Raises:
          ValueError: the condition knows no such name, or see `require_weights`.
        """
        self.require_weights()
        file = next(file for file in self._files if file.name == way)
        asked = rows(self._condition.asked([name]), np.zeros(len(indices), int))
        return np.concatenate(list(self._images(file, asked, indices)))

    def _images(self, file: Sampled, asked: Condition, indices: np.ndarray) -> Iterator[np.ndarray]:
        return sample_batches(
            file.program,
            self._weights.load(file.network),
            {name: self._weights.load(part) for name, part in file.beside.items()},
            asked,
            indices,
            batch_size=self._batch_size,
            mesh=self._mesh,
        )

    def _picture(self, images: np.ndarray, asked: Condition) -> np.ndarray:
        groups = self._condition.groups(asked)[:PICTURED]  # more would not fit on a screen
        if not groups:
            return pictures.image_grid(images[: PICTURED**2], columns=PICTURED)
        groups = [(caption, members[:PICTURED]) for caption, members in groups]
        return pictures.grouped_grid(images, captioned(groups, self._class_names))


def few_step_programs(config: ConfigDict, weights: Weights) -> dict[str, tuple[Component, Program]]:
    """The flow map that was trained last, of those with weights, and its program, by what ends the names of files."""
    trained = [name for name in FLOW_MAPS if weights.available(name)]
    if not trained:
        return {}
    network = component(config, trained[-1])
    names = few_step_names(config)
    return {end: (network, sampling_program(flow_map_generator(config, t), config.seed)) for end, t in names.items()}


def settings(config: ConfigDict) -> dict[str, Any]:
    """Everything of `config.sampling` that decides what a sample is."""
    left_out = ("batch_size", "flow_map_times", "png")
    return {name: value for name, value in config.sampling.to_dict().items() if name not in left_out}


def samples_made(workdir: Path) -> dict[str, dict[str, Any]]:
    """With which seed and `sampling` each file of samples in a working directory was made, by its name."""
    found = {path.stem: path.with_suffix(".json") for path in sorted(workdir.glob("samples*.npz"))}
    told = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    return {name: {"seed": made["seed"], "sampling": made["sampling"]} for name, made in told.items()}


def made_otherwise(workdir: Path, config: ConfigDict) -> list[str]:
    """A line for each file of samples that was made with other settings than those of `config`."""
    now, lines = json.loads(json.dumps(settings(config))), []
    for name, made in samples_made(workdir).items():
        fields = sorted(now.keys() | made["sampling"].keys())
        changes = [
            f"sampling.{field}={made['sampling'].get(field)!r}, and not {now.get(field)!r}"
            for field in fields
            if made["sampling"].get(field) != now.get(field)
        ]
        if changes:
            lines.append(f"{workdir / name}.npz was made with {'; '.join(changes)}: --mode=sample makes it anew")
    return lines


def rows(asked: Condition, which: slice | np.ndarray) -> Condition:
    """Some rows of a condition on the host."""
    return jax.tree.map(lambda x: x[which], asked)
