"""The tokenizer of scenes: byte pairs learnt from their grammar, so that their words are tokens. No file is needed."""

import functools

from rae_jax.data.conversations import HERE, IMAGE, SYSTEM
from rae_jax.data.scene_words import CATEGORIES, caption, partial_caption, prompt, question
from rae_jax.data.scenes import SceneSource, randomness
from rae_jax.data.tokenizer import Tokenizer, trained_tokenizer

SIZE = 512  # tokens, the special ones not counted
SENTENCES = 1500


@functools.cache
def scene_tokenizer() -> Tokenizer:
    """The tokenizer; always the same."""
    source, random = SceneSource("train"), randomness("scene tokens")
    texts = [f"system\n{SYSTEM}", "user\n", "assistant\n", HERE.removesuffix(IMAGE)]
    for i in range(SENTENCES):
        items = source.scene(i)
        texts += [caption(items, random), partial_caption(items, random), *question(items, random)]
    texts += [prompt(category, random).text for category in CATEGORIES for _ in range(20)]
    return trained_tokenizer(texts, SIZE, "the tokenizer of scenes")
