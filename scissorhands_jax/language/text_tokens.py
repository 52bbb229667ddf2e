"""From texts to tokens and back, with the tokenizer of a published model (`tokenizer.json`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.packing import Encoded
from scissorhands_jax.language.text_files import TextExample

if TYPE_CHECKING:
    import tokenizers


class Tokens(NamedTuple):
    """A prompt and an answer as numbers."""

    numbers: list[int]
    start: int
    """The number of tokens before the answer."""


class TextTokenizer:
    """The tokenizer of a model.

    Args:
      tokenizer: What `read_tokenizer` returns.
      ends: The tokens at which a generated answer ends. The first of them follows the answers of examples; without any
        nothing does.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, ends: Sequence[int] = ()) -> None:
        self._tokenizer, self.ends = tokenizer, tuple(dict.fromkeys(ends))

    @property
    def size(self) -> int:
        """One more than the largest token of the vocabulary, without tokens that were added to it later."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)

    def encode(self, prompt: str, answer: str = "", *, after: str | None = None) -> Tokens:
        """A prompt and an answer, which are read as one text, so that tokens are those of the text.

        A token that covers the end of the prompt and the beginning of the answer belongs to the answer. An
        answer is followed by the token that ends it.

        Args:
          prompt: What stands before the answer.
          answer: The answer; empty for a prompt alone.
          after: What a chat template puts behind the answer, of which the tokens up to the first that ends an answer
            are kept. Such a text has its special tokens, so the tokenizer adds none. None where no chat template was
            used.
        """
        text = prompt + answer
        found = self._tokenizer.encode(text + (after or ""), add_special_tokens=after is None)
        numbers, offsets = list(found.ids), found.offsets
        start = next((place for place, (_, stop) in enumerate(offsets) if stop > len(prompt)), len(numbers))
        if after is not None:
            behind = next((place for place, (first, _) in enumerate(offsets) if first >= len(text)), len(numbers))
            ended = (place for place in range(behind, len(numbers)) if numbers[place] in self.ends)
            del numbers[next((place + 1 for place in ended), behind) if answer else behind :]
        if answer and self.ends and numbers[-1] not in self.ends:
            numbers.append(self.ends[0])
        return Tokens(numbers, min(start, len(numbers)))

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        """The text of tokens up to the first that ends an answer, without special tokens."""
        kept = np.asarray(numbers).tolist()
        stop = next((place for place, number in enumerate(kept) if number in self.ends), len(kept))
        return self._tokenizer.decode(kept[:stop], skip_special_tokens=True)


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Reads `tokenizer.json`.

    Raises:
      InputError: The package `tokenizers` is missing, or the file is missing or damaged.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "tokenizers is missing; install the extra: pip install '.[language]' in a clone of the repository"
        ) from error
    if not path.is_file():
        raise InputError(
            f"{path.parent} has no {path.name}; take it from where the weights come from (a tokenizer.model alone is "
            "not enough)"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The package raises `Exception` itself.
        raise InputError(f"{path} is damaged ({str(error)[:120]}); copy it again") from error
    # The file may hold how texts were cut and filled up when it was saved, which says nothing about those of today.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_examples(
    tokenizer: TextTokenizer,
    examples: Sequence[TextExample],
    *,
    where: Path | str,
    vocabulary: int,
    context: int,
) -> list[Encoded]:
    """Examples as tokens.

    Args:
      tokenizer: The tokenizer of the model.
      examples: What is asked and said.
      where: Where they come from, for messages.
      vocabulary: The number of tokens that the network knows.
      context: The largest number of tokens of an example.

    Raises:
      InputError: An example is longer than the context, or has a token that the network does not know.
    """
    encoded = []
    for example in examples:
        numbers, start = tokenizer.encode(example.prompt, example.answer, after=example.after)
        place = f"{where}, line {example.line}"
        if len(numbers) > context:
            raise InputError(
                f"{place} has {len(numbers)} tokens, and the network reads {context}; shorten or divide it"
            )
        if max(numbers, default=0) >= vocabulary:
            raise InputError(
                f"{place} has the token {max(numbers)}, and the network knows {vocabulary} tokens; take tokenizer and "
                "weights of one model"
            )
        start = max(start, 1)  # the first token of a text is predicted from nothing
        if start >= len(numbers):
            raise InputError(f"{place} has an answer without tokens that can be predicted; leave it out")
        encoded.append(Encoded(numbers[:start], numbers[start:]))
    return encoded
