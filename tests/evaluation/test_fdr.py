"""FDr6, MIND and what their networks see, against SciPy, torch and closed forms."""

import jax
import numpy as np
import pytest
import scipy.linalg
import torch

from rae_jax.evaluation.evaluator import Summary
from rae_jax.evaluation.fdr import CONSTANTS, mind
from rae_jax.evaluation.frechet import Gaussian
from rae_jax.evaluation.metrics import METRICS
from rae_jax.evaluation.representations import SPACES
from rae_jax.models.representations import PooledVisionTransformer

PUBLISHED = [1.68, 56.87, 14.19, 0.04, 0.60, 5.60]  # Inception, ConvNeXt V2, DINOv2, MAE, SigLIP 2, CLIP


def gaussians(seed):
    random = np.random.default_rng(seed)
    rows = {name: random.normal(size=(40, 5)) * (1 + i) for i, name in enumerate(CONSTANTS)}
    return {name: Gaussian(x.mean(0), np.cov(x, rowvar=False)) for name, x in rows.items()}


def test_fdr6_is_the_mean_of_six_distances_over_their_constants():
    a, b = gaussians(0), gaussians(1)
    expected = []
    for name, constant in zip(CONSTANTS, PUBLISHED, strict=True):
        root = scipy.linalg.sqrtm(a[name].covariance @ b[name].covariance).real
        distance = np.sum((a[name].mean - b[name].mean) ** 2)
        distance += np.trace(a[name].covariance + b[name].covariance - 2 * root)
        expected.append(distance / constant)
        value = METRICS[f"fdr_{name.partition('.')[0]}"].compute(Summary(gaussians=a), Summary(gaussians=b))
        assert value == pytest.approx(expected[-1], rel=1e-6)
    assert METRICS["fdr6"].compute(Summary(gaussians=a), Summary(gaussians=b)) == pytest.approx(np.mean(expected))


def test_mind_of_sets_that_differ_by_a_shift_is_three_times_its_square():
    """Along a direction u every sorted pair differs by u . shift, whose mean square is |shift|^2 / D."""
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    shift = np.zeros(16, np.float32)
    shift[3] = 2.0
    assert mind(x + shift, x) == pytest.approx(3 * 4.0, rel=0.1)
    assert mind(x, x[::-1]) == 0
    assert mind(x[:100], x) < 1.0  # sets of two sizes: less than a shift of one half
    summaries = (Summary(rows={"clip_l.vector": rows}) for rows in (x + shift, x))
    assert METRICS["mind_clip_l"].compute(*summaries) == mind(x + shift, x)


def test_networks_see_what_torch_resizes_and_normalises(monkeypatch):
    seen = []
    monkeypatch.setattr(PooledVisionTransformer, "__call__", lambda self, x: seen.append(x) or x[:, :1, 0, 0])
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 300, 3), dtype=np.uint8)
    for name, size, mean, std in [
        ("siglip2_so400m", 256, [0.5] * 3, [0.5] * 3),
        ("mae_l", 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]:
        with jax.disable_jit():
            SPACES[name].of_images(name)({name: {}}, images)
        resized = torch.nn.functional.interpolate(
            torch.tensor(images.transpose(0, 3, 1, 2)).float(), (size, size), mode="bicubic", antialias=True
        )
        expected = (resized.numpy().transpose(0, 2, 3, 1) - 255 * np.array(mean)) / (255 * np.array(std))
        np.testing.assert_allclose(seen.pop(), expected, atol=2e-4)
