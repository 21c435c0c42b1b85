"""SigLIP, image and text in one space: how well an image fits a prompt (Zhai et al., 2023; Tschannen et al., 2025)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.layers import TRUNC_NORMAL, Dense, LayerNorm, apply_blocks, named
from rae_jax.models.representations import PooledVisionTransformer
from rae_jax.models.vit import Block


class TextTower(nn.Module):
    """Token ids `[B, M]`, padded to the length it was trained for, -> one vector a text `[B, D]`.

    Every token sees every other, padding too, and the last one, which may be padding, speaks for the text.

    Attributes:
      vocabulary: rows of the table.
      length: M.
      width, depth, num_heads, mlp_dim: as in `VisionTransformer`.
      features: D.
      dtype: of matrix products.
    """

    vocabulary: int
    length: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = named(nn.initializers.normal(0.02), "vocabulary", "embed")
        x = jnp.take(self.param("token_embedding", init, (self.vocabulary, self.width)), ids, axis=0)
        init = named(nn.initializers.normal(0.02), "tokens", "embed")
        x = apply_blocks(
            Block,
            x + self.param("position_embedding", init, (self.length, self.width)),
            depth=self.depth,
            scan=False,
            remat="none",
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation="gelu_tanh",
            dtype=self.dtype,
        )
        x = LayerNorm(epsilon=1e-6, name="norm")(x)[:, -1]
        return Dense(self.features, ("embed", None), start=TRUNC_NORMAL, dtype=self.dtype, name="out")(x)


class ImageTextModel(nn.Module):
    """Images `[B, H, W, 3]` in [-1, 1] and the token ids `[B, M]` of a text each -> how they fit, two `[B]` float32:
    the cosine of their vectors, and the probability that they belong together.

    Attributes:
      image, text: the two towers, whose vectors are of one length.
    """

    image: PooledVisionTransformer
    text: TextTower

    @nn.compact
    def __call__(self, images: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.constant(jnp.log(10.0)), (1,))
        bias = self.param("bias", nn.initializers.constant(-10.0), (1,))
        vectors = (x.astype(jnp.float32) for x in (self.image(images), self.text(ids)))
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in vectors)
        cosine = jnp.sum(image * text, axis=-1)
        return cosine, jax.nn.sigmoid(cosine * jnp.exp(scale) + bias)
