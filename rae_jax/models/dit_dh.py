"""DiT^DH: a diffusion transformer with a wide, shallow head (RAE, Section 5), the paper's generator.

A model narrower than the latent tokens cannot fit them (Theorem 1). Rather than widening everything, a head two blocks
deep and wider than the latent embeds the noisy latent anew, and the backbone's output conditions it token by token.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.embeddings import LabelEmbedding, SinCosPositions, time_embeddings
from rae_jax.models.layers import PYTORCH, Dense, Start, apply_blocks
from rae_jax.models.lightning_dit import SIZES as BACKBONES
from rae_jax.models.lightning_dit import Block, FinalLayer, patchify, rotary, unpatchify

HEAD = {"head_width": 2048, "head_depth": 2, "head_num_heads": 16}
SIZES = {name: backbone | HEAD for name, backbone in BACKBONES.items()}


def start(parts: int) -> Start:
    """How linear layers start: the released DiT^DH leaves them at PyTorch's default, where fusing changes nothing."""
    del parts
    return PYTORCH


class DiTDH(nn.Module):
    """Velocity of noisy latent tokens, or the mean velocity of a flow map (MF-RAE).

    `model.apply({"params": p}, z, t, condition)`, with `z: [B, N, C]` row-major over the grid, `t: [B]` in [0, 1] and
    `labels: [B]` integers (`num_classes` is the null label) -> `v: [B, N, C]` float32. A flow map
    (`flow_map=True`) also takes `r: [B]`, the end of the interval `[r, t]`.

    Attributes:
      grid_size: side of the square grid of latent tokens; N = grid_size^2.
      in_channels: C.
      num_classes: classes beside the null label.
      width, depth, num_heads: of the backbone.
      head_width, head_depth, head_num_heads: of the head; `SIZES` names the papers' combinations.
      patch_size: side of the square of latent tokens that becomes one token of the transformer.
      mlp_ratio: hidden width of a feed-forward layer over the model's width; a SwiGLU has two thirds of that.
      qk_norm: normalise queries and keys.
      swiglu: SwiGLU feed-forward, rather than a GELU one.
      rms_norm: RMSNorm, rather than LayerNorm without parameters.
      absolute_positions: sine-cosine positions at the backbone's input, beside the rotary ones everywhere.
      flow_map: condition on t - r too.
      guided: and on a guidance scale and its interval: `guidance: [B, 3]`, (w, t_min, t_max).
      trained_tables: whether the sine-cosine positions and the Fourier frequencies are parameters like others. RAE's
        trainer of December 2025 makes them so, by thawing everything after construction; October's and MF-RAE's do not.
        Here they stay what their names say, unless asked for or found moved in an official file.
      fused_attention: as in `attention.attend`.
      dtype: of matrix products.
      scan, remat: as in `layers.apply_blocks`; backbone and head are separate stacks.
    """

    grid_size: int
    in_channels: int
    num_classes: int
    width: int
    depth: int
    num_heads: int
    head_width: int = HEAD["head_width"]
    head_depth: int = HEAD["head_depth"]
    head_num_heads: int = HEAD["head_num_heads"]
    patch_size: int = 1
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    swiglu: bool = True
    rms_norm: bool = True
    absolute_positions: bool = True
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
            t, r, guidance,
            width=self.width, flow_map=self.flow_map, guided=self.guided, bias=PYTORCH.bias,
            trained=self.trained_tables,
        )  # fmt: skip
        time = sum(embedded)
        # The blocks apply SiLU to their condition once more.
        told = nn.silu(time + LabelEmbedding(self.num_classes, self.width, name="label_embedding")(condition))

        side = self.grid_size // self.patch_size
        patches = patchify(z, self.grid_size, self.patch_size)
        s = Dense(self.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding")(patches)
        s = s.astype(jnp.float32)
        if self.absolute_positions:
            s = s + SinCosPositions(side, self.width, trained=self.trained_tables, name="positions")()
        s = self.stack(s, told, side, depth=self.depth, num_heads=self.num_heads, name="blocks")
        s = nn.silu(time[:, None] + s)
        if self.head_width != self.width:
            s = Dense(self.head_width, ("embed", "mlp"), start=PYTORCH, dtype=self.dtype, name="head_projection")(s)

        x = Dense(self.head_width, ("patch", "embed"), dtype=self.dtype, name="head_patch_embedding")(patches)
        x = x.astype(jnp.float32)
        x = self.stack(x, s, side, depth=self.head_depth, num_heads=self.head_num_heads, name="head_blocks")
        final = FinalLayer(patches.shape[-1], self.rms_norm, self.dtype, name="final")
        return unpatchify(final(x, s), self.grid_size, self.patch_size)

    def stack(
        self, x: jax.Array, condition: jax.Array, side: int, *, depth: int, num_heads: int, name: str
    ) -> jax.Array:
        """`depth` blocks of backbone or head."""
        return apply_blocks(
            Block,
            x,
            condition,
            rotary(side, x.shape[-1], num_heads),
            depth=depth,
            name=name,
            scan=self.scan,
            remat=self.remat,
            num_heads=num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            swiglu=self.swiglu,
            rms_norm=self.rms_norm,
            start=start,
            fused_attention=self.fused_attention,
            dtype=self.dtype,
        )
