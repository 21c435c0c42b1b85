"""The path between data and noise that every generator here follows, and what can be read off it.

`t = 0` is data z and `t = 1` is noise eps; between them lies the straight line `z_t = (1 - t) z + t eps`, and its
velocity `v = eps - z` points from data to noise. Arrays are `[B, ...]`, times `[B]`.
"""

import jax
import jax.numpy as jnp


def over(t: jax.Array, z: jax.Array) -> jax.Array:
    """`t: [B]` as `[B, 1, ...]`, ready to multiply `z: [B, ...]`."""
    return jnp.reshape(t, (-1,) + (1,) * (z.ndim - 1))


def interpolate(z: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """The noisy point `z_t = (1 - t) z + t eps` (RAE, Section 4)."""
    t = over(t, z)
    return (1 - t) * z + t * eps


def velocity_target(z: jax.Array, eps: jax.Array) -> jax.Array:
    """The path's velocity `v = eps - z`, the same at all times."""
    return eps - z


def data_from_velocity(z_t: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
    """The expected data `E[z | z_t] = z_t - t v`."""
    return z_t - over(t, z_t) * v


def noise_from_velocity(z_t: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
    """The expected noise `E[eps | z_t] = z_t + (1 - t) v`; the score of `z_t` is minus this over t."""
    return z_t + (1 - over(t, z_t)) * v
