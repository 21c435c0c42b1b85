"""The loss of an objective by itself, to be called and differentiated beside one that is written out."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict


def loss_of(objective: ModuleType, config: ConfigDict, stage: str, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`(params, frozen, batch, key) -> (scalar, metrics)`, as the file of an objective hands it to `single_network`."""
    monkeypatch.setattr(objective, "single_network", lambda *, loss, **others: loss)
    return jax.jit(objective.make(config, stage))


def images_of(batch: int, size: int) -> dict[str, Any]:
    """A batch of images in bytes, with labels."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, 10, batch).astype(np.int32)}


def assert_same_gradients(actual: Any, expected: Any) -> None:
    """Leaf by leaf, within a small part of the largest entry; none is zero everywhere in both."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    assert largest > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), actual, expected)
