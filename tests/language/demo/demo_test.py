"""The demonstration with facts in small: what it writes, and that its logs are what `lm evaluate` reads."""

import dataclasses
import html
import json

import pytest
from rich.console import Console

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.demo.page import FactsRow, findings_of
from scissorhands_jax.language.demo.running import run_language_demo
from scissorhands_jax.language.demo.settings import (
    RETRAINED,
    UNLEARNED,
    FactsSettings,
    FactsTraining,
    FactsUnlearning,
)
from scissorhands_jax.language.judging import judge_logs
from scissorhands_jax.report import ORIGINAL
from scissorhands_jax.report.gates import CAUGHT, FARTHER, SILENT

TINY = FactsSettings(
    people=4,
    forgotten=1,
    held_out=1,
    training=FactsTraining(epochs=2, batch_size=8, width=16, layers=1),
    unlearning=FactsUnlearning(batch_size=6, steps=2),
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "facts"
    return out, run_language_demo(out, TINY, console=Console(quiet=True))


def test_every_network_is_in_the_table_the_page_and_the_answers(shown):
    out, result = shown
    names = [ORIGINAL, RETRAINED, *UNLEARNED]
    assert [row.network for row in result.rows] == names
    document = json.loads((out / "results.json").read_text())
    assert [row["network"] for row in document["networks"]] == names
    page, answers = (out / "report.html").read_text(), (out / "answers.txt").read_text()
    for fact in result.facts:
        assert fact.question.replace(" ?", "?") in answers
        assert fact.answer.replace(" .", ".") in answers
    assert all(name in page and name in answers for name in names)
    assert result.facts[0].person in page
    assert [gate["name"] for gate in document["gates"]] == [CAUGHT, SILENT, FARTHER]
    assert f"{document['gates'][1]['explanation']}" in html.unescape(page)
    assert "the smallest times 4 is" in document["gates"][1]["explanation"]


def test_its_logs_are_read_by_the_command_and_give_its_numbers(shown):
    out, result = shown
    logs = out / "logs"
    references = [logs / f"retrained_{number}.json" for number in (2, 3, 4)]
    for row in result.rows:
        original = None if row.network == ORIGINAL else logs / "original.json"
        judged = judge_logs(logs / f"{row.network}.json", references, original)
        assert judged.sets["forget"]["probability"] == pytest.approx(row.probability_forget, rel=1e-6)
        assert judged.against[0].forget_quality["geometric"].p == pytest.approx(row.forget_quality)
        assert judged.calibrated_test["geometric"].p == pytest.approx(row.calibrated_p)


def test_a_folder_that_is_taken_and_numbers_that_are_too_small_are_refused(shown):
    out, _ = shown
    with pytest.raises(InputError, match="already holds a run"):
        run_language_demo(out, TINY, console=Console(quiet=True))
    for changes, message in [
        ({"forgotten": 4}, "forgotten is 4; give a number from 1 to 3"),
        ({"held_out": 0}, "held_out is 0"),
        ({"references": 2}, "references is 2; give at least 3"),
        ({"seed": -1}, "the seed must be a whole number from 0 to 4294967295, got -1"),
    ]:
        with pytest.raises(InputError, match=message):
            dataclasses.replace(TINY, **changes)


def test_findings_say_what_the_numbers_say():
    row = FactsRow(
        network=ORIGINAL, facts_forget=1.0, facts_retain=0.99, probability_forget=0.9, probability_retain=0.9,
        extraction_strength=0.9, exact_memorization=0.9, min_k_auc=0.9, truth_ratio_forget=0.5, truth_ratio_retain=0.5,
        forget_quality=1e-9, calibrated_p=0.01, share=None, steps=None, seconds=None,
    )  # fmt: skip
    rows = [dataclasses.replace(row, network=name) for name in (ORIGINAL, RETRAINED, *UNLEARNED)]
    rows[1] = dataclasses.replace(rows[1], facts_forget=0.04)
    rows[3] = dataclasses.replace(rows[3], min_k_auc=0.01, calibrated_p=0.5)
    first, scissorhands, npo, _ = findings_of(rows)
    assert "guesses 4 %" in first
    assert "still knows them" in scissorhands
    assert "is told apart" in scissorhands
    assert "conspicuously ignorant" in npo
    assert "is not told apart" in npo
