"""What a network predicts of a noisy point, and the velocity that this means.

A network may say the velocity itself, or the data z, from which `v = (z_t - z) / t` (RAEv2; Li & He, "Back to Basics",
2025). Near the data that division is held at `t_eps`: prediction and target alike are then `(z_t - z) / max(t, t_eps)`.
At a fixed time the velocity is affine in what is predicted, so that guidance, whose weights add up to one, is the same
on both.
"""

import jax
import jax.numpy as jnp

from rae_jax.flow.path import over, velocity_target

PREDICTIONS = ("velocity", "x")


def velocity_of(prediction: str, predicted: jax.Array, z_t: jax.Array, t: jax.Array, t_eps: float) -> jax.Array:
    """The velocity `[B, ...]` that `predicted` means at `z_t: [B, ...]` and `t: [B]`."""
    if prediction == "velocity":
        return predicted
    return (z_t - predicted) / over(jnp.maximum(t, t_eps), z_t)


def held_velocity_target(z: jax.Array, eps: jax.Array, t: jax.Array, t_eps: float) -> jax.Array:
    """`(z_t - z) / max(t, t_eps)`, which is `eps - z` from `t_eps` on; with `t_eps=0` everywhere."""
    v = velocity_target(z, eps)
    return v * over(t / jnp.maximum(t, t_eps), z) if t_eps else v


def check_prediction(prediction: str, t_eps: float, where: str) -> None:
    """Raises a ValueError that names the section `where` unless networks can predict so."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"{where}.prediction={prediction!r} is not one of {list(PREDICTIONS)}")
    if not 0 <= t_eps < 1 or (prediction == "x" and not t_eps):
        raise ValueError(
            f"{where}.t_eps={t_eps}: it is a time in [0, 1), and above 0 for a network that predicts x, whose velocity "
            "is divided by no less; RAEv2 has 0.05"
        )
