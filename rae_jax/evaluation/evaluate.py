"""The evaluation of a finished pipeline: samples, reconstructions, and the numbers that judge them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.catalogue import trained_by
from rae_jax.components.component import Component
from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.latent_spaces import latent_space
from rae_jax.evaluation import pictures
from rae_jax.evaluation.frechet import Moments, frechet_distance, require_samples
from rae_jax.evaluation.image_quality import psnr
from rae_jax.evaluation.judge import train_judge
from rae_jax.evaluation.linear_probe import linear_probe, probe_accuracy
from rae_jax.files import whole_file
from rae_jax.models.autoencoder import to_uint8
from rae_jax.sampling.generator import few_step_names
from rae_jax.sampling.samples import read_samples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

Load = Callable[..., Any]  # (component, before: a stage) -> parameters on the devices
Batches = Callable[[str, int], Any]  # (split, batch size) -> one epoch of padded batches


class Features:
    """The frozen encoder's mean token `[N, D]` of any images."""

    def __init__(self, config: ConfigDict, load: Load, mesh: jax.sharding.Mesh):
        self._rows = sharding.batch_sharding(mesh)
        self._encoder = load(encoder(config))
        to_tokens = tokens_of(config)

        @jax.jit
        def mean_token(weights: Any, images: jax.Array) -> jax.Array:
            return jnp.mean(to_tokens(weights, images.astype(jnp.float32) / 255.0), axis=1)

        self._mean_token = mean_token

    def of(self, images: np.ndarray) -> np.ndarray:
        """Features of one batch of uint8 images `[B, H, W, 3]`, the batch size always the same."""
        return sharding.to_host(self._mean_token(self._encoder, sharding.place(images, self._rows)))


def whole_epoch(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one epoch of padded batches."""
    parts = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def in_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int) -> np.ndarray:
    results = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
        results.append(function(padded)[: len(part)])
    return np.concatenate(results)


def evaluate(
    config: ConfigDict, load: Load, batches: Batches, mesh: jax.sharding.Mesh, workdir: Path, log: RunLog
) -> dict[str, float]:
    """The numbers that `config.evaluation` asks for, of the samples in `samples*.npz` and of the trained parts.

    Returns:
      `reconstruction_psnr` (dB, held-out), `linear_probe_accuracy` (held-out), of an encoder that a stage has tuned
      also `original_linear_probe_accuracy` (before that) and `attached_head_accuracy` (the head trained before that, on
      the features after it; RPiAE, Table 9), `frechet_samples` and `frechet_train`
      (distances of samples and of training images to held-out ones), `judge_accuracy` and `label_agreement`; with a
      flow map's samples also `frechet_samples_1step`, `label_agreement_1step`, and so on.
    """
    wanted, batch_size, results = config.evaluation, config.sampling.batch_size, {}
    if not any(wanted.values()):
        return results
    held_out, held_out_labels = whole_epoch(batches("test", batch_size))
    if wanted.reconstruction:
        reconstructions = _reconstruct(config, load, mesh, held_out, batch_size)
        results["reconstruction_psnr"] = float(np.mean(jax.device_get(psnr(held_out, reconstructions))))
        with whole_file(workdir / "reconstructions.npz") as file:
            np.savez(file, originals=held_out, reconstructions=reconstructions)
        pictures.save_png(
            workdir / "reconstructions.png",
            pictures.reconstruction_grid(held_out[:16], {"reconstruction": reconstructions[:16]}),
        )
    if not (wanted.linear_probe or wanted.frechet or wanted.judge):
        return results
    train, train_labels = whole_epoch(batches("train", batch_size))
    files = {end: workdir / f"samples{end}.npz" for end in ("", *few_step_names(config))}
    samples = {end: read_samples(file) for end, file in files.items() if file.exists()}
    if wanted.linear_probe or wanted.frechet:
        features = Features(config, load, mesh)
        of_train, of_held_out = (in_batches(features.of, x, batch_size) for x in (train, held_out))
    if wanted.linear_probe:
        probe = linear_probe(of_train, train_labels)
        results["linear_probe_accuracy"] = probe_accuracy(probe, of_held_out, held_out_labels)
        if (tuned_by := trained_by(config, "encoder")) not in (None, "encoder"):
            original = Features(config, lambda component: load(component, tuned_by), mesh)
            head = linear_probe(in_batches(original.of, train, batch_size), train_labels)
            before = in_batches(original.of, held_out, batch_size)
            results["original_linear_probe_accuracy"] = probe_accuracy(head, before, held_out_labels)
            results["attached_head_accuracy"] = probe_accuracy(head, of_held_out, held_out_labels)
    if wanted.frechet:
        require_samples(len(held_out), of_held_out.shape[1], "the Fréchet distance")
        reference = Moments.of(of_held_out).gaussian()
        results["frechet_train"] = frechet_distance(Moments.of(of_train).gaussian(), reference)
        for end, these in samples.items():
            of_samples = in_batches(features.of, these.images, batch_size)
            results[f"frechet_samples{end}"] = frechet_distance(Moments.of(of_samples).gaussian(), reference)
    if wanted.judge:
        judge = train_judge(train, train_labels, held_out, held_out_labels)
        results["judge_accuracy"] = judge.accuracy
        for end, these in samples.items():
            if these.labels is not None:
                results[f"label_agreement{end}"] = judge.agreement(these.images, these.labels)
    return results


def _reconstruct(
    config: ConfigDict, load: Load, mesh: jax.sharding.Mesh, images: np.ndarray, batch_size: int
) -> np.ndarray:
    """Reconstructions of uint8 images `[N, H, W, 3]`, in 8 bits too, as published PSNRs are computed."""
    space = latent_space(config)
    parts: dict[str, Component] = space.encoding | space.decoding
    weights = {name: load(part) for name, part in parts.items()}

    @jax.jit
    def run(weights: Any, images: jax.Array) -> jax.Array:
        return to_uint8(space.decode(weights, space.encode(weights, images.astype(jnp.float32) / 255.0)))

    rows = sharding.batch_sharding(mesh)
    return in_batches(lambda x: sharding.to_host(run(weights, sharding.place(x, rows))), images, batch_size)
