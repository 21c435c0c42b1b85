"""Representation alignment: a transformer's tokens halfway through, made to agree with a frozen encoder's.

Yu et al., "Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think" (REPA,
2025), which RAC's generators train with.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rae_jax.models.layers import Dense
from rae_jax.models.lightning_dit import Block


class AlignmentProjector(nn.Module):
    """Three linear layers with SiLU between them: tokens `[B, N, D] -> [B, N, features]`, float32."""

    features: int
    hidden: int = 2048
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="layer_0")(x))
        x = nn.silu(Dense(self.hidden, ("mlp", None), dtype=self.dtype, name="layer_1")(x))
        return Dense(self.features, (None, "embed"), dtype=jnp.float32, name="layer_2")(x)


def alignment_loss(projected: jax.Array, tokens: jax.Array) -> jax.Array:
    """One minus the cosine similarity of `projected` and `tokens`, both `[B, N, D]`, averaged over images and tokens.

    Raises:
      ValueError: the shapes differ.
    """
    if projected.shape != tokens.shape:
        raise ValueError(
            f"aligned tokens have shape {projected.shape}, the encoder's {tokens.shape}: the transformer's grid (the "
            "latent's side over latent_patch_size and flow.model.patch_size) has to be that of the encoder's tokens"
        )
    return 1 - jnp.mean(jnp.sum(_unit(projected) * _unit(tokens), axis=-1))


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


def with_tokens_after(
    model: nn.Module, params: Any, depth: int, z_t: jax.Array, t: ArrayLike, condition: Any
) -> tuple[jax.Array, jax.Array]:
    """`(velocity, tokens [B, N, D] after the first `depth` blocks)` of a `LightningDiT`, scanned or not.

    Raises:
      ValueError: the model has not that many blocks.
    """
    if not 1 <= depth <= model.depth:
        raise ValueError(f"alignment after block {depth}: the model has {model.depth} blocks")
    velocity, captured = model.apply(
        {"params": params}, z_t, t, condition,
        capture_intermediates=lambda module, method: isinstance(module, Block) and method == "__call__",
    )  # fmt: skip
    blocks = captured["intermediates"]
    if "blocks" in blocks:
        return velocity, blocks["blocks"]["__call__"][0][depth - 1]
    return velocity, blocks[f"blocks_{depth - 1}"]["__call__"][0]
