"""A judgement of evaluation logs as tables in the terminal."""

from __future__ import annotations

from scissorhands_jax.language.calibration import DISTANCE_HOLDS, Difference
from scissorhands_jax.language.judging import Judgement
from scissorhands_jax.language.truth_ratios import DEFINITIONS
from scissorhands_jax.terminal import Console, Table, literal, say

_MEASURES = {
    "probability": "probability",
    "probability_with_options": "with options",
    "rouge_l_recall": "ROUGE-L recall",
}


def print_judgement(judgement: Judgement, console: Console) -> None:
    """Prints all aggregates: means by set, utility, tests against each retrained network, and remarks."""
    if not console.is_terminal:
        console.width = 120
    console.print(_sets_table(judgement))
    rows = [("model utility", kind, value) for kind, value in judgement.model_utility.items()]
    rows += [("area under the curve", name, value) for name, value in judgement.attacks.items()]
    rows += [("mean", name, value) for name, value in judgement.scores.items()]
    if rows:
        table = Table("aggregate", "of", "value", title="Aggregates")
        for what, name, value in rows:
            table.add_row(what, literal(name), f"{value:.6f}")
        console.print(table)
    for comparison in judgement.against:
        table = Table("test", "truth ratio", "statistic", "p", "questions", title=None)
        tests = (("forget quality (KS)", comparison.forget_quality), ("paired (Wilcoxon)", comparison.paired_test))
        for what, found in tests:
            for kind, test in found.items():
                count = f"{test.examples}"
                count += "" if test.examples == test.reference_examples else f" and {test.reference_examples}"
                table.add_row(what, kind, f"{test.statistic:.6g}", f"{test.p:.3g}", count)
        for name, value in comparison.privleak.items():
            table.add_row("PrivLeak", literal(name), f"{value:.4g} %", "", "")
        say(console, f"Against {comparison.log}")
        console.print(table)
    if judgement.calibrated_test:
        console.print(_calibrated_table(judgement))
    for remark in judgement.remarks:
        say(console, f"Note: {remark}.")


def _sets_table(judgement: Judgement) -> Table:
    shown = [name for name in _MEASURES if any(name in means for means in judgement.sets.values())]
    kinds = [
        kind for kind in DEFINITIONS if any(kind in means.get("truth_ratio", {}) for means in judgement.sets.values())
    ]
    columns = [_MEASURES[name] for name in shown] + [f"truth ratio, {kind}" for kind in kinds]
    table = Table("set", "examples", *columns, title=literal(judgement.log))
    for name, means in judgement.sets.items():
        values = [means.get(measure) for measure in shown] + [means.get("truth_ratio", {}).get(kind) for kind in kinds]
        table.add_row(name, str(means["examples"]), *("" if value is None else f"{value:.6f}" for value in values))
    return table


def _calibrated_table(judgement: Judgement) -> Table:
    table = Table(
        "compared with retrained networks", "truth ratio", "value", "95 % of retrained", "p", title="Calibrated test"
    )
    for kind, test in judgement.calibrated_test.items():
        parts: tuple[tuple[str, Difference | None], ...] = (
            ("shift, nats", test.shift),
            ("share that remains", test.share),
            ("distance, log", test.distance),
        )
        for name, part in parts:
            if part is not None:
                shown = f"{part.low:.3f} to {part.high:.3f}"
                if part.low == -float("inf"):
                    shown = f"up to {part.high:.3f} ({DISTANCE_HOLDS[0]} to {DISTANCE_HOLDS[1]} % in simulations)"
                table.add_row(name, kind, f"{part.value:.3f}", shown, f"{part.p:.3g}")
        table.add_row(
            "all together", kind, "", f"{test.retrained} networks, {test.questions} questions", f"{test.p:.3g}"
        )
    return table
