"""The numbers of a finished run: its reconstructions, its encoder and its samples, as `config.evaluation` asks.

`evaluation/metrics.py` says what each number is.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.catalogue import trained_by
from rae_jax.components.component import Component, Params
from rae_jax.components.encoders import tokens_shape
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.sources import Source
from rae_jax.evaluation import pictures
from rae_jax.evaluation.class_diversity import small_images
from rae_jax.evaluation.evaluator import (
    Batch,
    Evaluator,
    Measure,
    Needs,
    Rows,
    Summary,
    image_batches,
)  # fmt: skip
from rae_jax.evaluation.features import Instruments, of_encoder, of_fid, of_linear_head, of_reconstructions
from rae_jax.evaluation.image_sets import open_images, stream_pairs
from rae_jax.evaluation.judge import Judge, train_judge
from rae_jax.evaluation.metrics import (
    JUDGED,
    METRICS,
    REFERENCE,
    check_classes,
    check_memory,
    computed,
    needed,
)  # fmt: skip
from rae_jax.experiment.weights import Weights
from rae_jax.models.autoencoder import to_uint8
from rae_jax.sampling.generator import few_step_names
from rae_jax.sampling.samples import open_npz, save_png
from rae_jax.training.progress import RunLog

TRAIN, HELD_OUT, PAIRED = "train", "held_out", "paired"  # sets of images, and pairs that are written
SHOWN = 16  # reconstructions in the picture
DISTANCE, AGREEMENT, ACCURACY = METRICS["fd_encoder"], METRICS["label_agreement"], METRICS["judge_accuracy"]
DIVERSITY = METRICS["class_diversity"]
PROBES = [METRICS[f"{name}_accuracy"] for name in ("linear_probe", "original_linear_probe", "attached_head")]
HEADS = [METRICS[f"{name}_accuracy"] for name in ("linear_head", "original_linear_head")]
ORIGINAL = "original_encoder"


def check_results(config: ConfigDict, sources: Mapping[str, Source]) -> None:
    """Raises ValueError for what `config.evaluation` asks for and these images cannot give, before any training."""
    wanted, train, held_out = config.evaluation, sources["train"], sources["test"]
    if config.linear_head.weights and train.num_classes != (classes := config.linear_head.model.num_classes):
        raise ValueError(
            f"config.linear_head tells {classes} classes apart, but the images have {train.num_classes}; "
            "set config.linear_head.weights=''"
        )
    if wanted.linear_probe:
        check_classes("config.evaluation.linear_probe", train.num_classes)
        count, advice = len(train) + len(held_out), "set it to False, or probe a part of the images"
        check_memory("config.evaluation.linear_probe", count, tokens_shape(config)[1], advice)
    if wanted.judge:
        check_classes("config.evaluation.judge", train.num_classes)
        advice = "set it to False: a classifier of pixels is for small sets of small images"
        check_memory("config.evaluation.judge", len(train), 3 * config.data.image_size**2, advice)


def measurable(config: ConfigDict, sources: Mapping[str, Source]) -> tuple[ConfigDict, list[str]]:
    """`config` without what too few images or samples cannot tell, and a line for each thing that is left out."""
    config, lines = config.copy_and_resolve_references(), []
    held_out = 0 if sources["test"] is sources["train"] else len(sources["test"])
    there = "there are no held-out images" if held_out == 0 else "there is only one held-out image"
    if held_out < 2 and (judged := [stage for stage in config.stages if config[stage].train.evaluate_every]):
        lines.append(f"left out: the evaluation of {', '.join(judged)} in training, for {there}")
        for stage in judged:
            config[stage].train.evaluate_every, config[stage].train.best_metric = 0, ""
    if held_out == 0:
        asked = [name for name, wanted in config.evaluation.items() if wanted]
        lines.append(f"left out: {', '.join(asked) or 'nothing'} of config.evaluation, for {there}; pictures show "
                     "images that are trained on")  # fmt: skip
        config.evaluation.update({name: False for name in asked})
    if config.evaluation.frechet:
        count, where = min(config.sampling.num_samples, len(sources["train"])), f"{held_out} held-out images"
        try:
            of_encoder(config, DISTANCE).check(judged=count, reference=held_out, where=where)
        except ValueError as error:
            lines.append(f"left out: config.evaluation.frechet: {error}")
    return config, lines


class Results:
    """Measures one run; memory holds the batch at hand, and of whole sets what a metric needs of them.

    Args:
      images: the images of "train" or "test", once, in batches.
      held_out: how many there are of "test".
      workdir: holds the samples.
    """

    def __init__(
        self,
        config: ConfigDict,
        weights: Weights,
        images: Callable[[str], Iterable[Batch]],
        held_out: int,
        mesh: jax.sharding.Mesh,
        workdir: Path,
        log: RunLog,
    ):
        self._config, self._weights, self._images, self._held_out, self._mesh = config, weights, images, held_out, mesh
        self._workdir, self._log, self._first = workdir, log, jax.process_index() == 0
        self._wanted, self._batch_size = config.evaluation, config.sampling.batch_size
        self._tuned_by = trained_by(config, "encoder")
        tuned = self._tuned_by not in (None, "encoder")
        probes = PROBES if tuned else PROBES[:1]
        self._probes = probes if self._wanted.linear_probe else []
        # Of samples, that in the Inception network's features too, where there is one.
        in_encoder, in_inception = (
            ([of_encoder(config, DISTANCE)], [of_fid(config)]) if self._wanted.frechet else ([], [])
        )
        self._distance = self._usable("samples", in_encoder, config.sampling.num_samples)
        self._of_generated = self._distance | self._usable("samples", in_inception, config.sampling.num_samples)
        self._encoder = self._distance | (of_encoder(config, *self._probes) if self._probes else Instruments())
        if PROBES[-1] in self._probes:  # the encoder as it was before that stage looks too
            self._encoder |= of_encoder(config, name=ORIGINAL)
        self._heads = Instruments()
        if config.linear_head.weights:
            self._heads = of_linear_head(config, HEADS[0])
            if tuned:
                self._heads |= of_linear_head(config, HEADS[1], ORIGINAL)

    def measure(self) -> dict[str, float]:
        """The numbers by name on the first process, none on the others.

        Writes `reconstructions.npz`, and a picture of some, if reconstructions are asked for.
        """
        of_train, judge, of_samples, results = Summary(), None, {}, {}
        if not any(self._wanted.values()) and not self._heads.metrics:
            return results
        if self._encoder.metrics or self._wanted.judge:
            of_train = self._of_training_images()
        if self._wanted.judge and self._first:
            judge = train_judge(of_train.rows["image"], of_train.rows["label"])
        reconstruction = None
        if self._wanted.reconstruction:
            reconstruction = self._usable("reconstructions", of_reconstructions(self._config), self._held_out)
        found = self._of_held_out_images(reconstruction, judge)
        if self._wanted.frechet or self._wanted.judge:
            of_samples = {
                end: self._of_samples(path, judge)
                for end in ("", *few_step_names(self._config))
                if (path := self._workdir / f"samples{end}.npz").exists()
            }
        if not self._first:
            return {}
        if reconstruction:
            results |= computed(reconstruction.metrics, found[JUDGED], found[REFERENCE])
        results |= computed(self._probes, found[HELD_OUT], of_train)
        results |= computed(self._heads.metrics, found[HELD_OUT], of_train)
        if self._wanted.frechet:
            results |= computed(self._distance.metrics, of_train, found[HELD_OUT], "_train")
            for end, each in of_samples.items():
                results |= computed(self._of_generated.metrics, each, found[HELD_OUT], end)
        if judge:
            results |= computed([ACCURACY], found[HELD_OUT], of_train)
            small = {"small_image": small_images(of_train.rows["image"]), "label": of_train.rows["label"]}
            results |= computed([DIVERSITY], Summary(of_train.count, rows=small), of_train, "_train")
            for end, each in of_samples.items():
                if AGREEMENT.name in each.means:
                    results |= computed([AGREEMENT, DIVERSITY], each, of_train, end)
        return results

    def _usable(self, what: str, among: list[Instruments], judged: int) -> Instruments:
        """What can be measured of `judged` images with the held-out images and the weights that there are."""
        usable, count = Instruments(), self._held_out
        for instruments in among:
            names = ", ".join(metric.name for metric in instruments.metrics)
            missing = [name for name in instruments.parts if not self._weights.available(name)]
            try:
                instruments.check(judged=judged, reference=count, where=f"{count} held-out images")
            except ValueError as error:
                missing.append(str(error))
            if missing:
                self._log.say(f"{what}: {names} left out, for want of {' and '.join(missing)}")
            else:
                usable |= instruments
        return usable

    def _of_training_images(self) -> Summary:
        needs = needed(self._encoder.metrics)[REFERENCE]
        if self._wanted.judge:
            needs |= Needs(rows=frozenset(("image", "label")))

        def measure(params: Params, batch: Batch) -> dict[str, dict[str, jax.Array]]:
            found = self._encoder.measure(params, {TRAIN: batch["image"]}, {TRAIN: needs})
            return {TRAIN: found[TRAIN] | {name: batch[name] for name in needs.rows & batch.keys()}}

        return self._evaluated(self._images("train"), measure, {TRAIN: needs}, self._encoder)[TRAIN]

    def _of_held_out_images(self, reconstruction: Instruments | None, judge: Judge | None) -> dict[str, Summary]:
        """What the metrics need of the held-out images, and of their reconstructions, which are written."""
        looking, parts, space = self._encoder | self._of_generated, {}, latent_space(self._config)
        needs = {HELD_OUT: needed(looking.metrics)[REFERENCE] | needed(self._heads.metrics)[JUDGED]}
        looking |= self._heads
        if reconstruction:
            needs |= needed(reconstruction.metrics)
            looking, parts = looking | reconstruction, space.encoding | space.decoding
        beside = set(needs[HELD_OUT].rows)
        if self._wanted.judge:
            needs[HELD_OUT] |= Needs(means=frozenset((ACCURACY.name,)))
            beside |= {"image", "label"}

        def measure(params: Params, batch: Batch) -> dict[str, dict[str, jax.Array]]:
            sets = {HELD_OUT: batch["image"]}
            if reconstruction:
                latents = space.encode(params, batch["image"].astype(jnp.float32) / 255.0)
                sets |= {REFERENCE: batch["image"], JUDGED: to_uint8(space.decode(params, latents))}
            found = looking.measure(params, sets, needs)
            found[HELD_OUT] |= {name: batch[name] for name in beside & batch.keys()}
            return found | {PAIRED: {name: sets[name] for name in (REFERENCE, JUDGED) if reconstruction}}

        size, count = self._config.data.image_size, self._held_out
        path, shown = self._workdir / "reconstructions.npz", []
        writing = reconstruction and self._first
        with stream_pairs(path, (count, size, size, 3)) if writing else contextlib.nullcontext() as write:

            def on_batch(rows: Rows) -> Rows:
                if write:
                    pair = rows[PAIRED][REFERENCE], rows[PAIRED][JUDGED]
                    write(*pair)
                    shown.append(tuple(x[: SHOWN - sum(len(first) for first, _ in shown)] for x in pair))
                held_out = rows[HELD_OUT]
                agrees = {ACCURACY.name: judge.agrees(held_out["image"], held_out["label"])} if judge else {}
                return {HELD_OUT: agrees}

            found = self._evaluated(self._images("test"), measure, needs, looking, parts, on_batch)
        if writing:
            originals, reconstructions = (np.concatenate(images) for images in zip(*shown, strict=True))
            picture = pictures.reconstruction_grid(originals, {"reconstruction": reconstructions})
            save_png(path.with_suffix(".png"), picture)
        return found

    def _of_samples(self, path: Path, judge: Judge | None) -> Summary:
        """What the metrics need of a file of samples; whether the judge agrees, if they were asked for by class."""
        needs = needed(self._of_generated.metrics)[JUDGED]
        with open_npz(path) as file:
            labels = file["labels"] if self._wanted.judge and "labels" in file else None
        if labels is not None:
            needs |= Needs(means=frozenset((AGREEMENT.name,)), rows=frozenset(DIVERSITY.rows))
        seen = 0

        def measure(params: Params, batch: Batch) -> dict[str, dict[str, jax.Array]]:
            found = self._of_generated.measure(params, {JUDGED: batch[JUDGED]}, {JUDGED: needs})
            return found if labels is None else {JUDGED: found[JUDGED] | {"image": batch[JUDGED]}}

        def on_batch(rows: Rows) -> Rows:
            nonlocal seen
            if labels is None:
                return {}
            images = rows[JUDGED]["image"]
            first, seen = seen, seen + len(images)
            asked = labels[first:seen]
            of_batch = {AGREEMENT.name: judge.agrees(images, asked), "small_image": small_images(images)}
            return {JUDGED: of_batch | {"label": asked}}

        batches = image_batches({JUDGED: open_images(path)}, self._mesh, batch_size=self._batch_size)
        return self._evaluated(batches, measure, {JUDGED: needs}, self._of_generated, on_batch=on_batch)[JUDGED]

    def _evaluated(
        self,
        batches: Iterable[Batch],
        measure: Measure,
        needs: Mapping[str, Needs],
        instruments: Instruments,
        parts: Mapping[str, Component] | None = None,
        on_batch: Callable[[Rows], Rows | None] = lambda rows: None,
    ) -> dict[str, Summary]:
        """`Evaluator` with the parameters of what the metrics look through, and of other `parts`."""
        parts = {**instruments.parts, **(parts or {})}
        params = {
            name: self._weights.load(part, self._tuned_by if name == ORIGINAL else None) for name, part in parts.items()
        }
        return Evaluator(self._mesh, measure, needs)(params, batches, on_batch)
