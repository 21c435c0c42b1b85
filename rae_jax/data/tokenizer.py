"""Text to token ids and back: a published `tokenizer.json`, or bytes, which need no file.

Both have the tokens that conversations are laid out with (`SPECIAL`); those that a published file lacks, the marks
around an image, are appended to it, as Scale-RAE does.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
SPECIAL = (PADDING, TURN_START, TURN_END, IMAGE_START, IMAGE_END)


class Tokenizer:
    """A vocabulary and what it does to text; pickles into worker processes.

    Attributes:
      size: one more than the highest id.
      padding, turn_start, turn_end, image_start, image_end, newline: ids.
    """

    def __init__(self, vocabulary: tokenizers.Tokenizer, described: str):
        vocabulary.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self._vocabulary, self._described = vocabulary, described
        self.size = max(vocabulary.get_vocab(with_added_tokens=True).values()) + 1
        ids = [self._vocabulary.token_to_id(token) for token in SPECIAL]
        self.padding, self.turn_start, self.turn_end, self.image_start, self.image_end = ids
        newline = self.encode("\n")
        if len(newline) != 1:
            raise ValueError(f"{self}: a newline is the tokens {newline}; conversations need a single one")
        (self.newline,) = newline

    def __repr__(self) -> str:
        return self._described

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; special tokens in it are taken for what they say."""
        return self._vocabulary.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._vocabulary.decode([int(i) for i in ids if 0 <= i < self.size], skip_special_tokens=True)


def open_tokenizer(path: str | Path = "") -> Tokenizer:
    """The tokenizer in `path`, a `tokenizer.json` or the directory that holds one; without one, that of bytes.

    Bytes have the ids 0 to 255 in the order of the byte alphabet of GPT-2 and Qwen (a newline is 198), and `SPECIAL`
    follow.

    Raises:
      ValueError: there is no such file, or it is no tokenizer.
    """
    if not str(path):
        return Tokenizer(_of_bytes(), "the tokenizer of bytes")
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"there is no tokenizer {file}; give a tokenizer.json, or none for bytes")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)), f"the tokenizer {file}")
    except ValueError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{file} is no tokenizer: {error}") from error


def trained_tokenizer(texts: Sequence[str], size: int, described: str) -> Tokenizer:
    """The tokenizer of bytes with pairs that are frequent in `texts` added, up to `size` tokens before `SPECIAL`."""
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.normalizer = normalizers.NFC()
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learnt.train_from_iterator(texts, trainer)
    return Tokenizer(learnt, described)


def _of_bytes() -> tokenizers.Tokenizer:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]  # each shown as a character from 256 on
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(characters)}, []))
    vocabulary.normalizer = normalizers.NFC()
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary.decoder = decoders.ByteLevel()
    return vocabulary
