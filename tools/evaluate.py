"""The numbers of published tables, of an `.npz` or a folder of images against a reference.

    python -m tools.evaluate samples.npz --reference=VIRTUAL_imagenet256_labeled.npz --inception=pt_inception.pth \\
        --metrics=fid,sfid,is,precision,recall
    python -m tools.evaluate runs/x/reconstructions.npz --inception=pt_inception.pth --metrics=rfid,psnr,ssim,lpips
    python -m tools.evaluate reconstructions/ --reference=originals/ --metrics=psnr,ssim,lpips
    python -m tools.evaluate samples.npz --reference=held_out/ --metrics=fd_encoder,precision_encoder,recall_encoder \\
        --encoder_config=configs/digits.py --encoder=runs/digits/encoder/weights

    python -m tools.evaluate samples.npz --reference=images/ --inception=pt_inception.pth --networks=timm/ \\
        --metrics=fdr6

Metrics (`rae_jax/evaluation/metrics.py` has their definitions): fid, sfid, is, precision, recall (ADM's; --inception),
rfid (FID to the reference's images, never to statistics stored in the file; --inception), psnr, ssim, lpips (AlexNet),
lpips_vgg16 (image by image), fd_encoder, rfd_encoder, precision_encoder, recall_encoder (in the mean token of any
encoder; --encoder_config), RAEv2's fdr6 and, in each of its six spaces, fdr_SPACE and mind_SPACE (--inception, and
--networks with the files of timm). A run's `reconstructions.npz` holds its reference, the originals. What is computed
of a reference is kept in --cache. The name of a number that depends on how many images are judged ends in their count
unless that is 50,000: `fid_5000`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from rae_jax.evaluation.evaluator import Evaluator, Needs, Summary, image_batches
from rae_jax.evaluation.features import fingerprint, of_encoder, of_inception, summary_once
from rae_jax.evaluation.image_sets import PAIRS, ImageSet, check_pairs, holds_pairs, open_images
from rae_jax.evaluation.metrics import (
    JUDGED,
    METRICS,
    PIXELS,
    REFERENCE,
    Metric,
    OfImages,
    OfPairs,
    against,
    check_counts,
    computed,
    measured,
    needed,
    of_lpips,
)  # fmt: skip
from rae_jax.evaluation.reference import read_statistics
from rae_jax.evaluation.representations import SPACES
from rae_jax.experiment.flags import read_config
from rae_jax.files import local_path, whole_file
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.inception_fid import import_inception
from rae_jax.interop.lpips import pretrained
from rae_jax.models.inception import Inception
from rae_jax.models.lpips import LPIPS as LPIPSNetwork
from rae_jax.training import sharding

LPIPS = {"alexnet": "lpips", "vgg16": "lpips_vgg16"}  # networks, and the metrics that need their parameters
OFFERED = (
    "fid", "sfid", "is", "precision", "recall", "rfid", "psnr", "ssim", *LPIPS.values(), "fd_encoder", "rfd_encoder",
    "precision_encoder", "recall_encoder", "fdr6", *(name for name in METRICS if name.startswith(("fdr_", "mind_"))),
)  # fmt: skip
STATISTICS = ("fid", "sfid")  # what stored statistics can stand in for images in


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=local_path, help="an .npz with arr_0, a run's reconstructions.npz, or a folder")
    parser.add_argument(
        "--reference",
        type=local_path,
        help="likewise; an .npz may also hold mu, sigma (ref_mu, ref_sigma), mu_s, sigma_s",
    )
    parser.add_argument("--metrics", required=True, help=f"joined by commas: {', '.join(OFFERED)}")
    parser.add_argument("--inception", type=local_path, help="the FID Inception file, pt_inception-2015-12-05*.pth")
    parser.add_argument("--networks", type=local_path, help="a folder of timm's files, of the other spaces of fdr6")
    parser.add_argument("--encoder_config", help="the experiment whose encoder is to look: configs/NAME.py[:VARIANT]")
    parser.add_argument("--encoder", type=local_path, help="its weights, in place of those that the experiment names")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--cache", type=local_path, default=Path("runs/reference_statistics"))
    parser.add_argument("--output", type=local_path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    try:
        if options.encoder_config:
            options.encoder_config = read_config(options.encoder_config)
        results = evaluate(options)
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    for name, value in results.items():
        Console().print(f"{name:24} {value:.4f}", highlight=False)
    if options.output:
        with whole_file(options.output) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())


def evaluate(options: argparse.Namespace) -> dict[str, float]:
    """The metrics that `options` (of `main`) ask for; whatever is wrong with them is found before anything is computed.

    `options.encoder_config` is the config, not its file.

    Raises:
      ValueError: see the messages.
    """
    metrics = asked_for(options)
    judged, reference, stored = _opened(options, metrics)
    metrics = [against(m, Summary(gaussians=stored)) if stored and m.name in STATISTICS else m for m in metrics]
    paired = any(metric.values for metric in metrics)
    if paired:
        check_pairs(judged, reference)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    params, features, identities = _networks(options, metrics, mesh)
    _check_enough(metrics, judged, reference, params, features)
    pairs = PIXELS | {name: _lpips(network, name) for network, name in LPIPS.items() if name in params}

    def gathered(sets: dict[str, ImageSet], needs: dict[str, Needs], what: str) -> dict[str, Summary]:
        def measure(params: Any, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
            images = {name: batch[name] for name in sets}
            return measured(params, images, needs, features=features, pairs=pairs)

        size = options.batch_size
        batches = _tracked(image_batches(sets, mesh, batch_size=size), what, -(-len(next(iter(sets.values()))) // size))
        return Evaluator(mesh, measure, needs)(params, batches)

    needs = needed(metrics)
    if paired:  # both at once, since every pair is looked at together
        found = gathered({JUDGED: judged, REFERENCE: reference}, needs, "pairs")
        of_judged, of_reference = found[JUDGED], found[REFERENCE]
    else:
        of_judged, of_reference = gathered({JUDGED: judged}, {JUDGED: needs[JUDGED]}, "samples")[JUDGED], Summary()
        if (wanted := needs[REFERENCE]) != Needs():
            of_reference = summary_once(
                reference, wanted, identities, options.cache,
                lambda missing: gathered({REFERENCE: reference}, {REFERENCE: missing}, "reference")[REFERENCE],
            )  # fmt: skip
    return computed(metrics, of_judged, of_reference)


def asked_for(options: argparse.Namespace) -> list[Metric]:
    """The metrics that `options` name, which have what they need.

    Raises:
      ValueError: there are none of that name, or they need an option that is missing.
    """
    names = options.metrics.split(",")
    if unknown := [name for name in names if name not in OFFERED]:
        raise ValueError(f"--metrics: there are no {unknown}; there are {', '.join(OFFERED)}")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size}; it must be at least 1")
    metrics = [METRICS[name] for name in names]
    for network, option, what in (
        ("inception", "inception", "--inception=FILE, the official Inception weights"),
        ("encoder", "encoder_config", "--encoder_config=FILE, an experiment with the encoder"),
        *((space, "networks", "--networks=FOLDER of timm's files") for space in SPACES),
    ):
        lacking = [metric.name for metric in metrics if network in _networks_of(metric)]
        if lacking and getattr(options, option) is None:
            raise ValueError(f"{', '.join(lacking)} need {what}")
    return metrics


def _networks_of(metric: Metric) -> set[str]:
    return {quantity.partition(".")[0] for quantity in (*metric.moments, *metric.rows)}


def _opened(options: argparse.Namespace, metrics: list[Metric]) -> tuple[ImageSet, ImageSet | None, dict[str, Any]]:
    """The judged images, the reference's if any are needed, and its stored statistics if it has any that are wanted."""
    originals, reconstructions = PAIRS
    pairs, path = holds_pairs(options.samples), options.reference
    judged = open_images(options.samples, reconstructions if pairs else "arr_0")
    comparing = [metric.name for metric in metrics if not metric.alone]
    if path is None and comparing and not pairs:
        raise ValueError(f"{', '.join(comparing)} need --reference")
    if path is None:
        return judged, open_images(options.samples, originals) if pairs else None, {}
    by_statistics = [metric for metric in metrics if metric.name in STATISTICS]
    stored = read_statistics(path) if by_statistics and path.is_file() else {}
    for metric in by_statistics if stored else ():
        if missing := [feature for feature in metric.moments if feature not in stored]:
            raise ValueError(
                f"{path} holds statistics of {', '.join(stored)} but none of {', '.join(missing)} (mu_s, sigma_s), "
                f"which {metric.name} needs; take ADM's reference file, or a reference of images"
            )
    if set(comparing) <= {metric.name for metric in by_statistics} and stored:
        return judged, None, stored
    return judged, open_images(path, originals if holds_pairs(path) else "arr_0"), stored


def _networks(
    options: argparse.Namespace, metrics: list[Metric], mesh: jax.sharding.Mesh
) -> tuple[dict[str, Any], dict[str, OfImages], dict[str, str]]:
    """Parameters, features and identities of the networks that `metrics` look through."""
    networks, names = set().union(*map(_networks_of, metrics)), {metric.name for metric in metrics}
    params: dict[str, Any] = {name: pretrained(network) for network, name in LPIPS.items() if name in names}
    features: dict[str, OfImages] = {}
    identities: dict[str, str] = {}
    if "inception" in networks:
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
        structure = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
        params["inception"] = import_inception(read_tensors(options.inception), structure)
        features["inception"], identities["inception"] = of_inception, fingerprint(options.inception)
    for name in sorted(networks & SPACES.keys()):
        file = _published(options.networks, SPACES[name].published)
        params[name], features[name] = SPACES[name].load(file), SPACES[name].of_images(name)
        identities[name] = fingerprint(file)
    if "encoder" in networks:
        params["encoder"], features["encoder"], identities["encoder"] = _encoder(
            options.encoder_config, options.encoder
        )
    return sharding.place(params, sharding.replicated(mesh)), features, identities


def _published(folder: Path, name: str) -> Path:
    """The file or directory in `folder` that has the published `name`.

    Raises:
      ValueError: there is none.
    """
    endings = ("", ".safetensors", ".bin", ".pth")
    found = next((path for end in endings if (path := folder / f"{name}{end}").exists()), None)
    if found is None:
        raise ValueError(
            f"--networks={folder} has no {name}: a directory of that name, as Hugging Face has it, or a file with one "
            f"of the endings {', '.join(endings[1:])}"
        )
    return found


def _encoder(config: ConfigDict, weights: Path | None) -> tuple[Any, OfImages, str]:
    """The mean token of an experiment's encoder, images resized as the experiment does."""
    source = weights or config.encoder.weights
    if not source:
        raise ValueError("--encoder_config names no encoder weights; give --encoder=DIRECTORY")
    instruments = of_encoder(config)
    (part,) = instruments.parts.values()
    identity = f"{fingerprint(source)} {config.encoder.to_json_best_effort()}"
    return part.load(source), instruments.features["encoder"], identity


def _lpips(network: str, component: str) -> OfPairs:
    return of_lpips(lambda params, a, b: LPIPSNetwork(network).apply({"params": params[component]}, a, b))


def _check_enough(
    metrics: list[Metric], judged: ImageSet, reference: ImageSet | None, params: dict[str, Any],
    features: dict[str, OfImages],
) -> None:  # fmt: skip
    """Raises ValueError unless every set has more images than any feature whose covariance is needed of it."""
    image = jax.ShapeDtypeStruct((1, *judged.shape[1:]), jnp.uint8)
    sizes = {
        f"{network}.{feature}": rows.shape[1]
        for network, of_images in features.items()
        for feature, rows in jax.eval_shape(of_images, params, image).items()
    }
    as_reference = [dataclasses.replace(metric, alone=False) for metric in metrics]  # as many are asked of the judged
    for each, images in ((as_reference, judged), (metrics, reference)):
        if images is not None:
            check_counts(each, sizes, judged=len(images), reference=len(images), where=str(images.path))


def _tracked(batches: Iterator[Any], name: str, total: int) -> Iterator[Any]:
    """The same batches, with a progress bar."""
    yield from track(batches, description=name, total=total, console=Console(stderr=True))


if __name__ == "__main__":
    main()
