"""What `scissorhands evaluate` does: how good one network is, and whether the numbers can be trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, hashing, report
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import originals, runs
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.earlier_runs import origin_folder, read_past, saved_config
from scissorhands_jax.jobs.job import TEST_HASH, TRAIN_HASH, divide_test_set, set_aside_share
from scissorhands_jax.jobs.loading import load_run, read_network
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.metrics import answers, distances
from scissorhands_jax.metrics.row import SetPredictions, accuracy_numbers
from scissorhands_jax.report import table_gates
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training.identity import differences, list_differences

_SCENARIO = "evaluation"


@dataclasses.dataclass(frozen=True)
class EvaluationGate:
    """Whether one check of the numbers passed."""

    name: str
    passed: bool | None
    """None if the check could not be run."""
    why: str
    """What was found, or what is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkEvaluation:
    """How good a network is, and whether the numbers can be trusted."""

    model: str
    dataset: str
    numbers: dict[str, Any]
    """As `metrics.row.accuracy_numbers` has them: of a classifier `acc_*` in percent, `correct_*` and `num_*`, of
    another task its metrics and `num_*`. `*` is the name of a set: always `test`; of the result of a run also `forget`,
    `retain` and, after several runs, `forgotten_before`."""
    avg_gap: float | None
    """The distance to the retrained network in percentage points, if one was given."""
    gates: tuple[EvaluationGate, ...]

    def document(self) -> dict[str, Any]:
        """The evaluation as JSON."""
        document: dict[str, Any] = {"model": self.model, "dataset": self.dataset, **self.numbers}
        if self.avg_gap is not None:
            document["avg_gap"] = self.avg_gap
        return {**document, "gates": [dataclasses.asdict(gate) for gate in self.gates]}


def evaluate_network(config: NetworkConfig, *, retrained: str | None = None, console: Console) -> NetworkEvaluation:
    """Measures how good a network is on the test set, and for a run's result also on what it forgot and retained.

    The test set of a run's result is the one that the run reported on: without classes that were forgotten as a whole,
    and without what was set aside for validation. Whether the data are those of the run is known by their content. A
    network is measured on the whole test set alone, and that is said, where they are others or the folder of its run
    is not there.

    Args:
      config: The network.
      retrained: The folder of the run that retrained the network of `config.checkpoint` without the same forget set.
        If it is given, the gates of `table_gates.of_rows` compare the two, and `avg_gap` is the distance between them.
      console: Where progress is shown, and why something is not measured.

    Raises:
      InputError: Something cannot be used, or the retrained network belongs to another run, or was measured on other
        sets.
    """
    rows = _noted_rows(config.checkpoint, retrained)
    splits = datasets.load(config.dataset, config.data_dir)
    read = read_network(config, splits)
    config, model, network = read.config, read.model, (read.params, read.model_state)
    parts = _parts(config, splits, console)
    found: dict[str, SetPredictions] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=len(parts), note="")
        for name, part in parts.items():
            found[name] = SetPredictions(answers.outputs_of(splits.task, model, *network, part), part)
            progress.advance(task)
    known = "retain" if "retain" in parts else "test"  # What it should know, or at least examples of its kind.
    doubt = originals.near_chance_of(splits.task, found[known], f"{known} examples")
    if doubt is not None:
        say(console, f"note: {doubt.replace('the original', 'the network')}")
    avg_gap = None
    if retrained is not None:
        if "forget" in parts:
            again = load_run(model, retrained)
            rows[-1] |= originals.unseen_comparison(splits.task, model, again, parts["forget"], splits.test)
        avg_gap = distances.average_gap(rows[1], rows[-1])
    gates = tuple(
        EvaluationGate(gate.name.removeprefix(f"{_SCENARIO}: "), gate.passed, gate.explanation)
        for gate in table_gates.of_rows(rows)
    )
    numbers = accuracy_numbers(found, task=splits.task)
    return NetworkEvaluation(model=config.model, dataset=config.dataset, numbers=numbers, avg_gap=avg_gap, gates=gates)


def _parts(config: NetworkConfig, splits: datasets.Splits, console: Console) -> dict[str, Dataset]:
    """The sets that the network is measured on, by name. Those of a run are known by the content of its data."""
    whole = {"test": splits.test}
    saved = {} if config.checkpoint is None else saved_config(config.checkpoint)
    if config.checkpoint is None or "forget" not in saved:
        return whole

    def note(why: str, what: str) -> None:
        say(console, f"note: {why}, so {what}")

    folder = origin_folder(config.checkpoint)
    alone = "the network is measured on the whole test set alone, and not on what it forgot and retained"
    if not (folder / runs.RUN_FILE).is_file():
        note(f"{folder} has no {runs.RUN_FILE}, which says of what data the run of this network was", alone)
        return whole
    run = runs.read_run(folder)
    if TRAIN_HASH not in run:  # an early version wrote it
        note(f"{folder / runs.RUN_FILE} does not say of what data the run was", alone)
        return whole
    if run[TRAIN_HASH] != hashing.tree_sha256(splits.train):
        note(f"the training set {config.dataset} is not the one of the run in {folder}", alone)
        return whole
    past, forgotten = read_past(folder, data_lib.size(splits.train))
    if not forgotten.size:  # a ledger has erased it
        note(f"the run in {folder} does not say any more what it forgot", alone)
        return whole
    data = data_lib.split(splits.train, forgotten, past.trained_on)
    test, set_aside = splits.test, set_aside_share(saved.get("validation"))
    if run.get(TEST_HASH) == hashing.tree_sha256(test):
        test, _ = divide_test_set(test, set_aside, saved.get("seed", 0))
    elif set_aside is not None or TEST_HASH in run:
        left = "" if set_aside is None else f", with whatever {set_aside} had set aside for validation"
        note(f"the test set {config.dataset} is not the one of the run in {folder}", f"it is measured whole{left}")
    parts = {
        "test": answers.known_test_set(splits.task, test, data.retain),
        "forget": data.forget,
        "retain": data.retain,
    }
    if past.forgotten.size:
        parts["forgotten_before"] = data_lib.take(splits.train, past.forgotten)
    return parts


def _noted_rows(checkpoint: str | None, retrained: str | None) -> list[dict[str, Any]]:
    """The rows of the original, of a run and of the retrained network, as the two runs saved them."""
    if retrained is None:
        return [{**dict.fromkeys(report.ROW_FIELDS), "scenario": _SCENARIO, "method": report.ORIGINAL}]
    if checkpoint is None:
        raise InputError("--retrained is compared with a run; name that run with --checkpoint RUN")
    folders = [origin_folder(run) for run in (checkpoint, retrained)]
    for folder in folders:
        if not (folder / runs.RESULTS_FILE).is_file():
            raise InputError(
                f"--retrained compares what two runs have saved, and {folder} has no {runs.RESULTS_FILE}; name the "
                "folder of a run that has ended"
            )
    own, other = (report.read_results(folder / runs.RESULTS_FILE) for folder in folders)
    if other["config"].get("method_name") != report.REFERENCE:
        raise InputError(f"{retrained} is a run of {other['config'].get('method_name')}; name one of --method retrain")
    for part in ("forget", "trained_on"):
        if own.get(part, {}).get("sha256") != other.get(part, {}).get("sha256"):
            what = "forgot other examples" if part == "forget" else "began with another training set"
            raise InputError(f"{retrained} {what} than {checkpoint}, so the two cannot be compared")
    here, there = (_sets_of(folder, run) for folder, run in zip(folders, (own, other), strict=True))
    found = list(differences(there, here))
    if found:
        raise InputError(
            f"{retrained} and {checkpoint} were not measured on the same sets: "
            f"{list_differences(found, 'is {} there and {} here')}; retrain with the settings of the latter"
        )
    rows = [*own["rows"], *other["rows"][1:]]
    return [{**row, "scenario": _SCENARIO, "seed": None} for row in rows]


def _sets_of(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What decides the sets that a run was measured on, except for its forget set and what its network was trained on.

    Args:
      folder: The folder of the run.
      results: The content of its `results.json`.
    """
    config = results["config"]
    limit, set_aside = config.get("retain_limit"), set_aside_share(config.get("validation"))
    saved = runs.read_run(folder) if (folder / runs.RUN_FILE).is_file() else {}
    return {
        TRAIN_HASH: saved.get(TRAIN_HASH),
        TEST_HASH: saved.get(TEST_HASH),
        "validation": set_aside,
        "retain_limit": limit,
        "seed": None if limit is None and set_aside is None else config.get("seed"),  # which draws both
        "model": config.get("model"),
    }
