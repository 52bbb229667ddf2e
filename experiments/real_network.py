"""A published network that was made to forget, beside networks that were retrained without the same examples.

    python -m experiments.real_network --retrained runs/retrained_0 --retrained runs/retrained_1 \
        --run "scissorhands=runs/held_out" --run "scissorhands, uniform ceiling=runs/uniform" --out runs/real_network

The runs are those of `scissorhands unlearn` from one file of weights, with one forget set and one `--validation`;
those after `--retrained` are of `--method retrain`. Accuracies and MIA are those that the runs have measured, except
that accuracy on test images is measured again, on those that are not for validation. All gates are computed. Each run
also has its score without an oracle, as `scissorhands tune` computes it: by that, and not by the distance to the
retrained networks, a run is chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import programs
from scissorhands_jax import data as data_lib
from scissorhands_jax import files, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import originals, runs, search
from scissorhands_jax.jobs.job import Job, prepare_job
from scissorhands_jax.jobs.loading import load_run
from scissorhands_jax.jobs.scenarios import REFERENCES
from scissorhands_jax.jobs.unlearning import RunResults
from scissorhands_jax.report import provenance, table_gates
from scissorhands_jax.terminal import LoggedConsole, add_follow_options, say

_SHARED = ("forget", "trained_on")
_MOST_RETRAINED = 2


@programs.ending("nothing is kept of it")
def main(arguments: list[str] | None = None) -> int:
    """Measures the networks, writes the results and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real_network", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME=RUN", help="a run; may be repeated")
    parser.add_argument("--retrained", action="append", required=True, metavar="RUN", help="one run, or two")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_follow_options(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    with programs.followed(options) as console:
        named = _named(options.run)
        if len(options.retrained) > _MOST_RETRAINED:
            raise InputError(f"--retrained is given {len(options.retrained)} times; name one run, or two")
        with programs.sole_writer_of(options.out / runs.RESULTS_FILE):
            document = compare(named, options.retrained, options.data_dir, console)
            files.write_text(options.out / runs.RESULTS_FILE, json.dumps(document, indent=2) + "\n")
    return 0


def _named(given: Sequence[str]) -> dict[str, str]:
    """The folders of runs by name."""
    named: dict[str, str] = {}
    for run in given:
        name, sign, folder = run.partition("=")
        if not (name and sign and folder):
            raise InputError(f"--run {run!r} must have the form NAME=RUN, the name of its row and its folder")
        if named.setdefault(name, folder) != folder:
            raise InputError(f"--run names two runs {name!r}, {named[name]} and {folder}; give each a name of its own")
    return named


def compare(
    unlearned: dict[str, str],
    retrained: list[str],
    data_dir: str | None,
    console: LoggedConsole,
) -> dict[str, Any]:
    """Measures all networks.

    Args:
      unlearned: The folders of runs by the names of their rows.
      retrained: The folders of one or two runs of `--method retrain`.
      data_dir: The folder of the data set's files; None is the one that the first run had.
      console: Shows the table.

    Returns:
      The rows, the gates, and of each run its settings, its cost and its score.

    Raises:
      InputError: A folder holds no run, or runs are of different forget sets or different networks.
    """
    found = {name: RunResults.read(Path(folder) / runs.RESULTS_FILE) for name, folder in unlearned.items()}
    references = [RunResults.read(Path(folder) / runs.RESULTS_FILE) for folder in retrained]
    (first_name, first), *_ = found.items()
    for name, other in (*found.items(), *zip(retrained, references, strict=True)):
        for part in _SHARED:
            if getattr(other, part).sha256 != getattr(first, part).sha256:
                raise InputError(f"{name} has another {part} set than {first_name}; compare runs of one request")
    for name, other in found.items():
        if (other.config.weights, other.config.validation) != (first.config.weights, first.config.validation):
            raise InputError(f"{name} began with other weights, or another --validation, than {first_name}")
    for folder, reference in zip(retrained, references, strict=True):
        if reference.config.method_name != report.REFERENCE:
            raise InputError(f"{folder} is a run of {reference.config.method_name}; name one of --method retrain")
    job = prepare_job(dataclasses.replace(first.config, data_dir=data_dir or first.config.data_dir))
    again = dict(zip((report.REFERENCE, report.REDRAWN), zip(retrained, references, strict=True), strict=False))
    made = {**again, **{name: (unlearned[name], run) for name, run in found.items()}}
    numbers = {report.ORIGINAL: first.before, **{name: run.after for name, (_, run) in made.items()}}
    rows, measured = [], {}
    for name, known in numbers.items():
        network = (job.params, job.model_state) if name == report.ORIGINAL else load_run(job.model, made[name][0])
        measured[name] = _measured(job, network)
        place = {
            "scenario": f"{job.config.dataset}, forget {job.config.forget}",
            "method": name,
            "seed": job.config.seed,
        }
        share, total = measured[name]["acc_test"], data_lib.size(job.test)
        of_test = {"acc_test": share, "correct_test": round(share / 100 * total), "num_test": total}
        row = {**dict.fromkeys(("avg_gap", "seconds", "rte")), **known, **of_test, **place}
        if name in REFERENCES:
            row |= originals.unseen_comparison(job.splits.task, job.model, network, job.data.forget, job.splits.test)
        rows.append(row)
    rows = report.with_gaps(rows)
    gates = [gate._asdict() for gate in table_gates.of_rows(rows)]
    report.print_tables(rows, console)
    say(console, report.gates_note(gates))
    described = {
        name: {
            "settings": dataclasses.asdict(run.config.method),
            "ceiling": run.ceiling,
            "cost": dataclasses.asdict(run.cost),
            "made_by": run.made_by,
        }
        for name, (_, run) in made.items()
    }
    scores = _scores(job, {name: numbers[name] | measured[name] for name in (report.ORIGINAL, *unlearned)})
    for name, score in scores.items():
        say(console, f"{name}: score without an oracle {score['score']:.2f}")
    return {
        "rows": rows,
        "gates": gates,
        "config": {
            name: getattr(job.config, name) for name in ("model", "dataset", "forget", "validation", "seed", "augment")
        },
        "scores": scores,
        "runs": described,
        **report.environment(),
    }


def _measured(job: Job, network: tuple[Params, ModelState]) -> dict[str, float]:
    """What the run of a network has not measured, or on other test images."""
    sets = {"forget": job.data.forget, "validation": job.validation.examples, "test": job.test}
    return search.measure_sets(job.model, *network, sets, task=job.splits.task)


def _scores(job: Job, numbers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The score of each network without an oracle, with the numbers behind it."""
    whole, shown = forget_sets.forgets_classes(job.config.forget), ("acc_forget", "acc_retain", "acc_validation")
    return {
        name: {
            "score": search.proxy_score(found, numbers[report.ORIGINAL], whole_classes=whole, task=job.splits.task),
            **{field: found[field] for field in (*shown, "loss_distance")},
        }
        for name, found in numbers.items()
    }


if __name__ == "__main__":
    huge_pages.restart("experiments.real_network")
    sys.exit(main())
