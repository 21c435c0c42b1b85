"""Runs the stages of a config in order; a stage that has finished in this working directory is not run again.

workdir/
  config.json  metrics.jsonl  tensorboard/  summary.json
  <stage>/checkpoints/  weights/  *.png  (weights/<component>/ if the stage trains several)
  samples.npz  samples.png  reconstructions.npz  reconstructions.png
  and, with a flow map, samples_1step.npz  samples_2step.npz ...
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import catalogue as components
from rae_jax.data.batches import Batches, evaluation_batches, latent_batches, training_batches
from rae_jax.data.device import DeviceBatches, batch_rows
from rae_jax.data.latents import LatentSource
from rae_jax.data.sources import Source, open_source
from rae_jax.data.transforms import transform, without_flip
from rae_jax.evaluation import pictures
from rae_jax.evaluation.evaluate import evaluate
from rae_jax.experiment import latent_cache
from rae_jax.experiment.generation import generate, seed_grid
from rae_jax.files import whole_file
from rae_jax.interop.weights import load_weights, save_weights
from rae_jax.models.autoencoder import to_uint8
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.objectives.objective import Objective, stage_key
from rae_jax.training import sharding
from rae_jax.training.loop import fit
from rae_jax.training.progress import RunLog
from rae_jax.training.state import TrainState

FINISHED = "finished.json"
FLOW_MAPS = ("flow_map", "mid_training")  # the first that is trained makes the one- and few-step samples


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """The "train" and "test" images; a broken data set is an error here, before anything is written.

    Raises:
      ValueError: see `open_source`; or the images have more classes than a stage that learns them, too few are held
        out, or the cached latents are of other images.
    """
    data = config.data
    sources = {
        split: open_source(
            data.source,
            name,
            data.path,
            max_unreadable_share=data.max_unreadable_share,
            check_images=data.check_images,
            held_out_share=data.held_out_share,
        )
        for split, name in (("train", data.train_split), ("test", data.test_split))
    }
    there, known = sources["train"].num_classes, config.flow.num_classes
    learnt = [stage for stage in config.stages if config[stage].get("label_dropout", 1) < 1]
    if learnt and there > known:
        raise ValueError(
            f"flow.num_classes={known}, but the images have {there} classes, which {learnt[0]!r} learns; set it to "
            f"{there}, or to -1 for as many as there are"
        )
    if data.latents:
        latent_cache.check_data(config, sources["train"])
    judged = [stage for stage in config.stages if config[stage].train.evaluate_every]
    if judged and len(sources["test"]) < 2:
        raise ValueError(
            f"{judged[0]}.train.evaluate_every asks for the Fréchet distance to held-out images, of which there is "
            f"only one in {sources['test']}; add images, raise data.held_out_share, or set it to 0"
        )
    return sources


def open_batches(
    config: ConfigDict, stage: str, objective: Objective, source: Source, rows: Sequence[int] | None = None
) -> Batches:
    """The batches that `stage` trains on: of the images of `source`, or of the latents in `config.data.latents`.

    `rows`: those of each batch that this process reads; all of them by default.
    """
    train = config[stage].train
    arguments = dict(batch_size=train.batch_size, num_workers=config.data.num_workers, rows=rows)
    if objective.reads_latents:
        _, flip = without_flip(train.transform)
        return latent_batches(LatentSource(config.data.latents), seed=config.seed, flip=flip, **arguments)
    arguments["transform"] = transform(train.transform, config.data.image_size)
    if objective.one_epoch:
        return evaluation_batches(source, **arguments)
    return training_batches(source, seed=config.seed, **arguments)


class Pipeline:
    """One run in one working directory.

    `seconds_at_peak` gives how long the devices would need for a stage's step at their peak, where that is known.
    """

    def __init__(
        self,
        config: ConfigDict,
        plain: dict[str, Any],
        sources: dict[str, Source],
        workdir: Path,
        mesh: jax.sharding.Mesh,
        log: RunLog,
        seconds_at_peak: Callable[[str], float | None] = lambda stage: None,
    ):
        self._seconds_at_peak = seconds_at_peak
        self.config, self.plain, self.sources = config, plain, sources
        self.workdir, self.mesh, self.log = workdir, mesh, log

    def train(self) -> None:
        """Trains every stage that has not finished yet."""
        for stage in self.config.stages:
            if self.finished(stage):
                self.log.say(f"{stage}: already finished in {self.workdir}")
            else:
                self._train_stage(stage)

    def finished(self, stage: str) -> bool:
        """Whether `stage` has left its weights in this working directory."""
        return (self.workdir / stage / FINISHED).exists()

    def available(self, component: str, before: str | None = None) -> bool:
        """Whether there are trained weights of a component, for the stage `before` or for what follows all stages."""
        given, stage = self._where(component, before)
        return bool(given) or self.finished(stage)

    def weights_directory(self, component: str, before: str | None = None) -> Path:
        """Where the trained weights of a component are: left by the last stage that trains it, or given by the config.

        With `before`, as that stage finds them. Weights that the config gives come before those of the stage of the
        component's own name, and are what other stages go on from.

        Raises:
          ValueError: there are none yet.
        """
        given, stage = self._where(component, before)
        if given:
            return Path(given)
        if not self.finished(stage):
            raise ValueError(
                f"{component} has no weights: the stage {stage!r} has not finished in {self.workdir}, "
                f"and config.{component}.weights is empty"
            )
        directory = self.workdir / stage / "weights"
        several = len(components.trained_components(self.config, stage)) > 1
        return directory / component if several else directory

    def _where(self, component: str, before: str | None) -> tuple[str, str]:
        """The weights that the config gives, if they count, and the stage that leaves some."""
        stage = components.trained_by(self.config, component, before) or component
        return self.config[component].weights if stage == component else "", stage

    def _identity(self, component: str) -> str:
        """Tells one version of a component's weights from another."""
        path = self.weights_directory(component)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return f"{path}: " + ", ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    def load(self, component: str, init: Callable[[jax.Array], Any], before: str | None = None) -> Any:
        """A component's weights on the devices, as the stage `before` finds them; `init` makes its boxed parameters
        from a key.
        """
        module = components.module(self.config, component)
        directory = self.weights_directory(component, before)
        if str(directory) == components.RANDOM:
            return self._random(component, init)
        structure = jax.eval_shape(init, jax.random.key(0))
        if str(directory) == components.IDENTITY:
            host = components.identity_statistics(sharding.unbox(structure))
        else:
            host = load_weights(directory, sharding.unbox(structure), component, module)
        return jax.tree.map(
            lambda value, place: jax.make_array_from_callback(value.shape, place, lambda index: value[index]),
            host,
            sharding.shardings_of(structure, self.mesh),
        )

    def _train_stage(self, stage: str) -> None:
        config, began = self.config, time.monotonic()
        section = config[stage]
        objective: Objective = OBJECTIVES[section.objective](config, stage)
        source, rows = self.sources["train"], sharding.batch_sharding(self.mesh)
        if objective.reads_latents:
            self._check_latents(stage)
        loader = open_batches(config, stage, objective, source, batch_rows(rows, section.train.batch_size))
        total_steps = math.ceil(len(source) / loader.batch_size) if objective.one_epoch else section.train.steps
        what = f"the cached latents of {len(source)} images" if objective.reads_latents else f"{len(source)} images"
        self.log.say(f"{stage}: {section.objective} on {what}, {total_steps} steps")
        key = stage_key(config.seed, f"{stage}/init")
        batches = DeviceBatches(loader, rows)
        try:
            state = fit(
                objective,
                section.train,
                stage=stage,
                total_steps=total_steps,
                key=key,
                batches=batches,
                example=batches.example(),
                frozen=self._frozen(objective, stage),
                load_initial=lambda: self._load_all(objective.initial, stage),
                mesh=self.mesh,
                directory=self.workdir / stage,
                config=self.plain,
                log=self.log,
                on_pictures=self._picture_taker(stage, objective),
                on_evaluation=self._evaluator(objective, section.train),
                seconds_at_peak=self._seconds_at_peak(stage),
            )
        finally:
            batches.close()
        weights = sharding.to_host(objective.result(state))
        if jax.process_index() == 0:
            folder, trained = self.workdir / stage, components.trained_components(config, stage)
            for component in trained:
                where, what = folder / "weights", weights
                if len(trained) > 1:
                    where, what = where / component, weights[component]
                save_weights(where, what, {"stage": stage, "config": self.plain})
            _write_json(folder / FINISHED, {"steps": total_steps, "seconds": time.monotonic() - began})
        self._barrier(stage)
        self.log.say(f"{stage}: finished in {time.monotonic() - began:.0f} s")

    def _check_latents(self, stage: str) -> None:
        """Raises ValueError if the weights that made the cached latents are not those that encode here."""
        for component, init in components.latent_space(self.config).encoding.items():
            if self.available(component, stage):  # what is cached can be trained on without them
                params = sharding.to_host(self.load(component, init, stage))
                latent_cache.check_weights(self.config, component, params)

    def _frozen(self, objective: Objective, stage: str) -> dict[str, Any]:
        names = objective.frozen | (objective.evaluation.needs if self.config[stage].train.evaluate_every else {})
        for component, init in objective.wanted.items():
            if self.available(component, stage):
                names[component] = init
        return self._load_all(names, stage)

    def _load_all(self, inits: dict[str, Any], stage: str) -> dict[str, Any]:
        return {name: self.load(name, init, stage) for name, init in inits.items()}

    def _random(self, component: str, init: Callable[[jax.Array], Any]) -> Any:
        """Untrained weights, the same in every stage and at every start of the run."""
        self.log.warn(
            f"{component}: untrained, random weights, as config.{component}.weights={components.RANDOM!r} asks"
        )
        key = stage_key(self.config.seed, f"{component}/{components.RANDOM}")
        places = sharding.shardings_of(jax.eval_shape(init, key), self.mesh)
        return jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=places)(key)

    def _picture_taker(self, stage: str, objective: Objective) -> Any:
        batch_size = -(-16 // (shards := sharding.num_batch_shards(self.mesh))) * shards
        draw = jax.jit(objective.pictures, out_shardings=sharding.replicated(self.mesh)) if objective.pictures else None

        def take(state: TrainState, step: int) -> None:
            if draw is None or not objective.wanted.keys() <= state.frozen.keys():
                return
            batch = next(iter(self.one_epoch("test", batch_size)))
            placed = sharding.place(batch, sharding.batch_sharding(self.mesh))
            drawn = jax.device_get(draw(state, placed))
            if jax.process_index() == 0:
                labels = drawn.pop("label", None)
                images = {name: np.asarray(to_uint8(x)) for name, x in drawn.items()}
                if "original" in images:
                    picture = pictures.reconstruction_grid(images.pop("original"), images)
                elif labels is None:
                    picture = pictures.image_grid(images["samples"], columns=8)
                else:
                    picture = pictures.class_grid(images["samples"], labels)
                path = self.workdir / stage / f"step_{step}.png"
                pictures.save_png(path, picture)
                self.log.image(stage, path, picture, step)

        return take

    def _evaluator(self, objective: Objective, train: ConfigDict) -> Callable[[TrainState], dict[str, float]]:
        """Measures a state on the first `train.evaluation_images` of the held-out images."""
        evaluation = objective.evaluation
        if evaluation is None:
            return lambda state: {}
        count = min(train.evaluation_images, len(self.sources["test"]))
        shards = sharding.num_batch_shards(self.mesh)
        batch_size = -(-min(self.config.sampling.batch_size, count) // shards) * shards
        measure = jax.jit(evaluation.measure, out_shardings=sharding.replicated(self.mesh))

        def evaluate(state: TrainState) -> dict[str, float]:
            rows = []
            batches = self.one_epoch("test", batch_size)
            for batch in itertools.islice(batches, -(-count // batch_size)):
                counted = batch["mask"] & (batch["index"] < count)
                measured = jax.device_get(measure(state, sharding.place(batch, sharding.batch_sharding(self.mesh))))
                rows.append({name: np.asarray(values)[counted] for name, values in measured.items()})
            batches.close()
            return evaluation.summarise({name: np.concatenate([part[name] for part in rows]) for name in rows[0]})

        return evaluate

    def one_epoch(self, split: str, batch_size: int) -> Any:
        """The images of `split` once, in order, whole on every process."""
        crop = transform("center_crop", self.config.data.image_size)
        return evaluation_batches(self.sources[split], batch_size=batch_size, transform=crop)

    def evaluate(self) -> dict[str, float]:
        """Evaluates what this working directory holds, and writes `summary.json`."""
        results = evaluate(self.config, self.load, self.one_epoch, self.mesh, self.workdir, self.log)
        if jax.process_index() == 0:
            seconds = {
                stage: json.loads((self.workdir / stage / FINISHED).read_text())["seconds"]
                for stage in self.config.stages
                if self.finished(stage)
            }
            _write_json(self.workdir / "summary.json", {"results": results, "stage_seconds": seconds})
        return results

    def sample(self, classes: Sequence[int] = ()) -> None:
        """Writes `samples.npz`, `samples_1step.npz`, ..., as far as there are networks, with a picture of each.

        With `classes` only `seed_grid.png` of them.

        Raises:
          ValueError: there are no weights of a network, or of what turns its latents into images.
        """
        if not self.can_sample:
            needed = " and ".join(("'flow' or a flow map", "'stats'", *map(repr, self._decoding)))
            raise ValueError(
                f"sampling needs trained weights of {needed}: train these stages in {self.workdir}, "
                "or set weights in their sections of the config"
            )
        flow_maps = [name for name in FLOW_MAPS if self.available(name)]
        networks = dict(velocity=self.available("flow"), flow_map=flow_maps[0] if flow_maps else None)
        if classes:
            seed_grid(self.config, self.load, self.mesh, self.workdir, self.log, classes, **networks)
            return
        generate(
            self.config, self.load, self.mesh, self.workdir, self.log, self._identity,
            **networks,
        )  # fmt: skip

    @property
    def can_sample(self) -> bool:
        """Whether there are weights for everything that sampling needs."""
        network = any(self.available(name) for name in ("flow", *FLOW_MAPS))
        return network and all(self.available(name) for name in ("stats", *self._decoding))

    @property
    def _decoding(self) -> list[str]:
        return list(components.latent_space(self.config).decoding)

    def _barrier(self, name: str) -> None:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
