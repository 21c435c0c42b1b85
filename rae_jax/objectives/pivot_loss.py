"""Pivot regularisation of RPiAE's stage I: the encoder under training stays near the pretrained one it started from.

`L1 + LPIPS + w MSE(f, sg f_pivot) + ...`, where w follows the reconstruction's pull on the encoder's last layer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rae_jax.objectives.adversarial import adaptive_weight


def pivot_loss(tokens: jax.Array, pivot_tokens: jax.Array) -> jax.Array:
    """Mean squared distance of the clean, not normalised tokens `[B, N, D]` to those of the frozen encoder."""
    return jnp.mean(jnp.square(tokens - jax.lax.stop_gradient(pivot_tokens)))


def pivot_weight(
    step: jax.Array,
    reconstruction_gradient: Any,
    pivot_gradient: Any,
    *,
    weight: float = 0.75,
    fixed_steps: int = 1000,
) -> jax.Array:
    """Weight of the pivot loss at `step`, a scalar without gradient.

    `weight |g_reconstruction| / (|g_pivot| + 1e-4)`, the ratio clamped to [0, 1e5], with the gradients of both losses
    by a late parameter of the encoder (the released code has the last block's second layer scale); `weight` alone
    during the first `fixed_steps` steps. The defaults are the released code's; the paper's ablation has a weight of 1.
    """
    adaptive = adaptive_weight(reconstruction_gradient, pivot_gradient, maximum=1e5, epsilon=1e-4)
    return weight * jnp.where(step < fixed_steps, 1.0, adaptive)
