"""Text to image on RAE latents: a language model whose hidden states at learned queries condition a DiT token by token.

RAE, appendix N, in the form of its code, Scale-RAE (Tong et al., 2026). One causal language model reads text and the
projected features of images. Where it is to show an image, it is given N learned queries, one a latent token; its last
hidden states there, projected, tell the DiT what each token is to be. Three parts are trained together: the
`LanguageModel`, the `Adapters` around it, and the `PromptedDiT`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from rae_jax.models.embeddings import time_embeddings, torch_normal
from rae_jax.models.language_model import GREEDY, LanguageModel, Sampling, write
from rae_jax.models.layers import PYTORCH, Dense, Start, gelu_exact, named
from rae_jax.models.lightning_dit import Trunk

FREQUENCIES_SEED = 114514  # of the published models' times; no checkpoint holds what it gives
# Of the DiTs that were published or compared; heads are 64 wide, as those of the one whose script is known, "2.4B". The
# documentation gives width 3072 and depth 48 for "9.8B", which counts 8.2.
SIZES = {
    "0.5B": {"width": 1280, "depth": 16, "num_heads": 20},
    "2.4B": {"width": 2048, "depth": 32, "num_heads": 32},
    "3.1B": {"width": 2304, "depth": 32, "num_heads": 36},
    "5.5B": {"width": 3072, "depth": 32, "num_heads": 48},
    "9.8B": {"width": 4096, "depth": 32, "num_heads": 64},
}


class TokenCondition(NamedTuple):
    """What a `PromptedDiT` is told.

    Attributes:
      tokens: `[B, N, Z]`, a vector for each token.
      dropped: bool `[B]`, whether the learned null vector stands for all of them.
    """

    tokens: jax.Array
    dropped: jax.Array

    def null(self) -> "TokenCondition":
        """As many nulls."""
        return self._replace(dropped=jnp.ones_like(self.dropped))


def published_frequencies(key: jax.Array, shape: tuple[int], dtype: Any = jnp.float32) -> jax.Array:
    """The fixed frequencies of the published models, as an initializer."""
    del key
    return jnp.asarray(torch_normal(FREQUENCIES_SEED, *shape), dtype)


class PromptedDiT(Trunk):
    """LightningDiT with a condition for each token: velocity, or mean velocity of a flow map, of noisy latent tokens.

    `model.apply({"params": p}, z, t, condition)`, with `z: [B, M, C]`, `t: [B]` in [0, 1] and a `TokenCondition` of
    N = M / P^2 tokens -> `v: [B, M, C]` float32; a flow map also takes `r: [B]`, and a guided one `guidance: [B, 3]`.

    Attributes:
      grid_size: side of the square grid of latent tokens; M = grid_size^2.
      in_channels: C.
      condition_width: Z, also that of the time embedding.
      others: as in `LightningDiT`.
    """

    grid_size: int
    in_channels: int
    condition_width: int
    width: int
    depth: int
    num_heads: int
    patch_size: int = 1
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    swiglu: bool = True
    rms_norm: bool = True
    rope: bool = True
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
        condition: TokenCondition,
        r: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        embedded = time_embeddings(
            t,
            r,
            guidance,
            width=self.condition_width,
            flow_map=self.flow_map,
            guided=self.guided,
            trained=self.trained_tables,
            frequencies=published_frequencies,
        )
        null = self.param("null_condition", named(nn.initializers.zeros, None), (self.condition_width,))
        asked = jnp.where(condition.dropped[:, None, None], null, condition.tokens.astype(jnp.float32))
        told = nn.silu(sum(embedded)[:, None] + asked)  # the blocks apply SiLU to it once more

        side = self.grid_size // self.patch_size
        if asked.shape[1] != side**2:
            raise ValueError(f"a condition of {asked.shape[1]} tokens for a grid of {side} x {side}")
        return self.trunk(z, told, self.in_channels)


class Adapters(nn.Module):
    """What stands between encoder, language model and DiT.

    Attributes:
      features: channels of the encoder's tokens.
      width: H, of the language model.
      num_queries: N, learned queries an image.
      condition_width: Z, of the DiT's condition.
      condition_std: of the kernel that makes conditions, at the start.
      spatial_merge: side m of the squares of tokens that the language model reads as one; 1: every token by itself.
    """

    features: int
    width: int
    num_queries: int
    condition_width: int
    condition_std: float = 0.02
    spatial_merge: int = 1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        axes = ("embed", "mlp")
        self.project_hidden = Dense(self.width, axes, self.dtype, PYTORCH)
        self.project_out = Dense(self.width, axes, self.dtype, PYTORCH)
        start = Start(nn.initializers.normal(self.condition_std))
        self.to_condition = Dense(self.condition_width, axes, self.dtype, start)
        start = named(nn.initializers.normal(self.width**-0.5), "tokens", "embed")
        self.queries = self.param("queries", start, (self.num_queries, self.width))

    def seen(self, features: jax.Array) -> jax.Array:
        """The encoder's tokens as the language model reads them: `[B, N, features] -> [B, N / m^2, H]` float32."""
        features = spatially_merged(features, self.spatial_merge)
        return self.project_out(gelu_exact(self.project_hidden(features))).astype(jnp.float32)

    def asked_for(self) -> jax.Array:
        """The learned queries `[N, H]`, which stand where an image is to come."""
        return self.queries

    def condition(self, hidden: jax.Array) -> jax.Array:
        """The language model's hidden states at the queries as conditions: `[..., H] -> [..., Z]` float32."""
        return self.to_condition(hidden).astype(jnp.float32)

    def __call__(self, features: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All three."""
        return self.seen(features), self.asked_for(), self.condition(hidden)


def spatially_merged(tokens: jax.Array, merge: int) -> jax.Array:
    """Squares of m x m tokens as one, their channels beside each other: `[B, N, C] -> [B, N / m^2, m^2 C]`.

    Of a square grid, row by row, as the squares are. Qwen2-VL (Wang et al., 2024), Section 2.1.
    """
    if merge == 1:
        return tokens
    sides = dict(rows=math.isqrt(tokens.shape[1]) // merge, row=merge, column=merge)
    return rearrange(tokens, "b (rows row columns column) c -> b (rows columns) (row column c)", **sides)


def merged(text: jax.Array, images: jax.Array, queries: jax.Array, sources: jax.Array, answers: jax.Array) -> jax.Array:
    """The language model's input `[B, L, H]`: text, tokens of the images in questions, queries for those in answers.

    Args:
      text: embeddings `[B, L, H]`, of anything at the places of images.
      images: `[B, T, H]`, the tokens of a sample's images, N slots for each.
      queries: `[N, H]`.
      sources: `[B, L]`, p for text, L + k for slot k of the images: `vision_token_indices`.
      answers: `[B, L]`, nonzero at tokens of images that are answers: `answer_token_mask`.
    """
    both = jnp.take_along_axis(jnp.concatenate([text, images], axis=1), sources[..., None], axis=1)
    wanted = queries[(sources - text.shape[1]) % len(queries)]
    return jnp.where(answers[..., None] != 0, wanted, both)


def gathered(hidden: jax.Array, places: jax.Array) -> jax.Array:
    """The hidden states of image tokens, `[B, L, H] -> [B, T, H]`, zeros where a slot has no image.

    `places: [B, T]`: T + the position of a token, or below T for none: `reverse_vti`.
    """
    empty = jnp.zeros((hidden.shape[0], places.shape[1], hidden.shape[2]), hidden.dtype)
    return jnp.take_along_axis(jnp.concatenate([empty, hidden], axis=1), places[..., None], axis=1)


class Reader(NamedTuple):
    """The parts that make conditions of text and images; parameters are `{"language_model": .., "adapters": ..}`."""

    language_model: LanguageModel
    adapters: Adapters

    def embedded(self, params: Mapping[str, Any], ids: jax.Array) -> jax.Array:
        """The embeddings `[..., H]` of `ids`; those of ids below 0, which are images' tokens, are to be replaced."""
        return self._language(params, jnp.maximum(ids, 0), method="embed")

    def input(self, params: Mapping[str, Any], features: jax.Array, tables: Mapping[str, jax.Array]) -> jax.Array:
        """What the language model is given, `[B, L, H]`.

        Args:
          features: the encoder's tokens of all image slots, `[B * slots, N, C]`, sample by sample.
          tables: of `data.conversations.tables`, with a row for each sample.
        """
        ids = tables["input_ids"]
        images = self._adapters(params, features, method="seen")
        images = jnp.pad(images, ((0, 0), (0, self.adapters.num_queries - images.shape[1]), (0, 0)))
        images = images.reshape(len(ids), -1, images.shape[-1])
        queries = self._adapters(params, method="asked_for")
        text, sources, answers = self.embedded(params, ids), tables["vision_token_indices"], tables["answer_token_mask"]
        return merged(text, images, queries, sources, answers)

    def hidden(self, params: Mapping[str, Any], embeddings: jax.Array) -> jax.Array:
        """The last hidden states `[B, L, H]`."""
        return self._language(params, embeddings=embeddings)

    def logits(self, params: Mapping[str, Any], hidden: jax.Array) -> jax.Array:
        """Scores of the next token, `[..., V]`."""
        return self._language(params, hidden, method="logits")

    def conditions(self, params: Mapping[str, Any], hidden: jax.Array, places: jax.Array) -> jax.Array:
        """A condition for every image slot, `[B * slots, N, Z]`; `places` are the tables' `reverse_vti`."""
        tokens = self._adapters(params, gathered(hidden, places), method="condition")
        return tokens.reshape(-1, self.adapters.num_queries, tokens.shape[-1])

    def asked(self, params: Mapping[str, Any], prompts: jax.Array, lengths: jax.Array) -> jax.Array:
        """The conditions `[B, N, Z]` of prompts `[B, L]` whose last token, the `lengths`-th, begins the image.

        In one pass; what stands to the right of a prompt is not read.
        """
        queries = self._adapters(params, method="asked_for")
        text = self.embedded(params, prompts)
        places = jnp.arange(text.shape[1] + len(queries)) - lengths[:, None]  # of each token in the image
        text = jnp.pad(text, ((0, 0), (0, len(queries)), (0, 0)))
        inside = (places >= 0) & (places < len(queries))
        x = jnp.where(inside[..., None], queries[jnp.clip(places, 0, len(queries) - 1)], text)
        hidden = self.hidden(params, x)
        there = lengths[:, None] + jnp.arange(len(queries))
        return self._adapters(params, jnp.take_along_axis(hidden, there[..., None], axis=1), method="condition")

    def answer(
        self,
        params: Mapping[str, Any],
        embeddings: jax.Array,
        lengths: jax.Array,
        *,
        image_start: int,
        turn_end: int,
        most: int,
        how: Sampling = GREEDY,
        keys: jax.Array | None = None,
    ) -> "Answer":
        """What the language model says to prompts, up to where it ends its turn or begins an image.

        Args:
          embeddings, lengths, most, how, keys: as in `language_model.write`.
          image_start, turn_end: ids of the two tokens that end an answer.
        """
        written = write(
            self.language_model,
            params["language_model"],
            embeddings,
            lengths,
            most=most,
            stop=(turn_end, image_start),
            how=how,
            keys=keys,
            room=self.adapters.num_queries,
        )
        last = jnp.take_along_axis(written.ids, written.lengths[:, None] - 1, axis=1)
        queries = jnp.broadcast_to(
            self._adapters(params, method="asked_for"), (len(last), self.adapters.num_queries, self.adapters.width)
        )
        places = (lengths + written.lengths - 1)[:, None] + jnp.arange(1 + self.adapters.num_queries)
        hidden, _ = self.language_model.apply(
            {"params": params["language_model"], "cache": written.cache},
            embeddings=jnp.concatenate([self.embedded(params, last), queries], axis=1),
            positions=places,
            mutable=["cache"],
        )
        condition = self._adapters(params, hidden[:, 1:], method="condition")
        return Answer(written.ids, written.lengths, last[:, 0] == image_start, condition)

    def _language(self, params: Mapping[str, Any], *inputs: Any, **keywords: Any) -> Any:
        return self.language_model.apply({"params": params["language_model"]}, *inputs, **keywords)

    def _adapters(self, params: Mapping[str, Any], *inputs: Any, **keywords: Any) -> Any:
        return self.adapters.apply({"params": params["adapters"]}, *inputs, **keywords)


class Answer(NamedTuple):
    """What was said to prompts.

    Attributes:
      ids, lengths: as of `language_model.Written`.
      shows: bool `[B]`, whether an image begins where the text ends.
      condition: of that image, `[B, N, Z]`.
    """

    ids: jax.Array
    lengths: jax.Array
    shows: jax.Array
    condition: jax.Array
