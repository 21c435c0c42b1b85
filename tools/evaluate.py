"""The numbers of published tables, of an `.npz` or a folder of images against a reference.

    python -m tools.evaluate samples.npz --reference=VIRTUAL_imagenet256_labeled.npz --inception=pt_inception.pth \\
        --metrics=fid,sfid,is,precision,recall
    python -m tools.evaluate reconstructions/ --reference=originals/ --metrics=psnr,ssim,lpips
    python -m tools.evaluate samples.npz --reference=held_out/ --metrics=fd,fd_precision,fd_recall \\
        --encoder_config=configs/digits.py --encoder=runs/digits/encoder/weights

Metrics: fid, sfid, is, precision, recall (ADM's; --inception), rfid (FID to the reference's images, never to statistics
stored beside them; --inception), psnr, ssim, lpips (image by image, in order), fd, fd_precision, fd_recall (Fréchet
distance, precision and recall in the mean token of any encoder). What is computed of the reference is kept in --cache.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from rae_jax.components import catalogue as components
from rae_jax.evaluation.features import FeatureNetwork, Features, fingerprint, gather, gather_once, inception
from rae_jax.evaluation.frechet import Gaussian, frechet_distance, require_samples
from rae_jax.evaluation.image_quality import psnr, ssim
from rae_jax.evaluation.image_sets import ImageSet, open_images
from rae_jax.evaluation.inception_score import inception_score
from rae_jax.evaluation.precision_recall import precision_recall
from rae_jax.evaluation.reference import read_statistics
from rae_jax.files import whole_file
from rae_jax.interop.lpips import pretrained
from rae_jax.interop.weights import load_weights
from rae_jax.models.lpips import LPIPS
from rae_jax.sampling.samples import open_npz
from rae_jax.training import sharding

PAIRED = ("psnr", "ssim", "lpips")
OF_INCEPTION = ("fid", "sfid", "is", "precision", "recall", "rfid")
OF_ENCODER = ("fd", "fd_precision", "fd_recall")
METRICS = (*OF_INCEPTION, *PAIRED, *OF_ENCODER)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, help="an .npz with arr_0, or a folder of images")
    parser.add_argument("--reference", type=Path, help="likewise; an .npz may also hold mu, sigma, mu_s, sigma_s")
    parser.add_argument("--metrics", required=True, help=f"joined by commas: {', '.join(METRICS)}")
    parser.add_argument("--inception", type=Path, help="the FID Inception file, pt_inception-2015-12-05*.pth")
    parser.add_argument("--encoder_config", help="the experiment whose encoder is to look: configs/NAME.py[:VARIANT]")
    parser.add_argument("--encoder", type=Path, help="its weights, in place of those that the experiment names")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--cache", type=Path, default=Path("runs/reference_statistics"))
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    try:
        results = evaluate(options)
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    for name, value in results.items():
        Console().print(f"{name:14} {value:.4f}", highlight=False)
    if options.output:
        with whole_file(options.output) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())


def evaluate(options: argparse.Namespace) -> dict[str, float]:
    """The metrics that `options` (of `main`) ask for; whatever is wrong with them is found before anything is computed.

    Raises:
      ValueError: see the messages.
    """
    wanted = options.metrics.split(",")
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"--metrics: there are no {unknown}; there are {', '.join(METRICS)}")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size}; it must be at least 1")
    of_inception, of_encoder, paired = (
        [name for name in group if name in wanted] for group in (OF_INCEPTION, OF_ENCODER, PAIRED)
    )
    if of_inception and options.inception is None:
        raise ValueError(f"{', '.join(of_inception)} need --inception=FILE, the official Inception weights")
    if of_encoder and options.encoder_config is None:
        raise ValueError(f"{', '.join(of_encoder)} need --encoder_config=FILE, an experiment with the encoder")
    if options.reference is None and wanted != ["is"]:
        raise ValueError(f"{', '.join(name for name in wanted if name != 'is')} need --reference")
    samples = open_images(options.samples)
    stored = _stored_statistics(options.reference) if {"fid", "sfid"} & set(wanted) else None
    needs_images = [name for name in wanted if name != "is" and not (stored and name in ("fid", "sfid"))]
    reference = open_images(options.reference) if needs_images else None
    if paired and reference.shape != samples.shape:
        raise ValueError(f"{', '.join(paired)} compare image by image, but {samples.path} holds {samples.shape} and "
                         f"{reference.path} {reference.shape}")  # fmt: skip
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    networks = []
    if of_inception:
        networks.append(("", of_inception, inception(options.inception, mesh)))
    if of_encoder:
        networks.append(("fd_", of_encoder, _encoder(options.encoder_config, options.encoder, mesh)))
    for _, names, network in networks:
        _require_enough(names, network, samples, reference)
    results = {}
    if paired:
        results |= _paired(paired, samples, reference, mesh, options.batch_size)
    for prefix, names, network in networks:
        of_samples = gather(_tracked(samples, "samples", options.batch_size), network, mesh,
                            batch_size=options.batch_size)  # fmt: skip
        of_reference = None
        if set(names) & set(needs_images):
            of_reference = gather_once(reference, network, mesh, options.cache, batch_size=options.batch_size)
        results |= _compare(prefix, names, of_samples, of_reference, stored)
    return {name: results[name] for name in wanted}


def _tracked(images: ImageSet, name: str, batch_size: int) -> ImageSet:
    """The same images, with a progress bar while they are read."""

    def batches(size: int) -> Any:
        return track(
            images.batches(size), description=name, total=-(-len(images) // size), console=Console(stderr=True)
        )

    return ImageSet(images.path, images.shape, batches)


def _stored_statistics(reference: Path) -> tuple[Gaussian, Gaussian] | None:
    if not reference.is_file():
        return None
    with open_npz(reference) as archive:
        stored = "mu" in archive
    return read_statistics(reference) if stored else None


def _require_enough(names: list[str], network: FeatureNetwork, samples: ImageSet, reference: ImageSet | None) -> None:
    sizes = jax.eval_shape(network.apply, network.params, jax.ShapeDtypeStruct((1, *samples.shape[1:]), jnp.uint8))
    feature = {"fid": "pool", "rfid": "pool", "sfid": "spatial", "fd": "mean_token"}
    for name in names:
        for images in (samples, reference):
            if name in feature and images is not None:
                require_samples(len(images), sizes[feature[name]].shape[1], f"{images.path}: {name}")


def _compare(
    prefix: str, names: list[str], samples: Features, reference: Features | None,
    stored: tuple[Gaussian, Gaussian] | None,
) -> dict[str, float]:  # fmt: skip
    """The metrics `names`, which begin with `prefix`, from features of both sets."""
    results, main_feature = {}, "mean_token" if prefix else "pool"
    for name, feature, at in (
        ("fid", "pool", 0),
        ("sfid", "spatial", 1),
        ("rfid", "pool", None),
        ("fd", "mean_token", None),
    ):
        if name in names:
            other = stored[at] if stored and at is not None else reference.moments[feature].gaussian()
            results[name] = frechet_distance(samples.moments[feature].gaussian(), other)
    if "is" in names:
        results["is"] = inception_score(samples.kept["logits"])
    if {f"{prefix}precision", f"{prefix}recall"} & set(names):
        both = precision_recall(reference.kept[main_feature], samples.kept[main_feature])
        results |= dict(zip((f"{prefix}precision", f"{prefix}recall"), both, strict=True))
    return results


def _paired(
    names: list[str], samples: ImageSet, reference: ImageSet, mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, float]:
    """Means over all pairs of images."""
    shards, rows = sharding.num_batch_shards(mesh), sharding.batch_sharding(mesh)
    batch_size = -(-batch_size // shards) * shards
    lpips = sharding.place(pretrained("alexnet"), sharding.replicated(mesh)) if "lpips" in names else None

    @jax.jit
    def measure(lpips: Any, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        def perceptual() -> jax.Array:
            scaled = (x.astype(jnp.float32) / 127.5 - 1 for x in (a, b))
            return LPIPS("alexnet").apply({"params": lpips}, *scaled)

        every = {"psnr": lambda: psnr(a, b), "ssim": lambda: ssim(a, b), "lpips": perceptual}
        return {name: every[name]() for name in names}

    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for a, b in zip(samples.batches(batch_size), reference.batches(batch_size), strict=True):
        padded = [np.concatenate([x, np.repeat(x[-1:], batch_size - len(x), axis=0)]) for x in (a, b)]
        measured = sharding.to_host(measure(lpips, *(sharding.place(x, rows) for x in padded)))
        for name in names:
            values[name].append(measured[name][: len(a)])
    return {name: float(np.mean(np.concatenate(parts))) for name, parts in values.items()}


def _encoder(config_file: str, weights: Path | None, mesh: jax.sharding.Mesh) -> FeatureNetwork:
    """The mean token of an experiment's encoder, images resized as the experiment does."""
    file, _, variant = config_file.partition(":")
    if not Path(file).is_file():
        raise ValueError(f"--encoder_config: there is no file {file}")
    spec = importlib.util.spec_from_file_location("experiment", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([variant] if variant else []))
    source = weights or config.encoder.weights
    if not source:
        raise ValueError(f"{file} names no encoder weights; give --encoder=DIRECTORY")
    structure = sharding.unbox(jax.eval_shape(components.encoder_init(config), jax.random.key(0)))
    params = load_weights(source, structure, "encoder", components.module(config, "encoder"))
    autoencoder = components.autoencoder(config)

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        images = images.astype(jnp.float32) / 255.0
        tokens = autoencoder.apply({"params": {"encoder": params}}, images, method="tokens")
        return {"mean_token": jnp.mean(tokens, axis=1)}

    identity = f"{fingerprint(source)} {config.encoder.to_json_best_effort()}"
    placed = sharding.place(params, sharding.replicated(mesh))
    return FeatureNetwork(identity, placed, apply, ("mean_token",), ("mean_token",))


if __name__ == "__main__":
    main()
