"""A mixture of transformers: a language model that also makes images, by a second set of weights for their latents.

Deng et al., "Emerging Properties in Unified Multimodal Pretraining" (BAGEL, 2025), on Qwen2.5. Every layer exists
twice: texts, the markers around images and the tokens of a vision encoder go through the *understanding* expert,
latents through the *generation* expert. They meet in attention alone, over all tokens of a pack (`models/pack.py`).

Each kind of token comes in an array of its own, so that each expert multiplies its own tokens and no others.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rae_jax.models.dit_dh import HEAD
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.grouped_attention import grouped_attention
from rae_jax.models.language_model import START, Angles, ToGroups, rotary_angles, turn
from rae_jax.models.layers import (
    PYTORCH,
    ZEROS,
    Dense,
    RMSNorm,
    Start,
    SwiGLU,
    apply_blocks,
    divided_by_batch,
    gelu_tanh,
    named,
)
from rae_jax.models.lightning_dit import Block, FinalLayer, rotary
from rae_jax.models.pack import Places, visible
from rae_jax.models.vit import PackedVisionTransformer

EXPERTS = ("understanding", "generation")
TIME_FREQUENCIES = 128


class Texts(NamedTuple):
    """`ids: [B, T]` int32 and the places of these tokens."""

    ids: jax.Array
    places: Places


class Images(NamedTuple):
    """Tokens of images.

    Attributes:
      values: `[B, N, C]`, what they hold.
      position: `[B, N]`, row times capacity plus column in the image.
      places: where they stand in the pack.
      t: `[B, N]`, the time of latents.
      r: `[B, N]`, where a flow map is to jump from there; None: nowhere.
    """

    values: jax.Array
    position: jax.Array
    places: Places
    t: jax.Array | None = None
    r: jax.Array | None = None

    @property
    def duration(self) -> jax.Array:
        """How far a flow map is to jump, `t - r`."""
        return jnp.zeros_like(self.t) if self.r is None else self.t - self.r


class TimestepEmbedding(nn.Module):
    """Cosines, then sines, of `t * 10000^(-i / 128)`, then an MLP: `t: [...]` in [0, 1] `-> [..., width]`, float32.

    Attributes:
      start: of the MLP's last layer.
    """

    width: int
    start: Start = PYTORCH

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        frequencies = jnp.exp(-math.log(10000) * jnp.arange(TIME_FREQUENCIES) / TIME_FREQUENCIES)
        angle = t.astype(jnp.float32)[..., None] * frequencies
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        exact = dict(dtype=jnp.float32, collect=False, precision=jax.lax.Precision.HIGHEST)
        hidden = Dense(self.width, (None, "mlp"), start=PYTORCH, name="hidden", **exact)(features)
        return Dense(self.width, ("mlp", "embed"), start=self.start, name="out", **exact)(nn.silu(hidden))


def duration_embedding(width: int) -> TimestepEmbedding:
    """That of a flow map's `t - r`, in the calling compact module: zero, so that it begins as what it goes on from."""
    return TimestepEmbedding(width, ZEROS, name="duration_embedding")


class Expert(nn.Module):
    """One expert's weights of a layer: `before` attention and `after` it.

    Attributes:
      hidden: width of the feed-forward layer.
      qkv_bias, qk_norm: as in `language_model.LanguageModel`.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    qkv_bias: bool
    qk_norm: bool
    norm_epsilon: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.attention_norm = RMSNorm(self.norm_epsilon, self.dtype)
        self.qkv = ToGroups(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.qkv_bias,
            self.qk_norm,
            self.norm_epsilon,
            dtype=self.dtype,
        )
        self.out = Dense(self.width, ("heads", "embed"), self.dtype, START, use_bias=False)
        self.mlp_norm = RMSNorm(self.norm_epsilon, self.dtype)
        self.mlp = SwiGLU(self.hidden, START, use_bias=False, dtype=self.dtype)

    def before(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of `x: [B, N, D]`, without positions."""
        return self.qkv(self.attention_norm(x))

    def after(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output `[B, N, D]` from its input and what attention gave, `[B, N, K * E]`."""
        x = x + self.out(attended)
        return x + self.mlp(self.mlp_norm(x))


class Layer(nn.Module):
    """Both experts and the attention between them: `(u [B, U, D], g [B, G, D])` -> the same, float32.

    Keys and values of the tokens are left in the collection `cache` if that is mutable. If it is not, and holds those
    of a context of S tokens, the tokens attend to them too; the mask, `[B, 1, U + G, S + U + G]`, has them first.

    Attributes:
      freeze_understanding: no gradient goes through the understanding expert's tokens.
      fused_attention: as in `grouped_attention`.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    qkv_bias: bool = True
    qk_norm: bool = True
    norm_epsilon: float = 1e-6
    freeze_understanding: bool = False
    fused_attention: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: tuple[jax.Array, jax.Array], angles: Angles, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        held = (jax.lax.stop_gradient if self.freeze_understanding else lambda a: a, lambda a: a)
        x = tuple(divided_by_batch(hold(part)) for hold, part in zip(held, x, strict=True))
        experts = [
            Expert(
                self.width,
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                self.hidden,
                self.qkv_bias,
                self.qk_norm,
                self.norm_epsilon,
                self.dtype,
                name=name,
            )
            for name in EXPERTS
        ]
        each = [jax.tree.map(hold, expert.before(p)) for hold, expert, p in zip(held, experts, x, strict=True)]
        query, key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*each, strict=True))
        query, key = turn(query, angles), turn(key, angles)
        if self.is_mutable_collection("cache"):
            self.put_variable("cache", "key", key)
            self.put_variable("cache", "value", value)
        elif self.has_variable("cache", "key"):
            key = jnp.concatenate([self.get_variable("cache", "key"), key], axis=1)
            value = jnp.concatenate([self.get_variable("cache", "value"), value], axis=1)
        y = grouped_attention(query, key, value, mask, fused=self.fused_attention)
        y = y.reshape(*y.shape[:2], self.num_heads * self.head_dim)
        y = jnp.split(y, [x[0].shape[1]], axis=1)
        return tuple(hold(e.after(p, of)) for hold, e, p, of in zip(held, experts, x, y, strict=True))


class Decoder(nn.Module):
    """All layers, and each expert's final norm: `(u [B, U, D], g [B, G, D])` and their places -> the same, float32.

    The understanding tokens stand first in `places: [B, U + G]`; `context` are the places of the tokens in the
    collection `cache`, if there are any. Attributes are those of `MixtureOfTransformers`.
    """

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    qkv_bias: bool = True
    qk_norm: bool = True
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    freeze_understanding: bool = False
    fused_attention: bool = True
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: tuple[jax.Array, jax.Array], places: Places, context: Places | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x = apply_blocks(
            Layer,
            x,
            rotary_angles(places.rotary, self.head_dim, self.rope_theta),
            visible(places, places if context is None else joined([context, places]))[:, None],
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_epsilon=self.norm_epsilon,
            freeze_understanding=self.freeze_understanding,
            fused_attention=self.fused_attention,
            dtype=self.dtype,
        )
        norms = (RMSNorm(self.norm_epsilon, name=f"{name}_norm") for name in EXPERTS)
        return tuple(norm(part) for norm, part in zip(norms, x, strict=True))


class WideHead(nn.Module):
    """DiT^DH's head on the states of a mixture of transformers (RAE, Section 5): the velocity of whole images.

    `x_t: [M, N, C]`, `t: [M]`, states `h: [M, N, D]` -> `[M, N, C]` float32. The latents are embedded anew; each token
    is conditioned on `SiLU(time(t) + h)`, that of a flow map, which also takes `t - r: [M]`, on that of it too.
    """

    grid_size: int
    width: int
    depth: int
    num_heads: int
    fused_attention: bool = True
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, h: jax.Array, duration: jax.Array | None = None) -> jax.Array:
        times = TimestepEmbedding(h.shape[-1], name="time_embedding")(t)
        if duration is not None:
            times += duration_embedding(h.shape[-1])(duration)
        told = nn.silu(times[:, None] + h)
        if self.width != h.shape[-1]:
            told = Dense(self.width, ("embed", "mlp"), start=PYTORCH, dtype=self.dtype, name="projection")(told)
        x = Dense(self.width, ("patch", "embed"), dtype=self.dtype, name="patch_embedding")(x_t).astype(jnp.float32)
        x = apply_blocks(
            Block,
            x,
            told,
            rotary(self.grid_size, self.width, self.num_heads),
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            mlp_ratio=4.0,
            qk_norm=False,
            swiglu=True,
            rms_norm=True,
            start=lambda parts: PYTORCH,
            fused_attention=self.fused_attention,
            dtype=self.dtype,
        )
        return FinalLayer(x_t.shape[-1], True, self.dtype, name="final")(x, told)


class MixtureOfTransformers(nn.Module):
    """Velocities of noised latents in packs of texts and images, and the states of the texts.

    `model.apply({"params": p}, texts, noised, clean, semantic)`. In two steps: with `mutable=["cache"]` it remembers
    what is given; then, with that collection `cache` and the `context` it is of, the latents follow at every time.
    `logits` are the next token's, from states.

    Attributes:
      vocabulary, width, depth, num_heads, num_kv_heads, head_dim, hidden, rope_theta, norm_epsilon: as in
        `language_model.LanguageModel`.
      latent_channels: of a latent token.
      latent_capacity: rows and columns of the fixed sine-cosine table of latents.
      qkv_bias, qk_norm: likewise; the norm is new in Bagel.
      language_head: "own", "tied" to the table, or "" where no text is learned.
      head_grid: 0 for a linear layer to the velocity, or the side of every image's grid for a `WideHead`.
      head_width, head_depth, head_num_heads: of that.
      semantic_channels: of given semantic tokens, the tokenizer's own features; 0: there are none.
      semantic_capacity: rows and columns of their table.
      vision: arguments of the vision transformer that makes semantic tokens of patches of pixels, if there is one.
      freeze_understanding: as in `Layer`.
      flow_map: it gives mean velocities over `[r, t]`; noised latents then have an `r`.
      fused_attention: as in `grouped_attention`; of the wide head, as in `attention.attend`.
      dtype: of matrix products; the residual stream, norms, softmax, times and outputs are float32.
      scan, remat: as in `layers.apply_blocks`.
    """

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    latent_channels: int
    latent_capacity: int
    qkv_bias: bool = True
    qk_norm: bool = True
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    language_head: str = ""
    head_grid: int = 0
    head_width: int = HEAD["head_width"]
    head_depth: int = HEAD["head_depth"]
    head_num_heads: int = HEAD["head_num_heads"]
    semantic_channels: int = 0
    semantic_capacity: int = 0
    vision: Mapping[str, Any] | None = None
    freeze_understanding: bool = False
    flow_map: bool = False
    fused_attention: bool = True
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        texts: Texts,
        noised: Images | None = None,
        clean: Images | None = None,
        semantic: Images | None = None,
        context: Places | None = None,
    ) -> tuple[jax.Array | None, jax.Array]:
        """The velocity of the noised tokens `[B, N, C]`, and the states of the text tokens `[B, T, D]`; float32.

        Args:
          context: the places of the tokens in the collection `cache`, which come before these.

        Raises:
          ValueError: noised latents of a flow map have no `r`, or others have one.
        """
        if noised is not None and self.flow_map != (noised.r is not None):
            raise ValueError(f"flow_map={self.flow_map}: noised latents {'need' if self.flow_map else 'have no'} r")
        table = named(nn.initializers.normal(self.width**-0.5), "vocabulary", "embed")
        table = self.param("embedding", table, (self.vocabulary, self.width))
        if self.language_head == "own":
            head = named(nn.initializers.normal(0.02), "vocabulary", "embed")
            self.param("head", head, (self.vocabulary, self.width))

        understanding, places = [jnp.take(table, texts.ids, axis=0)], [texts.places]
        if semantic is not None:
            understanding.append(self.seen(semantic))
            places.append(semantic.places)
        latents = [part for part in (clean, noised) if part is not None]
        embedded = self.embedded(latents) if latents else understanding[0][:, :0]
        places = joined([*places, *(part.places for part in latents)])

        x = (jnp.concatenate(understanding, axis=1), embedded)
        u, g = self.decoder(name="decoder")(x, places, context)
        states = u[:, : texts.ids.shape[1]]
        if noised is None:
            return None, states
        h = g[:, g.shape[1] - noised.values.shape[1] :]
        if not self.head_grid:
            linear = Dense(self.latent_channels, ("embed", "patch"), jnp.float32, ZEROS, name="to_latent")
            return linear(h), states
        arrays = (noised.values, noised.t[..., None], h, noised.duration[..., None])
        images = [a.reshape(-1, self.head_grid**2, a.shape[-1]) for a in arrays]
        wide = WideHead(
            self.head_grid,
            self.head_width,
            self.head_depth,
            self.head_num_heads,
            self.fused_attention,
            self.dtype,
            self.scan,
            self.remat,
            name="head_of_velocity",
        )
        duration = images[3][:, 0, 0] if self.flow_map else None
        return wide(images[0], images[1][:, 0, 0], images[2], duration).reshape(noised.values.shape), states

    def decoder(self, name: str) -> Decoder:
        """The layers."""
        fields = {field.name for field in dataclasses.fields(Decoder)} - {"parent", "name"}
        return Decoder(**{field: getattr(self, field) for field in fields}, name=name)

    def embedded(self, latents: list[Images]) -> jax.Array:
        """Latent tokens `[B, N, D]` as the first layer takes them: what they hold, their time and their place."""
        values, t, position, duration = (
            jnp.concatenate([getattr(part, name) for part in latents], axis=1)
            for name in ("values", "t", "position", "duration")
        )
        x = Dense(self.width, ("patch", "embed"), self.dtype, PYTORCH, name="from_latent")(values).astype(jnp.float32)
        x = x + TimestepEmbedding(self.width, name="time_embedding")(t)
        if self.flow_map:
            x = x + duration_embedding(self.width)(duration)
        return x + jnp.take(jnp.asarray(sincos_table(self.latent_capacity, self.width)), position, axis=0)

    def seen(self, semantic: Images) -> jax.Array:
        """Semantic tokens `[B, N, D]` as the first layer takes them."""
        x = semantic.values
        if self.vision is not None:
            # The tokens of an image are those that see as far.
            together = semantic.places.reach[:, :, None] == semantic.places.reach[:, None, :]
            vision = PackedVisionTransformer(**self.vision, dtype=self.dtype, name="vision")
            x = vision(x, semantic.position, together)
        hidden = Dense(self.width, ("embed", "mlp"), self.dtype, PYTORCH, name="connector_in")(x)
        x = Dense(self.width, ("mlp", "embed"), self.dtype, PYTORCH, name="connector_out")(gelu_tanh(hidden))
        table = jnp.asarray(sincos_table(self.semantic_capacity, self.width))
        return x.astype(jnp.float32) + jnp.take(table, semantic.position, axis=0)

    def logits(self, states: jax.Array) -> jax.Array:
        """Scores of the next token, `[..., D] -> [..., vocabulary]` float32.

        Raises:
          ValueError: the model has no language head.
        """
        if self.language_head not in ("own", "tied"):
            raise ValueError("a mixture of transformers without a language head has no scores of tokens")
        head = self.get_variable("params", "head" if self.language_head == "own" else "embedding")
        return jnp.einsum("...d,vd->...v", states.astype(self.dtype), head.astype(self.dtype)).astype(jnp.float32)


def joined(places: list[Places]) -> Places:
    """The places of several arrays of tokens, one after the other."""
    return Places(*(jnp.concatenate(each, axis=-1) for each in zip(*places, strict=True)))
