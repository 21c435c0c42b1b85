"""Prompts: what samples are asked for, from a file, and those by which scenes of digits are judged."""

import functools
from pathlib import Path

from rae_jax.data.scene_words import CATEGORIES, Prompt, prompt
from rae_jax.data.scenes import randomness
from rae_jax.files import read_json_lines

OF_EACH = 50  # of a category, of combinations that were seen in training and of others
# Where nothing else is asked for.
EXAMPLES = (
    "Can you generate a photo of a red cube on a blue sphere?",
    "Can you generate a photo of two dogs in the snow?",
    "Can you generate a photo of a bowl of soup next to a book?",
    "Can you generate a photo of a lighthouse at dusk?",
)


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts in a file: a line each, or JSON lines with "prompt" if the name ends in .jsonl; empty ones are none.

    Raises:
      ValueError: there is no such file, a line is not UTF-8 or no JSON with a prompt, or there is no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}")
    prompts = []
    if path.suffix == ".jsonl":
        for where, row in read_json_lines(path):
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f'{where} has no text "prompt"; there are {sorted(row)}')
            prompts.append(row["prompt"])
    else:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is not UTF-8 text: {error}") from None
            if text:
                prompts.append(text)
    if not prompts:
        raise ValueError(f"{path} holds no prompts: it is to have one a line")
    return tuple(prompts)


@functools.cache
def scene_prompts() -> tuple[Prompt, ...]:
    """The prompts by which scenes are judged, `OF_EACH` of each category seen and unseen, in turns; always the same."""
    random = randomness("scene prompts")
    each = [(category, of_seen) for category in CATEGORIES for of_seen in (True, False)]
    return tuple(prompt(category, random, of_seen=of_seen) for _ in range(OF_EACH) for category, of_seen in each)
