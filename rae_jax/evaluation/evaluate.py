"""The evaluation of a finished pipeline: samples, reconstructions, and the numbers that judge them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.evaluation import pictures
from rae_jax.evaluation.frechet import Moments, frechet_distance, require_samples
from rae_jax.evaluation.image_quality import psnr
from rae_jax.evaluation.judge import train_judge
from rae_jax.evaluation.linear_probe import linear_probe_accuracy
from rae_jax.evaluation.samples import read_samples, write_samples
from rae_jax.evaluation.sampling import Load, equal_labels, load_components, sample
from rae_jax.training import components, sharding
from rae_jax.training.progress import RunLog

Batches = Callable[[str, int], Any]  # (split, batch size) -> one epoch of padded batches


def generate(config: ConfigDict, load: Load, mesh: jax.sharding.Mesh, workdir: Path, log: RunLog) -> None:
    """Writes `samples.npz` and `samples.png`: `config.sampling.num_samples` images, equal numbers of each class."""
    labels = equal_labels(config.sampling.num_samples, config.flow.num_classes)
    with log.progress("samples", len(labels), 0) as display:
        images = sample(config, load, mesh, labels, display.advance)
    if jax.process_index() == 0:
        write_samples(workdir / "samples.npz", images, labels)
        pictures.save_png(workdir / "samples.png", pictures.class_grid(images, labels, columns=10))
    log.say(f"samples: {len(labels)} in {workdir / 'samples.npz'}, some of them in {workdir / 'samples.png'}")


class Features:
    """The frozen encoder's mean token `[N, D]` of any images."""

    def __init__(self, config: ConfigDict, load: Load, mesh: jax.sharding.Mesh):
        self._rows = sharding.batch_sharding(mesh)
        self._encoder = load_components(config, load, "encoder")
        autoencoder = components.autoencoder(config)

        @jax.jit
        def mean_token(weights: Any, images: jax.Array) -> jax.Array:
            tokens = autoencoder.apply({"params": weights}, images.astype(jnp.float32) / 255.0, method="tokens")
            return jnp.mean(tokens, axis=1)

        self._mean_token = mean_token

    def of(self, images: np.ndarray) -> np.ndarray:
        """Features of one batch of uint8 images `[B, H, W, 3]`, the batch size always the same."""
        return sharding.to_host(self._mean_token(self._encoder, sharding.place(images, self._rows)))


def _epoch(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one epoch of padded batches."""
    parts = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _in_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int) -> np.ndarray:
    results = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
        results.append(function(padded)[: len(part)])
    return np.concatenate(results)


def evaluate(
    config: ConfigDict, load: Load, batches: Batches, mesh: jax.sharding.Mesh, workdir: Path, log: RunLog
) -> dict[str, float]:
    """The numbers that `config.evaluation` asks for, of the samples in `samples.npz` and of the trained parts.

    Returns:
      `reconstruction_psnr` (dB, held-out), `linear_probe_accuracy` (held-out), `frechet_samples` and `frechet_train`
      (distances of samples and of training images to held-out ones), `judge_accuracy` and `label_agreement`.
    """
    wanted, batch_size, results = config.evaluation, config.sampling.batch_size, {}
    held_out, held_out_labels = _epoch(batches("test", batch_size))
    if wanted.reconstruction:
        reconstructions = _reconstruct(config, load, mesh, held_out, batch_size)
        values = jax.device_get(psnr(held_out / np.float32(255), reconstructions))
        results["reconstruction_psnr"] = float(np.mean(values))
        shown = np.clip(reconstructions[:16] * 255, 0, 255).astype(np.uint8)
        pictures.save_png(
            workdir / "reconstructions.png", pictures.reconstruction_grid(held_out[:16], {"reconstruction": shown})
        )
    if not (wanted.linear_probe or wanted.frechet or wanted.judge):
        return results
    train, train_labels = _epoch(batches("train", batch_size))
    samples = read_samples(workdir / "samples.npz") if (workdir / "samples.npz").exists() else None
    if wanted.linear_probe or wanted.frechet:
        features = Features(config, load, mesh)
        of_train, of_held_out = (_in_batches(features.of, x, batch_size) for x in (train, held_out))
    if wanted.linear_probe:
        results["linear_probe_accuracy"] = linear_probe_accuracy(of_train, train_labels, of_held_out, held_out_labels)
    if wanted.frechet:
        require_samples(len(held_out), of_held_out.shape[1], "the Fréchet distance")
        reference = Moments.of(of_held_out).gaussian()
        results["frechet_train"] = frechet_distance(Moments.of(of_train).gaussian(), reference)
        if samples is not None:
            of_samples = _in_batches(features.of, samples.images, batch_size)
            results["frechet_samples"] = frechet_distance(Moments.of(of_samples).gaussian(), reference)
    if wanted.judge:
        judge = train_judge(train, train_labels, held_out, held_out_labels)
        results["judge_accuracy"] = judge.accuracy
        if samples is not None:
            results["label_agreement"] = judge.agreement(samples.images, samples.labels)
    return results


def _reconstruct(
    config: ConfigDict, load: Load, mesh: jax.sharding.Mesh, images: np.ndarray, batch_size: int
) -> np.ndarray:
    """Reconstructions `[N, H, W, 3]` in [0, 1], clamped, of uint8 images."""
    weights = load_components(config, load, "encoder", "decoder")
    autoencoder = components.autoencoder(config)

    @jax.jit
    def run(weights: Any, images: jax.Array) -> jax.Array:
        return jnp.clip(autoencoder.apply({"params": weights}, images.astype(jnp.float32) / 255.0), 0.0, 1.0)

    rows = sharding.batch_sharding(mesh)
    return _in_batches(lambda x: sharding.to_host(run(weights, sharding.place(x, rows))), images, batch_size)
