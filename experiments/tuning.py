"""Settings that are chosen without an oracle, and how close they come to those that an oracle would choose.

    python -m experiments.run --config cifar10_small --data-dir data --seeds 0,1,2 --only '^$'
    python -m experiments.tuning --config cifar10_small --data-dir data --seeds 0,1,2 --trials 12 \
        --networks runs/cifar10_small/networks --out experiments/results/cifar10_small/tuning.json

Every trial is scored on validation data, as `scissorhands tune` does it, and also compared with the retrained network,
which the choice never sees. Trials that are in FILE already are not made again, so a run that was stopped continues,
and one with more trials adds the further ones. Where all trials of a method diverge its `best` is null. With
`--from-defaults` every method has the same chances: the first trial takes the defaults of its authors, whatever the
configuration says, and no earlier tuning enters. With `--without-oracle` no network is retrained, so nothing is
compared; a table whose networks take an hour is tuned like this, on a seed of its own. With `--near FACTOR` the search
stays within that factor of the configuration's numbers, and keeps its names:

    python -m experiments.tuning --config cifar10_full --data-dir data --seeds 10 --trials 3 --near 4 \
        --without-oracle --only . --networks runs/tuning/networks --out runs/tuning/tuning.json validation_share=0.1
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments import configs, programs
from experiments.starts import check_same_start, start_of
from scissorhands_jax import files, reading, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.jobs import config, grid, search
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks, check_seeds
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import Choices, Range
from scissorhands_jax.metrics import distances
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import (
    Console,
    add_follow_options,
    say,
)


@programs.ending("the same command goes on after the last trial")
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
    with programs.followed(options) as console, files.sole_writer(options.out.parent, of=options.out.name):
        seeds = programs.read_seeds(options.seeds)
        check_seeds(seeds)
        experiment = config.override(configs.load(options.config), options.settings)
        methods = experiment.scenarios[0].methods
        labels = list(filter(grid.label_pattern(options.only, methods).search, methods))
        for label in labels:
            settings, space = beginning(methods[label], from_defaults=options.from_defaults, near=options.near)
            search.check_search(settings, search.searched_space(settings, space), options.trials)
        store = TableNetworks(experiment, options.data_dir, options.networks.parent, options.networks)
        about = {
            "config": store.loaded.settings,
            "data_sha256": store.data_sha256,
            "trials": options.trials,
            "from_defaults": options.from_defaults,
            "without_oracle": options.without_oracle,
            "near": options.near,
        }
        known = _Tunings(options.out, about)
        measured: dict[int, dict[str, float]] = {}
        for seed, label in itertools.product(seeds, labels):
            if known.is_done(label, seed):
                continue
            row = tune(
                store,
                label,
                seed,
                options.trials,
                from_defaults=options.from_defaults,
                oracle=not options.without_oracle,
                near=options.near,
                measured=measured,
                made=known.trials(label, seed),
                check=known.check,
                keep=known.keep,
                console=console,
            )
            known.add(row)
            say(console, _line(row))
    return 0


class _Tunings:
    """The tunings so far in a file: finished ones in `rows`, and the trials of those that were begun in `begun`.

    Args:
      out: The file.
      about: What all of them have in common, as JSON.

    Raises:
      InputError: The file holds something else, or more trials.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self.out, self.about = out, json.loads(json.dumps(about))
        self.rows: list[dict[str, Any]] = []
        self.begun: list[dict[str, Any]] = []
        if not out.exists():
            return
        document = reading.read_json(out, nan=True)
        for name, value in self.about.items():
            # Files of earlier versions do not have all of these.
            may_differ = name in document if name == "trials" else name not in document and _is_usual(name, value)
            if not may_differ and document.get(name) != value:
                raise InputError(f"{out} holds trials with another {name}; remove it, or name another file")
        if document["trials"] > self.about["trials"]:
            raise InputError(
                f"{out} is of a search of {document['trials']} trials; ask for at least as many, or name another file"
            )
        self.rows, begun = document["rows"], document.get("begun", [])
        self.begun = [begun] if isinstance(begun, dict) else begun

    def is_done(self, label: str, seed: int) -> bool:
        """Whether all trials have been made."""
        return any(len(row["trials"]) == self.about["trials"] for row in self.rows if _is_at(row, label, seed))

    def trials(self, label: str, seed: int) -> list[dict[str, Any]]:
        """The trials that have been made."""
        return next((row["trials"] for row in (*self.begun, *self.rows) if _is_at(row, label, seed)), [])

    def check(self, begun: Mapping[str, Any]) -> None:
        """Refuses to put a tuning beside others of the same seed that began with other networks or examples."""
        check_same_start((*self.rows, *self.begun), begun, str(self.out))

    def keep(self, begun: dict[str, Any]) -> None:
        """Writes what was begun, with its trials so far."""
        self._put(self.begun, begun)

    def add(self, row: dict[str, Any]) -> None:
        """Writes a finished tuning in place of what was begun, or of one with fewer trials."""
        self.begun = [one for one in self.begun if not _is_at(one, row["method"], row["seed"])]
        self._put(self.rows, row)

    def _put(self, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        places = [number for number, one in enumerate(rows) if _is_at(one, row["method"], row["seed"])]
        rows[slice(places[0], places[0] + 1) if places else slice(len(rows), None)] = [row]
        codes = {
            f"{row['method']}, seed {row['seed']}, trial {number}": trial.get("code")
            for row in (*self.rows, *self.begun)
            for number, trial in enumerate(row["trials"], start=1)
        }
        begun = {"begun": self.begun} if self.begun else {}
        document = {"rows": self.rows, **begun, "code": provenance.code_note(codes), **self.about}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self.out, json.dumps({**document, **report.environment()}, indent=2) + "\n")


def _is_usual(name: str, value: Any) -> bool:
    """Whether files of earlier versions, which do not have this entry, may be taken for ones with this value."""
    return not value or name == "data_sha256"


def _is_at(row: Mapping[str, Any], label: str, seed: int) -> bool:
    return (row["method"], row["seed"]) == (label, seed)


def beginning(
    settings: MethodSettings, *, from_defaults: bool = False, near: float | None = None
) -> tuple[MethodSettings, Mapping[str, Range | Choices]]:
    """The settings that a search starts with, and the space that it searches; see `tune`.

    Raises:
      InputError: Nothing of a range is near the settings.
    """
    if from_defaults:
        usual = type(settings)()
        numbers = [name for name in settings.search_ranges if not isinstance(getattr(usual, name), str)]
        settings = dataclasses.replace(settings, **{name: getattr(usual, name) for name in numbers})
    return settings, settings.search_ranges if near is None else search.near(settings, settings.search_ranges, near)


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
    check: Callable[[dict[str, Any]], None] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
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
      check: Called with what is known of the row before the first trial.
      keep: Called after every trial with the same and the documents of all trials so far.
      console: Shows progress. By default that is standard error.
    """
    scenario = store.experiment.scenarios[0]
    settings, space = beginning(scenario.methods[label], from_defaults=from_defaults, near=near)
    prepared = SeededScenario(store, scenario, seed)
    with progress_bar(console or Console(stderr=True)) as progress:
        original = prepared.original(progress)
        row = {"method": label, "seed": seed, **start_of(prepared, original)}
        if check is not None:
            check(row)
        retrained = prepared.retrained(progress) if oracle else None
        known = _evaluate(prepared, retrained.params, retrained.model_state) if retrained else None
        task = progress.add_task(f"seed {seed}: {label}", total=trials, note="")

        model, measured = store.loaded.model, {} if measured is None else measured
        if seed not in measured:
            parts = original.params, original.model_state, prepared.data, prepared.validation
            measured[seed] = search.measure_trial(model, *parts)

        def observe(params, model_state):
            return {"avg_gap": distances.average_gap(_evaluate(prepared, params, model_state), known)}

        documents = [dict(document) for document in made]
        parts_of_trial = {field.name for field in dataclasses.fields(search.Trial)}

        def on_trial(number, trial):
            if number > len(made):
                documents.append({**trial.document(), "code": provenance.running_code().name})
                if keep is not None:
                    keep({**row, "trials": documents})
            gap = f", Avg. Gap {trial.observed['avg_gap']:.2f}" if trial.observed else ""
            progress.update(task, completed=number, note=f"score {trial.score:.2f}{gap}")

        try:
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
                made=[search.Trial.of_document({name: document[name] for name in parts_of_trial}) for document in made],
                on_trial=on_trial,
                observe=observe if oracle else None,
            )
        except DivergedError:
            if len(documents) < trials or any(document["score"] is not None for document in documents):
                raise  # of something else than the trials
            return {**row, "best": None, "trials": documents}
        finally:
            progress.remove_task(task)
    row |= {"best": documents[result.trials.index(result.best)], "trials": documents}
    if known is None:
        return row
    whole = [trial for trial in result.trials if trial.observed]
    gaps = [trial.observed["avg_gap"] for trial in whole]
    untouched = _evaluate(prepared, original.params, original.model_state)
    return {
        **row,
        "gap": {
            "original": distances.average_gap(untouched, known),
            "default settings": result.trials[0].observed.get("avg_gap", float("nan")),
            "tuned without oracle": result.best.observed["avg_gap"],
            "tuned with oracle": min(gaps),
            "median trial": float(np.median(gaps)),
        },
        "rank_correlation": float(stats.spearmanr([trial.score for trial in whole], gaps).statistic),
    }


def _line(row: dict[str, Any]) -> str:
    if row["best"] is None:
        return f"{row['method']}, seed {row['seed']}: all {len(row['trials'])} trials diverged"
    changes = " ".join(search.as_overrides(row["best"]["changes"]))
    if "gap" not in row:
        return f"{row['method']}, seed {row['seed']}: {changes}; score {row['best']['score']:.2f}"
    gaps = ", ".join(f"{name} {gap:.2f}" for name, gap in row["gap"].items())
    correlation = f"rank correlation {row['rank_correlation']:.2f}"
    return f"{row['method']}, seed {row['seed']}: {changes}; Avg. Gap: {gaps}; {correlation}"


def _evaluate(prepared: SeededScenario, params: Params, model_state: ModelState) -> dict[str, Any]:
    model = prepared.store.loaded.model
    return measure_row(model, params, model_state, prepared.data, prepared.test, seed=prepared.seed)


if __name__ == "__main__":
    huge_pages.restart("experiments.tuning")
    sys.exit(main())
