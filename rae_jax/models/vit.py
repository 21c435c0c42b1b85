"""Vision Transformer encoders: DINOv2, DINOv3, SigLIP 2 and MAE, the representations whose tokens become latents."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from rae_jax.models.embeddings import sincos_table
from rae_jax.models.layers import (
    MLP,
    TRUNC_NORMAL,
    Attention,
    Dense,
    LayerNorm,
    Start,
    SwiGLU,
    apply_blocks,
    divided_by_batch,
    gelu_exact,
    gelu_tanh,
    named,
)

FEED_FORWARD = {
    "gelu": functools.partial(MLP, activation=gelu_exact),
    "gelu_tanh": functools.partial(MLP, activation=gelu_tanh),
    "swiglu": SwiGLU,
}
# Method and antialiasing of `jax.image.resize`.
INTERPOLATIONS = {
    "bicubic": ("cubic-pytorch", False),
    "bicubic_antialias": ("cubic-pytorch", True),
    "bilinear_antialias": ("linear", True),
}


def choice(field: str, value: str, table: dict[str, Any]) -> Any:
    """`table[value]`; a ValueError that names the field and its values where there is none."""
    if value not in table:
        raise ValueError(f"{field}={value!r} is not one of {sorted(table)}")
    return table[value]


class Block(nn.Module):
    """Pre-norm transformer block `x: [B, N, D] -> [B, N, D]` of Vision Transformers.

    `activation` is `gelu`, `gelu_tanh` or `swiglu`; `layer_scale` multiplies each branch by a learned vector. `rotary`
    and `visible` are as in `attention.attend`. Linear layers start by `mlp_start` and, as in `Attention`, by
    `attention_start` and `qkv_start`. Attention is `fused`, as in `attention.attend`.
    """

    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_scale: bool = False
    qkv_bias: bool = True
    key_bias: bool = True
    norm_epsilon: float = 1e-6
    mlp_start: Start = TRUNC_NORMAL
    attention_start: Start = TRUNC_NORMAL
    qkv_start: Start | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, rotary: tuple[jax.Array, jax.Array] | None = None, visible: jax.Array | None = None
    ) -> jax.Array:
        def scaled(branch: jax.Array, name: str) -> jax.Array:
            if not self.layer_scale:
                return branch
            return branch * self.param(name, named(nn.initializers.ones, None), (branch.shape[-1],))

        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name=name)

        x = divided_by_batch(x)
        attention = Attention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            start=self.attention_start,
            qkv_start=self.qkv_start,
            fused=True,
            dtype=self.dtype,
            name="attention",
        )
        feed_forward = choice("activation", self.activation, FEED_FORWARD)
        mlp = feed_forward(self.mlp_dim, start=self.mlp_start, dtype=self.dtype, name="mlp")
        x = x + scaled(attention(norm("attention_norm")(x), rotary, visible), "attention_scale")
        return x + scaled(mlp(norm("mlp_norm")(x)), "mlp_scale")


class Embedding(nn.Module):
    """Images `[B, H, W, 3]` -> class token, registers, then one token a patch: `[B, 1 + R + N, D]`.

    Positions are added to the class token and the patches, not to the registers. The table belongs to square images of
    `image_size` and is resampled to other grids; `positions="rotary"` has none. With `keep: [B, M]` only those patches
    go on, in that order.
    """

    image_size: int
    patch_size: int
    width: int
    num_registers: int = 0
    cls_token: bool = True
    positions: str = "learned"
    position_interpolation: str = "bicubic"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        batch, height, width, _ = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height} x {width} do not divide into patches of {self.patch_size} x {self.patch_size}; "
                f"resize them to a multiple of {self.patch_size}"
            )
        grid = (height // self.patch_size, width // self.patch_size)
        patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=self.patch_size, q=self.patch_size)
        x = Dense(self.width, ("patch", "embed"), start=TRUNC_NORMAL, dtype=self.dtype, name="patch")(patches)
        class_position, patch_positions = self.position_table(grid)
        # Float32 from here on: so is the residual stream.
        x = x.astype(jnp.float32) + patch_positions
        if keep is not None:
            x = jnp.take_along_axis(x, keep[:, :, None], axis=1)

        def prepend(token: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.broadcast_to(token, (batch, *token.shape)), x], axis=1)

        if self.num_registers:
            tokens = named(TRUNC_NORMAL.kernel, None, "embed")
            x = prepend(self.param("register_tokens", tokens, (self.num_registers, self.width)), x)
        if self.cls_token:
            token = self.param("cls_token", named(TRUNC_NORMAL.kernel, None, "embed"), (1, self.width))
            x = prepend(token + class_position, x)
        return x

    def position_table(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """What is added to the class token `[1 or 0, D]` and to the patches of a `grid` `[h * w, D]`."""
        if self.positions == "rotary":
            return jnp.zeros((1, 1)), jnp.zeros((1, 1))
        side, rest = divmod(self.image_size, self.patch_size)
        if rest:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        first = 1 if self.cls_token else 0

        def fixed(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jnp.asarray(sincos_table(side, self.width, class_token=self.cls_token), dtype)

        init = choice("positions", self.positions, {"learned": TRUNC_NORMAL.kernel, "sincos": fixed, "rotary": None})
        table = self.param("position_embedding", named(init, "tokens", "embed"), (first + side * side, self.width))
        if self.positions == "sincos":
            table = jax.lax.stop_gradient(table)
        class_position, patch_positions = table[:first], table[first:]
        if grid != (side, side):
            square = rearrange(patch_positions, "(h w) d -> h w d", h=side)
            method, antialias = choice("position_interpolation", self.position_interpolation, INTERPOLATIONS)
            resized = jax.image.resize(square, (*grid, self.width), method, antialias=antialias)
            patch_positions = rearrange(resized, "h w d -> (h w) d")
        return class_position, patch_positions


class VisionTransformer(nn.Module):
    """Encoder `images: [B, H, W, 3]`, normalised by the encoder's own pixel mean and deviation, -> patch tokens.

    The class token and the registers take part in attention and are dropped at the end; the last LayerNorm has
    neither scale nor bias, as RAE has it: every token comes out with mean 0 and variance 1.

    Attributes:
      image_size: side of the images that the position table was made for; others resample the table. 0 where there is
        none: rotary positions.
      patch_size, width, depth, num_heads, mlp_dim: the usual. `mlp_dim` is the hidden width, gated or not.
      num_registers: register tokens between the class token and the patches.
      cls_token: whether there is a class token.
      layer_scale: a learned vector on each residual branch (DINOv2).
      activation: `gelu` (exact), `gelu_tanh`, or `swiglu` for a gated feed-forward.
      qkv_bias, key_bias: whether the projections have a bias, and whether the key's has one too.
      positions: `learned`; `sincos` for a table that starts at `sincos_table` and gets no gradient (MAE); or `rotary`
        for none, and `rotary_positions` in the attention instead (DINOv3).
      rope_theta: base of the rotary frequencies.
      stored_periods: whether their periods are a parameter, without a gradient, as in Meta's own files, where they are
        rounded to bfloat16; else they are computed.
      layers: numbers of blocks, from 0, whose tokens are averaged, each after the last norm, and to which the mean of
        the deepest one's over the patches is added (RAEv2); none: the last block's tokens alone.
      position_interpolation: `bicubic`, `bicubic_antialias` or `bilinear_antialias`, all as PyTorch has them.
      norm_epsilon: of every LayerNorm.
      dtype: of matrix products; norms, softmax, the residual stream and the tokens returned are float32.
      scan, remat: as in `layers.apply_blocks`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_registers: int = 0
    cls_token: bool = True
    layer_scale: bool = False
    activation: str = "gelu"
    qkv_bias: bool = True
    key_bias: bool = True
    positions: str = "learned"
    position_interpolation: str = "bicubic"
    rope_theta: float = 100.0
    stored_periods: bool = False
    layers: tuple[int, ...] = ()
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        keep: jax.Array | None = None,
        coordinate_scales: jax.Array | None = None,
        class_token: bool = False,
    ) -> jax.Array:
        """Patch tokens `[B, N, D]` in row-major order.

        With `keep: [B, M]`, indices of patches, only those enter the transformer (masked autoencoding): `[B, M, D]`.
        `coordinate_scales: [depth]` multiply the patches' coordinates in each block's rotary positions. With
        `class_token` the last block's class token goes first: `[B, 1 + N, D]`.

        Raises:
          ValueError: the images do not divide into patches; some are to be kept, and positions are rotary; coordinates
            are to be scaled, and positions are not; `layers` are not numbers of blocks, each once; or there is no class
            token of the last block alone.
        """
        x = Embedding(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            num_registers=self.num_registers,
            cls_token=self.cls_token,
            positions=self.positions,
            position_interpolation=self.position_interpolation,
            dtype=self.dtype,
            name="embedding",
        )(images, keep)
        num_prefix = int(self.cls_token) + self.num_registers
        rotary, each = None, ()
        layers = self.layers or (self.depth - 1,)
        if len(set(layers)) < len(layers) or not all(0 <= layer < self.depth for layer in layers):
            raise ValueError(f"layers={tuple(layers)} are not numbers of {self.depth} blocks, from 0, each once")
        if coordinate_scales is not None and self.positions != "rotary":
            raise ValueError(f"coordinates are scaled where positions are rotary; they are {self.positions!r} here")
        if self.positions == "rotary":
            if keep is not None:
                raise ValueError("an encoder with positions='rotary' takes all patches: they turn by their place")
            grid = (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
            periods = jnp.asarray(rotary_periods(self.width // self.num_heads, self.rope_theta))
            if self.stored_periods:
                periods = jax.lax.stop_gradient(self.param("rope_periods", named(lambda key: periods, None)))
            rotary = rotary_positions(grid, periods.astype(jnp.float32), num_prefix, coordinate_scales)
            each = () if coordinate_scales is None else (rotary,)
        _, outputs = apply_blocks(
            Block,
            x,
            *(() if each else (rotary,)),
            each=each,
            kept=[layer + 1 for layer in layers],
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            layer_scale=self.layer_scale,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        norm = LayerNorm(epsilon=self.norm_epsilon, affine=False, name="norm")
        if class_token:
            if not self.cls_token or self.layers:
                raise ValueError("the class token is wanted of an encoder without one, or of layers that are averaged")
            return norm(jnp.concatenate([outputs[0][:, :1], outputs[0][:, num_prefix:]], axis=1))
        tokens = [norm(output[:, num_prefix:]) for output in outputs]
        if not self.layers:
            return tokens[0]
        deepest = tokens[layers.index(max(layers))]
        return sum(tokens) / len(tokens) + jnp.mean(deepest, axis=1, keepdims=True)


class PackedVisionTransformer(nn.Module):
    """Patches of several images in one list, as NaViT has them (Dehghani et al., 2023): SigLIP's layers.

    `patches: [B, N, P]`, flattened as (row, column, channel); `position: [B, N]`, rows of the table; `together:
    [B, N, N]`, whether two patches are of one image -> tokens `[B, N, D]` float32, after a norm with scale and bias.

    Attributes:
      positions: rows of the learned table.
      width, depth, num_heads, mlp_dim, norm_epsilon, dtype, scan, remat: as in `VisionTransformer`.
    """

    positions: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, patches: jax.Array, position: jax.Array, together: jax.Array) -> jax.Array:
        x = Dense(self.width, ("patch", "embed"), start=TRUNC_NORMAL, dtype=self.dtype, name="patch")(patches)
        init = named(TRUNC_NORMAL.kernel, "tokens", "embed")
        table = self.param("position_embedding", init, (self.positions, self.width))
        x = apply_blocks(
            Block,
            x.astype(jnp.float32) + jnp.take(table, position, axis=0),
            None,
            together,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation="gelu_tanh",
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        return LayerNorm(epsilon=self.norm_epsilon, name="norm")(x)


def rotary_periods(head_dim: int, theta: float) -> np.ndarray:
    """DINOv3's periods `theta^(i / (head_dim / 4))`, `[head_dim / 4]`, float32.

    Raises:
      ValueError: `head_dim` is not divisible by 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need a head width divisible by 4, got {head_dim}")
    return (theta ** (np.arange(head_dim // 4) / (head_dim // 4))).astype(np.float32)


def rotary_positions(
    grid: tuple[int, int], periods: jax.Array, num_prefix: int, scales: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """DINOv3's cosines and sines, each `[num_prefix + h * w, 2 * periods]`, float32, for `attention.attend`.

    A patch is where its centre is, each coordinate from -1 to 1 over the image whatever the grid. The first half of the
    angles turns with the row, the second with the column, by `2 pi` times the coordinate over each of the periods. The
    `num_prefix` tokens before the patches do not turn (Siméoni et al., "DINOv3", 2025). With `scales: [L]` of
    the coordinates there are L such tables, `[L, ...]`.
    """
    centres = [2.0 * (np.arange(size) + 0.5) / size - 1.0 for size in grid]
    row, column = (jnp.asarray(place.reshape(-1, 1), jnp.float32) for place in np.meshgrid(*centres, indexing="ij"))
    angle = jnp.concatenate([2 * math.pi * position / periods for position in (row, column)], axis=1)
    angle = jnp.pad(angle, ((num_prefix, 0), (0, 0)))
    if scales is not None:
        angle = scales[:, None, None] * angle
    return jnp.cos(angle), jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """A published encoder: where its weights are, what it is made of, and what RAE feeds it.

    `input_size` is the side of its input images, `mean` and `std` normalise their pixels in [0, 1].
    """

    checkpoint: str
    architecture: dict[str, Any]
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _dinov2(size: str, width: int, depth: int, num_heads: int, mlp_dim: int, **other: Any) -> PretrainedEncoder:
    architecture = {
        "image_size": 518,
        "patch_size": 14,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "num_registers": 4,
        "layer_scale": True,
        "position_interpolation": "bicubic_antialias",
        **other,
    }
    name = f"facebook/dinov2-with-registers-{size}"
    return PretrainedEncoder(name, architecture, 224, IMAGENET_MEAN, IMAGENET_STD)


def _siglip2(
    size: str, width: int, depth: int, num_heads: int, mlp_dim: int, patch: int = 16, pixels: int = 256
) -> PretrainedEncoder:
    architecture = {
        "image_size": pixels,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "cls_token": False,
        "activation": "gelu_tanh",
    }
    name = f"google/siglip2-{size}-patch{patch}-{pixels}"
    return PretrainedEncoder(name, architecture, pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _webssl(size: str, width: int, depth: int, num_heads: int, mlp_dim: int) -> PretrainedEncoder:
    """DINOv2's architecture at 224 pixels, without registers, trained on web images."""
    architecture = {
        "image_size": 224,
        "patch_size": 14,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "layer_scale": True,
    }
    return PretrainedEncoder(f"facebook/webssl-dino{size}-224", architecture, 224, IMAGENET_MEAN, IMAGENET_STD)


def _mae(size: str, width: int, depth: int, num_heads: int, mlp_dim: int) -> PretrainedEncoder:
    architecture = {
        "image_size": 224,
        "patch_size": 16,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "positions": "sincos",
        "norm_epsilon": 1e-12,
    }
    return PretrainedEncoder(f"facebook/vit-mae-{size}", architecture, 256, IMAGENET_MEAN, IMAGENET_STD)


def _dinov3(size: str, width: int, depth: int, num_heads: int) -> PretrainedEncoder:
    architecture = {
        "image_size": 0,
        "patch_size": 16,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": 4 * width,
        "num_registers": 4,
        "layer_scale": True,
        "key_bias": False,
        "positions": "rotary",
        "norm_epsilon": 1e-5,
    }
    name = f"facebook/dinov3-vit{size}16-pretrain-lvd1689m"
    return PretrainedEncoder(name, architecture, 256, IMAGENET_MEAN, IMAGENET_STD)


PRETRAINED = {
    "dinov2_s": _dinov2("small", 384, 12, 6, 1536),
    "dinov2_b": _dinov2("base", 768, 12, 12, 3072),
    "dinov2_l": _dinov2("large", 1024, 24, 16, 4096),
    "dinov2_g": _dinov2("giant", 1536, 40, 24, 4096, activation="swiglu"),
    "dinov3_s": _dinov3("s", 384, 12, 6),
    "dinov3_b": _dinov3("b", 768, 12, 12),
    "dinov3_l": _dinov3("l", 1024, 24, 16),
    "siglip2_b": _siglip2("base", 768, 12, 12, 3072),
    "siglip2_so400m": _siglip2("so400m", 1152, 27, 16, 4304),
    "siglip2_so400m_14": _siglip2("so400m", 1152, 27, 16, 4304, patch=14, pixels=224),
    "webssl_300m": _webssl("300m-full2b", 1024, 24, 16, 4096),
    "mae_b": _mae("base", 768, 12, 12, 3072),
    "mae_l": _mae("large", 1024, 24, 16, 4096),
}
