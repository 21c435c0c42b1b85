"""What training against a discriminator needs: its losses, the generator's, and the weight that balances them.

Logits are `[B, M]`, of M local judgements an image, larger for real; every loss is a mean over all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def hinge_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """`(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2`."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))


def vanilla_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Cross-entropy: `(mean softplus(-real) + mean softplus(fake)) / 2`."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


def generator_loss(fake: jax.Array) -> jax.Array:
    """`-mean fake`, whichever loss the discriminator has."""
    return -jnp.mean(fake)


def discriminator_accuracy(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Share of judgements that rate the real image above the fake one beside it in the batch."""
    return jnp.mean((real > fake).astype(jnp.float32))


def adaptive_weight(
    reconstruction_gradient: Any, other_gradient: Any, *, maximum: float = 1e4, epsilon: float = 1e-6
) -> jax.Array:
    """Weight that makes another loss pull as hard as the reconstruction does; scalar, without gradient.

    `clip(|g_reconstruction| / (|g_other| + epsilon), 0, maximum)` with the gradients of both losses by the same thing:
    the decoder's last kernel, or the pixels (RAE); the encoder's last layer, for the pivot loss of RPiAE.
    """
    ratio = optax.tree.norm(reconstruction_gradient) / (optax.tree.norm(other_gradient) + epsilon)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, maximum))


def to_8_bits(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] clamped and rounded to the 256 levels of a file, half to even; still float, without gradient.

    Real images come from files; fakes must not be told from them by their precision.
    """
    levels = jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5)
    return jax.lax.stop_gradient(levels / 127.5 - 1.0)
