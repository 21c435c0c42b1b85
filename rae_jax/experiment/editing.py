"""What a mixture of transformers makes: images from texts, and edits of images by instructions.

edits.npz  edits.jsonl  edits.png   edits of held-out scenes, or of a file of requests
edit.png                            one image edited by one instruction, from several noises
gedit/  geneval/  dpg/              what the judges of these benchmarks read
samples.npz                         images from texts alone, and the texts as `prompts`

With a flow map all of it also in few steps: edits_1step.npz, edit_2step.png, gedit_1step/ and so on.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.component import Component
from rae_jax.components.mixtures import Request, instruction_condition, mixture
from rae_jax.data.decoding import decode_image
from rae_jax.data.prompts import read_prompts, scene_prompts
from rae_jax.data.scenes import SceneSource, described, render
from rae_jax.data.told_images import ToldScenes
from rae_jax.data.transforms import transform
from rae_jax.evaluation import pictures
from rae_jax.evaluation.edits import write_edits
from rae_jax.experiment.generation import few_step_programs
from rae_jax.experiment.weights import Weights
from rae_jax.files import read_json_lines
from rae_jax.sampling import benchmarks
from rae_jax.sampling.batches import Program, sample_batches, sampling_program
from rae_jax.sampling.generator import parts_beside
from rae_jax.sampling.instructed import instructed_generator
from rae_jax.sampling.samples import save_png, write_samples
from rae_jax.training.progress import RunLog

Row = dict[str, Any]
# By name: how requests are read, how images are written, images of each, and of which task it is.
BENCHMARKS = {
    "gedit": (
        benchmarks.gedit,
        lambda place, asked, images: benchmarks.write_gedit(place, asked, images[0]),
        1,
        "edit",
    ),
    "geneval": (benchmarks.geneval, benchmarks.write_geneval, 4, "caption"),
    "dpg": (benchmarks.dpg, benchmarks.write_dpg, 4, "caption"),
}
SEEDS = 4  # noises from which one image is edited
PICTURED = 24


class Editing:
    """The images of one run's mixture of transformers, as `config.sampling` says.

    They are made with the mixture, if there are weights of it and `num_steps` is not 0, and in few steps with a flow
    map, if there are weights of one.
    """

    def __init__(self, config: ConfigDict, weights: Weights, mesh: jax.sharding.Mesh, workdir: Path, log: RunLog):
        self._config, self._weights, self._mesh, self._workdir, self._log = config, weights, mesh, workdir, log
        self._beside = parts_beside(config)
        self._edits = config.mixture.task == "edit"

    @functools.cached_property
    def _ways(self) -> dict[str, tuple[Component, Program]]:
        """What is sampled, and by which program, of all that there are weights for, by what ends the files' names."""
        config, ways = self._config, {}
        if config.sampling.num_steps and self._weights.available("mixture"):
            ways[""] = mixture(config), sampling_program(instructed_generator(config), config.seed)
        return ways | few_step_programs(config, self._weights)

    @property
    def ways(self) -> tuple[str, ...]:
        """What ends the names of the files that there can be, of each way to make images: "", "_1step"..."""
        return tuple(self._ways)

    @property
    def possible(self) -> bool:
        """Whether there are weights for everything that it needs."""
        return bool(self._ways) and all(self._weights.available(name) for name in self._beside)

    def require_weights(self) -> None:
        """Raises ValueError unless there are weights of a network, and of what its images go through."""
        if not self._ways and self._weights.available("mixture"):
            raise ValueError("sampling.num_steps=0 leaves the mixture out, and no flow map has weights; "
                             "set it to a number of steps, or train 'mid_training' or 'flow_map'")  # fmt: skip
        if not self.possible:
            names = " and ".join(("'mixture' or a flow map", *map(repr, self._beside)))
            raise ValueError(f"this needs trained weights of {names}: train these stages in {self._workdir}, or set "
                             "weights in their sections of the config")  # fmt: skip

    def write(self) -> None:
        """Writes the edits, or the samples, that the config asks for: of `sampling.prompts`, or of scenes."""
        self.require_weights()
        if self._config.sampling.benchmark:
            self._write_benchmark(*self._config.sampling.benchmark.partition(":")[::2])
            return
        requests, rows = self._asked()
        for way in self._ways:
            images = self._images(way, requests, np.arange(len(requests)))
            if jax.process_index() == 0:
                self._write(way, requests, rows, images)

    def _write(self, way: str, requests: list[Request], rows: list[Row], images: np.ndarray) -> None:
        if self._edits:
            path, sources = self._workdir / f"edits{way}.npz", np.stack([request.image for request in requests])
            write_edits(path, sources, images, rows)
            picture = path.with_suffix(".png")
            save_png(picture, before_and_after(sources, images, [request.text for request in requests]))
            self._log.say(f"edits{way}: {len(images)} in {path}, some of them in {picture.name}")
            return
        path = self._workdir / f"samples{way}.npz"
        write_samples(path, images, prompts=np.array([row["prompt"] for row in rows]))
        self._log.say(f"samples{way}: {len(images)} in {path}")

    def _write_benchmark(self, name: str, path: str) -> None:
        """Writes what the judge of a benchmark reads, each image from a noise of its own."""
        task = self._config.mixture.task
        if name not in BENCHMARKS or not path:
            raise ValueError(
                f"sampling.benchmark={self._config.sampling.benchmark!r} is not one of {list(BENCHMARKS)} and where "
                "its prompts are, as in 'gedit:DIR'"
            )
        read, write, count, needed = BENCHMARKS[name]
        if task != needed:
            raise ValueError(f"the benchmark {name!r} is for mixture.task={needed!r}, not {task!r}")
        asked = read(path)
        fitted = [None if row.image is None else self._fitted(row.image) for row in asked]
        requests = [Request(row.text, image) for row, image in zip(asked, fitted, strict=True) for _ in range(count)]
        for way in self._ways:
            images, place = self._images(way, requests, np.arange(len(requests))), self._workdir / f"{name}{way}"
            for i, row in enumerate(asked if jax.process_index() == 0 else ()):
                write(place, row, images[i * count : (i + 1) * count])
            self._log.say(f"{name}{way}: {len(images)} images in {place}")

    def write_edit(self, file: str, instruction: str) -> None:
        """Edits the image in `file` as told, from several noises: `edit.png`, before and after side by side.

        Raises:
          ValueError: see `edited`.
        """
        image = self._to_edit(file, instruction)
        for way in self._ways:
            images = self._images(way, [Request(instruction, image)] * SEEDS, np.arange(SEEDS))
            path = self._workdir / f"edit{way}.png"
            if jax.process_index() == 0:
                names = ["before", *(f"noise {i}" for i in range(SEEDS))]
                sheet = pictures.image_grid(
                    np.stack([image, *images]), columns=SEEDS + 1, captions=names, title=instruction
                )
                save_png(path, sheet)
            self._log.say(f"{path}: {instruction}")

    def edited(self, way: str, file: str, instruction: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image in `file`, uint8 `[S, S, 3]`, and its edits as told, `[N, S, S, 3]`, of the noises `indices: [N]`.

        The image is resized and cropped as images of the data are. `way` is one of `ways`.

        Raises:
          ValueError: there is no image, or no instruction; see `require_weights`.
        """
        image = self._to_edit(file, instruction)
        return image, self._images(way, [Request(instruction, image)] * len(indices), indices)

    def _to_edit(self, file: str, instruction: str) -> np.ndarray:
        if not self._edits:
            raise ValueError(f"mixture.task={self._config.mixture.task!r} makes images from texts alone; it edits none")
        if not instruction.strip():
            raise ValueError("the instruction says nothing; say what is to be done with the image")
        self.require_weights()
        return self._fitted(_read(file))

    def painted(self, way: str, prompt: str, indices: np.ndarray) -> np.ndarray:
        """Images uint8 `[N, S, S, 3]` of a prompt and of the noises `indices: [N]`, made in one of `ways`.

        Raises:
          ValueError: the prompt is empty or too long, or the mixture edits; see `require_weights`.
        """
        self.require_weights()
        return self._images(way, [Request(prompt)] * len(indices), indices)

    def _asked(self) -> tuple[list[Request], list[Row]]:
        """What is asked for, and what a file of it says of each."""
        config, count = self._config, self._config.sampling.num_samples
        if config.sampling.prompt:
            requests = [Request(text) for text in config.sampling.prompt]
            return requests, [{"prompt": request.text} for request in requests]
        if config.sampling.prompts:
            requests = self._requests_of(config.sampling.prompts)
            name = "instruction" if self._edits else "prompt"
            return requests, [{name: request.text} for request in requests]
        if config.data.source != "scenes":
            raise ValueError("nothing says what is asked for; set sampling.prompts to a file of requests")
        if not self._edits:
            prompts = scene_prompts()
            chosen = [prompts[i % len(prompts)] for i in range(count)]
            return [Request(prompt.text) for prompt in chosen], [{"prompt": prompt.text} for prompt in chosen]
        told, requests, rows = ToldScenes(SceneSource("test"), "edit"), [], []
        for index in range(min(count, len(told))):
            items, edit = told.edit(index, 0)
            requests.append(Request(edit.instruction, render(items, "test")))
            scenes = {"source_scene": described(items), "target_scene": described(edit.target)}
            rows.append({"instruction": edit.instruction, "kind": edit.kind} | scenes)
        return requests, rows

    def _requests_of(self, path: str) -> list[Request]:
        """The requests in a file: prompts, or for edits JSON lines with "instruction" and "image", a file's path.

        Raises:
          ValueError: a line has not what is needed; names it.
        """
        if not self._edits:
            return [Request(text) for text in read_prompts(path)]
        place, requests = Path(path), []
        if not place.is_file():
            raise ValueError(f"there is no file of requests {place}")
        for where, row in read_json_lines(place):
            if missing := {"instruction", "image"} - row.keys():
                raise ValueError(f"{where} has no {' and no '.join(sorted(missing))}; there are {sorted(row)}")
            text, image = row["instruction"], row["image"]
            requests.append(Request(text, self._fitted(_read(str(place.parent / image)))))
        if not requests:
            raise ValueError(f"{place} holds no requests: it is to have one a line")
        return requests

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        return transform("center_crop", self._config.data.image_size)(image, None)

    def _images(self, way: str, requests: Sequence[Request], indices: np.ndarray) -> np.ndarray:
        asked = instruction_condition(self._config, requests)  # before any weights are read
        network, program = self._ways[way]
        batches = sample_batches(
            program,
            self._weights.load(network),
            {name: self._weights.load(part) for name, part in self._beside.items()},
            asked,
            indices,
            batch_size=self._config.sampling.batch_size,
            mesh=self._mesh,
        )
        return np.concatenate(list(batches))


def before_and_after(sources: np.ndarray, edited: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """A picture of some edits: the image before and after, and what was asked for."""
    count = min(len(sources), PICTURED)
    groups = [(instructions[i], np.array([2 * i, 2 * i + 1])) for i in range(count)]
    both = np.stack([sources[:count], edited[:count]], axis=1).reshape(-1, *sources.shape[1:])
    return pictures.grouped_grid(both, groups)


def _read(file: str) -> np.ndarray:
    try:
        return decode_image(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"the image {file} cannot be read: {error}") from None
