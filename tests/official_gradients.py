"""Compares a flow map's gradients with the few in the golden MeanFlow losses, under their official names."""

from typing import Any

import numpy as np
from golden import Case

from rae_jax.interop.dit_dh import export_dit_dh

NAMES = ("blocks.0.attn.qkv.weight", "final_layer.linear.weight", "r_embedder.mlp.2.weight")


def assert_gradients_are_the_references(
    case: Case, loss: str, gradients: Any, architecture: dict[str, Any], carried: dict[str, np.ndarray]
) -> None:
    """`gradients` of the mean of `loss` are within 1% of the largest entry; a layout is linear, so it carries them."""
    official = export_dit_dh(gradients, architecture, carried)
    for name in NAMES:
        expected = case.io[f"{loss}_grad.{name}"]
        np.testing.assert_allclose(official[name], expected, atol=0.01 * np.abs(expected).max(), rtol=0, err_msg=name)
