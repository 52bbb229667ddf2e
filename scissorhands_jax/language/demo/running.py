"""What `scissorhands demo language` does: networks learn facts by heart, forget people, and are asked about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scissorhands_jax import files, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import StartPhase, phases
from scissorhands_jax.language.aggregates import forget_quality
from scissorhands_jax.language.calibration import CalibratedTest, calibrated_test
from scissorhands_jax.language.demo.forgetting import forget_people
from scissorhands_jax.language.demo.measuring import FactsMeasurement, evaluation_log, measure_facts
from scissorhands_jax.language.demo.page import FactsResult, FactsRow, answers_text, print_facts, write_facts_page
from scissorhands_jax.language.demo.scene import FactsScene, make_facts_scene, train_facts
from scissorhands_jax.language.demo.settings import (
    RETRAINED,
    UNLEARNED,
    FactsSettings,
)
from scissorhands_jax.language.evaluation_logs import read_evaluation_log
from scissorhands_jax.language.gates import language_gates
from scissorhands_jax.report import ORIGINAL
from scissorhands_jax.report.gates import Gate
from scissorhands_jax.terminal import Console

_PAGE_FILE, _ANSWERS_FILE, _LOGS = "report.html", "answers.txt", "logs"


def run_language_demo(
    out: Path, settings: FactsSettings, *, overwrite: bool = False, console: Console | None = None
) -> FactsResult:
    """Trains, forgets and asks, and writes `report.html`, `answers.txt`, `results.json` and logs into a folder.

    The logs have the format that TOFU's code publishes, so `scissorhands lm evaluate` reads them.

    Args:
      out: The folder.
      settings: Whom it is about, and how.
      overwrite: Whether an earlier demonstration is replaced.
      console: Shows progress. By default that is standard error.

    Returns:
      What came out, as in `results.json`.

    Raises:
      InputError: The folder is taken.
    """
    return runs.demonstrate(
        out,
        "demo language",
        settings,
        lambda console: _demonstrated(out, settings, console),
        print_facts,
        f"open {out / _PAGE_FILE}; answers are in {out / _ANSWERS_FILE}, numbers in {out / runs.RESULTS_FILE}",
        overwrite=overwrite,
        console=console,
    )


def _demonstrated(out: Path, settings: FactsSettings, console: Console) -> FactsResult:
    with phases(console) as (start_phase, seconds):
        scene = make_facts_scene(settings)
        found: dict[str, FactsMeasurement] = {}
        costs: dict[str, tuple[int | None, float | None]] = {}
        for name, network, cost in _networks(settings, scene, start_phase):
            found[name], costs[name] = measure_facts(scene, *network), cost
            files.write_text(_log_path(out, name), json.dumps(evaluation_log(found[name]), indent=1) + "\n")
        start_phase("tests and page", steps=False)
        references = [name for name in found if name.startswith(f"{RETRAINED} ")]
        rows = [_row(out, name, found, references, costs[name]) for name in found if name not in references]
        gates = _gates(out, found, rows, references)
    result = FactsResult(
        settings=settings,
        rows=rows,
        gates=[gate._asdict() for gate in gates],
        facts=scene.forget,
        answers={row.network: found[row.network].forget.said for row in rows},
        seconds={**seconds, "total": sum(seconds.values())},
        environment=report.environment(),
    )
    files.write_text(out / runs.RESULTS_FILE, json.dumps(result.document(), indent=2, allow_nan=False) + "\n")
    files.write_text(out / _ANSWERS_FILE, answers_text(result))
    write_facts_page(out / _PAGE_FILE, result)
    return result


def _networks(
    settings: FactsSettings, scene: FactsScene, start_phase: StartPhase
) -> Iterator[tuple[str, tuple[Params, ModelState], tuple[int | None, float | None]]]:
    """Every network with its name, and the steps and seconds that forgetting took."""
    for number in range(settings.references + 2):
        name = (ORIGINAL, RETRAINED)[number] if number < 2 else f"{RETRAINED} {number}"
        on_step = start_phase(f"{name}: training")
        network = train_facts(settings, scene, number, without=number > 0, on_step=on_step)
        if name == ORIGINAL:
            original = network
        yield name, network, (None, None)
    for name in UNLEARNED:
        done = forget_people(settings, scene, original, name, start_phase(f"{name}: forgetting"))
        yield name, (done.params, done.model_state), (done.steps, done.seconds)


def _gates(out: Path, found: dict[str, FactsMeasurement], rows: list[FactsRow], references: list[str]) -> list[Gate]:
    """The original must be told from retrained networks, and no retrained network from the others."""
    honest = [RETRAINED, *references]
    ratios: dict[str, Any] = {
        name: read_evaluation_log(_log_path(out, name)).sets["forget"].log_ratios("geometric") for name in honest
    }
    alone = [
        calibrated_test(ratios[name].values, [ratios[other].values for other in honest if other != name]).p
        for name in honest
    ]
    original = next(row for row in rows if row.network == ORIGINAL)
    areas = [found[name].numbers()["min_k_auc"] for name in honest]
    return language_gates([original.calibrated_p], alone, [original.min_k_auc], areas)


def _log_path(out: Path, name: str) -> Path:
    path = out / _LOGS / f"{name.replace(' ', '_')}.json"
    path.parent.mkdir(exist_ok=True)
    return path


def _row(
    out: Path,
    name: str,
    found: dict[str, FactsMeasurement],
    references: list[str],
    cost: tuple[int | None, float | None],
) -> FactsRow:
    """The numbers of a network; tests compare it with retrained networks that have no row of their own."""
    logs = {other: read_evaluation_log(_log_path(out, other)) for other in (name, ORIGINAL, *references)}
    ratios: dict[str, Any] = {other: log.sets["forget"].log_ratios("geometric") for other, log in logs.items()}
    quality = forget_quality(logs[name], logs[references[0]], "geometric")
    assert quality is not None
    test: CalibratedTest = calibrated_test(
        ratios[name].values,
        [ratios[other].values for other in references],
        None if name == ORIGINAL else ratios[ORIGINAL].values,
    )
    retain, forget = (logs[name].sets[part].means(part, 0.0) for part in ("retain", "forget"))
    return FactsRow(
        network=name,
        **found[name].numbers(),
        truth_ratio_forget=forget["truth_ratio"]["geometric"],
        truth_ratio_retain=retain["truth_ratio"]["geometric"],
        forget_quality=quality.p,
        calibrated_p=test.p,
        share=None if test.share is None else test.share.value,
        steps=cost[0],
        seconds=cost[1],
    )
