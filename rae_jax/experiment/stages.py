"""Runs the stages of a config in order; a stage that has finished in this working directory is not run again.

workdir/
  config.json  metrics.jsonl  tensorboard/  summary.json  compiled/  classes.json  data.json
  <stage>/checkpoints/  weights/  *.png  (weights/<component>/ if the stage trains several)
  samples.npz  samples.png  reconstructions.npz  reconstructions.png
  and, with a flow map, samples_1step.npz  samples_2step.npz ...
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.catalogue import given_to, trained_components
from rae_jax.components.component import Component, Params
from rae_jax.components.language import SCENES, layout, tokenizer
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.batches import Batches, evaluation_batches, latent_batches, mixed_batches, training_batches
from rae_jax.data.conversation_batches import Conversations, SceneConversations, conversation_batches
from rae_jax.data.conversation_shards import ConversationShards
from rae_jax.data.device import DeviceBatches, batch_rows
from rae_jax.data.folders import NothingHeldOut
from rae_jax.data.latents import LatentSource
from rae_jax.data.sources import Source, open_source
from rae_jax.data.transforms import transform, without_flip
from rae_jax.evaluation import pictures
from rae_jax.evaluation.evaluator import Batch, Evaluator, source_batches
from rae_jax.evaluation.metrics import JUDGED, REFERENCE, computed, needed
from rae_jax.experiment import dataset, latent_cache, pack_source
from rae_jax.experiment.answers import Answers
from rae_jax.experiment.editing import Editing
from rae_jax.experiment.generation import Generation, made_otherwise, samples_made
from rae_jax.experiment.results import Results, check_results
from rae_jax.experiment.scene_results import scene_results
from rae_jax.experiment.weights import Weights
from rae_jax.experiment.workdir import progress
from rae_jax.files import whole_file
from rae_jax.models.autoencoder import to_uint8
from rae_jax.objectives.catalogue import objective_of
from rae_jax.objectives.objective import Objective, stage_key
from rae_jax.sampling.samples import save_png
from rae_jax.training import sharding
from rae_jax.training.checkpoint_weights import CHECKPOINTS, steps_in
from rae_jax.training.loop import fit
from rae_jax.training.progress import RunLog
from rae_jax.training.state import TrainState

PICTURED = 16  # held-out images in a stage's picture


def open_sources(config: ConfigDict, workdir: Path | None = None) -> dict[str, Source]:
    """The "train" and "test" images; a broken data set is an error here, before anything is written.

    Where there are too few to hold any out, "test" is the very source that "train" is.

    Args:
      workdir: of the run, whose classes they must be; any by default.

    Raises:
      ValueError: see `open_source`; or the images have more classes than a stage that learns them or are not as many
        as epochs were counted of, or the cached latents are of other images.
    """
    data = config.data
    opened = functools.partial(
        open_source,
        data.source,
        path=data.path,
        max_unreadable_share=data.max_unreadable_share,
        check_images=data.check_images,
        held_out_share=data.held_out_share,
        classes=workdir and dataset.labelled(config, workdir),
    )
    sources = {"train": opened(data.train_split)}
    try:
        sources["test"] = opened(data.test_split)
    except NothingHeldOut:
        sources["test"] = sources["train"]
    there, known = sources["train"].num_classes, config.flow.num_classes
    learnt = [stage for stage in config.stages if config[stage].get("label_dropout", 1) < 1]
    if learnt and there > known:
        raise ValueError(
            f"flow.num_classes={known}, but the images have {there} classes, which {learnt[0]!r} learns; set it to "
            f"{there}, or to -1 for as many as there are"
        )
    if data.train_images not in (0, len(sources["train"])):
        raise ValueError(
            f"an epoch was taken to be of data.train_images={data.train_images}, but there are "
            f"{len(sources['train'])} images; set it to that, with another --workdir if this run has begun"
        )
    if data.latents:
        latent_cache.check_data(config, sources["train"])
    for stage in config.stages:
        mixed_sources(config, stage, data.check_images)
    check_results(config, sources)
    return sources


def mixed_sources(config: ConfigDict, stage: str, check_images: int = 0) -> list[tuple[Source, float]]:
    """The images of which `stage` takes each batch from one source, and how often; none: it trains on config.data.

    Of each, `check_images` are decoded, as `open_source` does.

    Raises:
      ValueError: they are not described by a source, a path and a weight each, or see `open_source`.
    """
    described, data = config[stage].get("sources", ()), config.data
    if any(len(each) != 3 for each in described):
        raise ValueError(
            f"{stage}.sources={described} are to be a source, a path and a weight each: ('folder', DIR, 1.0)"
        )
    return [
        (open_source(name, "train", path, data.max_unreadable_share, check_images), float(weight))
        for name, path, weight in described
    ]


def open_batches(
    config: ConfigDict, stage: str, objective: Objective, source: Source, rows: Sequence[int] | None = None
) -> Batches:
    """The batches that `stage` trains on: of the images of `source`, or of the latents in `config.data.latents`.

    A stage may have sources of its own: `mixed_sources`.

    `rows`: those of each batch that this process reads; all of them by default.
    """
    train, size = config[stage].train, config.data.image_size
    arguments = dict(batch_size=train.batch_size, num_workers=config.data.num_workers, rows=rows)
    if objective.reads_conversations:
        arguments |= dict(tokenizer=tokenizer(config), layout=layout(config), image_size=size)
        return conversation_batches(
            conversations(config, stage), seed=config.seed, transform=transform(train.transform, size), **arguments
        )
    if objective.reads_packs:
        return pack_source.pack_batches(config, stage, source, rows)
    if objective.reads_requests:
        return pack_source.requests(config, stage, source, rows)
    if objective.reads_latents:
        _, flip = without_flip(train.transform)
        return latent_batches(LatentSource(config.data.latents), seed=config.seed, flip=flip, **arguments)
    arguments["transform"] = transform(train.transform, size)
    if objective.one_epoch:
        return evaluation_batches(source, **arguments)
    if sources := mixed_sources(config, stage):
        return mixed_batches(sources, seed=config.seed, **arguments)
    return training_batches(source, seed=config.seed, **arguments)


def conversations(config: ConfigDict, stage: str) -> list[tuple[Conversations, float]]:
    """The conversations that `stage` trains on, and how often each source is drawn from.

    Raises:
      ValueError: there are none.
    """
    section = config[stage]
    if section.mixture:
        return [(ConversationShards(path), float(weight)) for path, weight in section.mixture]
    if config.data.source == SCENES:
        return [(SceneConversations(config.data.train_split, section.question_share), 1.0)]
    if not config.data.path:
        raise ValueError(
            f"{stage} trains on conversations: set {stage}.mixture or data.path to directories that "
            "`python -m tools.prepare_captions` has written"
        )
    return [(ConversationShards(config.data.path), 1.0)]


class Stages:
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
        self.weights = Weights(config, plain, workdir, mesh, log.warn, log.say)
        self._crop = transform("center_crop", config.data.image_size)  # of images that a run is judged by

    def train(self) -> None:
        """Trains every stage that has not finished yet, or that is to go on.

        Raises:
          ValueError: the checkpoint from which it would go on is gone.
        """
        changed = []
        for stage in self.config.stages:
            objective = objective_of(self.config, stage)
            if self.weights.finished(stage) and not self._goes_on(stage, objective):
                older = f", on what {' and '.join(changed)} left before" if changed else ""
                self.log.say(f"{stage}: already finished in {self.workdir}{older}")
                continue
            if self.weights.finished(stage):
                changed.append(stage)
            self._train_stage(stage, objective)

    def _goes_on(self, stage: str, objective: Objective) -> bool:
        """Whether more steps are asked of a stage that has finished."""
        train, left = self.config[stage].train, self.weights.finished_with(stage)
        if objective.one_epoch or train.steps <= left["steps"]:
            return False
        if (batch_size := left.get("batch_size", train.batch_size)) != train.batch_size:
            self.log.say(
                f"{stage}: more steps would be made with config.{stage}.train.batch_size={batch_size}, as before"
            )
            return False
        folder = self.workdir / stage / CHECKPOINTS
        if (steps_in(folder) or [0])[-1] < left["steps"]:
            raise ValueError(
                f"{stage} has finished {left['steps']} steps, and goes on to config.{stage}.train.steps={train.steps} "
                f"from its last checkpoint, which is gone from {folder}; bring it back, or set the steps as they were, "
                f"or begin anew in another --workdir, with config.{stage}.weights of this one"
            )
        return True

    def _train_stage(self, stage: str, objective: Objective) -> None:
        config, began = self.config, time.monotonic()
        section = config[stage]
        source, rows = self.sources["train"], sharding.batch_sharding(self.mesh)
        if objective.reads_latents:
            self._check_latents(stage)
        loader = open_batches(config, stage, objective, source, batch_rows(rows, section.train.batch_size))
        total_steps = section.train.steps
        if objective.one_epoch:  # what is left of it, after steps that may have been of another size
            steps_made, images_seen = progress(self.workdir / stage)
            total_steps = steps_made + math.ceil(max(len(source) - images_seen, 0) / loader.batch_size)
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
                load_initial=lambda: self._load_initial(objective, stage),
                mesh=self.mesh,
                directory=self.workdir / stage,
                config=self.plain,
                components=self._components(objective, stage),
                log=self.log,
                on_pictures=self._picture_taker(stage, objective),
                on_evaluation=self._evaluator(objective, section.train),
                seconds_at_peak=self._seconds_at_peak(stage),
            )
        finally:
            batches.close()
        trained = sharding.to_host(objective.result(state))
        if jax.process_index() == 0:
            finished = {"steps": int(state.step), "images": progress(self.workdir / stage)[1]}
            finished |= {"batch_size": section.train.batch_size, "seconds": time.monotonic() - began}
            self.weights.save(stage, trained, finished)
        sharding.barrier(stage)
        self.log.say(f"{stage}: finished in {time.monotonic() - began:.0f} s")

    def _check_latents(self, stage: str) -> None:
        """Raises ValueError if the weights that made the cached latents are not those that encode here."""
        for name, component in latent_space(self.config).encoding.items():
            if self.weights.available(name, stage):  # what is cached can be trained on without them
                params = sharding.to_host(self.weights.load(component, stage))
                latent_cache.check_weights(self.config, name, params)

    def _frozen(self, objective: Objective, stage: str) -> dict[str, Params]:
        needed = objective.frozen | (objective.evaluation.needs if self.config[stage].train.evaluate_every else {})
        needed |= {name: part for name, part in objective.wanted.items() if self.weights.available(name, stage)}
        return self._load_all(needed, stage)

    def _load_initial(self, objective: Objective, stage: str) -> dict[str, Params]:
        for name in given_to(self.config, stage):
            given = self.config[name].weights
            self.log.say(
                f"{stage}: goes on from config.{name}.weights={given!r}, with a new optimizer; "
                "what the stage leaves is used afterwards"
            )
        return self._load_all(objective.initial, stage)

    def _components(self, objective: Objective, stage: str) -> dict[str, str]:
        """Where in the averaged parameters the components are that `stage` trains."""
        trained = () if objective.finish else trained_components(self.config, stage)
        return {name: name if len(trained) > 1 else objective.within for name in trained}

    def _load_all(self, components: dict[str, Component], stage: str) -> dict[str, Params]:
        return {name: self.weights.load(component, stage) for name, component in components.items()}

    def _picture_taker(self, stage: str, objective: Objective) -> Any:
        draw = jax.jit(objective.pictures, out_shardings=sharding.replicated(self.mesh)) if objective.pictures else None

        def take(state: TrainState, step: int) -> None:
            if draw is None or not objective.wanted.keys() <= state.frozen.keys():
                return
            few = source_batches(self.sources["test"], self.mesh, batch_size=PICTURED, transform=self._crop)
            with contextlib.closing(few):
                drawn = jax.device_get(draw(state, next(few)))
            if jax.process_index() == 0:
                images = {name: np.asarray(to_uint8(x)) for name, x in drawn.items()}
                if "original" in images:
                    picture = pictures.reconstruction_grid(images.pop("original"), images)
                elif objective.groups:
                    groups = dataset.captioned(objective.groups, dataset.class_names(self.workdir))
                    picture = pictures.grouped_grid(images["samples"], groups)
                else:
                    picture = pictures.image_grid(images["samples"], columns=8)
                path = self.workdir / stage / f"step_{step}.png"
                save_png(path, picture)
                self.log.image(stage, path, picture, step)

        return take

    def _evaluator(self, objective: Objective, train: ConfigDict) -> Callable[[TrainState], dict[str, float]]:
        """Measures a state on the first `train.evaluation_images` of the held-out images."""
        evaluation = objective.evaluation
        if evaluation is None:
            return lambda state: {}
        run = Evaluator(self.mesh, evaluation.measure, needed(evaluation.metrics))

        def evaluate(state: TrainState) -> dict[str, float]:
            found = run(state, self.images("test", count=train.evaluation_images))
            return computed(evaluation.metrics, found[JUDGED], found[REFERENCE])

        return evaluate

    def images(self, split: str, count: int | None = None) -> Iterator[Batch]:
        """The images of `split` by which a run is judged, or the first `count` of them; see `source_batches`."""
        return source_batches(
            self.sources[split],
            self.mesh,
            batch_size=self.config.sampling.batch_size,
            transform=self._crop,
            num_workers=self.config.data.num_workers,
            count=count,
        )

    def evaluate(self) -> dict[str, float]:
        """Evaluates what this working directory holds, and writes `summary.json`, which says how samples were made."""
        held_out = len(self.sources["test"])
        for line in made_otherwise(self.workdir, self.config):
            self.log.warn(line)
        results = Results(self.config, self.weights, self.images, held_out, self.mesh, self.workdir, self.log).measure()
        if jax.process_index() == 0:
            if self.config.evaluation.scenes:
                results |= scene_results(self.config, self.weights, self.workdir)
            summary = {"results": results, "samples": samples_made(self.workdir)}
            summary["stage_seconds"] = self.weights.seconds()
            with whole_file(self.workdir / "summary.json") as file:
                file.write((json.dumps(summary, indent=2) + "\n").encode())
        return results

    def ask(self, image: str, question: str) -> str:
        """What the language model answers to a question about the image in a file; see `Answers`."""
        return Answers(self.config, self.weights).of_file(image, question)

    def _editing(self) -> Editing:
        return Editing(self.config, self.weights, self.mesh, self.workdir, self.log)

    def edit(self, image: str, instruction: str) -> None:
        """Edits the image in a file as told; see `Editing.write_edit`."""
        self._editing().write_edit(image, instruction)

    def sample(self, names: Sequence[str] = (), *, required: bool = True) -> None:
        """Writes samples, or with `names` only seed grids of them; see `Generation`.

        Without the weights that this takes nothing is written, which is an error if samples are `required`.
        """
        if self.config.mixture.model:
            if names:
                raise ValueError("--seed_grid is of classes, and a mixture of transformers is told texts")
            editing = self._editing()
            if required or editing.possible:
                editing.write()
            return
        generation = Generation(self.config, self.weights, self.mesh, self.workdir, self.log)
        if not required and not generation.possible:
            return
        if names:
            generation.write_seed_grids(names)
        else:
            generation.write_samples()
