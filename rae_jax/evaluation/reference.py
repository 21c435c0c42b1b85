"""Published statistics of reference sets: what generated images are compared with when the images are not at hand."""

from pathlib import Path

import numpy as np

from rae_jax.evaluation.frechet import Gaussian
from rae_jax.sampling.samples import open_npz

# Mean and covariance of each feature, under the names that ADM, pytorch-fid and JiT give them, and iMF and RAEv2.
NAMES = {
    "inception.pool": (("mu", "sigma"), ("ref_mu", "ref_sigma")),
    "inception.spatial": (("mu_s", "sigma_s"),),
}


def read_statistics(path: str | Path) -> dict[str, Gaussian]:
    """The statistics of Inception features that the `.npz` at `path` holds: `inception.pool` for FID, and, as ADM's
    reference files do, `inception.spatial` for sFID; empty if it holds none.

    ADM's files have images beside them of which they are not the statistics: published numbers use the statistics.

    Raises:
      ValueError: the file cannot be read, or a mean and a covariance are not `[D]` and `[D, D]`.
    """
    with open_npz(path) as archive:
        found = {
            feature: Gaussian(archive[mean], archive[covariance])
            for feature, names in NAMES.items()
            for mean, covariance in names
            if mean in archive and covariance in archive
        }
    for feature, (mean, covariance) in found.items():
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not np.isfinite(covariance).all():
            raise ValueError(f"{path}: mean {mean.shape} and covariance {covariance.shape} of {feature} are none")
    return found
