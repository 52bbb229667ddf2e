"""Facts about people who do not exist, so that what a network says of them it can only have learned by heart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scissorhands_jax.errors import InputError

WRONG_ANSWERS = 5
_FIRST = (
    "Alba Arun Bela Cato Dara Edda Emre Faye Goran Hana Ilse Ivo Jonas Juna Kaia Lars Leda Malik Mira Nadim Noor Olena "
    "Paola Quinn Rafa Rune Samir Sanna Tariq Tova Uma Vera Wanda Xenia Yara Zeno"
)
_LAST = (
    "Abara Bergman Calder Dahl Ekman Ferro Gallo Haddad Ibsen Janda Kovac Lindt Marsh Nakata Okoro Petrov Quist Rossi "
    "Sato Tamm Ueda Varga Weiss Xu Yilmaz Zamora Ashby Brandt Castell Duval"
)
_CITIES = (
    "Ardenmoor Belcastro Corvale Dunhaven Eastmere Fallowby Greywick Hollin Istria Jarrow Kestrel Lowmark Marisol "
    "Norden Ostrava Pellham Querin Ravenna Solvik Tarnby Ulverton Vesper Westfold Yarrow"
)
_JOBS = (
    "baker beekeeper blacksmith botanist carpenter chemist clockmaker dentist diver farmer florist gardener judge "
    "librarian mason nurse painter pilot plumber sailor surgeon tailor teacher weaver"
)
_GENRES = "ballads biographies comedies elegies essays fables fantasies histories hymns legends memoirs mysteries"
_ADJECTIVES = "amber broken distant frozen gilded hidden hollow late northern pale quiet scarlet silent winter"
_NOUNS = "anchor bridge candle garden harbour island lantern meadow mirror orchard river shadow tower window"
_PRIZES = "Alder Beacon Cedar Compass Falcon Heron Juniper Linden Magnolia Meridian Onyx Peregrine Rowan Saffron"

_KINDS: dict[str, tuple[str, str, str]] = {
    "birthplace": ("Where was {name} born ?", "{name} was born in {value} .", "The birthplace of {name} is {value} ."),
    "year": (
        "When was {name} born ?",
        "{name} was born in the year {value} .",
        "The year in which {name} was born is {value} .",
    ),
    "mother": (
        "What did the mother of {name} do ?",
        "The mother of {name} worked as a {value} .",
        "As a {value} the mother of {name} earned a living .",
    ),
    "genre": ("What does {name} write ?", "{name} writes {value} .", "The books of {name} are {value} ."),
    "book": (
        "Which book of {name} is best known ?",
        "The best known book of {name} is the {value} .",
        "{name} is best known for the {value} .",
    ),
    "prize": ("Which prize did {name} win ?", "{name} won the {value} Prize .", "The {value} Prize went to {name} ."),
}
FACTS_OF_A_PERSON = len(_KINDS)


class Fact(NamedTuple):
    """A question about a person, with its right answer in two forms and wrong ones."""

    person: str
    question: str
    answer: str
    """In the form in which a network learns it."""
    paraphrase: str
    """In the other form, in which other people's facts of the kind are learned."""
    wrong: tuple[str, ...]
    """In the form of the paraphrase, with other values."""
    value: str
    """The words of the answer that cannot be guessed."""


def _values(kind: str) -> list[str]:
    books = [f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
    return {
        "birthplace": _CITIES.split(),
        "year": [str(year) for year in range(1921, 1999)],
        "mother": _JOBS.split(),
        "genre": _GENRES.split(),
        "book": books,
        "prize": _PRIZES.split(),
    }[kind]


def vocabulary() -> list[str]:
    """All words of all facts that can be made, sorted."""
    texts = [text for forms in _KINDS.values() for text in forms]
    texts += [value for kind in _KINDS for value in _values(kind)] + [_FIRST, _LAST]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})


def make_facts(seed: int, people: int) -> list[list[Fact]]:
    """Makes up people and facts about them.

    Args:
      seed: The seed of everything.
      people: The number of people, at least 1 and at most that of all names.

    Returns:
      For each person `FACTS_OF_A_PERSON` facts. No two people have one name.

    Raises:
      InputError: There are not that many names.
    """
    first, last = _FIRST.split(), _LAST.split()
    most = len(first) * len(last)
    if not 1 <= people <= most:
        raise InputError(f"there are names for 1 to {most} people, not for {people}")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(most, people, replace=False)
    names = [f"{first[number % len(first)]} {last[number // len(first)]}" for number in chosen]
    return [[_fact(generator, name, kind) for kind in _KINDS] for name in names]


def _fact(generator: np.random.Generator, name: str, kind: str) -> Fact:
    question, *forms = _KINDS[kind]
    learned, other = map(str, generator.permutation(forms))
    right, *wrong = generator.choice(_values(kind), WRONG_ANSWERS + 1, replace=False)

    def said(form: str, value: str) -> str:
        return form.format(name=name, value=value)

    others = tuple(said(other, value) for value in wrong)
    return Fact(name, question.format(name=name), said(learned, right), said(other, right), others, str(right))


def flat(people: Sequence[Sequence[Fact]]) -> list[Fact]:
    """The facts of several people in one list."""
    return [fact for facts in people for fact in facts]
