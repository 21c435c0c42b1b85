"""Language: the model that reads prompts and images, what stands around it, and the generator that it tells."""

import functools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rae_jax.components.component import Component, architecture, flow_map_inputs, of_module, spec
from rae_jax.components.encoders import tokens_shape
from rae_jax.components.latent_spaces import latent_space
from rae_jax.data.conversations import CaptionLayout, Layout
from rae_jax.data.prompts import EXAMPLES, read_prompts, scene_prompts
from rae_jax.data.scene_tokens import scene_tokenizer
from rae_jax.data.tokenizer import Tokenizer, open_tokenizer
from rae_jax.models.language_model import LanguageModel
from rae_jax.models.text_to_image import Adapters, PromptedDiT, Reader, TokenCondition

SCENES = "scenes"  # the source; as a tokenizer: that of their grammar


def speaks(config: ConfigDict) -> bool:
    """Whether generators are told prompts."""
    return bool(config.language_model.model) and not config.mixture.model and not tells_features(config)


def tells_features(config: ConfigDict) -> bool:
    """Whether the network "flow" is told the features that a frozen language model has of a text (RAEv2)."""
    return bool(config.flow.model.get("context_width"))


def language_model(config: ConfigDict) -> Component:
    """The language model.

    Raises:
      ValueError: no architecture.
    """
    fields = architecture(config.language_model, "language_model", "language_model")
    ids = spec(2, dtype=jnp.int32)
    return of_module(config, "language_model", lambda dtype: LanguageModel(**fields, dtype=dtype), ids, kind="qwen")


def adapters(config: ConfigDict) -> Component:
    """The projector of the encoder's tokens, the learned queries, and the projector of conditions.

    Raises:
      ValueError: see `tokens_read`.
    """
    (seen, features), queries = tokens_shape(config), num_queries(config)
    tokens_read(config)  # or there is no room for what is read
    width, condition_width = config.language_model.model.width, config.text_dit.model.condition_width
    return of_module(
        config,
        "adapters",
        lambda dtype: Adapters(
            features,
            width,
            queries,
            condition_width,
            condition_std=config.adapters.condition_std,
            spatial_merge=config.adapters.spatial_merge,
            dtype=dtype,
        ),
        spec(seen, features),
        spec(queries, width),
        kind="",
        described_by="config.encoder.model, config.language_model.model, config.text_dit.model and "
        "config.adapters.spatial_merge",
    )


def num_queries(config: ConfigDict) -> int:
    """Tokens of an image as the generator makes them."""
    return latent_space(config).shape[0] // config.text_dit.model.patch_size**2


def tokens_read(config: ConfigDict) -> int:
    """Tokens of an image as the language model reads them.

    Raises:
      ValueError: the encoder's grid is not of whole squares of `adapters.spatial_merge`; or more are read than made.
    """
    merge, side, made = config.adapters.spatial_merge, math.isqrt(tokens_shape(config)[0]), num_queries(config)
    if merge < 1 or side % merge:
        raise ValueError(f"adapters.spatial_merge={merge} does not divide the encoder's {side} x {side} tokens")
    read = (side // merge) ** 2
    if read > made:
        raise ValueError(
            f"the language model reads {read} tokens of an image, and the generator makes images of {made}, which is "
            "all that there is room for: change encoder.input_size, adapters.spatial_merge, latent_patch_size or "
            "text_dit.model.patch_size"
        )
    return read


def text_dit(config: ConfigDict, name: str = "text_dit", *, flow_map: bool = False) -> Component:
    """The network `(z, t, TokenCondition) -> velocity`; or as a flow map `(z, t, it, r, guidance) -> mean velocity`.

    Args:
      name: of its section.

    Raises:
      ValueError: no architecture.
    """
    guided = flow_map and config.flow_map.guided
    fields = architecture(config.text_dit, "text_dit", "text_dit")
    num_tokens, channels = latent_space(config).shape
    return of_module(
        config,
        name,
        lambda dtype: PromptedDiT(
            math.isqrt(num_tokens), channels, flow_map=flow_map, guided=guided, dtype=dtype, **fields
        ),
        spec(num_tokens, channels),
        spec(),
        token_condition(config),
        *(flow_map_inputs(config) if flow_map else ()),
        kind="",
        described_by="config.text_dit.model",
    )


def token_condition(config: ConfigDict) -> TokenCondition:
    """The shapes of what a DiT is told of one prompt."""
    tokens = spec(num_queries(config), config.text_dit.model.condition_width)
    return TokenCondition(tokens, jax.ShapeDtypeStruct((1,), jnp.bool_))


def reader(config: ConfigDict) -> Reader:
    """The language model and the adapters as one."""
    return Reader(language_model(config).module, adapters(config).module)


@functools.cache
def opened(name: str) -> Tokenizer:
    """The tokenizer that a config names so: that of the scenes' grammar, or see `open_tokenizer`."""
    return scene_tokenizer() if name == SCENES else open_tokenizer(name)


def tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of the language model; see `tokenizer_of`."""
    return tokenizer_of(config.language_model, "language_model")


def tokenizer_of(section: ConfigDict, name: str) -> Tokenizer:
    """The tokenizer that a section names, of no more tokens than its model has.

    Raises:
      ValueError: it is another's, or see `open_tokenizer`; `name` is what the message calls the section.
    """
    chosen, rows = opened(section.tokenizer), section.model.vocabulary
    if chosen.size > rows:
        raise ValueError(
            f"{name}.tokenizer={section.tokenizer!r} has {chosen.size} tokens, and {name}.model.vocabulary={rows} "
            "rows: it is not the tokenizer of these weights"
        )
    return chosen


def prompts(config: ConfigDict) -> tuple[str, ...]:
    """What samples are asked for.

    Raises:
      ValueError: see `read_prompts`.
    """
    if config.sampling.prompt:
        return tuple(config.sampling.prompt)
    if config.sampling.prompts:
        return read_prompts(config.sampling.prompts)
    return tuple(each.text for each in scene_prompts()) if config.data.source == SCENES else EXAMPLES


def prompt_length(config: ConfigDict) -> int:
    """How many tokens a prompt may have, with what stands around it and without its image's."""
    return config.language_model.context - num_queries(config)


def layout(config: ConfigDict) -> Layout | CaptionLayout:
    """The shape of conversations, or of captions where the features of those are told.

    Raises:
      ValueError: see `tokens_read`.
    """
    if tells_features(config):
        return CaptionLayout(config.flow.model.condition_tokens)
    return Layout(
        config.language_model.context, num_queries(config), config.text_to_image.max_images, tokens_read(config)
    )
