"""What metrics look through: networks that give features of images; what they gave of a reference is kept on disk."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.evaluation.evaluator import Needs, Summary
from rae_jax.evaluation.frechet import Gaussian
from rae_jax.evaluation.image_sets import ImageSet
from rae_jax.evaluation.metrics import OfImages, Params
from rae_jax.files import whole_file
from rae_jax.models.inception import Inception


def of_inception(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """`pool`, `spatial` and `logits` of the FID Inception network of uint8 images; parameters "inception"."""
    return Inception().apply({"params": params["inception"]}, images)._asdict()


def mean_token(tokens: Callable[[Params, jax.Array], jax.Array]) -> OfImages:
    """The mean `mean_token: [B, D]` of the tokens that `(params, images in [0, 1]) -> [B, N, D]` gives."""

    def of_images(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        return {"mean_token": jnp.mean(tokens(params, images.astype(jnp.float32) / 255.0), axis=1)}

    return of_images


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
