"""The variational bridge of RPiAE, between the encoder's wide features and the narrow latent that the flow generates.

"A Representation-Pivoted Autoencoder" (2026), stage II.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.layers import PYTORCH, XAVIER, ZEROS, Attention, Dense, LayerNorm, Start, apply_blocks, gelu_exact
from rae_jax.models.posterior import DiagonalGaussian
from rae_jax.models.vit import Block

NORM_EPSILON = 1e-5
# Attention starts as PyTorch's own layer: queries, keys and values as one matrix, and no bias at first.
OUT, QKV = Start(PYTORCH.kernel), XAVIER


def default_heads(width: int) -> int:
    """Attention heads of a bridge for features of this width: one for each 64 channels, at least 1, at most 8."""
    return max(1, min(8, width // 64))


class BridgeEncoder(nn.Module):
    """Features `[B, N, D]` -> posterior of the latent, mean and log-variance `[B, N, latent_channels]`.

    One transformer block without positions, whose first branch is added to a linear map of the input instead of the
    input, then a linear layer to the moments.

    Attributes:
      latent_channels: C of the latent.
      num_heads: attention heads; None for `default_heads(D)`.
      mlp_dim: hidden width of the feed-forward layer; None for D.
      dtype: of matrix products, except the last; norms, softmax and moments are float32.
    """

    latent_channels: int
    num_heads: int | None = None
    mlp_dim: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> DiagonalGaussian:
        width = features.shape[-1]
        attention = Attention(
            heads_of(width, self.num_heads),
            start=OUT,
            qkv_start=QKV,
            dtype=self.dtype,
            name="attention",
        )
        skip = Dense(width, ("embed", None), start=PYTORCH, dtype=self.dtype, name="skip")
        up = Dense(self.mlp_dim or width, ("embed", "mlp"), start=PYTORCH, dtype=self.dtype, name="up")
        # The feed-forward branch starts at zero.
        down = Dense(width, ("mlp", "embed"), start=ZEROS, dtype=self.dtype, name="down")

        x = skip(features).astype(jnp.float32) + attention(self.norm("attention_norm")(features))
        x = x + down(gelu_exact(up(self.norm("mlp_norm")(x))))
        moments = Dense(2 * self.latent_channels, ("embed", "patch"), start=PYTORCH, dtype=jnp.float32, name="moments")(
            x
        )
        return DiagonalGaussian.from_moments(moments)

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name=name)


class BridgeDecoder(nn.Module):
    """Latent `z: [B, N, C]` -> features `[B, N, width]`, float32.

    A linear layer, pre-norm transformer blocks with exact GELU and a feed-forward ratio of 4, a linear layer; neither
    positions nor a final norm.

    Attributes:
      width: D of the features, and of the blocks.
      depth: number of blocks.
      num_heads: attention heads; None for `default_heads(width)`.
      dtype: of matrix products, except the last.
      scan, remat: as in `layers.apply_blocks`.
    """

    width: int
    depth: int = 6
    num_heads: int | None = None
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = Dense(self.width, ("patch", "embed"), start=PYTORCH, dtype=self.dtype, name="embedding")(z)
        x = apply_blocks(
            Block,
            x.astype(jnp.float32),
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=heads_of(self.width, self.num_heads),
            mlp_dim=4 * self.width,
            norm_epsilon=NORM_EPSILON,
            mlp_start=PYTORCH,
            attention_start=OUT,
            qkv_start=QKV,
            dtype=self.dtype,
        )
        return Dense(self.width, ("embed", None), start=PYTORCH, dtype=jnp.float32, name="features")(x)


def heads_of(width: int, num_heads: int | None) -> int:
    """`num_heads`, or the default where it is None.

    Raises:
      ValueError: they do not divide the width.
    """
    heads = default_heads(width) if num_heads is None else num_heads
    if width % heads:
        raise ValueError(f"bridge: {heads} attention heads do not divide features of width {width}; give num_heads")
    return heads
