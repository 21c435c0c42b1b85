"""Published statistics of reference sets: what generated images are compared with when the images are not at hand."""

from pathlib import Path

from rae_jax.evaluation.frechet import Gaussian
from rae_jax.sampling.samples import open_npz


def read_statistics(path: str | Path) -> tuple[Gaussian, Gaussian]:
    """Stored Inception statistics of a reference set, for FID (`mu`, `sigma`) and for sFID (`mu_s`, `sigma_s`).

    These are in ADM's reference files, such as `VIRTUAL_imagenet256_labeled.npz`, beside images of which they are
    not the statistics: published numbers use the stored ones.
    """
    keys = ("mu", "sigma", "mu_s", "sigma_s")
    with open_npz(path) as archive:
        statistics = {name: archive[name] for name in keys if name in archive}
        names = list(archive)
    if missing := [name for name in keys if name not in statistics]:
        raise ValueError(f"{path} has no reference statistics {missing}: it holds {names}")
    return Gaussian(statistics["mu"], statistics["sigma"]), Gaussian(statistics["mu_s"], statistics["sigma_s"])
