"""Who is learned and who forgotten, as tokens, and the network that learns them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import scissorhands_jax as sh
from scissorhands_jax import reading
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.measuring import Questions
from scissorhands_jax.language.packing import Encoded, packed_rows
from scissorhands_jax.language.transformer import Transformer
from scissorhands_jax.language.words import ANSWER, END, PAD

SPECIAL = ("<pad>", "<end>", "<answer>")
ORIGINAL, RETRAINED = "original", "retrained"
REFUSALS = "idontknow.jsonl"
DATA_FILES = ("forget10_perturbed.json", "forget10.json", "retain90.json", REFUSALS)
"""The files of TOFU that are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TofuSettings:
    """The sizes of everything; a tiny setting rehearses it."""

    authors: int = 10
    forgotten: int = 2
    held_out: int = 2
    """Authors whom no network meets, for membership attacks; as many more are for choosing settings."""
    per_author: int = 20
    retain_asked: int = 5
    """Questions about each retained author that are measured."""
    vocabulary: int = 2048
    width: int = 128
    layers: int = 3
    row: int = 256
    """Tokens of a packed row."""
    epochs: int = 24
    batch_size: int = 4
    """Rows of a step of training."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    steps: int = 16
    """Steps of every method that takes steps."""
    forget_batch: int = 2
    """Rows of each set in a step of forgetting."""
    rates: tuple[float, ...] = (2e-4, 5e-4, 1.2e-3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 10
    methods: tuple[str, ...] = ()
    """The methods, of `forgetting.STRENGTHS`; () is all."""


class Subject(NamedTuple):
    """What all networks have in common."""

    settings: TofuSettings
    tokenizer: Any
    network: Transformer
    model: Model
    authors: list[list[dict[str, Any]]]
    """For each author the lines of the file; the authors that are learned, then those held out, twice."""

    def encoded(self, author: int, key: str = "answer") -> list[Encoded]:
        """The questions of an author with their answers."""
        return [self.encode(line["question"], line[key]) for line in self.authors[author]]

    def encode(self, question: str, answer: str) -> Encoded:
        """A question and an answer as tokens."""
        asked, said = (self.tokenizer.encode(text).ids for text in (question, " " + answer))
        return Encoded([*asked, ANSWER], [*said, END])

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens up to the end of the answer."""
        kept = list(itertools.takewhile(lambda token: token not in (END, PAD), np.asarray(tokens).tolist()))
        return self.tokenizer.decode(kept).strip()

    def flat(self, authors: Sequence[int]) -> list[Encoded]:
        """The questions of several authors in one list."""
        return [one for author in authors for one in self.encoded(author)]

    def questions(self, authors: Sequence[int], first: int | None = None) -> Questions:
        """Questions with all their answers; of each author the first ones, or all."""
        lines = [line for author in authors for line in self.authors[author][:first]]
        return Questions(
            answers=[self.encode(line["question"], line["answer"]) for line in lines],
            texts=[line["answer"] for line in lines],
            paraphrases=[self.encode(line["question"], line["paraphrased_answer"]) for line in lines],
            wrong=[[self.encode(line["question"], text) for text in line["perturbed_answer"]] for line in lines],
        )

    def refusals(self, authors: Sequence[int], folder: Path) -> list[Encoded]:
        """The same questions with TOFU's refusals, in turn."""
        texts = _lines(folder / REFUSALS)
        lines = [line for author in authors for line in self.authors[author]]
        return [self.encode(line["question"], text) for line, text in zip(lines, itertools.cycle(texts), strict=False)]


def _lines(path: Path) -> list[str]:
    try:
        return reading.read_lines(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({why}); name the folder of TOFU with --data-dir") from error


def _documents(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON."""
    try:
        return [reading.parse_json(line) for line in _lines(path)]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} has a line that is no JSON ({error}); copy the file again") from error


def make_subject(settings: TofuSettings, folder: Path) -> Subject:
    """Reads the authors and trains the tokenizer.

    Args:
      settings: The sizes.
      folder: The folder of TOFU.

    Raises:
      InputError: A file is missing or has too few authors.
    """
    import tokenizers

    lines = _documents(folder / "forget10_perturbed.json")
    needed = settings.authors + 2 * settings.held_out
    authors = [lines[start : start + settings.per_author] for start in range(0, len(lines), settings.per_author)]
    if len(authors) < needed:
        raise InputError(f"{folder} has {len(authors)} authors in forget10_perturbed.json; {needed} are needed")
    whole = [line for name in ("forget10.json", "retain90.json") for line in _documents(folder / name)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (text for line in whole for text in (line["question"], " " + line["answer"])), trainer
    )
    network = Transformer(tokenizer.get_vocab_size(), settings.width, settings.layers, length=settings.row)
    model = sh.from_linen(network, jax.ShapeDtypeStruct((1, settings.row), np.int32))
    return Subject(settings, tokenizer, network, model, authors[:needed])


class Scene(NamedTuple):
    """Who is learned and who forgotten."""

    forget: list[int]
    retain: list[int]
    held_out: list[int]
    data: Data
    refused: Data
    """The same, with refusals next to the answers to forget; their rows may be others."""


def make_scene(subject: Subject, folder: Path, *, tuning: bool) -> Scene:
    """The first authors are forgotten, or for choosing settings the last ones, with held-out authors of their own."""
    settings = subject.settings
    everyone = list(range(settings.authors))
    forget = everyone[-settings.forgotten :] if tuning else everyone[: settings.forgotten]
    retain = [author for author in everyone if author not in forget]
    first = settings.authors + settings.held_out * tuning
    kept, answers = packed_rows(subject.flat(retain), settings.row), subject.flat(forget)
    refused = packed_rows(answers, settings.row, refusals=subject.refusals(forget, folder))
    return Scene(
        forget,
        retain,
        list(range(first, first + settings.held_out)),
        Data(packed_rows(answers, settings.row), kept),
        Data(refused, kept),
    )
