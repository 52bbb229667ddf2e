"""What `scissorhands evaluate` does: the accuracies of one network, and whether they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, report
from scissorhands_jax.base import Dataset, Model, ModelState, Params
from scissorhands_jax.datasets.splits import known_classes
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import originals, runs
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.earlier_runs import origin_folder, read_past, saved_config
from scissorhands_jax.jobs.job import divide_test_set
from scissorhands_jax.jobs.loading import load_run, read_network
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.metrics import accuracies, distances
from scissorhands_jax.report import table_gates
from scissorhands_jax.terminal import Console, say

_SCENARIO = "evaluation"


@dataclasses.dataclass(frozen=True)
class MeasuredPart:
    """How many examples of a set a network gets right."""

    accuracy: float
    """The share in percent."""
    correct: int
    num: int
    """The number of all examples in the set."""


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
    """The accuracies of a network, and whether they can be trusted."""

    model: str
    dataset: str
    parts: dict[str, MeasuredPart]
    """By the name of the set: always `test`; of the result of a run also `forget`, `retain` and, after several runs,
    `forgotten_before`."""
    avg_gap: float | None
    """The distance to the retrained network in percentage points, if one was given."""
    gates: tuple[EvaluationGate, ...]

    def document(self) -> dict[str, Any]:
        """The evaluation as JSON, with `acc_*`, `correct_*` and `num_*` for each set."""
        document: dict[str, Any] = {"model": self.model, "dataset": self.dataset}
        for name, part in self.parts.items():
            document |= {f"acc_{name}": part.accuracy, f"correct_{name}": part.correct, f"num_{name}": part.num}
        if self.avg_gap is not None:
            document["avg_gap"] = self.avg_gap
        return {**document, "gates": [dataclasses.asdict(gate) for gate in self.gates]}


def evaluate_network(config: NetworkConfig, *, retrained: str | None = None, console: Console) -> NetworkEvaluation:
    """Measures the test accuracy of a network, and for a run's result also the accuracy on what it forgot and retained.

    The test set of a run's result is the one that the run reported on: without classes that were forgotten as a whole,
    and without what was set aside for validation.

    Args:
      config: The network.
      retrained: The folder of the run that retrained the network of `config.checkpoint` without the same forget set.
        If it is given, the gates of `table_gates.of_rows` compare the two, and `avg_gap` is the distance between them.
      console: Where progress is shown.

    Raises:
      InputError: Something cannot be used, or the retrained network belongs to another run.
    """
    rows = _noted_rows(config.checkpoint, retrained)
    splits = datasets.load(config.dataset, config.data_dir)
    read = read_network(config, splits)
    config, model, network = read.config, read.model, (read.params, read.model_state)
    parts = _parts(config, splits)
    measured: dict[str, MeasuredPart] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=len(parts), note="")
        for name, part in parts.items():
            logits = accuracies.predict(model, *network, part["image"], batch_size=500)
            label = part["label"]
            measured[name] = MeasuredPart(
                accuracies.accuracy(logits, label), accuracies.correct(logits, label), len(label)
            )
            progress.advance(task)
    known = "retain" if "retain" in parts else "test"  # What it should know, or at least examples of its kind.
    labels = np.asarray((parts[known] or {})["label"])
    doubt = originals.near_chance(measured[known].correct, labels, f"{known} examples")
    if doubt is not None:
        say(console, f"note: {doubt.replace('the original', 'the network')}")
    avg_gap = None
    if retrained is not None:
        rows[-1] |= _held_out_numbers(model, load_run(model, retrained), parts, splits)
        avg_gap = distances.average_gap(rows[1], rows[-1])
    found = tuple(
        EvaluationGate(gate.name.removeprefix(f"{_SCENARIO}: "), gate.passed, gate.explanation)
        for gate in table_gates.of_rows(rows)
    )
    return NetworkEvaluation(model=config.model, dataset=config.dataset, parts=measured, avg_gap=avg_gap, gates=found)


def _parts(config: NetworkConfig, splits: datasets.Splits) -> dict[str, Dataset]:
    """The sets that the network is measured on, by name."""
    saved = {} if config.checkpoint is None else saved_config(config.checkpoint)
    if config.checkpoint is None or saved.get("dataset") != config.dataset:
        return {"test": splits.test}
    past, forgotten = read_past(origin_folder(config.checkpoint), data_lib.size(splits.train))
    data = data_lib.split(splits.train, forgotten, past.trained_on)
    test, _ = divide_test_set(splits.test, saved.get("validation"), saved.get("seed", 0))
    parts = {"test": known_classes(test, data.retain), "forget": data.forget, "retain": data.retain}
    if past.forgotten.size:
        parts["forgotten_before"] = data_lib.take(splits.train, past.forgotten)
    return parts


def _noted_rows(checkpoint: str | None, retrained: str | None) -> list[dict[str, Any]]:
    """The rows of the original, of a run and of the retrained network, as the two runs saved them."""
    if retrained is None:
        return [{**dict.fromkeys(report.ROW_FIELDS), "scenario": _SCENARIO, "method": report.ORIGINAL}]
    if checkpoint is None:
        raise InputError("--retrained is compared with a run; name that run with --checkpoint RUN")
    own, other = (report.read_results(origin_folder(run) / runs.RESULTS_FILE) for run in (checkpoint, retrained))
    if other["config"].get("method_name") != report.REFERENCE:
        raise InputError(f"{retrained} is a run of {other['config'].get('method_name')}; name one of --method retrain")
    for part in ("forget", "trained_on"):
        if own.get(part, {}).get("sha256") != other.get(part, {}).get("sha256"):
            what = "forgot other examples" if part == "forget" else "began with another training set"
            raise InputError(f"{retrained} {what} than {checkpoint}, so the two cannot be compared")
    rows = [*own["rows"], *other["rows"][1:]]
    return [{**row, "scenario": _SCENARIO, "seed": None} for row in rows]


def _held_out_numbers(
    model: Model, network: tuple[Params, ModelState], parts: Mapping[str, Dataset], splits: datasets.Splits
) -> dict[str, float]:
    """The accuracies of a retrained network on the forget set and the test set, class by class."""
    if "forget" not in parts:
        return {}
    shown = []
    for part in (parts["forget"], splits.test):
        label = np.asarray(part["label"])
        shown += [accuracies.predict(model, *network, part["image"], batch_size=500), label, label]
    return table_gates.held_out_numbers(*shown)
