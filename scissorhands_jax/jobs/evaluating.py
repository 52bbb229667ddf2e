"""What `scissorhands evaluate` does: the accuracies of one network, and the gates that vouch for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, report
from scissorhands_jax.base import Dataset, Model, ModelState, Params
from scissorhands_jax.datasets.splits import known_classes
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.job import (
    build_network,
    describe_run,
    divide_test_set,
    load_weights,
    read_past,
    run_folder_of,
)
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.metrics import accuracies, distances
from scissorhands_jax.report import gates


def evaluate_network(
    *,
    model: str,
    dataset: str,
    data_dir: str | None,
    weights: str | None = None,
    checkpoint: str | None = None,
    retrained: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """The test accuracy of a network, and for a run's result also its accuracy on what it forgot and kept.

    The test set of a run's result is the one that the run reported on: without classes that it forgot as a whole, and
    without what was set aside for validation.

    Args:
      retrained: folder of the run that retrained the network of the `checkpoint` without the same forget set; the gates
        of `gates.of_rows` are then run, and `avg_gap` is the distance to it.

    Returns:
      `model`, `dataset`, `acc_test`, `correct_test`, `num_test`, `gates`; with the `checkpoint` of a run also `acc_*`,
      `correct_*`, `num_*` for `forget`, `retain` and, after several requests, `forgotten_before`.

    Raises:
      InputError: something cannot be used, or the retrained network is one for something else.
    """
    rows = _beside(checkpoint, retrained)
    splits = datasets.load(dataset, data_dir)
    described = {} if checkpoint is None else describe_run(checkpoint)
    network = build_network(model, splits, described.get("model_options", {}))
    params, model_state = load_weights(network, weights=weights, checkpoint=checkpoint)
    parts = {"test": splits.test}
    if checkpoint is not None and described.get("dataset") == dataset:
        total = data_lib.size(splits.train)
        past, forgotten = read_past(run_folder_of(checkpoint), total)
        data = data_lib.split(splits.train, forgotten, past.trained_on)
        test, _ = divide_test_set(splits.test, described.get("validation"), described.get("seed", 0))
        parts = {"test": known_classes(test, data.retain), "forget": data.forget, "retain": data.retain}
        if past.forgotten.size:
            parts["forgotten_before"] = data_lib.take(splits.train, past.forgotten)
    answer: dict[str, Any] = {"model": model, "dataset": dataset}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=len(parts), note="")
        for name, part in parts.items():
            logits = accuracies.predict(network, params, model_state, part["image"], batch_size=500)
            answer[f"acc_{name}"] = accuracies.accuracy(logits, part["label"])
            answer[f"correct_{name}"] = accuracies.correct(logits, part["label"])
            answer[f"num_{name}"] = len(part["label"])
            progress.advance(task)
    if retrained is not None:
        rows[-1] |= _held_out_numbers(network, load_weights(network, weights=None, checkpoint=retrained), parts, splits)
        answer["avg_gap"] = distances.average_gap(rows[1], rows[-1])
    answer["gates"] = [
        {"name": gate.name.removeprefix(f"{_EVALUATED}: "), "passed": gate.passed, "why": gate.explanation}
        for gate in gates.of_rows(rows)
    ]
    return answer


_EVALUATED = "evaluation"


def _beside(checkpoint: str | None, retrained: str | None) -> list[dict[str, Any]]:
    """The rows of the original and of a run, and that of the retrained network beside them, as the runs noted them."""
    if retrained is None:
        return [{**dict.fromkeys(report.ROW_FIELDS), "scenario": _EVALUATED, "method": gates.ORIGINAL}]
    if checkpoint is None:
        raise InputError("--retrained stands beside a run; name that with --checkpoint RUN")
    own, other = (report.read_results(run_folder_of(run) / runs.RESULTS_FILE) for run in (checkpoint, retrained))
    if other["config"].get("method_name") != report.REFERENCE:
        raise InputError(f"{retrained} is a run of {other['config'].get('method_name')}; name one of --method retrain")
    for part in ("forget", "trained_on"):
        if own.get(part, {}).get("sha256") != other.get(part, {}).get("sha256"):
            what = "forgot other examples" if part == "forget" else "began with another training set"
            raise InputError(f"{retrained} {what} than {checkpoint}, so the two cannot be compared")
    rows = [*own["rows"], *other["rows"][1:]]
    return [{**row, "scenario": _EVALUATED, "seed": None} for row in rows]


def _held_out_numbers(
    model: Model, network: tuple[Params, ModelState], parts: Mapping[str, Dataset], splits: datasets.Splits
) -> dict[str, float]:
    """The forget set beside the test set, class by class, as a retrained network sees them."""
    if "forget" not in parts:
        return {}
    shown = []
    for part in (parts["forget"], splits.test):
        label = np.asarray(part["label"])
        shown += [accuracies.predict(model, *network, part["image"], batch_size=500), label, label]
    return gates.held_out_numbers(*shown)
