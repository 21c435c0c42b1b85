"""LightningDiT, the diffusion transformer that predicts the velocity in latent space, and the blocks it is made of.

Yao, Yang & Wang, "Reconstruction vs. Generation" (2025), in the variant of the RAE paper: a Diffusion Transformer with
RMSNorm, SwiGLU, rotary positions, and conditioning through adaptive layer norm that starts at zero. `dit_dh` builds on
the same blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from rae_jax.models.embeddings import LabelEmbedding, SinCosPositions, rotary_table, time_embeddings
from rae_jax.models.layers import (
    MLP,
    ZEROS,
    Attention,
    Dense,
    LayerNorm,
    RMSNorm,
    Start,
    SwiGLU,
    apply_blocks,
    divided_by_batch,
    gelu_tanh,
)

# Backbones of the RAE paper (Table 13).
SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
    "XXL": {"width": 1280, "depth": 32, "num_heads": 16},
    "H": {"width": 1536, "depth": 32, "num_heads": 16},
    "G": {"width": 2048, "depth": 40, "num_heads": 16},
    "T": {"width": 2688, "depth": 40, "num_heads": 21},
}

# What the condition gives a block and the final layer, in the order in which the official checkpoints stack them.
BLOCK_MODULATION = ("attention_shift", "attention_scale", "attention_gate", "mlp_shift", "mlp_scale", "mlp_gate")
FINAL_MODULATION = ("shift", "scale")


def fused_xavier(parts: int) -> Start:
    """Xavier uniform for one of `parts` equal matrices `[in, out]` that the reference keeps and draws as one."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        limit = (6 / (shape[0] + parts * shape[1])) ** 0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return Start(init)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Adaptive layer norm's affine map `x (1 + scale) + shift`."""
    return x * (1 + scale) + shift


def make_norm(rms_norm: bool, name: str) -> nn.Module:
    """The norm before a modulation: RMSNorm with a scale, or LayerNorm without parameters; float32 output."""
    return RMSNorm(name=name) if rms_norm else LayerNorm(affine=False, name=name)


class Modulation(nn.Module):
    """A vector of `width` for each of `names` from the condition, zero at first: adaLN-Zero (Peebles & Xie).

    `condition: [B, C]` for a whole image, or `[B, N, C]` for each token -> arrays `[B, 1 or N, width]`, one a name.
    Each has its own kernel: the gradients of a single wide one would first have to be put side by side.
    """

    names: tuple[str, ...]
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        # One vector an image costs nothing and keeps its precision; one a token is a matrix product like any other.
        each_token = condition.ndim == 3
        condition = nn.silu(condition.astype(jnp.float32))
        linear = functools.partial(
            Dense,
            self.width,
            ("embed", "mlp"),
            start=ZEROS,
            dtype=self.dtype if each_token else jnp.float32,
            collect=each_token,
        )
        return [linear(name=name)(condition if each_token else condition[:, None]) for name in self.names]


class Block(nn.Module):
    """Attention and feed-forward, each normalised and modulated before and gated after.

    `x: [B, N, D]`, `condition: [B, C]` or `[B, N, C]` -> `[B, N, D]` float32. Without a condition nothing is modulated
    or gated. `visible: [B, N]` as in `attention.attend`.

    Attributes:
      start: number of matrices that the reference fuses into one -> how each starts.
      fused_attention: as in `attention.attend`.
    """

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    swiglu: bool
    rms_norm: bool
    start: Callable[[int], Start]
    fused_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array | None,
        rotary: tuple[jax.Array, jax.Array] | None = None,
        visible: jax.Array | None = None,
    ) -> jax.Array:
        x = divided_by_batch(x)
        modulation = [0, 0, 1, 0, 0, 1]
        if condition is not None:
            modulation = Modulation(BLOCK_MODULATION, x.shape[-1], self.dtype, name="modulation")(condition)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation

        y = modulate(make_norm(self.rms_norm, "attention_norm")(x), shift, scale)
        x = x + gate * self.attention()(y, rotary, visible)
        y = modulate(make_norm(self.rms_norm, "mlp_norm")(x), mlp_shift, mlp_scale)
        return x + mlp_gate * self.feed_forward(x.shape[-1])(y)

    def attention(self) -> Attention:
        qk_norm = "rms" if self.rms_norm else "layer"
        return Attention(
            self.num_heads,
            qk_norm=qk_norm if self.qk_norm else None,
            start=self.start(1),
            qkv_start=self.start(1),  # drawn as one matrix
            fused=self.fused_attention,
            dtype=self.dtype,
            name="attention",
        )

    def feed_forward(self, width: int) -> nn.Module:
        hidden = int(width * self.mlp_ratio)
        if not self.swiglu:
            return MLP(hidden, gelu_tanh, start=self.start(1), dtype=self.dtype, name="mlp")
        return SwiGLU(
            int(2 / 3 * hidden),
            start=self.start(1),
            gate_up_start=self.start(2),
            dtype=self.dtype,
            name="mlp",
        )


class FinalLayer(nn.Module):
    """Norm, modulation and projection, zero at first: `x: [B, N, D] -> [B, N, features]` float32."""

    features: int
    rms_norm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        shift, scale = Modulation(FINAL_MODULATION, x.shape[-1], self.dtype, name="modulation")(condition)
        x = modulate(make_norm(self.rms_norm, "norm")(x), shift, scale)
        linear = Dense(self.features, ("embed", "patch"), start=ZEROS, dtype=jnp.float32, name="linear")
        return linear(x)


def rotary(side: int, width: int, num_heads: int) -> tuple[jax.Array, jax.Array]:
    """The rotary table for `num_heads` heads of a model of `width` on a square grid of tokens.

    Raises:
      ValueError: the heads do not divide the width, or their width is not a multiple of 4.
    """
    if width % num_heads:
        raise ValueError(f"width {width} does not divide over {num_heads} heads")
    cos, sin = rotary_table(side, width // num_heads)
    return jnp.asarray(cos), jnp.asarray(sin)


def patchify(z: jax.Array, grid_size: int, patch_size: int) -> jax.Array:
    """`[B, grid^2, C] -> [B, (grid / P)^2, P * P * C]`: squares of P x P tokens become one.

    Raises:
      ValueError: `z` is not a grid of that size, or patches do not divide it.
    """
    if grid_size % patch_size:
        raise ValueError(
            f"a grid of {grid_size} x {grid_size} tokens does not divide into patches of side {patch_size}"
        )
    if z.ndim != 3 or z.shape[1] != grid_size**2:
        raise ValueError(f"z has shape {z.shape}; a grid of {grid_size} x {grid_size} needs [B, {grid_size**2}, C]")
    return rearrange(z, "b (h p w q) c -> b (h w) (p q c)", h=grid_size // patch_size, p=patch_size, q=patch_size)


def unpatchify(x: jax.Array, grid_size: int, patch_size: int) -> jax.Array:
    """The inverse of `patchify`."""
    return rearrange(x, "b (h w) (p q c) -> b (h p w q) c", h=grid_size // patch_size, p=patch_size, q=patch_size)


class Trunk(nn.Module):
    """What `LightningDiT` and `PromptedDiT` share, whatever they are told; attributes as of `LightningDiT`."""

    def trunk(self, z: jax.Array, told: jax.Array, out_channels: int) -> jax.Array:
        """`[B, N, out_channels]` of `z: [B, N, C]`; `told` is `[B, D]`, or `[B, N / P^2, D]` to each token its own."""
        side = self.grid_size // self.patch_size
        patches = patchify(z, self.grid_size, self.patch_size)
        x = Dense(self.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding")(patches)
        x = x + SinCosPositions(side, self.width, trained=self.trained_tables, name="positions")()
        x = apply_blocks(
            Block,
            x,
            told,
            rotary(side, self.width, self.num_heads) if self.rope else None,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            swiglu=self.swiglu,
            rms_norm=self.rms_norm,
            start=fused_xavier,
            fused_attention=self.fused_attention,
            dtype=self.dtype,
        )
        final = FinalLayer(self.patch_size**2 * out_channels, self.rms_norm, self.dtype, name="final")
        return unpatchify(final(x, told), self.grid_size, self.patch_size)


class LightningDiT(Trunk):
    """Velocity of noisy latent tokens, or the mean velocity of a flow map.

    `model.apply({"params": p}, z, t, condition)`, with `z: [B, N, C]` row-major over the grid, `t: [B]` in [0, 1] and
    `labels: [B]` integers (`num_classes` is the null label) -> `v: [B, N, C]` float32. A flow map
    (`flow_map=True`) also takes `r: [B]`, the end of the interval `[r, t]`.

    Attributes:
      grid_size: side of the square grid of latent tokens; N = grid_size^2.
      in_channels: C.
      num_classes: classes beside the null label.
      width, depth, num_heads: of the backbone; `SIZES` names the papers'.
      patch_size: side of the square of latent tokens that becomes one token of the transformer.
      mlp_ratio: hidden width of a feed-forward layer over the model's width; a SwiGLU has two thirds of that.
      qk_norm: normalise queries and keys.
      swiglu: SwiGLU feed-forward, rather than a GELU one.
      rms_norm: RMSNorm, rather than LayerNorm without parameters.
      rope: rotary positions, beside the sine-cosine ones at the input.
      learn_sigma: predict twice the channels and drop the second half, as the original DiT.
      flow_map: condition on t - r too.
      guided: and on a guidance scale and its interval: `guidance: [B, 3]`, (w, t_min, t_max).
      trained_tables: as in `DiTDH`.
      fused_attention: as in `attention.attend`.
      dtype: of matrix products.
      scan, remat: as in `layers.apply_blocks`.
    """

    grid_size: int
    in_channels: int
    num_classes: int
    width: int
    depth: int
    num_heads: int
    patch_size: int = 1
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    swiglu: bool = True
    rms_norm: bool = True
    rope: bool = True
    learn_sigma: bool = False
    flow_map: bool = False
    guided: bool = False
    trained_tables: bool = False
    fused_attention: bool = True
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        condition: jax.Array,
        r: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        embedded = time_embeddings(
            t, r, guidance, width=self.width, flow_map=self.flow_map, guided=self.guided, trained=self.trained_tables
        )
        told = sum(embedded) + LabelEmbedding(self.num_classes, self.width, name="label_embedding")(condition)

        v = self.trunk(z, told, self.in_channels * (2 if self.learn_sigma else 1))
        return v[..., : self.in_channels]
