"""Qwen2.5 and Qwen3, causal language models, and how they write: the part of a text-to-image system that reads.

Yang et al., "Qwen2.5 Technical Report" (2024) and "Qwen3 Technical Report" (2025): a pre-norm decoder with RMSNorm,
grouped-query attention, rotary positions over the halves of a head, and a SwiGLU feed-forward without biases. Qwen2.5
has biases on queries, keys and values; Qwen3 normalises each head's query and key instead. What another decoder can be
made of (`ToGroups`, `rotary_angles`, `turn`, `DecoderLayer`) stands here too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.models.grouped_attention import grouped_attention
from rae_jax.models.layers import Dense, RMSNorm, Start, SwiGLU, apply_blocks, divided_by_batch, named

QWEN2_5 = {"head_dim": 128, "vocabulary": 151936, "qkv_bias": True, "qk_norm": False, "tied": True}
QWEN3 = QWEN2_5 | {"num_kv_heads": 8, "qkv_bias": False, "qk_norm": True}
SIZES = {
    "qwen2.5-0.5b": QWEN2_5
    | {"width": 896, "depth": 24, "num_heads": 14, "num_kv_heads": 2, "hidden": 4864, "head_dim": 64},
    "qwen2.5-1.5b": QWEN2_5 | {"width": 1536, "depth": 28, "num_heads": 12, "num_kv_heads": 2, "hidden": 8960},
    "qwen2.5-3b": QWEN2_5 | {"width": 2048, "depth": 36, "num_heads": 16, "num_kv_heads": 2, "hidden": 11008},
    "qwen2.5-7b": QWEN2_5
    | {"width": 3584, "depth": 28, "num_heads": 28, "num_kv_heads": 4, "hidden": 18944}
    | {"vocabulary": 152064, "tied": False},
    "qwen3-0.6b": QWEN3 | {"width": 1024, "depth": 28, "num_heads": 16, "hidden": 3072},
    "qwen3-1.7b": QWEN3 | {"width": 2048, "depth": 28, "num_heads": 16, "hidden": 6144},
    "qwen3-4b": QWEN3 | {"width": 2560, "depth": 36, "num_heads": 32, "hidden": 9728},
    "qwen3-8b": QWEN3 | {"width": 4096, "depth": 36, "num_heads": 32, "hidden": 12288, "tied": False},
}

# For models that are trained from nothing. The published ones began at a deviation of 0.02, which fits their widths; at
# a width of 96 it is a fifth of what keeps the scale of what passes through, and such a model learnt more slowly.
START = Start(nn.initializers.lecun_normal())
Angles = tuple[jax.Array, jax.Array]


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> Angles:
    """Cosines and sines of `positions: [..., N]` times `theta^(-2i / head_dim)`, each `[..., N, head_dim / 2]`."""
    frequencies = (1 / theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angle = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def turn(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotary positions of `x: [B, N, K, E]`: channel i turns with channel i + E/2; `angles` `[B or none, N, E / 2]`."""
    cos, sin = (a[..., None, :] for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def causal(length: int, seen: jax.Array | None = None) -> jax.Array:
    """The mask `[B or 1, 1, N, N]` of a causal decoder; `seen: [B, N]` is zero at keys that nobody sees."""
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return mask if seen is None else mask & (seen[:, None, None, :] != 0)


class ToGroups(nn.Module):
    """Queries of K heads, keys and values of G: `[B, N, D] -> [B, N, K, E], [B, N, G, E], [B, N, G, E]`, no positions.

    Attributes:
      bias: whether the three linear layers have one.
      qk_norm: RMSNorm over each head's query and key, its scale shared by the heads.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool
    qk_norm: bool
    norm_epsilon: float = 1e-6
    start: Start = START
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def heads(name: str, count: int) -> jax.Array:
            linear = Dense(
                count * self.head_dim, ("embed", "heads"), self.dtype, self.start, use_bias=self.bias, name=name
            )
            return linear(x).reshape(*x.shape[:-1], count, self.head_dim)

        query, key = heads("query", self.num_heads), heads("key", self.num_kv_heads)
        if self.qk_norm:
            query = RMSNorm(self.norm_epsilon, self.dtype, name="query_norm")(query)
            key = RMSNorm(self.norm_epsilon, self.dtype, name="key_norm")(key)
        return query, key, heads("value", self.num_kv_heads)


class CausalAttention(nn.Module):
    """Grouped-query self-attention with rotary positions: `x: [B, N, D] -> [B, N, D]`.

    Where the collection `cache` holds this layer's `key` and `value`, `[B, S, G, E]`, the tokens' own are written to
    the slots `positions`, and each token sees the slots up to its position.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool
    norm_epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, angles: Angles, positions: jax.Array, mask: jax.Array | None) -> jax.Array:
        to_groups = ToGroups(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.qkv_bias,
            self.qk_norm,
            self.norm_epsilon,
            dtype=self.dtype,
            name="qkv",
        )
        query, key, value = to_groups(x)
        query, key = turn(query, angles), turn(key, angles)
        if self.has_variable("cache", "key"):
            key, value = self.remembered("key", key, positions), self.remembered("value", value, positions)
            mask = jnp.arange(key.shape[1]) <= positions[:, None, :, None]
        y = grouped_attention(query, key, value, mask)
        y = y.reshape(*x.shape[:-1], self.num_heads * self.head_dim)
        return Dense(x.shape[-1], ("heads", "embed"), self.dtype, START, use_bias=False, name="out")(y)

    def remembered(self, name: str, new: jax.Array, positions: jax.Array) -> jax.Array:
        """The cached `name` with the `new` rows at their positions."""
        cached = self.get_variable("cache", name)
        rows = jnp.arange(len(new))[:, None]
        cached = cached.at[rows, positions].set(new.astype(cached.dtype), mode="drop")
        cached = nn.with_logical_constraint(cached, ("batch", None, "heads", None))
        self.put_variable("cache", name, cached)
        return cached


class DecoderLayer(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`: `x: [B, N, D] -> [B, N, D]` float32.

    Attributes:
      hidden: width of the feed-forward layer.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    qkv_bias: bool
    qk_norm: bool
    norm_epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, angles: Angles, positions: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = divided_by_batch(x)
        attention = CausalAttention(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.qkv_bias,
            self.qk_norm,
            self.norm_epsilon,
            self.dtype,
            name="attention",
        )
        y = RMSNorm(self.norm_epsilon, self.dtype, name="attention_norm")(x)
        x = x + attention(y, angles, positions, mask)
        y = RMSNorm(self.norm_epsilon, self.dtype, name="mlp_norm")(x)
        return x + SwiGLU(self.hidden, START, use_bias=False, dtype=self.dtype, name="mlp")(y)


class LanguageModel(nn.Module):
    """A causal decoder: token ids, or their embeddings, to the last hidden state after the final norm, `[B, N, D]`.

    `model.apply({"params": p}, ids)`; `embed` and `logits` are what stands before and after. With a collection `cache`
    (`empty_cache`), mutable, the call goes on where earlier ones stopped.

    Attributes:
      vocabulary: rows of the table.
      width, depth, hidden: D, number of layers, width of their feed-forward layers.
      num_heads, num_kv_heads, head_dim: K query heads and G groups of keys and values, of width E each.
      qkv_bias: biases on queries, keys and values (Qwen2.5).
      qk_norm: RMSNorm on each head's query and key (Qwen3).
      tied: the head is the table transposed, rather than a matrix of its own.
      rope_theta: base of the rotary frequencies.
      dtype: of matrix products; hidden states and logits are float32.
      scan, remat: as in `layers.apply_blocks`.
    """

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    qkv_bias: bool = True
    qk_norm: bool = False
    tied: bool = True
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"

    def setup(self) -> None:
        init = named(nn.initializers.normal(self.width**-0.5), "vocabulary", "embed")
        self.table = self.param("embedding", init, (self.vocabulary, self.width))
        self.head = self.table if self.tied else self.param("head", init, (self.vocabulary, self.width))

    def embed(self, ids: jax.Array) -> jax.Array:
        """The rows of the table for `ids`, `[..., D]` float32."""
        return jnp.take(self.table, ids, axis=0)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of the next token, `[..., D] -> [..., vocabulary]` float32."""
        product = jnp.einsum("...d,vd->...v", hidden.astype(self.dtype), self.head.astype(self.dtype))
        return product.astype(jnp.float32)

    @nn.compact
    def __call__(
        self,
        ids: jax.Array | None = None,
        embeddings: jax.Array | None = None,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The last hidden state after the final norm, `[B, N, D]` float32.

        Args:
          ids: `[B, N]`; or
          embeddings: `[B, N, D]` in their stead.
          mask: `[B, N]`, zero at tokens that no other sees; not with a cache, where positions say what is seen.
          positions: `[B, N]`, 0, 1, ... where not given; with a cache, also the slots of these tokens.

        Raises:
          ValueError: both or neither of ids and embeddings; or a mask with a cache.
        """
        if (ids is None) == (embeddings is None):
            raise ValueError("a language model reads either ids or embeddings, and exactly one of them was not given")
        if mask is not None and "cache" in self.variables:
            raise ValueError("with a cache a token sees the slots up to its position; a mask cannot be given beside it")
        x = self.embed(ids) if embeddings is None else embeddings.astype(jnp.float32)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = apply_blocks(
            DecoderLayer,
            x,
            rotary_angles(positions, self.head_dim, self.rope_theta),
            positions,
            None if mask is None else causal(x.shape[1], mask),
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        return RMSNorm(self.norm_epsilon, name="norm")(x)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`-log p(label)`, `[..., V], [...] -> [...]` float32; zero where a label is negative, nothing to learn."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels < 0, 0.0, -of_label)


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each next token, `[B, N, V], [B, N] -> [B, N - 1]`."""
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def empty_cache(model: LanguageModel, batch: int, capacity: int) -> dict[str, Any]:
    """The collection `cache` of `model` for `batch` rows of up to `capacity` tokens."""
    layers = (model.depth,) if model.scan else ()
    shape = (*layers, batch, capacity, model.num_kv_heads, model.head_dim)

    def layer() -> dict[str, Any]:
        return {"attention": {name: jnp.zeros(shape, model.dtype) for name in ("key", "value")}}

    return {"blocks": layer()} if model.scan else {f"blocks_{i}": layer() for i in range(model.depth)}


class Sampling(NamedTuple):
    """How the next token is chosen: the likeliest at temperature 0, else drawn from the `top_k` or the nucleus `top_p`.

    Attributes:
      temperature: the logits are divided by it.
      top_k: so many of the likeliest tokens are left; 0 leaves all.
      top_p: the smallest set of likeliest tokens that has this probability is left.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


def choose(logits: jax.Array, keys: jax.Array | None, how: Sampling) -> jax.Array:
    """The next token of each row: `logits: [B, V]`, `keys: [B]`, which only drawing needs -> `[B]` int32."""
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / how.temperature
    if how.top_k:
        least = jax.lax.top_k(logits, min(how.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if how.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        least = jnp.min(jnp.where(before < how.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class Written(NamedTuple):
    """What `write` wrote.

    Attributes:
      ids: `[B, most]` int32: the new tokens, the one that stopped a row included; zeros after it.
      lengths: `[B]`, how many those are.
      cache: all of prompt and answer but perhaps the last token of a row.
    """

    ids: jax.Array
    lengths: jax.Array
    cache: dict[str, Any]


def write(
    model: LanguageModel,
    params: Any,
    embeddings: jax.Array,
    lengths: jax.Array,
    *,
    most: int,
    stop: Sequence[int] = (),
    how: Sampling = GREEDY,
    keys: jax.Array | None = None,
    room: int = 0,
) -> Written:
    """Goes on writing after a prompt, one token at a time, in one loop that ends when every row has stopped.

    Args:
      model, params: of a `LanguageModel`.
      embeddings: of the prompts, `[B, N, D]`, padded on the right.
      lengths: of the prompts, `[B]`.
      most: tokens written at the most.
      stop: ids that end a row.
      how: greedily or by drawing, which needs
      keys: one random key a row; token i of a row is drawn with its key and i folded in.
      room: slots that the cache is to have left in the end.
    """
    batch, length, _ = embeddings.shape

    def step(cache: Any, **inputs: jax.Array) -> tuple[jax.Array, Any]:
        hidden, changed = model.apply({"params": params, "cache": cache}, **inputs, mutable=["cache"])
        return hidden, changed["cache"]

    def following(hidden: jax.Array, i: jax.Array | int) -> jax.Array:
        logits = model.apply({"params": params}, hidden, method=LanguageModel.logits)
        drawn = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
        return choose(logits, drawn, how)

    def stops(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.asarray(stop, jnp.int32)) if len(stop) else jnp.zeros(token.shape, bool)

    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    hidden, cache = step(empty_cache(model, batch, length + most + room), embeddings=embeddings, positions=positions)
    token = following(jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0], 0)
    ids = jnp.zeros((batch, most), jnp.int32).at[:, 0].set(token)

    # What comes after the padding of a shorter prompt is written over it: a token sees the slots up to its own.
    def go_on(state: tuple) -> jax.Array:
        i, _, _, stopped, _, _ = state
        return (i < most) & ~jnp.all(stopped)

    def write_one(state: tuple) -> tuple:
        i, token, ids, stopped, written, cache = state
        place = (lengths + written - 1)[:, None]
        embedded = model.apply({"params": params}, token[:, None], method=LanguageModel.embed)
        hidden, cache = step(cache, embeddings=embedded, positions=place)
        token = jnp.where(stopped, token, following(hidden[:, 0], i))
        ids = ids.at[:, i].set(jnp.where(stopped, 0, token))
        written = written + ~stopped
        return i + 1, token, ids, stopped | stops(token), written, cache

    start = (jnp.int32(1), token, ids, stops(token), jnp.ones(batch, jnp.int32), cache)
    _, _, ids, _, written, cache = jax.lax.while_loop(go_on, write_one, start)
    return Written(ids, written, cache)
