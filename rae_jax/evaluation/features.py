"""What metrics look through: networks that give features of images; what they gave of a reference is kept on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components import critics
from rae_jax.components.component import Component
from rae_jax.components.encoders import encoder, linear_head, tokens_of, tokens_shape
from rae_jax.components.latent_spaces import latent_space
from rae_jax.evaluation.evaluator import Needs, Summary
from rae_jax.evaluation.frechet import Gaussian
from rae_jax.evaluation.image_sets import ImageSet
from rae_jax.evaluation.metrics import (
    METRICS,
    PIXELS,
    Metric,
    OfImages,
    OfPairs,
    Params,
    against,
    check_counts,
    lpips_name,
    measured,
    needed,
    of_lpips,
)  # fmt: skip
from rae_jax.evaluation.reference import read_statistics
from rae_jax.files import whole_file
from rae_jax.models.inception import Inception

INCEPTION = {"inception.pool": 2048, "inception.spatial": 2023}  # the sizes of its features


def of_inception(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """`pool`, `spatial` and `logits` of the FID Inception network of uint8 images; parameters "inception"."""
    return Inception().apply({"params": params["inception"]}, images)._asdict()


def mean_token(tokens: Callable[[Params, jax.Array], jax.Array]) -> OfImages:
    """The mean `mean_token: [B, D]` of the tokens that `(params, images in [0, 1]) -> [B, N, D]` gives."""

    def of_images(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        return {"mean_token": jnp.mean(tokens(params, images.astype(jnp.float32) / 255.0), axis=1)}

    return of_images


@dataclasses.dataclass(frozen=True)
class Instruments:
    """Metrics, and what they look through; those of several are used together by `|`.

    Attributes:
      metrics: what is computed.
      parts: the components whose parameters are needed, by the names that these have among the `params`.
      features: `(params, images) -> features`, by the network's name.
      pairs: `(params, judged, reference) -> values`, by metric.
      sizes: how many features each feature has.
    """

    metrics: tuple[Metric, ...] = ()
    parts: dict[str, Component] = dataclasses.field(default_factory=dict)
    features: dict[str, OfImages] = dataclasses.field(default_factory=dict)
    pairs: dict[str, OfPairs] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def __or__(self, other: "Instruments") -> "Instruments":
        return Instruments(
            (*self.metrics, *other.metrics),
            self.parts | other.parts,
            self.features | other.features,
            self.pairs | other.pairs,
            self.sizes | other.sizes,
        )

    def measure(
        self, params: Params, images: Mapping[str, jax.Array], needs: Mapping[str, Needs] | None = None
    ) -> dict[str, dict[str, jax.Array]]:
        """What is needed of a batch of uint8 images, `{set: {quantity: [B, ...]}}`; see `measured`.

        By default it is what the metrics need of the judged set and of the reference.
        """
        needs = needed(self.metrics) if needs is None else needs
        return measured(params, images, needs, features=self.features, pairs=self.pairs)

    def check(self, *, judged: int, reference: int, where: str) -> None:
        """Raises ValueError unless so many images are enough; see `check_counts`."""
        check_counts(self.metrics, self.sizes, judged=judged, reference=reference, where=where)


def of_encoder(config: ConfigDict, *metrics: Metric, name: str = "encoder") -> Instruments:
    """`metrics` that look through the mean token of the encoder, whose parameters have this `name`."""
    tokens = tokens_of(config)
    return Instruments(
        metrics=metrics,
        parts={name: encoder(config)},
        features={name: mean_token(lambda params, images: tokens(params[name], images))},
        sizes={f"{name}.mean_token": tokens_shape(config)[1]},
    )


def of_linear_head(config: ConfigDict, metric: Metric, name: str = "encoder") -> Instruments:
    """`metric`, an accuracy of the published classifier on the encoder whose parameters have this `name`."""
    tokens, head = tokens_of(config), linear_head(config)

    def chosen(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        seen = tokens(params[name], images.astype(jnp.float32) / 255.0, class_token=True)
        return {"class": jnp.argmax(head.apply(params["linear_head"], seen), axis=-1, keepdims=True)}

    network = metric.rows[0].partition(".")[0]
    return Instruments((metric,), {name: encoder(config), "linear_head": head}, {network: chosen})


def of_samples(config: ConfigDict) -> Instruments:
    """What samples are measured by while a generator trains: the Fréchet distance of latents, and FID if there is one.

    Raises:
      ValueError: see `of_fid`.
    """
    space = latent_space(config)
    of_latents = Instruments(
        metrics=(METRICS["fd_latent"],),
        parts=space.encoding,
        features={"latent": mean_token(space.encode)},
        sizes={"latent.mean_token": space.shape[1]},
    )
    return of_latents | of_fid(config)


def of_fid(config: ConfigDict) -> Instruments:
    """FID, if the Inception network has weights: to the statistics in `config.inception.reference`, or else to images.

    Raises:
      ValueError: the file cannot be read, or holds no statistics of the pooled features.
    """
    if not config.inception.weights:
        return Instruments()
    fid = METRICS["fid"]
    if file := config.inception.reference:
        if not Path(file).is_file():
            raise ValueError(f"config.inception.reference: there is no file {file}")
        stored = read_statistics(file)
        if missing := set(fid.moments) - stored.keys():
            raise ValueError(f"config.inception.reference={file!r} holds no {' and '.join(missing)} (mu, sigma)")
        fid = against(fid, Summary(gaussians=stored))
    return Instruments((fid,), {"inception": critics.inception(config)}, {"inception": of_inception}, sizes=INCEPTION)


def of_reconstructions(config: ConfigDict) -> list[Instruments]:
    """What reconstructions are measured by: PSNR and SSIM; LPIPS by each network with weights; a Fréchet distance.

    That is rFID if the Inception network has weights, otherwise that in the features of the encoder, if there is one.
    """
    instruments = [Instruments((METRICS["psnr"], METRICS["ssim"]), pairs=PIXELS)]
    of_networks = [part for part in (critics.lpips_alexnet(config), critics.lpips(config)) if part.weights]
    for name, part in {lpips_name(part.module.network): part for part in of_networks}.items():
        distance = of_lpips(lambda params, a, b, part=part: part.apply(params[part.name], a, b))
        instruments.append(Instruments((METRICS[name],), {part.name: part}, pairs={name: distance}))
    if config.inception.weights:
        network = {"inception": critics.inception(config)}
        instruments.append(Instruments((METRICS["rfid"],), network, {"inception": of_inception}, {}, INCEPTION))
    elif config.encoder.model:
        instruments.append(of_encoder(config, METRICS["rfd_encoder"]))
    return instruments


def fingerprint(path: str | Path) -> str:
    """A name for the file or folder as it is now, from sizes and times: reading 10 GB would take too long."""
    path = Path(path).resolve()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def summary_once(
    images: ImageSet, needs: Needs, identities: Mapping[str, str], cache: Path, evaluate: Callable[[Needs], Summary]
) -> Summary:
    """`evaluate(needs)` of `images`, each quantity kept in the folder `cache` for the next time that it is needed.

    Args:
      identities: what tells each network from any other, weights included.
    """

    def file(kind: str, quantity: str) -> Path:
        network = identities[quantity.partition(".")[0]]
        made_of = f"{fingerprint(images.path)} {images.array} {network} {quantity} {kind}"
        return cache / f"{images.path.stem}.{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npz"

    missing = Needs(
        moments=frozenset(name for name in needs.moments if not file("moments", name).exists()),
        rows=frozenset(name for name in needs.rows if not file("rows", name).exists()),
    )
    if missing != Needs():
        found = evaluate(missing)
        for name, gaussian in found.gaussians.items():
            _write(file("moments", name), mean=gaussian.mean, covariance=gaussian.covariance)
        for name, rows in found.rows.items():
            _write(file("rows", name), rows=rows)
    moments = {name: _read(file("moments", name)) for name in needs.moments}
    return Summary(
        count=len(images),
        gaussians={name: Gaussian(stored["mean"], stored["covariance"]) for name, stored in moments.items()},
        rows={name: _read(file("rows", name))["rows"] for name in needs.rows},
    )


def _write(file: Path, **arrays: np.ndarray) -> None:
    with whole_file(file) as stream:
        np.savez(stream, **arrays)


def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as stored:
        return dict(stored)
