"""Networks that see a whole image as one vector, as evaluations compare sets of images: pooled ViTs and ConvNeXt V2."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.layers import MLP, TRUNC_NORMAL, Dense, LayerNorm, apply_blocks, gelu_exact, gelu_tanh, named
from rae_jax.models.vit import Block, Embedding


class PooledVisionTransformer(nn.Module):
    """A Vision Transformer with its last norm, `images: [B, H, W, 3]`, normalised, -> one vector an image `[B, D]`.

    Images that do not divide into patches are padded with zeros below and on the right; positions are resampled to the
    grid, antialiased. That is timm's `dynamic_img_size` and `dynamic_img_pad`.

    Attributes:
      image_size, patch_size, width, depth, num_heads, mlp_dim, cls_token, layer_scale, activation, norm_epsilon: as in
        `VisionTransformer`.
      pre_norm: a norm before the first block (CLIP).
      pooling: "class" for the class token, or "attention" for a learned query that attends to the tokens (SigLIP).
      dtype: of matrix products.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    cls_token: bool = True
    layer_scale: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    pre_norm: bool = False
    pooling: str = "class"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        below, right = (-size % self.patch_size for size in images.shape[1:3])
        images = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        x = Embedding(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            cls_token=self.cls_token,
            position_interpolation="bicubic_antialias",
            dtype=self.dtype,
            name="embedding",
        )(images)
        if self.pre_norm:
            x = LayerNorm(epsilon=self.norm_epsilon, name="pre_norm")(x)
        x = apply_blocks(
            Block,
            x,
            depth=self.depth,
            scan=False,
            remat="none",
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            layer_scale=self.layer_scale,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        x = LayerNorm(epsilon=self.norm_epsilon, name="norm")(x)
        if self.pooling == "class":
            return x[:, 0]
        return AttentionPool(self.num_heads, self.mlp_dim, self.norm_epsilon, self.dtype, name="pool")(x)


class AttentionPool(nn.Module):
    """One learned query attends to `x: [B, N, D]`, then a feed-forward with a residual: `[B, D]` (SigLIP's head)."""

    num_heads: int
    mlp_dim: int
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        heads = (self.num_heads, width // self.num_heads)

        def linear(features: int, name: str) -> Dense:
            return Dense(features, ("embed", None), start=TRUNC_NORMAL, dtype=self.dtype, name=name)

        latent = self.param("latent", named(TRUNC_NORMAL.kernel, None, "embed"), (1, width))
        query = linear(width, "query")(latent).reshape(1, 1, *heads)
        key, value = (linear(width, name)(x).reshape(batch, tokens, *heads) for name in ("key", "value"))
        query = jnp.broadcast_to(query, (batch, *query.shape[1:]))
        seen = jax.nn.dot_product_attention(query, key, value).reshape(batch, width)
        pooled = linear(width, "out")(seen).astype(jnp.float32)
        activated = MLP(self.mlp_dim, gelu_tanh, start=TRUNC_NORMAL, dtype=self.dtype, name="mlp")
        return pooled + activated(LayerNorm(epsilon=self.norm_epsilon, name="norm")(pooled)).astype(jnp.float32)


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2 (Woo et al., 2023) up to its last stage, `images: [B, H, W, 3]` -> the mean over space `[B, D]`.

    Attributes:
      widths, depths: of each stage.
      dtype: of matrix products.
    """

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _patches(self.widths[0], 4, self.dtype, "stem")(images)
        x = LayerNorm(epsilon=1e-6, name="stem_norm")(x)
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if stage:
                x = LayerNorm(epsilon=1e-6, name=f"stages_{stage}_norm")(x)
                x = _patches(width, 2, self.dtype, f"stages_{stage}_downsample")(x)
            for block in range(depth):
                x = ConvNeXtBlock(self.dtype, name=f"stages_{stage}_blocks_{block}")(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def _patches(width: int, size: int, dtype: Any, name: str) -> nn.Conv:
    return nn.Conv(width, (size, size), strides=size, padding="VALID", dtype=dtype, name=name)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7 convolution and a feed-forward with global response normalisation, with a residual."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), feature_group_count=width, dtype=self.dtype, name="depthwise")(x)
        y = LayerNorm(epsilon=1e-6, name="norm")(y)
        y = gelu_exact(nn.Dense(4 * width, dtype=self.dtype, name="up")(y)).astype(jnp.float32)
        scale, bias = (self.param(n, nn.initializers.zeros, (4 * width,)) for n in ("response_scale", "response_bias"))
        energy = jnp.linalg.norm(y, axis=(1, 2), keepdims=True)
        y = y + scale * (y * energy / (jnp.mean(energy, axis=-1, keepdims=True) + 1e-6)) + bias
        return x + nn.Dense(width, dtype=self.dtype, name="down")(y).astype(jnp.float32)
