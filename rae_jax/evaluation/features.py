"""Features of whole image sets, on all devices, with memory for one batch, the moments, and the features kept."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.evaluation.frechet import Moments
from rae_jax.evaluation.image_sets import ImageSet
from rae_jax.files import whole_file
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.inception_fid import import_inception
from rae_jax.models.inception import Inception
from rae_jax.training import sharding


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that metrics look through.

    Attributes:
      identity: tells it from any other, weights included.
      params: its parameters, on the devices.
      apply: `(params, images uint8 [B, H, W, 3]) -> {name: features [B, D]}`.
      moments: the features whose mean and covariance are wanted.
      kept: the features that are wanted themselves.
    """

    identity: str
    params: Any
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
    moments: tuple[str, ...]
    kept: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Features:
    """`moments` of features by name, and those that were `kept`, `[N, D]` float32."""

    moments: dict[str, Moments]
    kept: dict[str, np.ndarray]


def inception(weights: str | Path, mesh: jax.sharding.Mesh) -> FeatureNetwork:
    """The FID Inception network from its official file (`pt_inception-2015-12-05`), features as ADM names them.

    Raises:
      ValueError: no such file, or not these weights.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    structure = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    params = sharding.place(import_inception(read_tensors(weights), structure), sharding.replicated(mesh))

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return Inception().apply({"params": params}, images)._asdict()

    return FeatureNetwork(fingerprint(weights), params, apply, ("pool", "spatial"), ("pool", "logits"))


def fingerprint(path: str | Path) -> str:
    """A name for the file or folder as it is now, from sizes and times: reading 10 GB would take too long."""
    path = Path(path).resolve()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def gather(
    images: ImageSet,
    network: FeatureNetwork,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Features:
    """The features of all of `images`; `on_batch` is told how many are done."""
    shards, rows = sharding.num_batch_shards(mesh), sharding.batch_sharding(mesh)
    batch_size = -(-batch_size // shards) * shards
    run = jax.jit(network.apply)
    moments: dict[str, Moments] = {}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in network.kept}
    done = 0
    for batch in images.batches(batch_size):
        padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        features = sharding.to_host(run(network.params, sharding.place(padded, rows)))
        for name in network.moments:
            part = Moments.of(features[name][: len(batch)])
            moments[name] = moments[name].merge(part) if name in moments else part
        for name in network.kept:
            kept[name].append(features[name][: len(batch)].astype(np.float32))
        on_batch(done := done + len(batch))
    return Features(moments, {name: np.concatenate(parts) for name, parts in kept.items()})


def gather_once(
    images: ImageSet, network: FeatureNetwork, mesh: jax.sharding.Mesh, cache: Path, **arguments: Any
) -> Features:
    """`gather`, kept in the folder `cache` for the next time that this network looks at these images."""
    name = hashlib.sha256(f"{fingerprint(images.path)} {network.identity}".encode()).hexdigest()[:16]
    file = cache / f"{images.path.stem}.{name}.npz"
    if file.exists():
        with np.load(file) as stored:
            return _unpacked(stored, network)
    features = gather(images, network, mesh, **arguments)
    with whole_file(file) as stream:
        np.savez(stream, **_packed(features))
    return features


def _packed(features: Features) -> dict[str, np.ndarray]:
    moments = {
        f"{name}.{field}": np.asarray(getattr(values, field))
        for name, values in features.moments.items()
        for field in ("count", "mean", "scatter")
    }
    return moments | {f"{name}.rows": rows for name, rows in features.kept.items()}


def _unpacked(stored: Any, network: FeatureNetwork) -> Features:
    def moments(name: str) -> Moments:
        return Moments(int(stored[f"{name}.count"]), stored[f"{name}.mean"], stored[f"{name}.scatter"])

    return Features(
        {name: moments(name) for name in network.moments}, {name: stored[f"{name}.rows"] for name in network.kept}
    )
