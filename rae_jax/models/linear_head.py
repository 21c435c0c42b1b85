"""The published linear classifiers of DINOv2, on the encoder as RAE has it: without scale and bias of its last norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.layers import Dense, LayerNorm


class LinearHead(nn.Module):
    """Logits from the class token beside the mean of the patch tokens (Oquab et al., "DINOv2", 2023; one layer).

    `tokens: [B, 1 + N, D]`, the class token first, each of mean 0 and variance 1 -> `[B, num_classes]` float32. The
    last norm's scale and bias, which the encoder here is without, are the head's own.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        tokens = LayerNorm(name="norm")(tokens)
        seen = jnp.concatenate([tokens[:, 0], jnp.mean(tokens[:, 1:], axis=1)], axis=-1)
        return Dense(self.num_classes, ("embed", None), dtype=self.dtype, name="linear")(seen).astype(jnp.float32)
