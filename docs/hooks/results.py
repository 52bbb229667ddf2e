"""The pages of results, made from the files in experiments/results whenever the site is built."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from docs.hooks import text
from experiments import audit, diffusion_digits, tables
from experiments.tofu import page as tofu
from scissorhands_jax import reading, report
from scissorhands_jax.audit.scores import SCORES_FILE
from scissorhands_jax.report import REDRAWN
from scissorhands_jax.report.gate_texts import gates_grid, gates_note

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "results"
INDEX = "results/index.md"
Document = Mapping[str, Any]
_ABOUT = ("versions", "machine", "made_by", "analysed_by", "config", "settings")
_NO_PAPER = "The paper has no table of this experiment, so there are no numbers of the paper to compare with."
_NO_FLOOR = (
    "There is no second retrained network in these results, so they have no floor: how close a perfect method could "
    "come is not known here."
)
_FLOOR = f"The floor is the row *{REDRAWN}*: no method can be asked to come closer than that."


@functools.cache
def pages() -> dict[str, str | bytes]:
    """Returns the pages and their pictures by their places in the site."""
    made: dict[str, str | bytes] = {}
    lines = []
    for path in sources():
        name, document = name_of(path), reading.read_json(path)
        body, pictures = _page_of(document, name, path.parent)
        made[f"results/{name}.md"] = f"{_titled(body, name)}\n\n{_provenance(document, path)}"
        made |= {f"results/{stem}": content for stem, content in pictures.items()}
        lines.append(f"| [{name}]({name}.md) | {_headline(document)} | {_made_with(document)} |")
    return {INDEX: _index(lines), **made}


def sources() -> list[Path]:
    """The files of results that have pages: not what tables were tuned by, nor the scores of an audit."""
    return [path for path in sorted(FOLDER.rglob("*.json")) if "tuning" not in path.stem and path.name != SCORES_FILE]


def name_of(path: Path) -> str:
    """The name of the page of a file of results."""
    return path.parent.name if path.stem == "results" else "-".join(path.relative_to(FOLDER).with_suffix("").parts)


def _index(lines: Sequence[str]) -> str:
    return (
        "# Results\n\nEvery page here is made from a file in `experiments/results` when the site is built; none is "
        "written by hand. What follows from them, in words, is in [findings](findings.md); what did not work has "
        "[a page of its own](what-did-not-work.md). How to read a table is in "
        "[tables](../guides/tables.md#reading-a-table).\n\n"
        "| results | what is in it | made by |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n"
    )


def _page_of(document: Document, name: str, folder: Path) -> tuple[str, Mapping[str, str | bytes]]:
    """The page of a file of results in a folder, and its pictures by the names of their files."""
    if "summary" in document:
        return _digits(document, name), {f"{name}.png": (FOLDER / f"{name}.png").read_bytes()}
    if "evidence" in document:
        described = audit.describe(document)
        drawn = _drawn(
            folder,
            described,
            "attacks",
            lambda: report.evidence_figure(document["evidence"], report.metric_titles(document)),
        )
        shown = f"{described}\n\n![The attacks' numbers, which are in the tables]({name}-attacks.svg)\n"
        return shown, {f"{name}-attacks.svg": drawn}
    if _is_table(document):
        described = tables.describe(document, name)
        body = re.sub(r"\]\((\S+\.svg)\)", rf"]({name}-\1)", described.text)
        body += f"\n## Floor and paper\n\n{_floor(document)}"
        if document["config"].get("paper_table") is None:
            body += f" {_NO_PAPER}"
        pictures = {
            f"{name}-{stem}.svg": _drawn(folder, described.text, stem, lambda found=found: found.figure)
            for stem, found in described.pictures.items()
        }
        return body, pictures
    makers: dict[str, Callable[[Document], str]] = {
        "base": _variants,
        "aims": _measured,
        "audits": _simulated,
        "simulations": _rejected,
        "tuning": _forgotten_authors,
    }
    for key, maker in makers.items():
        if key in document:
            return maker(document), {}
    return _flat(document), {}


def _drawn(folder: Path, text: str, stem: str, draw: Callable[[], Figure]) -> str:
    """A picture as `experiments.tables` has left it in a folder, drawn again where those are of other results."""
    tables_file, picture = folder / "tables.md", folder / f"{stem}.svg"
    if picture.exists() and tables_file.exists() and tables_file.read_text(encoding="utf-8") == text:
        return picture.read_text(encoding="utf-8")
    return report.figure_svg(draw())


def _is_table(document: Document) -> bool:
    rows = document.get("rows") or [{}]
    return "config" in document and "base" not in document and all({"scenario", "method"} <= set(row) for row in rows)


def _titled(body: str, name: str) -> str:
    return body if body.startswith("# ") else f"# {name}\n\n{body}"


def _floor(document: Document) -> str:
    return _FLOOR if any(row["method"] == REDRAWN for row in document["rows"]) else _NO_FLOOR


def _provenance(document: Document, path: Path) -> str:
    """Where a page is from: its file, commit, machine, versions and settings."""
    parts = [
        f"## Where this is from\n\nThe file is `{path.relative_to(ROOT)}`. {_made_with(document)}.",
        f"Machine: {_listed(document.get('machine', {}))}. Versions: {_listed(document.get('versions', {}))}.",
    ]
    parts += [text.as_details("Settings", document[key]) for key in ("config", "settings", "base") if key in document]
    if document.get("note"):
        parts.insert(1, text.escaped(document["note"]))
    return "\n\n".join(parts)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "not recorded"


def _made_with(document: Document) -> str:
    made, again = document.get("made_by"), document.get("analysed_by")
    by = "The commit was not recorded" if made is None else _code_of(made)
    return by if again is None else f"{by}; the numbers are computed again by {_code_of(again)}"


def _code_of(made: Mapping[str, Any]) -> str:
    words = [f"`{made['command']}`"] if "command" in made else []
    code = str(made.get("code"))
    words += [f"commit {code}" if re.fullmatch("[0-9a-f]{12}", code) else code]
    words += [made["date"]] if "date" in made else []
    return ", ".join(words)


def _headline(document: Document) -> str:
    """One line about a file of results: how much is in it, and what came out for the method."""
    if "evidence" in document:
        caught = "its gates hold" if document.get("trusted") else "its gates do not hold"
        return f"audit of {document['ensemble']['networks']} networks; {caught}"
    if _is_table(document):
        methods = dict.fromkeys(row["method"] for row in document["rows"])
        seeds = {row.get("seed") for row in document["rows"]}
        return f"table: {len(methods)} networks and methods, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    kinds = {
        "base": "variants of Scissorhands",
        "summary": "a diffusion network forgets each digit",
        "audits": "simulated audits",
        "aims": "measured times and memory",
        "devices": "growth with devices and parameters",
        "unlearn": "a full-size diffusion step",
        "tuning": "a language model forgets authors",
    }
    return next((kind for key, kind in kinds.items() if key in document), "measured numbers")


def _variants(document: Document) -> str:
    """Variants of the method, each a row with means over seeds."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault(row["variant"], []).append(row)
    columns = ("acc_forget", "acc_retain", "acc_test", "mia")
    lines = []
    for variant, rows in groups.items():
        cells = [_mean([row.get("metrics", {}).get(column) for row in rows]) for column in columns]
        cells += [_mean([row.get(column) for row in rows]) for column in ("avg_gap", "score")]
        lines.append([text.escaped(variant), *cells, str(len(rows))])
    header = ["variant", "Acc forget", "Acc retain", "Acc test", "MIA", "Avg. Gap", "score", "seeds"]
    about = (
        "One thing at a time is changed in the base, whose settings are below. *Retrained again* is a second retrained "
        "network: the floor. The score is what tuning sees, without a retrained network. Means ± standard deviations "
        "over seeds; a dash in place of a number says that it was not finite."
    )
    return f"{about}\n\n{text.table(header, lines)}\n\n{_NO_PAPER}"


def _mean(values: Sequence[float | None]) -> str:
    found = [value for value in values if isinstance(value, int | float)]
    if len(found) < len(values):
        return "–"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def _digits(document: Document, name: str) -> str:
    """How the diffusion networks draw, as means over digits, and how far they are from retrained ones."""
    summary = document["summary"]
    known = {name: title for name, (title, _) in diffusion_digits.shown_headers(summary).items()}
    lines = []
    for network, numbers in summary.items():
        means = [numbers[name]["mean"] for name in known]
        lines.append([text.escaped(network), *(f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]" for m in means)])
    picture = f"![Drawings of the original and of unlearned networks]({name}.png)"
    shown = text.table(["network", *known.values()], lines)
    away = ""
    if any("within" in numbers for numbers in summary.values()):
        away = (
            "\n\nMean distance to networks that were retrained without the digit and, in brackets, for how many digits "
            "it is at most the 95th percentile of the distances between two of them:\n\n"
            + diffusion_digits.distances_table(summary)
        )
    return f"Means over digits with their 95 % intervals.\n\n{shown}{away}\n\n{picture}\n\n{_NO_PAPER}"


def _measured(document: Document) -> str:
    """Times and memory: predictions against measurements, or this code against another."""
    results = document["results"]
    if "case" in results[0]:
        parts = ("memory_bytes", "seconds", "run_seconds")
        lines = [
            [text.escaped(run["case"]), *(f"{run[part]['ratio']:.2f}" if part in run else "–" for part in parts)]
            for run in results
        ]
        return "Predicted over measured.\n\n" + text.table(["network", "memory", "time", "time of the steps"], lines)
    lines = []
    for found in results:
        ratios = [f"{text.escaped(other['name'])}: {other['ratio']['median']:.2f}" for other in found["against"]]
        seconds = f"{found['seconds']['median']:.4g}" if found["seconds"] else "–"
        lines.append([text.escaped(f"{found['name']}: {found['what']}"), seconds, "; ".join(ratios) or "–"])
    return "Median seconds, and this time over that of what it is compared with.\n\n" + text.table(
        ["what", "seconds", "against"], lines
    )


def _simulated(document: Document) -> str:
    """The calibration of intervals and gates in simulated audits."""
    parts = [
        "How often intervals hold the number that they are about, and how often gates are wrong, in simulated audits."
    ]
    for name, found in document["audits"].items():
        parts.append(f"## {text.escaped(name)}\n\n{found['audits']} audits; {_listed(found['settings'])}.")
        lines = [
            [text.escaped(number), f"{100 * value['coverage']:.0f}", f"{value['reach']:.1f}"]
            for number, value in found["numbers"].items()
            if value.get("coverage") is not None and value.get("reach") is not None
        ]
        parts.append(text.table(["number", "coverage, %", "half-width, standard deviations"], lines))
    return "\n\n".join(parts)


def _rejected(document: Document) -> str:
    """How often tests reject in simulations of which the truth is known."""
    found = document["simulations"]
    names = list(next(iter(found.values()))["rejected"])
    lines = [
        [text.escaped(case), *(f"{100 * one['rejected'][name]:.1f}" for name in names)] for case, one in found.items()
    ]
    level = 100 * document["level"]
    return f"How often each test rejects at {level:g} %, in percent.\n\n{text.table(['networks', *names], lines)}"


def _forgotten_authors(document: Document) -> str:
    """What language models know of authors that they were to forget: means over seeds, and gates."""
    rows = document["rows"]
    parts = [tofu.answer_of(rows), report.markdown(tofu.tofu_grid(rows)), *tofu.NOTES]
    if document["gates"]:
        parts += ["## Gates", gates_note(document["gates"]), report.markdown(gates_grid(document["gates"]))]
    return "\n\n".join(parts)


def _flat(document: Document) -> str:
    """Any other document: every number with the path to it."""
    lines: list[list[str]] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, (*path, str(key)))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, inner in enumerate(value):
                walk(inner, (*path, str(index)))
        else:
            shown = ", ".join(map(_short, value)) if isinstance(value, list) else _short(value)
            lines.append([text.escaped(" · ".join(path)), text.escaped(shown)])

    walk({key: value for key, value in document.items() if key not in _ABOUT}, ())
    return text.table(["what", "value"], lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "\\n")
