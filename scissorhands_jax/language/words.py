"""A tokenizer of whole words, and rows of questions and answers for networks that learn from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.packing import Encoded

PAD = 0
"""The token of padding."""
END = 1
"""The token of the end of an answer."""
ANSWER = 2
"""The token between question and answer."""
_SPECIAL = ("<pad>", "<end>", "<answer>")


class WordTokenizer:
    """Texts as numbers of words, which blanks separate.

    Args:
      words: All words that can occur; each becomes a number of its own after the three special ones.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = (*_SPECIAL, *words)
        self._numbers = {word: number for number, word in enumerate(self._words)}

    @property
    def size(self) -> int:
        """The number of different tokens."""
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        """The numbers of the words of a text.

        Raises:
          InputError: A word is not known.
        """
        try:
            return [self._numbers[word] for word in text.split()]
        except KeyError as error:
            raise InputError(f"the word {error.args[0]!r} of {text[:60]!r} is not in the vocabulary") from error

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of numbers up to the end of the answer, with marks next to the word before them."""
        words = []
        for token in np.asarray(tokens).tolist():
            if token in (END, PAD):
                break
            words.append(self._words[token])
        return " ".join(words).replace(" .", ".").replace(" ?", "?")


def encode_pair(tokenizer: WordTokenizer, question: str, answer: str) -> Encoded:
    """A question with the token before the answer, and an answer with its end.

    Raises:
      InputError: A word is not known.
    """
    return Encoded([*tokenizer.encode(question), ANSWER], [*tokenizer.encode(answer), END])


def rows_of(tokenizer: WordTokenizer, pairs: Sequence[tuple[str, str]], length: int) -> dict[str, np.ndarray]:
    """Questions and answers as the batch of `token_losses`.

    Args:
      tokenizer: Knows all words.
      pairs: Questions, each with its answer.
      length: The number of tokens of a row. What is left of it is padding.

    Returns:
      {"tokens": (N, length) int32, "answer": (N, length) bool}, where the end of the answer belongs to it.

    Raises:
      InputError: A word is not known, or a question and its answer do not fit in a row.
    """
    tokens = np.full((len(pairs), length), PAD, np.int32)
    answer = np.zeros(tokens.shape, bool)
    for row, (question, text) in enumerate(pairs):
        pair = encode_pair(tokenizer, question, text)
        if pair.length > length:
            raise InputError(
                f"{question[:60]!r} and its answer have {pair.length} tokens and a row {length}; make rows longer"
            )
        tokens[row, : pair.length] = [*pair.prompt, *pair.answer]
        answer[row, len(pair.prompt) : pair.length] = True
    return {"tokens": tokens, "answer": answer}
