"""ROUGE of generated text, by the package `rouge-score` (the extra `language`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scissorhands_jax.errors import InputError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


class Rouge(NamedTuple):
    """How much of each reference is in the text that was generated for it, and the other way round."""

    recall: np.ndarray
    """The length of the longest common subsequence of words, as a share of the reference's words. shape=(N,)"""
    f_measure: np.ndarray
    """The harmonic mean of that and of its share of the generated words. shape=(N,)"""


def without_words(texts: Sequence[str]) -> list[int]:
    """The places of texts that have no word for ROUGE, which knows Latin letters without accents and digits only."""
    return [place for place, text in enumerate(texts) if not re.search("[a-z0-9]", text.lower())]


def rouge_scorer() -> RougeScorer:
    """What computes ROUGE-L with Porter's stemmer.

    Raises:
      InputError: The package `rouge-score` is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise InputError("ROUGE needs the package rouge-score; install the extra `language`") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> Rouge:
    """Computes ROUGE-L with Porter's stemmer, as the published evaluations do.

    A word is a run of Latin letters without accents and digits; other letters are taken for blanks.

    Args:
      generated: What a network said.
      references: The right answers, in the same order.

    Raises:
      InputError: There are not as many texts as references, a reference has no word, or the package `rouge-score` is
        not installed.

    References:
      Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    scorer = rouge_scorer()
    if len(generated) != len(references):
        raise InputError(f"there are {len(generated)} texts and {len(references)} references; give one text for each")
    if lacking := without_words(references):
        raise InputError(
            f"reference {lacking[0]} is {references[lacking[0]][:60]!r}, and ROUGE-L counts words of Latin letters and "
            "digits only; leave it out"
        )
    scores = [scorer.score(right, said)["rougeL"] for said, right in zip(generated, references, strict=True)]
    return Rouge(np.array([score.recall for score in scores]), np.array([score.fmeasure for score in scores]))
