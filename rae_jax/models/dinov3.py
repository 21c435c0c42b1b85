"""DINOv3 Vision Transformer encoders: rotary positions of the patches take the place of a table.

Siméoni et al., "DINOv3" (2025).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from rae_jax.models.layers import Attention, LayerNorm, apply_blocks, dense, named
from rae_jax.models.vit import FEED_FORWARD, IMAGENET_MEAN, IMAGENET_STD, PretrainedEncoder, choice, trunc_normal


def rotary_table(grid: tuple[int, int], head_dim: int, theta: float, num_prefix: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, each `[num_prefix + h * w, head_dim / 2]`, float32, for `layers.rotate`.

    A patch is where its centre is, each coordinate from -1 to 1 over the image whatever the grid. The first half of the
    angles turns with the row, the second with the column, by `2 pi` times the coordinate over `theta^(i / (head_dim /
    4))`. The `num_prefix` tokens before the patches do not turn.

    Raises:
      ValueError: `head_dim` is not divisible by 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need a head width divisible by 4, got {head_dim}")
    periods = theta ** (np.arange(head_dim // 4) / (head_dim // 4))
    centres = [2.0 * (np.arange(size) + 0.5) / size - 1.0 for size in grid]
    row, column = np.meshgrid(*centres, indexing="ij")
    angle = np.concatenate([2 * np.pi * position.reshape(-1, 1) / periods for position in (row, column)], axis=1)
    angle = np.concatenate([np.zeros((num_prefix, head_dim // 2)), angle])
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class RotaryBlock(nn.Module):
    """Pre-norm transformer block `x: [B, N, D] -> [B, N, D]` with layer scale and rotary positions."""

    num_heads: int
    mlp_dim: int
    activation: str
    qkv_bias: bool
    key_bias: bool
    norm_epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
        def scale(name: str) -> jax.Array:
            return self.param(name, named(nn.initializers.ones, None), (x.shape[-1],))

        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name=name)

        attention = Attention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            kernel_init=trunc_normal,
            dtype=self.dtype,
            name="attention",
        )
        feed_forward = choice("activation", self.activation, FEED_FORWARD)
        mlp = feed_forward(self.mlp_dim, kernel_init=trunc_normal, dtype=self.dtype, name="mlp")
        x = x + attention(norm("attention_norm")(x), rotary) * scale("attention_scale")
        return x + mlp(norm("mlp_norm")(x)) * scale("mlp_scale")


class DinoV3(nn.Module):
    """Encoder `images: [B, H, W, 3]`, normalised by ImageNet's mean and deviation, -> patch tokens `[B, N, D]`.

    As in `vit.VisionTransformer`, the class token and the registers are dropped at the end, and the last LayerNorm has
    neither scale nor bias. Images may have any size that divides into patches.

    Attributes:
      patch_size, width, depth, num_heads, mlp_dim: the usual. `mlp_dim` is the hidden width, gated or not.
      num_registers: register tokens between the class token and the patches.
      activation: `gelu` (exact), or `swiglu` for a gated feed-forward.
      qkv_bias, key_bias: whether the projections have a bias, and whether the key's has one too.
      rope_theta: base of the rotary frequencies.
      norm_epsilon: of every LayerNorm.
      dtype: of matrix products; norms, softmax, the residual stream and the tokens returned are float32.
      scan, remat: as in `layers.apply_blocks`.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_registers: int = 4
    activation: str = "gelu"
    qkv_bias: bool = True
    key_bias: bool = False
    rope_theta: float = 100.0
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Patch tokens `[B, N, D]` in row-major order.

        Raises:
          ValueError: the images do not divide into patches.
        """
        batch, height, width, _ = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height} x {width} do not divide into patches of {self.patch_size} x {self.patch_size}; "
                f"resize them to a multiple of {self.patch_size}"
            )
        patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=self.patch_size, q=self.patch_size)
        x = dense(self.width, ("patch", "embed"), init=trunc_normal, dtype=self.dtype, name="patch")(patches)
        tokens = self.param("cls_token", named(trunc_normal, None, "embed"), (1, self.width))
        if self.num_registers:
            registers = named(trunc_normal, None, "embed")
            registers = self.param("register_tokens", registers, (self.num_registers, self.width))
            tokens = jnp.concatenate([tokens, registers])
        # Float32 from here on, as the tokens are.
        x = jnp.concatenate([jnp.broadcast_to(tokens, (batch, *tokens.shape)), x], axis=1)
        grid = (height // self.patch_size, width // self.patch_size)
        rotary = rotary_table(grid, self.width // self.num_heads, self.rope_theta, len(tokens))
        x = apply_blocks(
            RotaryBlock,
            x,
            rotary,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        return LayerNorm(epsilon=self.norm_epsilon, affine=False, name="norm")(x[:, len(tokens) :])


def _dinov3(size: str, width: int, depth: int, num_heads: int) -> PretrainedEncoder:
    architecture = {"patch_size": 16, "width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": 4 * width}
    name = f"facebook/dinov3-vit{size}16-pretrain-lvd1689m"
    return PretrainedEncoder(name, architecture, 256, IMAGENET_MEAN, IMAGENET_STD)


PRETRAINED = {
    "dinov3_s": _dinov3("s", 384, 12, 6),
    "dinov3_b": _dinov3("b", 768, 12, 12),
    "dinov3_l": _dinov3("l", 1024, 24, 16),
}
