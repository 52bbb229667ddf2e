"""Settings that are chosen without an oracle, and how close they come to those that an oracle would choose.

    python -m experiments.run --config cifar10_small --data-dir data --seeds 0,1,2 --only NOTHING
    python -m experiments.tuning --config cifar10_small --data-dir data --seeds 0,1,2 --trials 12 \
        --networks runs/cifar10_small/networks --out experiments/results/cifar10_small/tuning.json

Every trial is scored on validation data, as `scissorhands tune` does it, and also compared with the retrained network,
which the choice never sees. Trials that are in FILE already are not made again, so a run that was stopped continues,
and one with more trials adds the further ones. With `--from-defaults` every method has the same chances: the first
trial takes the defaults of its authors, whatever the configuration says, and no earlier tuning enters. With
`--without-oracle` no network is retrained, so nothing is compared; a table whose networks take an hour is tuned like
this, on a seed of its own. With `--near FACTOR` the search stays within that factor of the configuration's numbers,
and keeps its names:

    python -m experiments.tuning --config cifar10_full --data-dir data --seeds 10 --trials 3 --near 4 \
        --without-oracle --only . --networks runs/tuning/networks --out runs/tuning/tuning.json validation_share=0.1
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments import configs
from experiments.run import read_seeds
from scissorhands_jax import files, reading, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config, grid, search
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks, check_seeds
from scissorhands_jax.metrics import distances
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import (
    Console,
    LoggedConsole,
    add_follow_options,
    complain,
    logged_console,
    remarks_on,
    say,
)


def main(arguments: list[str] | None = None) -> int:
    """Tunes on every seed, writes the trials and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tuning", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, metavar="NAME")
    parser.add_argument("--only", default="^scissorhands$", metavar="REGEX", help="methods; default scissorhands")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="default 0,1,2")
    parser.add_argument(
        "--from-defaults",
        action="store_true",
        help="begin with the defaults of what is tuned, not with the configuration",
    )
    parser.add_argument(
        "--without-oracle",
        action="store_true",
        help="retrain no network: trials are scored, and not compared with one",
    )
    parser.add_argument("--near", type=float, metavar="FACTOR", help="search within this factor of what it begins with")
    parser.add_argument("--trials", type=int, default=12, metavar="N", help="budget per seed (default 12)")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--networks", type=Path, required=True, metavar="DIR", help="trained networks, made if missing")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    add_follow_options(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    console = LoggedConsole()
    try:
        console = logged_console(options)
        with remarks_on(console), files.sole_writer(options.out.parent, of=options.out.name):
            seeds = read_seeds(options.seeds)
            check_seeds(seeds)
            experiment = config.override(configs.load(options.config), options.settings)
            store = TableNetworks(experiment, options.data_dir, options.networks.parent, options.networks)
            labels = list(filter(grid.label_pattern(options.only).search, experiment.scenarios[0].methods))
            about = {
                "config": store.loaded.settings,
                "trials": options.trials,
                "from_defaults": options.from_defaults,
                "without_oracle": options.without_oracle,
                "near": options.near,
            }
            rows, begun = _known(options.out, about)
            measured: dict[int, dict[str, float]] = {}
            for seed, label in itertools.product(seeds, labels):
                place = {"method": label, "seed": seed}
                found = next((row for row in rows if row.items() >= place.items()), None)
                made = begun["trials"] if begun.items() >= place.items() else found["trials"] if found else ()
                if found and len(found["trials"]) == options.trials:
                    continue
                keep = functools.partial(_write, options.out, about, rows)
                row = tune(
                    store,
                    label,
                    seed,
                    options.trials,
                    from_defaults=options.from_defaults,
                    oracle=not options.without_oracle,
                    near=options.near,
                    measured=measured,
                    made=made,
                    keep=lambda trials, place=place, keep=keep: keep({**place, "trials": trials}),
                    console=console,
                )
                rows[:] = [row if one is found else one for one in rows] if found else [*rows, row]
                keep()
                say(console, _line(row))
    except InputError as error:
        complain(console, str(error))
        return 2
    return 0


def _known(out: Path, about: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of an earlier run of the same command, and the one that was begun, with its trials so far.

    Raises:
      InputError: The file holds something else, or more trials.
    """
    if not out.exists():
        return [], {}
    document, about = reading.read_json(out, nan=True), json.loads(json.dumps(about))
    for name, value in about.items():
        may_grow = name == "trials" and name in document
        if not may_grow and document.get(name) != value and (value or name in document):
            raise InputError(f"{out} holds trials with another {name}; remove it, or name another file")
    if document["trials"] > about["trials"]:
        raise InputError(
            f"{out} is of a search of {document['trials']} trials; ask for at least as many, or name another file"
        )
    return document["rows"], document.get("begun", {})


def tune(
    store: TableNetworks,
    label: str,
    seed: int,
    trials: int,
    *,
    from_defaults: bool = False,
    oracle: bool = True,
    near: float | None = None,
    measured: dict[int, dict[str, float]] | None = None,
    made: Sequence[Mapping[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """One tuning in the first scenario, by default with the Avg. Gap of every trial in addition to its score.

    Args:
      store: The networks of the table.
      label: The label of the row to tune.
      seed: The seed of the scenario and of the search.
      trials: The number of trials.
      from_defaults: Whether the first trial takes the defaults of the numbers that are tuned, and not the table's.
      oracle: Whether a network is retrained, with which every trial is compared; the choice does not see it.
      near: Numbers are searched within this factor of those of the first trial, above 1, and names are kept. By default
        the whole ranges are searched, and all names.
      measured: What was measured on the original of each seed, which is added to, so that it is measured once.
      made: The trials that an earlier call has made, as documents.
      keep: Called after every trial with the documents of all so far.
      console: Shows progress. By default that is standard error.
    """
    scenario = store.experiment.scenarios[0]
    settings = scenario.methods[label]
    if from_defaults:
        usual = type(settings)()
        numbers = [name for name in settings.search_ranges if not isinstance(getattr(usual, name), str)]
        settings = dataclasses.replace(settings, **{name: getattr(usual, name) for name in numbers})
    space = settings.search_ranges if near is None else search.near(settings, settings.search_ranges, near)
    prepared = SeededScenario(store, scenario, seed)
    with progress_bar(console or Console(stderr=True)) as progress:
        original = prepared.original(progress)
        retrained = prepared.retrained(progress) if oracle else None
        known = _evaluate(prepared, retrained.params, retrained.model_state) if retrained else None
        task = progress.add_task(f"seed {seed}: {label}", total=trials, note="")

        model, measured = store.loaded.model, {} if measured is None else measured
        if seed not in measured:
            parts = original.params, original.model_state, prepared.data, prepared.validation
            measured[seed] = search.measure_trial(model, *parts)

        def observe(params, model_state):
            return {"avg_gap": distances.average_gap(_evaluate(prepared, params, model_state), known)}

        trials_so_far = []

        def on_trial(number, trial):
            trials_so_far.append(trial.document())
            if keep is not None and number > len(made):
                keep(trials_so_far)
            gap = f", Avg. Gap {trial.observed['avg_gap']:.2f}" if trial.observed else ""
            progress.update(task, completed=number, note=f"score {trial.score:.2f}{gap}")

        result = search.tune_settings(
            model,
            lambda chosen: store.loaded.method_of(chosen, original[:2], prepared.validation),
            settings,
            jax.random.fold_in(jax.random.key(seed), 3),
            original.params,
            original.model_state,
            prepared.data,
            prepared.validation,
            whole_classes=any(map(forget_sets.forgets_classes, scenario.forget)),
            space=space,
            num_trials=trials,
            before=measured[seed],
            made=[search.Trial.of_document(document) for document in made],
            on_trial=on_trial,
            observe=observe if oracle else None,
        )
        progress.remove_task(task)
    if known is None:
        return {"method": label, "seed": seed, **result.document()}
    whole = [trial for trial in result.trials if trial.observed]
    gaps = [trial.observed["avg_gap"] for trial in whole]
    untouched = _evaluate(prepared, original.params, original.model_state)
    return {
        "method": label,
        "seed": seed,
        "gap": {
            "original": distances.average_gap(untouched, known),
            "default settings": result.trials[0].observed.get("avg_gap", float("nan")),
            "tuned without oracle": result.best.observed["avg_gap"],
            "tuned with oracle": min(gaps),
            "median trial": float(np.median(gaps)),
        },
        "rank_correlation": float(stats.spearmanr([trial.score for trial in whole], gaps).statistic),
        **result.document(),
    }


def _line(row: dict[str, Any]) -> str:
    changes = " ".join(search.as_overrides(row["best"]["changes"]))
    if "gap" not in row:
        return f"{row['method']}, seed {row['seed']}: {changes}; score {row['best']['score']:.2f}"
    gaps = ", ".join(f"{name} {gap:.2f}" for name, gap in row["gap"].items())
    correlation = f"rank correlation {row['rank_correlation']:.2f}"
    return f"{row['method']}, seed {row['seed']}: {changes}; Avg. Gap: {gaps}; {correlation}"


def _write(path: Path, about: dict[str, Any], rows: list[dict[str, Any]], begun: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"rows": rows, **({"begun": begun} if begun else {}), **about, **report.environment()}
    files.write_text(path, json.dumps(document, indent=2) + "\n")


def _evaluate(prepared: SeededScenario, params: Params, model_state: ModelState) -> dict[str, Any]:
    model = prepared.store.loaded.model
    return measure_row(model, params, model_state, prepared.data, prepared.test, seed=prepared.seed)


if __name__ == "__main__":
    huge_pages.restart("experiments.tuning")
    sys.exit(main())
