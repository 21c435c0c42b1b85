"""The ViT decoder of the representation autoencoder: latent tokens back to pixels."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from rae_jax.models.embeddings import SinCosPositions
from rae_jax.models.layers import PYTORCH, Dense, LayerNorm, apply_blocks, named
from rae_jax.models.vit import Block

SIZES = {
    "b": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "l": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    # The published XL decoder keeps L's hidden width.
    "xl": {"width": 1152, "depth": 28, "num_heads": 16, "mlp_dim": 4096},
}


class ViTDecoder(nn.Module):
    """Tokens `z: [B, N, C]` -> images `[B, H, W, 3]` in encoder-normalised pixels, not clamped; `H = W = grid_size P`.

    The decoder of MAE (He et al., 2022) with all tokens present: linear embedding, a learned class token in front,
    fixed sine-cosine positions, transformer blocks with exact GELU, norm, linear to the pixels of each patch. With
    `patch_size` twice the encoder's, the image comes out twice as large from the same tokens.

    A square number of tokens other than `grid_size^2` is resampled bilinearly first. Upstream's `drop_cls_token` is
    `z[:, 1:]` here: nothing mixes tokens before that point.

    Attributes:
      grid_size: patches along each side of the image.
      patch_size: side of a patch in pixels.
      width, depth, num_heads, mlp_dim: of the transformer; published sizes are in `SIZES`.
      position_spacing: distance of neighbouring patches in the sine-cosine positions. diffusers' decoders have
        `16 / grid_size`, which is 1 for 256-pixel images.
      norm_epsilon: of every LayerNorm, 1e-12 in the published configuration.
      trained_tables: whether the positions are trained, as in `DiTDH`.
      dtype: of matrix products, except the last: pixels rounded to bfloat16 would show in 8-bit images.
      scan, remat: as in `layers.apply_blocks`.
    """

    last_layer = "pixels"  # no field: the name of the layer that makes the pixels

    grid_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    qkv_bias: bool = True
    position_spacing: float = 1.0
    norm_epsilon: float = 1e-12
    trained_tables: bool = False
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = Dense(self.width, ("patch", "embed"), start=PYTORCH, dtype=self.dtype, name="embedding")(z)
        x = resample_tokens(x.astype(jnp.float32), self.grid_size)
        token = self.param("cls_token", named(nn.initializers.zeros, None, "embed"), (1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], *token.shape)), x], axis=1)
        positions = SinCosPositions(
            self.grid_size, self.width, True, self.position_spacing, self.trained_tables, name="positions"
        )
        x = apply_blocks(
            Block,
            x + positions(),
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            qkv_bias=self.qkv_bias,
            norm_epsilon=self.norm_epsilon,
            mlp_start=PYTORCH,
            attention_start=PYTORCH,
            dtype=self.dtype,
        )
        x = LayerNorm(epsilon=self.norm_epsilon, name="norm")(x[:, 1:])
        x = Dense(3 * self.patch_size**2, ("embed", "patch"), start=PYTORCH, dtype=jnp.float32, name="pixels")(x)
        return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=self.grid_size, p=self.patch_size, c=3)


def resample_tokens(x: jax.Array, grid_size: int) -> jax.Array:
    """Tokens of a square grid `[B, N, D]`, bilinearly resampled (no antialias) to `[B, grid_size^2, D]`.

    Raises:
      ValueError: N is not a square.
    """
    batch, num_tokens, width = x.shape
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"the decoder got {num_tokens} tokens, which are not a square grid; drop class tokens first")
    if side == grid_size:
        return x
    square = rearrange(x, "b (h w) d -> b h w d", h=side)
    square = jax.image.resize(square, (batch, grid_size, grid_size, width), "linear", antialias=False)
    return rearrange(square, "b h w d -> b (h w) d")
