"""The table of gates: a sign each, what is missing once, and nothing where one sentence says it all."""

import pytest

from scissorhands_jax import report
from scissorhands_jax.report import gate_texts


def gate(name, passed, why="why"):
    return {"name": name, "metric": "m", "passed": passed, "explanation": why}


def test_each_gate_has_a_sign_and_those_that_lack_the_same_share_a_line():
    gates = [gate("a", None, "needs two seeds"), gate("b", True), gate("c", False), gate("d", None, "needs two seeds")]
    lines = gate_texts.gate_lines(gates)
    assert [(line.name, line.outcome, line.sign) for line in lines] == [
        ("b", "holds", "\N{CHECK MARK}"),
        ("c", "fails", "\N{BALLOT X}"),
        ("a; d", "not run", "\N{EN DASH}"),
    ]
    assert lines[2].why == "needs two seeds"


def test_gates_that_all_lack_the_same_are_a_sentence_and_no_table():
    gates = [gate("a", None, "needs a retrained network"), gate("b", None, "needs a retrained network")]
    assert gate_texts.gate_lines(gates) == ()
    assert report.gates_note(gates).count("needs a retrained network") == 1


def test_the_summary_is_how_the_note_begins():
    for outcomes in ((True, True), (True, False), (True, None), (None, None)):
        gates = [gate(str(place), passed) for place, passed in enumerate(outcomes)]
        assert report.gates_note(gates).startswith(report.gates_summary(gates))
        assert report.gates_summary(gates).count(". ") == 0


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ((True, False, None), "These numbers cannot be trusted, because 1 of 3 gates failed."),
        ((False, False), "These numbers cannot be trusted, because 2 of 2 gates failed."),
        ((True, None), "1 of 2 gates hold, the others were not run."),
        ((None,), "No gate was run, so nothing shows that these numbers can be trusted: why."),
        ((True, True), "All 2 gates hold: originals are caught, and nothing is found in retrained networks."),
    ],
)
def test_the_summary_says_no_where_a_gate_failed_and_never_yes_where_one_was_not_run(outcomes, said):
    assert report.gates_summary([gate("a", passed) for passed in outcomes]) == said


def test_an_audit_leads_with_what_its_strongest_attack_found():
    def entry(metric, method, value):
        return {"scenario": None, "metric": metric, "method": method, "value": value}

    evidence = [entry("lira_auc", "original", 0.9), entry("lira_auc", "retrain", 0.5), entry("lira_auc", "salun", 0.6)]
    document = {"evidence": [*evidence, entry("rmia_auc", "salun", 0.7)], "gates": [gate("a", True)]}
    said = report.audit_answer(document)
    assert said == "LiRA AUC, which is 0.5 if nothing is left to find: original 0.90, salun 0.60."
    parts = [entry("lira_auc", method, 0.5) | {"scenario": "a"} for method in ("original", "retrain", "salun")]
    more = [entry("rmia_auc", "salun", 0.5), entry("lira_auc", "original", 0.9), entry("lira_auc", "retrain", 0.9)]
    document["evidence"] += [*parts, *(one | {"scenario": "b"} for one in more)]
    assert report.audit_answer(document) == f"{said} Over a alone: salun."
    document["evidence"].append(parts[0] | {"scenario": "c"})  # A method that lacks c altogether is named once.
    assert report.audit_answer(document) == f"{said} Over a alone: salun."
    document["gates"] = [gate("a", False)]
    assert report.audit_answer(document).startswith("These numbers cannot be trusted")
