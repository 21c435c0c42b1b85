"""A stand-in for the Inception network: the same outputs and place, five features, and NumPy's account of them."""

import einops
import flax.linen as nn
import numpy as np
import scipy.linalg

from rae_jax.components import critics
from rae_jax.evaluation import features
from rae_jax.models.inception import InceptionFeatures


class SmallInception(nn.Module):
    """Pooled features are the mean over patches of 16 x 16 pixels, each projected."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(5, (16, 16), (16, 16), name="conv")(images / 255.0)
        return InceptionFeatures(x.mean((1, 2)), x[..., 0].reshape(len(x), -1), x.mean((1, 2)))


def install(monkeypatch):
    """Puts it in the real one's place."""
    monkeypatch.setattr(features, "Inception", SmallInception)
    monkeypatch.setattr(critics, "Inception", SmallInception)
    monkeypatch.setattr(features, "INCEPTION", {"inception.pool": 5})


def moments(params, images):
    """Mean and covariance of the pooled features of uint8 images, by NumPy."""
    kernel, bias = (np.asarray(params["conv"][name], np.float64) for name in ("kernel", "bias"))
    patches = einops.rearrange(images / 255.0, "b (y h) (x w) c -> b (y x) (h w c)", h=16, w=16).mean(1)
    pooled = patches @ kernel.reshape(-1, 5) + bias
    return pooled.mean(0), np.cov(pooled.T)


def distance(a, b):
    """The Fréchet distance of two pairs of mean and covariance, by SciPy."""
    root = scipy.linalg.sqrtm(a[1] @ b[1]).real
    return np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * root)
