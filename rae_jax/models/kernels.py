"""What the attention kernels for TPUs share."""

import jax
import jax.numpy as jnp

LANES = 128  # of which a kernel's blocks have multiples


def filled(tokens: int) -> int:
    """The least multiple of `LANES` that holds so many tokens."""
    return -(-tokens // LANES) * LANES


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, accumulated in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)
