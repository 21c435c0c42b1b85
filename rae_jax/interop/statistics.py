"""Latent statistics from and to RAE's official files, and those inside `diffusers.AutoencoderRAE`."""

import math
from collections.abc import Mapping

import numpy as np
from einops import rearrange

from rae_jax.interop.layout import Tensors
from rae_jax.interop.model import Model
from rae_jax.models.autoencoder import EPSILON, LatentStatistics

# diffusers divides by (std + this), where RAE divides by sqrt(var + EPSILON).
DIFFUSERS_EPSILON = 1e-5


def import_statistics(tensors: Mapping[str, np.ndarray]) -> LatentStatistics:
    """Statistics from official `mean` and `var`, each `[C, h, w]` or `[C, 1, 1]`; `mean` may be absent.

    Raises:
      ValueError: there is no variance, or an array has another number of axes.
    """
    if "var" not in tensors:
        raise ValueError(f"latent statistics need a tensor 'var' (and may have 'mean'); found {sorted(tensors)}")
    mean = None if tensors.get("mean") is None else _to_tokens("mean", tensors["mean"])
    return LatentStatistics(mean=mean, variance=_to_tokens("var", tensors["var"]))


def export_statistics(statistics: LatentStatistics) -> Tensors:
    """The inverse of `import_statistics`, for a square grid of tokens."""
    tensors = {"var": _to_feature_map(statistics.variance)}
    return tensors if statistics.mean is None else {"mean": _to_feature_map(statistics.mean), **tensors}


def import_diffusers_statistics(tensors: Mapping[str, np.ndarray]) -> LatentStatistics:
    """Statistics from diffusers' `_latents_mean` and `_latents_std`, each `[C, h, w]` or `[C, 1, 1]`.

    The variance is the one with which `sqrt(var + 1e-5)` equals diffusers' `std + 1e-5`.
    """
    std = _to_tokens("_latents_std", tensors["_latents_std"]).astype(np.float64)
    variance = np.square(std + DIFFUSERS_EPSILON) - EPSILON
    return LatentStatistics(_to_tokens("_latents_mean", tensors["_latents_mean"]), variance.astype(np.float32))


def export_diffusers_statistics(statistics: LatentStatistics) -> Tensors:
    """The inverse of `import_diffusers_statistics`, up to float32 rounding; a missing mean becomes zeros."""
    variance = np.asarray(statistics.variance, np.float64)
    std = (np.sqrt(variance + EPSILON) - DIFFUSERS_EPSILON).astype(np.float32)
    mean = np.zeros_like(std) if statistics.mean is None else statistics.mean
    return {"_latents_mean": _to_feature_map(mean), "_latents_std": _to_feature_map(std)}


def as_params(statistics: LatentStatistics) -> dict[str, np.ndarray]:
    """As a weights directory has them."""
    mean = {} if statistics.mean is None else {"mean": statistics.mean}
    return {**mean, "variance": statistics.variance}


def from_params(params: Mapping[str, np.ndarray]) -> LatentStatistics:
    """The inverse of `as_params`."""
    return LatentStatistics(params.get("mean"), params["variance"])


def read(tensors: Mapping[str, np.ndarray]) -> Model:
    """An official file of statistics."""
    if unexpected := sorted(tensors.keys() - {"mean", "var"}):
        raise ValueError(f"unexpected {', '.join(unexpected)}; latent statistics are 'var' and perhaps 'mean'")
    return Model({}, as_params(import_statistics(tensors)))


def write(model: Model) -> Tensors:
    """The inverse of `read`."""
    return export_statistics(from_params(model.params))


def _to_tokens(name: str, value: np.ndarray) -> np.ndarray:
    if np.ndim(value) != 3:
        raise ValueError(f"latent statistics: {name} has shape {np.shape(value)}, expected [C, h, w] or [C, 1, 1]")
    return rearrange(np.asarray(value), "c h w -> (h w) c")


def _to_feature_map(value: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(value))
    if side * side != len(value):
        raise ValueError(f"latent statistics of {len(value)} tokens are not of a square grid")
    return np.ascontiguousarray(rearrange(np.asarray(value), "(h w) c -> c h w", h=side))
