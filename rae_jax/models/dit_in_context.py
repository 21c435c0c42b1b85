"""DiT^DH with in-context conditions: RAEv2's generator ("Improved Baselines with Representation Autoencoders", 2026).

Times and classes, or words, are tokens of the backbone's sequence, whose blocks nothing modulates; adaptive layer norm
is left to the wide head of `dit_dh`. A second, early output reads the backbone after a few blocks: it is trained with
the other and guides it in sampling (`flow.guidance.internal_guidance`).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.attention import Rotary
from rae_jax.models.dit_dh import HEAD, start
from rae_jax.models.embeddings import LabelEmbedding, time_embeddings
from rae_jax.models.layers import PYTORCH, Dense, RMSNorm, apply_blocks, named
from rae_jax.models.lightning_dit import Block, FinalLayer, patchify, rotary, unpatchify

# The released model: 875.2 million parameters on the latents of DINOv3-L.
SIZES = {"XL": {"width": 1440, "depth": 28, "num_heads": 20} | HEAD}


class Outputs(NamedTuple):
    """What the network says of noisy latents.

    Attributes:
      full: `[B, N, C]`, float32; the prediction.
      base: the early output's prediction, likewise; None where there is none.
      aligned: the projected tokens of the backbone `[B, N, alignment_features]`, for REPA; None where they are not
        projected.
    """

    full: jax.Array
    base: jax.Array | None
    aligned: jax.Array | None


class ConditionTokens(nn.Module):
    """Tokens that say one thing, each in its own way: learned ones, plus its embedding `[B, D] -> [B, count, D]`."""

    count: int

    @nn.compact
    def __call__(self, embedded: jax.Array) -> jax.Array:
        width = embedded.shape[-1]
        init = named(nn.initializers.normal(width**-0.5), "tokens", "embed")
        return self.param("tokens", init, (self.count, width)) + embedded[:, None]


class DiTInContext(nn.Module):
    """What is to be known of noisy latent tokens: data or velocity, whichever it is trained for.

    `model.apply({"params": p}, z, t, condition) -> Outputs`, with `z: [B, N, C]` row-major over the grid and `t: [B]`
    in [0, 1]. The condition is `labels: [B]`, integers (`num_classes` is the null label), or with `context_width` a
    mapping of a language model's `features: [B, M, context_width]` and their `mask: [B, M]`, which is 0 where there is
    no word; nothing sees those places. A flow map (`flow_map=True`) also takes `r: [B]`, the end of the interval
    `[r, t]`, and has tokens of its length too.

    Attributes:
      grid_size: side of the square grid of latent tokens; N = grid_size^2.
      in_channels: C.
      num_classes: classes beside the null label; of no meaning to text.
      width, depth, num_heads: of the backbone; `SIZES` names the papers'.
      head_width, head_depth, head_num_heads: of the head.
      base_depth: blocks of the backbone before the early output; 0: there is none.
      time_tokens: tokens of a time, of a flow map's interval, and of each number of its guidance.
      condition_tokens: of the class; or M, of the text.
      context_width: of the text's features; 0: the condition is a class.
      patch_size: side of the square of latent tokens that becomes one token of the transformer.
      mlp_ratio: hidden width of a feed-forward layer over the model's width, of which a SwiGLU has two thirds.
      alignment_depth, alignment_features: blocks before the tokens that REPA aligns, and the width of what they are
        projected to; 0: they are not.
      flow_map: tokens of t - r too.
      guided: and of a guidance scale and its interval: `guidance: [B, 3]`, (w, t_min, t_max).
      trained_frequencies: whether the Fourier frequencies of times are parameters like others, as released.
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
    base_depth: int = 8
    time_tokens: int = 4
    condition_tokens: int = 8
    context_width: int = 0
    patch_size: int = 1
    mlp_ratio: float = 4.0
    alignment_depth: int = 0
    alignment_features: int = 0
    flow_map: bool = False
    guided: bool = False
    trained_frequencies: bool = True
    fused_attention: bool = True
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        condition: Any,
        r: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> Outputs:
        times = time_embeddings(
            t, r, guidance,
            width=self.width, flow_map=self.flow_map, guided=self.guided, bias=PYTORCH.bias,
            trained=self.trained_frequencies,
        )  # fmt: skip
        names = ["time"] + ["duration"] * self.flow_map + ["scale", "t_min", "t_max"] * self.guided
        told = [
            ConditionTokens(self.time_tokens, name=f"{name}_tokens")(embedded)
            for name, embedded in zip(names, times, strict=True)
        ]
        words, visible = self.embedded(condition)
        side = self.grid_size // self.patch_size
        patches = patchify(z, self.grid_size, self.patch_size)
        s = Dense(self.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding")(patches)
        s = jnp.concatenate([s.astype(jnp.float32), *told, words], axis=1)
        if visible is not None:  # the words are last, and everything before them is seen
            before = s.shape[1] - visible.shape[1]
            visible = jnp.pad(visible, ((0, 0), (before, 0)), constant_values=True)
        turned = rotary(side, self.width, self.num_heads)
        s, (early, halfway) = self.stack(
            s, None, with_unturned(turned, s.shape[1] - patches.shape[1]), visible,
            depth=self.depth, kept=(self.base_depth, self.alignment_depth), num_heads=self.num_heads, name="blocks",
        )  # fmt: skip
        s, early, halfway = (x[:, : patches.shape[1]] for x in (s, early, halfway))

        time = sum(times)[:, None]
        s = nn.silu(time + s)
        if self.head_width != self.width:
            s = Dense(self.head_width, ("embed", "mlp"), start=PYTORCH, dtype=self.dtype, name="head_projection")(s)
        x = Dense(self.head_width, ("patch", "embed"), dtype=self.dtype, name="head_patch_embedding")(patches)
        x, _ = self.stack(
            x.astype(jnp.float32), s, rotary(side, self.head_width, self.head_num_heads),
            depth=self.head_depth, num_heads=self.head_num_heads, name="head_blocks",
        )  # fmt: skip
        early = nn.silu(time + early)
        aligned = None
        if self.alignment_features:
            project = Dense(self.alignment_features, ("embed", None), jnp.float32, PYTORCH, name="alignment_projection")
            aligned = project(halfway)
        base = self.predicted(early, early, "base_final") if self.base_depth else None
        return Outputs(self.predicted(x, s, "final"), base, aligned)

    def embedded(self, condition: Any) -> tuple[jax.Array, jax.Array | None]:
        """The tokens `[B, M, D]` of what the network is told, and which of them are seen; None: all.

        Raises:
          ValueError: not as many words as there are tokens for.
        """
        if not self.context_width:
            label = LabelEmbedding(self.num_classes, self.width, name="label_embedding")(condition)
            return ConditionTokens(self.condition_tokens, name="class_tokens")(label), None
        features, mask = condition["features"], condition["mask"]
        expected = (self.condition_tokens, self.context_width)
        if features.shape[1:] != expected or mask.shape != features.shape[:2]:
            raise ValueError(
                f"text features have shape {features.shape} and a mask {mask.shape}; the generator takes "
                f"[B, {expected[0]}, {expected[1]}] and [B, {expected[0]}]: condition_tokens words of context_width"
            )
        project = Dense(self.width, (None, "embed"), self.dtype, PYTORCH, name="context_projection")
        return project(RMSNorm(name="context_norm")(features)).astype(jnp.float32), mask.astype(bool)

    def predicted(self, x: jax.Array, condition: jax.Array, name: str) -> jax.Array:
        """One output, `[B, N, C]` from the tokens of patches."""
        final = FinalLayer(self.patch_size**2 * self.in_channels, rms_norm=True, dtype=self.dtype, name=name)
        return unpatchify(final(x, condition), self.grid_size, self.patch_size)

    def stack(
        self, x: jax.Array, *arguments: Any, depth: int, num_heads: int, name: str, kept: tuple[int, ...] = ()
    ) -> tuple[jax.Array, list[jax.Array]]:
        """`depth` blocks of backbone or head, and `x` after as many of them as are `kept`."""
        return apply_blocks(
            Block,
            x,
            *arguments,
            depth=depth,
            kept=kept,
            name=name,
            scan=self.scan,
            remat=self.remat,
            num_heads=num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=True,
            swiglu=True,
            rms_norm=True,
            start=start,
            fused_attention=self.fused_attention,
            dtype=self.dtype,
        )


def with_unturned(positions: Rotary, count: int) -> Rotary:
    """The rotary table of tokens that are followed by `count` others, which do not turn."""
    cos, sin = positions
    rows = ((0, count), (0, 0))
    return jnp.pad(cos, rows, constant_values=1), jnp.pad(sin, rows)
