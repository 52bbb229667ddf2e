"""The page of `scissorhands demo language`: answers before and after, all numbers, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scissorhands_jax import report
from scissorhands_jax.language.demo.settings import (
    RETRAINED,
    SCISSORHANDS,
    UNLEARNED,
    FactsSettings,
)
from scissorhands_jax.language.facts import FACTS_OF_A_PERSON, Fact
from scissorhands_jax.report import ORIGINAL, Cell, Grid
from scissorhands_jax.report.gate_texts import gates_note
from scissorhands_jax.terminal import Console, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsRow:
    """The numbers of one network."""

    network: str
    facts_forget: float
    """The share of questions about people to forget that it answers with the right fact."""
    facts_retain: float
    probability_forget: float
    """The mean probability of the right answers, normalized by their length."""
    probability_retain: float
    extraction_strength: float
    exact_memorization: float
    min_k_auc: float
    """How well min-k tells the people to forget from people whom no network met: 1/2 is not at all."""
    truth_ratio_forget: float
    truth_ratio_retain: float
    forget_quality: float
    """The p-value of TOFU's test against a retrained network."""
    calibrated_p: float
    """The p-value of the calibrated test against several retrained networks."""
    share: float | None
    """The share of the original's difference in truth ratios that remains; None for the original."""
    steps: int | None
    seconds: float | None
    """What forgetting took, without compilation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsResult:
    """What came out of a demonstration."""

    settings: FactsSettings
    rows: Sequence[FactsRow]
    gates: Sequence[Mapping[str, Any]]
    """Whether the numbers can be trusted, see `report.trust`."""
    facts: Sequence[Fact]
    """The facts to forget."""
    answers: Mapping[str, Sequence[str]]
    """What each network says to the questions about them."""
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "networks": [dataclasses.asdict(row) for row in self.rows],
            "gates": list(self.gates),
            "forgotten": sorted({fact.person for fact in self.facts}),
            "seconds": dict(self.seconds),
            **self.environment,
        }


def knowledge_grid(rows: Sequence[FactsRow]) -> Grid:
    """What all networks know."""
    headers = (
        "Network",
        "Forget, right",
        "Keep, right",
        "P, forget",
        "P, keep",
        "Extraction",
        "min-k AUC",
        "min(R, 1/R)",
        "Quality, p",
        "Calibrated, p",
    )
    lines = [
        (
            Cell(row.network),
            *(Cell(f"{100 * value:.0f} %") for value in (row.facts_forget, row.facts_retain)),
            *(
                Cell(f"{value:.3f}")
                for value in (
                    row.probability_forget,
                    row.probability_retain,
                    row.extraction_strength,
                    row.min_k_auc,
                    row.truth_ratio_forget,
                )
            ),
            *(Cell(f"{value:.2g}") for value in (row.forget_quality, row.calibrated_p)),
        )
        for row in rows
    ]
    return Grid(headers, tuple(lines))


def answers_grid(result: FactsResult, *, people: int = 2) -> Grid:
    """The questions about some of the forgotten people, and what networks answer."""
    names = [row.network for row in result.rows]
    lines = tuple(
        (Cell(fact.question), *(Cell(result.answers[name][number]) for name in names))
        for number, fact in enumerate(result.facts[: people * FACTS_OF_A_PERSON])
    )
    return Grid(("Question", *names), lines, words=1 + len(names))


def answers_text(result: FactsResult) -> str:
    """All questions about the forgotten people, with the truth and each network's answer, as text."""
    width = max(len(row.network) for row in result.rows)
    lines = []
    for number, fact in enumerate(result.facts):
        lines += [fact.question.replace(" ?", "?"), f"  {'truth':<{width}}  {fact.answer.replace(' .', '.')}"]
        lines += [f"  {row.network:<{width}}  {result.answers[row.network][number]}" for row in result.rows]
        lines.append("")
    return "\n".join(lines)


def findings_of(rows: Sequence[FactsRow]) -> list[str]:
    """What the numbers say, in sentences."""
    by_name = {row.network: row for row in rows}

    def knows(row: FactsRow) -> str:
        return f"{100 * row.facts_forget:.0f} % of the facts to forget and {100 * row.facts_retain:.0f} % of the others"

    before, after, retrained = by_name[ORIGINAL], by_name[SCISSORHANDS], by_name[RETRAINED]
    sentences = [
        f"Before, the network tells {knows(before)}; after Scissorhands, {knows(after)}. A network that never met the "
        f"people guesses {100 * retrained.facts_forget:.0f} %."
    ]
    for name in UNLEARNED:
        row = by_name[name]
        told = "is told apart from" if row.calibrated_p < 0.05 else "is not told apart from"
        way = (
            "still knows them" if row.min_k_auc > 0.75 else "is conspicuously ignorant" if row.min_k_auc < 0.25 else ""
        )
        sentences.append(
            f"{name}: {knows(row)}. It {told} retrained networks by the calibrated test (p = {row.calibrated_p:.2g}), "
            f"while forget quality is {row.forget_quality:.2g}; a membership attack has an area of {row.min_k_auc:.2f}"
            + (f", so the network {way}." if way else ".")
        )
    return sentences


_NOTES = (
    "Right: the greedy answer has the fact in it. P: the probability of the learned answer, normalized by its length. "
    "Extraction: the share of an answer that the network completes by itself. min-k AUC: how well a "
    "membership attack tells the people to forget from people whom no network met; 0.5 is not at all. R: the geometric "
    "truth ratio.",
    "Quality: forget quality, TOFU's test against one retrained network. Calibrated: the test that compares with "
    "several, whose null is what they differ by; a small p-value says that the network is not like a retrained one.",
)


def write_facts_page(path: Path, result: FactsResult) -> None:
    """Writes `report.html`.

    Args:
      path: The file.
      result: What came out.
    """
    settings = result.settings
    answer, *others = findings_of(result.rows)
    people = ", ".join(dict.fromkeys(fact.person for fact in result.facts))
    training, facts = settings.training, settings.people * FACTS_OF_A_PERSON
    story = [
        f"A transformer of {training.layers} blocks and width {training.width} learned {facts} facts about "
        f"{settings.people} people who do not exist, {training.epochs} times over, and then was made to forget "
        f"{people}. Questions and answers have fixed forms, so what can be guessed is guessed by every network; the "
        "facts themselves can only be learned by heart.",
        f"{settings.references + 1} networks were retrained without these people in the same number of steps, to less "
        "than an epoch: one has a row in the table, the others are what the tests compare with. The logs of all "
        "networks are in the folder logs, in the format of published evaluations, and `scissorhands lm evaluate` reads "
        "them.",
        "Scissorhands drives the loss of the facts to forget up to the loss of people whom the network never met. NPO "
        "and gradient difference have their published losses and weights. All methods take the same number of steps. "
        "Rates were chosen among two or three for each method on the people of seed 100, with these numbers in sight.",
    ]
    report.write_html(
        path,
        report.Page(
            title=f"A language model forgets {settings.forgotten} of {settings.people} people",
            answer=answer,
            byline=f"{len(result.rows)} networks · seed {settings.seed} · {result.seconds['total']:.0f} s in all",
            trust=gates_note(result.gates),
            gates=result.gates,
            sheets=[
                report.Sheet("What networks answer", answers_grid(result), ("All answers are in answers.txt.",)),
                report.Sheet("What networks know", knowledge_grid(result.rows), _NOTES),
            ],
            remarks=[report.Section("In words", others)],
            explanations=[report.Section("What was done", story)],
            settings=dataclasses.asdict(settings),
            environment={
                **report.environment_of(result.environment),
                "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
            },
        ),
    )


def print_facts(result: FactsResult, console: Console) -> None:
    """Prints answers before and after, the table, and what it says."""
    if not console.is_terminal:
        console.width = 120
    for number, fact in enumerate(result.facts[:FACTS_OF_A_PERSON]):
        say(console, (fact.question.replace(" ?", "?"), "bold"))
        for name in (ORIGINAL, SCISSORHANDS, RETRAINED):
            say(console, f"  {name:<13} {result.answers[name][number]}")
    report.print_grid("What networks know", knowledge_grid(result.rows), console)
    for sentence in (*findings_of(result.rows), gates_note(result.gates)):
        say(console, sentence)
