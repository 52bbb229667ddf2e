"""The demonstration: a small network learns scikit-learn's digits, memorises, and forgets, beside the retrained one."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from scissorhands_jax import checkpoints, datasets, evaluation, losses, metrics, models, report, runs
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, TrainingSettings
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.progress import follow, progress_bar
from scissorhands_jax.training import Result, run

HIDDEN = (256, 256)
_COMMON = {"batch_size": 64, "weight_decay": 0.0}
_TRAINING = RetrainSettings(epochs=100, learning_rate=0.05, **_COMMON)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is forgotten, and with which settings."""

    name: str
    flipped_labels: float
    forget: str  # may contain {seed}
    finetune: FinetuneSettings
    scissorhands: ScissorhandsSettings


SCENARIOS = (
    Scenario(
        name="random 10 %",
        flipped_labels=0.2,
        forget="random:0.1",
        finetune=FinetuneSettings(epochs=10, learning_rate=0.02, **_COMMON),
        scissorhands=ScissorhandsSettings(
            epochs=20, learning_rate=0.05, fraction=0.05, forget_weight=0.2, trim="layer2|head", **_COMMON
        ),
    ),
    Scenario(
        name="one class",
        flipped_labels=0.0,
        forget="class:{seed}",
        finetune=FinetuneSettings(epochs=10, learning_rate=0.02, **_COMMON),
        scissorhands=ScissorhandsSettings(
            epochs=5, learning_rate=0.02, fraction=0.03, forget_weight=0.02, trim="layer2|head", **_COMMON
        ),
    ),
)

_WHAT = (
    f"A network with two hidden layers of {HIDDEN[0]} units learned scikit-learn's 1,347 training digits for "
    f"{_TRAINING.epochs} epochs until it knew them by heart. It was then asked to forget a part of them, by "
    "Scissorhands and by fine-tuning on the rest. The retrained network never saw that part: it is what the others "
    "should become.",
    "Random 10 %: a network that generalises treats most forgotten digits like the rest, so there would be nothing to "
    "see. Therefore 20 % of the training labels were flipped: right answers on those can only have been learned by "
    "heart, and the retrained network cannot give them. One class: labels are clean; seed 0 forgets the zeros, seed 1 "
    "the ones, and so on, and the test set leaves that class out, as in the paper.",
    "The settings were picked once on seeds 0 to 2 for a small Avg. Gap, that is with the retrained network in sight; "
    "they show what the method can do, not what tuning without an oracle would find.",
)
_HOW = (
    "Avg. Gap is the mean distance to the retrained network of the same seed over the four percentages: accuracy on "
    "the forgotten, the retained and the test examples, and MIA. Smaller is better; the network before unlearning and "
    "fine-tuning show what doing nothing costs.",
    "MIA is the share of forgotten examples that an attacker (a support vector classifier on the confidence in the "
    "true label) judges never to have been trained on. RTE is the run time divided by that of retraining; compilation "
    "is left out of both.",
)


def run_demo(
    out: Path, *, num_seeds: int = 3, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Runs both scenarios over `num_seeds` seeds and writes `results.json`, `report.html` and the networks into `out`.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: `num_seeds` is not 1 to 10, or the folder is taken.
    """
    if not 1 <= num_seeds <= 10:
        raise InputError(f"--seeds must be 1 to 10, got {num_seeds}")
    console = console or Console(stderr=True)
    config = {
        "dataset": "digits",
        "model": {"name": "mlp", "hidden": list(HIDDEN)},
        "seeds": num_seeds,
        "training": dataclasses.asdict(_TRAINING),
        "scenarios": {scenario.name: dataclasses.asdict(scenario) for scenario in SCENARIOS},
    }
    runs.open_folder(out, {"command": "demo", **config}, overwrite=overwrite)
    started = time.perf_counter()
    splits = datasets.load("digits")
    model = models.build("mlp", num_classes=10, image_shape=splits.image_shape, hidden=HIDDEN)
    methods = _Methods(model)
    rows: list[dict[str, Any]] = []
    with progress_bar(console) as progress:
        total = progress.add_task("demo", total=len(SCENARIOS) * num_seeds * 4, note="")
        for scenario in SCENARIOS:
            for seed in range(num_seeds):
                data, train, test = _prepare(scenario, splits, seed)
                retrained: dict[str, Any] | None = None
                original: Result | None = None
                for name, settings in _plan(scenario):
                    progress.update(total, description=f"{scenario.name}, seed {seed}: {name}")
                    start = (None, None) if original is None else (original.params, original.model_state)
                    key = jax.random.fold_in(jax.random.key(seed), len(rows) % 4)
                    examples = Data(None, train) if name == "original" else data
                    task = follow(progress, f"  {name}")
                    result = run(methods.of(settings), key, *start, examples, num_epochs=settings.epochs, on_step=task)
                    progress.remove_task(progress.task_ids[-1])
                    if name == "original":
                        original = result
                    numbers = evaluation.evaluate(model, result.params, result.model_state, data, test, seed=seed)
                    if name == "retrain":
                        retrained = {**numbers, "seconds": result.seconds}
                    rows.append(_row(scenario, name, seed, numbers, result))
                    checkpoints.save_network(
                        out
                        / "checkpoints"
                        / f"{scenario.name.replace(' ', '_').replace('%', 'percent')}-{seed}-{name}",
                        result.params,
                        result.model_state,
                        {"scenario": scenario.name, "seed": seed, "method": name, "config": config},
                    )
                    progress.advance(total)
                _compare(rows, scenario, seed, retrained)
    document = {"rows": rows, "config": config, "seconds": time.perf_counter() - started, **report.environment()}
    report.write_results(out / runs.RESULTS_FILE, document)
    report.write_html(
        out / "report.html",
        title="A network forgets digits",
        summary_sections=[("What was done, and why so", _WHAT), ("How to read it", _HOW)],
        rows=rows,
        figures=report.pictures(rows),
        settings=config,
        environment={"versions": document["versions"], "machine": document["machine"]},
    )
    report.print_tables(rows, Console())
    console.print(f"open {out / 'report.html'}; all numbers are in {out / runs.RESULTS_FILE}", highlight=False)
    return document


class _Methods:
    """Each configuration is built once, so that it compiles once for all seeds."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._loss_fn = losses.classification_loss(model)
        self._built: dict[str, Any] = {}

    def of(self, settings: TrainingSettings) -> Any:
        """The method of these settings."""
        key = repr(settings)
        if key not in self._built:
            self._built[key] = settings.build(self._model, self._loss_fn, 10)
        return self._built[key]


def _plan(scenario: Scenario) -> list[tuple[str, TrainingSettings]]:
    """Original first, because the others start from it; all names but that are in METHODS."""
    plan = [("original", _TRAINING), ("retrain", _TRAINING)]
    return plan + [(name, getattr(scenario, name)) for name in METHODS if hasattr(scenario, name)]


def _prepare(scenario: Scenario, splits: datasets.Splits, seed: int) -> tuple[Data, Dataset, Dataset]:
    """The forget and retain sets, the whole training set and the test set of one seed."""
    labels = splits.train["label"].copy()
    rng = np.random.default_rng([seed, 7])
    flipped = rng.choice(len(labels), round(scenario.flipped_labels * len(labels)), replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    train = {**splits.train, "label": labels}
    spec = scenario.forget.format(seed=seed)
    data = data_lib.split(train, data_lib.forget_positions(spec, labels, seed=seed))
    test = splits.test
    if spec.startswith("class:"):
        test = data_lib.take(test, np.flatnonzero(test["label"] != int(spec.partition(":")[2])))
    return data, train, test


def _row(scenario: Scenario, method: str, seed: int, numbers: dict[str, Any], result: Result) -> dict[str, Any]:
    row = {"scenario": scenario.name, "method": method, "seed": seed, "seconds": result.seconds} | numbers
    return {field: row.get(field) for field in report.ROW_FIELDS}


def _compare(rows: list[dict[str, Any]], scenario: Scenario, seed: int, retrained: dict[str, Any] | None) -> None:
    """Fills in what needs the retrained network of the same seed."""
    assert retrained is not None
    for row in rows:
        if (row["scenario"], row["seed"]) == (scenario.name, seed):
            row["avg_gap"] = metrics.average_gap(row, retrained)
            row["rte"] = row["seconds"] / retrained["seconds"]
