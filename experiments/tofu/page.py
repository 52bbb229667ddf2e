"""What the cells of the experiment say together: a row for each method, gates, and a page."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.tofu.forgetting import STRENGTHS
from experiments.tofu.scene import ORIGINAL, RETRAINED
from scissorhands_jax import files, reading, report
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.language.aggregates import privacy_leakage, retain_utility
from scissorhands_jax.language.calibration import LEAST_RETRAINED, calibrated_test
from scissorhands_jax.language.gates import TOLD, language_gates
from scissorhands_jax.language.truth_ratios import DEFINITIONS, log_truth_ratios
from scissorhands_jax.report import Cell, Grid, provenance
from scissorhands_jax.report.gate_texts import gates_note

Document = dict[str, Any]
_NAMES = (ORIGINAL, RETRAINED, *STRENGTHS)
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("probability_forget", "P, forget", ".3f"),
    ("rouge_forget", "ROUGE, forget", ".3f"),
    ("extraction_strength", "Extraction", ".3f"),
    ("exact_memorization", "Exact", ".3f"),
    ("min_k_auc", "min-k AUC", ".2f"),
    ("min_k_plus_plus_auc", "min-k++ AUC", ".2f"),
    ("privleak", "PrivLeak", "z.0f"),
    ("truth_ratio_forget", "min(R, 1/R)", ".3f"),
    ("probability_retain", "P, retain", ".3f"),
    ("rouge_retain", "ROUGE, retain", ".3f"),
    ("retain_utility", "Retain utility", ".3f"),
    ("probability_8_bit", "P, 8 bits", ".3f"),
    ("probability_4_bit", "P, 4 bits", ".3f"),
    ("relearned", "P, relearned", ".3f"),
    ("seconds", "Seconds", ".1f"),
)
"""Means over seeds: the field of a row, its heading, and how it is written."""
NOTES = (
    "P: the probability of answers, normalized by length. ROUGE: ROUGE-L recall of what the network says. Extraction, "
    "exact: the share of an answer that it completes by itself, and of tokens that are the most probable ones. AUC: "
    "how well a membership attack tells the forgotten questions from those that no network met. PrivLeak: against the "
    "mean area of the retrained networks. R: the geometric truth ratio. Retain utility: the harmonic mean of P, ROUGE "
    "and truth ratio on retained questions, three numbers and not the nine of model utility, because these networks "
    "know no world. Bits: P of forgotten answers with rounded weights. Relearned: P of every second forgotten answer "
    "after two passes over the others.",
    "Quality: the median over seeds of forget quality (geometric) against the retrained network of the seed, which is "
    "not compared with itself. Told apart: the number of seeds in which the calibrated test tells the network from the "
    "retrained ones at 5 %. SCRUB and Bad Teacher saw the forgotten questions half as often as the other methods in as "
    "many steps.",
)


def read_cells(out: Path) -> Document:
    """All cells that there are, as `{seed: {network: cell}}` under "seeds", with settings and what was tried.

    Raises:
      InputError: The folder holds no run, no seed has an original and a retrained network, or a cell is damaged.
    """
    settings = runs.read_run(out).get("settings")
    if not isinstance(settings, dict) or "seeds" not in settings:
        raise InputError(f"{out} holds another run; name the --out of python -m experiments.tofu")
    seeds: dict[str, dict[str, Any]] = {}
    for seed in settings["seeds"]:
        paths = {name: out / "cells" / f"seed{seed}" / f"{name}.json" for name in _NAMES}
        found = {name: read_cell(path) for name, path in paths.items() if path.is_file()}
        if ORIGINAL in found and RETRAINED in found:
            seeds[str(seed)] = found
    if not seeds:
        raise InputError(f"{out} has no seed with an original and a retrained network; run the experiment further")
    tried = {path.stem: read_cell(path) for path in sorted((out / "cells" / "tuning").glob("[!.]*.json"))}
    return {"settings": settings, "seeds": seeds, "tuning": tried}


def read_cell(path: Path) -> Document:
    """What a cell has.

    Raises:
      CheckpointError: The file is damaged.
    """
    try:
        found = reading.read_json(path)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it, and it is computed again") from error
    return found


def log_ratios(cell: Mapping[str, Any], definition: str = "geometric") -> np.ndarray:
    """Log truth ratios of the forgotten questions."""
    known = cell["examples"]["forget"]
    return log_truth_ratios(np.array(known["right_loss"]), np.array(known["wrong_losses"]), definition)


def summarized(document: Document) -> Document:
    """Adds "rows", a row for each network of each seed, and "gates" to what `read_cells` returned."""
    seeds = document["seeds"]
    retrained = {seed: cells[RETRAINED] for seed, cells in seeds.items()}
    area = float(np.mean([cell["areas"]["min_k_auc"] for cell in retrained.values()]))
    rows = [
        _row(name, seed, cell, retrained, seeds[seed][ORIGINAL], area)
        for seed, cells in seeds.items()
        for name, cell in cells.items()
        if "failed" not in cell
    ]
    return {**document, "rows": rows, "gates": gates_of(rows)}


def gates_of(rows: Sequence[Mapping[str, Any]]) -> list[Document]:
    """The gates of all rows, as they are in `results.json`; none where too few networks were retrained for the test."""
    of = {name: [row for row in rows if row["network"] == name] for name in (ORIGINAL, RETRAINED)}
    tested = {name: [row["calibrated_p"] for row in of[name] if row["calibrated_p"] is not None] for name in of}
    areas = [[row["min_k_auc"] for row in of[name]] for name in (ORIGINAL, RETRAINED)]
    gates = language_gates(tested[ORIGINAL], tested[RETRAINED], *areas) if tested[ORIGINAL] else []
    return [gate._asdict() for gate in gates]


def _row(
    name: str,
    seed: str,
    cell: Mapping[str, Any],
    retrained: Mapping[str, Mapping[str, Any]],
    original: Mapping[str, Any],
    area: float,
) -> Document:
    forget, retain = (cell["means"][part] for part in ("forget", "retain"))
    others = [log_ratios(other) for key, other in retrained.items() if name != RETRAINED or key != seed]
    test = None
    if len(others) >= LEAST_RETRAINED:
        test = calibrated_test(log_ratios(cell), others, None if name == ORIGINAL else log_ratios(original))
    quality = {
        kind: float(stats.ks_2samp(log_ratios(cell, kind), log_ratios(retrained[seed], kind)).pvalue)
        for kind in DEFINITIONS
    }
    truth = retain["truth_ratio"]["geometric"]
    return {
        "network": name,
        "seed": int(seed),
        "probability_forget": forget["probability"],
        "rouge_forget": forget["rouge_l_recall"],
        "extraction_strength": forget["extraction_strength"],
        "exact_memorization": forget["exact_memorization"],
        **cell["areas"],
        "privleak": privacy_leakage(cell["areas"]["min_k_auc"], area),
        "truth_ratio_forget": forget["truth_ratio"]["geometric"],
        "truth_ratios_forget": forget["truth_ratio"],
        "probability_retain": retain["probability"],
        "rouge_retain": retain["rouge_l_recall"],
        "truth_ratio_retain": truth,
        "retain_utility": retain_utility(retain["probability"], retain["rouge_l_recall"], truth),
        "probability_8_bit": cell["rounded"]["8"]["probability_forget"],
        "probability_4_bit": cell["rounded"]["4"]["probability_forget"],
        "relearned": cell["relearned"]["after"],
        "forget_quality": None if name == RETRAINED else quality,
        "calibrated_p": None if test is None else test.p,
        "share": None if test is None or test.share is None else test.share.value,
        "settings": cell.get("settings"),
        "seconds": cell.get("seconds"),
    }


def tofu_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """The table of means over seeds."""
    lines = []
    for name in _NAMES:
        own = [row for row in rows if row["network"] == name]
        if not own:
            continue
        cells = [Cell(name), Cell(str(len(own)))]
        for field, _, form in COLUMNS:
            values = [row[field] for row in own if row[field] is not None]
            cells.append(Cell(format(np.mean(values), form) if values else "–"))
        tested = [row["calibrated_p"] for row in own if row["calibrated_p"] is not None]
        quality = [row["forget_quality"]["geometric"] for row in own if row["forget_quality"] is not None]
        cells.append(Cell(f"{np.median(quality):.2g}" if quality else "–"))
        cells.append(Cell(f"{sum(p < TOLD for p in tested)} of {len(tested)}" if tested else "–"))
        lines.append(tuple(cells))
    return Grid(("Network", "Seeds", *(title for _, title, _ in COLUMNS), "Quality, p", "Told apart"), tuple(lines))


def answer_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What came out, in two sentences."""
    told = {
        name: [row["calibrated_p"] < TOLD for row in rows if row["network"] == name and row["calibrated_p"] is not None]
        for name in STRENGTHS
    }
    alike = [name for name, seeds in told.items() if seeds and sum(seeds) <= len(seeds) / 2]
    passes = [
        name
        for name in STRENGTHS
        if (own := [row["forget_quality"]["geometric"] for row in rows if row["network"] == name])
        and np.median(own) > TOLD
    ]
    measured = sum(map(bool, told.values()))
    return (
        f"By the calibrated test {len(alike)} of {measured} methods are not told from retrained networks in "
        f"at least half of the seeds ({', '.join(alike) or 'none'}); TOFU's forget quality passes {len(passes)} "
        f"({', '.join(passes) or 'none'})."
    )


def write_results(document: Document, folder: Path) -> None:
    """Writes every number of every question (`examples.json.gz`), `results.json`, `table.md` and `report.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = {
        seed: {name: cell.get("examples") and _numbers(cell["examples"]) for name, cell in cells.items()}
        for seed, cells in document["seeds"].items()
    }
    kept = _environment(document)
    tuning = {name: found["trials"] for name, found in document["tuning"].items()}
    told = {key: document[key] for key in ("settings", "gates", "rows")}
    packed = json.dumps(examples, allow_nan=False, separators=(",", ":")).encode()
    files.write_bytes(folder / "examples.json.gz", gzip.compress(packed, mtime=0))
    write_page({**told, "tuning": tuning, **kept}, folder)


def write_page(told: Mapping[str, Any], folder: Path) -> None:
    """Writes `results.json`, which is what `told` holds, `table.md` and `report.html`."""
    rows, gates, grid = told["rows"], told["gates"], tofu_grid(told["rows"])
    seeds, codes = ", ".join(dict.fromkeys(str(row["seed"]) for row in rows)), [told["code"]] if "code" in told else []
    files.write_text(folder / "results.json", json.dumps(told, indent=1, allow_nan=False) + "\n")
    files.write_text(folder / "table.md", report.markdown(grid) + "\n")
    report.write_html(
        folder / "report.html",
        report.Page(
            title="TOFU in kind: two of ten authors are forgotten",
            answer=answer_of(rows),
            byline=f"{len(rows)} networks · seeds {seeds}",
            trust=gates_note(gates) if gates else None,
            gates=gates,
            sheets=[report.Sheet("What networks know", grid, (*NOTES, *codes))],
            settings=told["settings"],
            environment=report.environment_of(told),
        ),
    )


def write_again(folder: Path) -> None:
    """Makes gates, table and page of written results again from their rows.

    What made the rows stays; `analysed_by` says which code made the rest.

    Raises:
      InputError: The folder holds no results.
    """
    file = folder / "results.json"
    try:
        told = reading.read_json(file)
        gates = gates_of(told["rows"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} holds no results ({type(error).__name__} {error}); name a folder that has some"
        ) from error
    write_page({**told, "gates": gates, "analysed_by": report.environment()["made_by"]}, folder)


def _environment(document: Document) -> Document:
    """What made the cells: of the first one all of it, and `code` in a sentence about all.

    Cells of other versions or another machine than the first one's are named with theirs, as `environments`.
    """
    cells = {
        **{f"tuning, {name}": cell for name, cell in document["tuning"].items()},
        **{f"seed {seed}, {name}": cell for seed, own in document["seeds"].items() for name, cell in own.items()},
    }
    codes = {name: (cell.get("made_by") or {}).get("code") for name, cell in cells.items()}
    where = {name: {part: cell.get(part) for part in ("versions", "machine")} for name, cell in cells.items()}
    first = next(iter(next(iter(document["seeds"].values())).values()))
    others = {name: own for name, own in where.items() if own != {part: first.get(part) for part in own}}
    kept = {key: first[key] for key in report.environment() if key in first}
    return {**kept, "code": provenance.code_note(codes), **({"environments": others} if others else {})}


def _numbers(examples: Mapping[str, Any]) -> Document:
    return {part: {key: each for key, each in known.items() if key != "said"} for part, known in examples.items()}
