"""The loss of RPiAE's stage II, which trains the variational bridge between frozen encoder and decoder."""

import jax
import jax.numpy as jnp

from rae_jax.models.posterior import DiagonalGaussian


def bridge_loss(
    *,
    decoded: jax.Array,
    clean: jax.Array,
    posterior: DiagonalGaussian,
    reconstruction: jax.Array,
    images: jax.Array,
    feature_weight: float = 1.0,
    kl_weight: float = 1e-3,
    pixel_weight: float = 0.05,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`feature_weight MSE(decoded, clean) + kl_weight KL + pixel_weight L1`: the loss and its three terms by name.

    Args:
      decoded: features `[B, N, D]` from the bridge's decoder; the bridge's encoder has seen noisy ones.
      clean: the encoder's features without noise, `[B, N, D]`, without gradient.
      posterior: of the latent; the KL is `DiagonalGaussian.kl_mean`.
      reconstruction: images decoded from `decoded`, `[B, H, W, 3]` in the scale of [0, 1].
      images: `[B, H, W, 3]` in [0, 1].
    """
    terms = {
        "feature_mse": jnp.mean(jnp.square(decoded - jax.lax.stop_gradient(clean))),
        "kl": posterior.kl_mean(),
        "l1": jnp.mean(jnp.abs(reconstruction - images)),
    }
    loss = feature_weight * terms["feature_mse"] + kl_weight * terms["kl"] + pixel_weight * terms["l1"]
    return loss, terms
