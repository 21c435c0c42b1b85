"""What a run's language model says to questions about images."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.encoders import encoder, tokens_of
from rae_jax.components.language import adapters, language_model, layout, reader, tokenizer
from rae_jax.data.conversations import asked
from rae_jax.data.decoding import decode_image
from rae_jax.data.transforms import transform
from rae_jax.experiment.weights import Weights


class Answers:
    """Answers of one run, greedy and so always the same.

    Raises:
      ValueError: a part has no weights.
    """

    def __init__(self, config: ConfigDict, weights: Weights):
        self._tokenizer, self._layout = tokenizer(config), layout(config)
        self._transform = transform("resize", config.data.image_size)
        parts = (language_model(config), adapters(config), encoder(config))
        self._params = {part.name: weights.load(part) for part in parts}
        read, encode, words, most = reader(config), tokens_of(config), self._tokenizer, config.sampling.answer_tokens

        @jax.jit
        def run(params: dict, images: jax.Array, tables: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            features = encode(params["encoder"], images.astype(jnp.float32) / 255.0)
            with parts[0].precise():
                given = read.input(params, features, tables)
                said = read.answer(
                    params,
                    given,
                    tables["length"],
                    image_start=words.image_start,
                    turn_end=words.turn_end,
                    most=most,
                )
            return said.ids, said.lengths

        self._run = run

    def __call__(self, images: np.ndarray, questions: Sequence[str], batch_size: int = 100) -> list[str]:
        """The answer to the question about each image, uint8 `[N, S, S, 3]`.

        Raises:
          ValueError: a question is longer than the context.
        """
        said: list[str] = []
        for first in range(0, len(questions), batch_size):
            part = np.minimum(np.arange(first, first + min(batch_size, len(questions))), len(questions) - 1)
            rows = [asked(self._tokenizer, questions[i], self._layout) for i in part]
            tables = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            ids, lengths = jax.device_get(self._run(self._params, images[part], tables))
            texts = [self._tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
            said += [text.strip() for text in texts[: len(questions) - first]]
        return said

    def of_image(self, image: np.ndarray, question: str) -> str:
        """The answer to a question about an image uint8 `[H, W, 3]` of any size."""
        return self(self._transform(image)[None], [question], batch_size=1)[0]

    def of_file(self, path: str | Path, question: str) -> str:
        """The answer to a question about the image in a file.

        Raises:
          ValueError: it cannot be read, or see above.
        """
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            try:
                image = decode_image(Path(path).read_bytes())
            except ValueError as error:
                raise ValueError(f"--image={path}: {error}") from None
            return self.of_image(image, question)
        raise ValueError(f"--image={path}: there is no such file")
