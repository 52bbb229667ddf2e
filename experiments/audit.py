"""Audits methods: `python -m experiments.audit --config cifar10_audit_small --data-dir data --tier standard`.

Writes `results.json`, which grows while the audit runs, `scores.json`, `report.html`, `tables.md` and `attacks.svg`.
`scissorhands audit sign` makes a signed document of them, which a ledger of deletion requests takes. An audit that was
stopped is continued, and one with fewer --networks is made larger, when the same command is typed again. Settings of
the experiment follow as NAME=VALUE, such as `train_limit=500 training.epochs=2`.

`--again DIR --out OUT` trains nothing: it computes the numbers of the finished audit in DIR again from its scores, by
the statistics of today, and writes results, page and tables into OUT, with the scores, so that they can be signed too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import configs, programs
from scissorhands_jax import files, reading, report
from scissorhands_jax.audit import TIERS, run_audit
from scissorhands_jax.audit.scores import SCORES_FILE, AuditScores, numbers_document
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.errors import InputError, listed
from scissorhands_jax.jobs import config, runs
from scissorhands_jax.report import provenance
from scissorhands_jax.report.gates import trusted
from scissorhands_jax.terminal import add_follow_options

_WRITTEN = (runs.RESULTS_FILE, SCORES_FILE, "report.html", "tables.md", "attacks.svg")


@programs.ending("the same command goes on after the last network")
def main(arguments: list[str] | None = None) -> int:
    """Runs one audit and returns the exit status."""
    provenance.note_code()
    parser = argparse.ArgumentParser(prog="python -m experiments.audit", description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="NAME", help=", ".join(configs.CONFIGS))
    source.add_argument("--again", type=Path, metavar="DIR", help="compute the numbers of a finished audit again")
    parser.add_argument("--tier", default="standard", metavar="NAME", help=", ".join(TIERS))
    parser.add_argument("--networks", type=int, metavar="N", help="another number than the tier's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/NAME")
    parser.add_argument("--store", type=Path, metavar="DIR", help="trained networks to share; default OUT/networks")
    parser.add_argument("--overwrite", action="store_true", help="replace the audit in OUT")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    add_follow_options(parser)
    options = parser.parse_args(arguments)
    if options.again:
        programs.refuse_others(parser, arguments, "--again", ["--out"])
        if not options.out:
            parser.error("--again needs --out, where the numbers are written")
    out = options.out or Path("runs") / options.config
    if options.again:
        write_again(options.again, out)
        return 0
    with programs.followed(options, out) as console:
        document = run_audit(
            config.override(configs.load(options.config), options.settings),
            out,
            tier=options.tier,
            num_networks=options.networks,
            seed=options.seed,
            data_dir=options.data_dir,
            networks=options.store,
            overwrite=options.overwrite,
            console=console,
        )
        write_tables(out, document)
    return 0


def write_again(folder: Path, out: Path) -> None:
    """Writes what `main` writes into `out`, from the scores of the finished audit in a folder.

    Scores, rows, settings and what made the networks stay; `analysed_by` says which code computed the numbers.

    Raises:
      InputError: The folder holds no finished audit or lies in `out`, or `out` holds what this has not written.
    """
    files.check_inputs(out, [folder / runs.RESULTS_FILE, folder / SCORES_FILE])
    _check_free(out)
    try:
        scores = AuditScores.from_document(reading.read_json(folder / SCORES_FILE))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no scores ({error}); name the folder of a finished audit") from error
    document = report.read_results(folder / runs.RESULTS_FILE)
    if not document.get("evidence"):
        raise InputError(f"the audit in {folder} is not finished; repeat the command that began it, and then this one")
    try:
        scores.check_settings(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the files of the audit in {folder} do not belong together ({type(error).__name__} {error}); name the "
            "folder of a finished audit"
        ) from error
    estimates, gates = scores.numbers()
    document |= {**numbers_document(estimates, gates), "trusted": trusted(gates)}
    document["analysed_by"] = report.environment()["made_by"]
    report.write_results(out / runs.RESULTS_FILE, document)
    files.copy_file(folder / SCORES_FILE, out / SCORES_FILE)
    report.write_audit(out / "report.html", document)
    write_tables(out, document)


def _check_free(out: Path) -> None:
    """Refuses a folder that holds anything but what `write_again` has written there before."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the numbers")
    found = sorted(path.name for path in out.iterdir() if not files.is_leftover(path)) if out.exists() else []
    others = [name for name in found if name not in _WRITTEN]
    if found and not others:
        try:
            earlier = "analysed_by" in report.read_results(out / runs.RESULTS_FILE)
        except InputError:
            earlier = False
        others = [] if earlier else found
    if others:
        raise InputError(f"{out} holds {listed(others, shown=3)}, which no --again has written; name another folder")


def write_tables(out: Path, document: Mapping[str, Any]) -> None:
    """Writes `tables.md` and `attacks.svg` of an audit's document into a folder."""
    files.write_text(out / "tables.md", describe(document))
    figure = report.evidence_figure(document["evidence"], report.metric_titles(document))
    files.write_text(out / "attacks.svg", report.figure_svg(figure))


def describe(document: Mapping[str, Any]) -> str:
    """Returns the gates and tables of an audit's document in Markdown."""
    parts = [
        f"# {report.markdown_text(document['config']['experiment'])}, {document['config']['tier']}\n",
        f"{report.audit_verdict(document['gates'])}\n",
    ]
    if note := report.failures_note(document):
        parts.append(f"{report.markdown_text(note)}\n")
    parts += ["## Gates\n", report.markdown(report.gates_grid(document["gates"]))]
    note = f"{report.markdown_text(report.means_note(document))}\n"
    for heading, table in report.evidence_grids(document):
        parts += [f"## {report.markdown_text(heading)}\n", note, report.markdown(table)]
    return "\n".join(parts)


if __name__ == "__main__":
    huge_pages.restart("experiments.audit")
    sys.exit(main())
