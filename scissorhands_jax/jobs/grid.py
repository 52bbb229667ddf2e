"""A table of results: scenarios, seeds and methods, each network beside the one retrained without the forget set.

Every network is a cell with a file of its own, so that a table that was stopped goes on with the next cell.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from scissorhands_jax import augmentation, datasets, files, hashing, losses, models, report
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.datasets.splits import known_classes, validation_split
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import follow, progress_bar
from scissorhands_jax.methods import MethodSettings, describe
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.metrics import accuracies, distances, gradcam, relearning
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import gates
from scissorhands_jax.torch_weights import state_dicts as torch_weights
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.loop import run

ORIGINAL, RETRAIN = "original", "retrain"
FLIPPED = "flipped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is forgotten, and by which methods."""

    name: str
    forget: tuple[str, ...]
    """Forget specifications (`data.forget_positions`), one request after another; `{seed}` is replaced. The word
    `flipped` stands for the examples whose labels were flipped: corrective unlearning."""
    flipped_labels: float = 0.0
    """Share of the training examples that carry a wrong label from the start."""
    methods: Mapping[str, MethodSettings]
    """Settings by the label of their row; the original and the retrained network come by themselves."""
    sweeps: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """For a figure: by label, `{"name": swept setting, "value": its value}`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table: one data set, one network, several scenarios."""

    name: str
    dataset: str
    model: str
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pretrained: str | None = None
    """PyTorch file whose layers, all but the head, start the training of the original and of the retrained network."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to."""
    train_limit: int | None = None
    """So many training images: of every class its share, rounded down, drawn with `split_seed`."""
    test_limit: int | None = None
    """So many test images, likewise."""
    validation_share: float = 0.1
    """Share of the training images, per class, that no network is trained on."""
    split_seed: int = 1
    augment: bool | None = None
    """Random crops and flips in training; None as is customary for the data set."""
    training: RetrainSettings
    """Of the original and of the retrained network."""
    scenarios: tuple[Scenario, ...]
    every_attack: bool = True
    relearn_epochs: int = 0
    """Cap of the relearn time; 0 leaves it out."""
    relearning: FinetuneSettings = dataclasses.field(default_factory=lambda: FinetuneSettings(learning_rate=1e-2))
    gradcam_layer: str | None = None
    """The layer that Grad-CAM reads; None is the last stage of convolutions."""
    checkpoint_cells: bool = False
    """Checkpoint every epoch, so that also a long cell goes on where it was stopped."""
    paper_table: str | None = None
    """The table of the paper that this one stands beside."""


class Network(NamedTuple):
    """A trained network, and what it cost if it was trained in this process."""

    params: Params
    model_state: ModelState
    cost: dict[str, float] | None


def run_grid(
    experiment: Experiment,
    out: Path,
    *,
    seeds: Sequence[int],
    data_dir: str | None = None,
    networks: Path | None = None,
    only: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fills the table in the folder `out`, or goes on filling it, and returns the document in its `results.json`.

    The folder holds a file per cell (`cells/`), the networks (`networks/`), the positions of every split (`positions/`)
    and `results.json`, which is rewritten after every cell. Run times leave compilation out; a cell's RTE is its time
    over that of retraining in the same process, and null where the retrained network comes from an earlier one.

    Args:
      experiment: what to run.
      out: the folder; a table of the same experiment in it is continued.
      data_dir: the folder of the data set's files.
      seeds: each draws its own forget set, original, retrained and unlearned networks.
      networks: where originals and retrained networks are kept and found, to share them between experiments; default
        `out/networks`, where the unlearned ones always are.
      only: a regular expression; only rows whose label it matches are made (the references always are).
      overwrite: replace a table that is there.
      console: for progress; default stderr.

    Raises:
      InputError: something in the experiment cannot be used, or the folder holds something else.
      NonFiniteError: the original or the retrained network diverged; all earlier cells stay. An unlearning method that
        diverges leaves a cell that says so, listed under `failures`.
    """
    console = console or Console(stderr=True)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds must be different numbers from 0 on, got {list(seeds)}")
    chosen = choice(only)
    table = Table(experiment, data_dir, out, networks or out / "networks")
    runs.open_folder(out, {"command": "grid", **table.resolved}, overwrite=overwrite, resume=True)
    with progress_bar(console) as progress:
        table.fill(progress, seeds, chosen)
    return table.document


def choice(only: str | None) -> re.Pattern:
    """The expression that the labels of chosen rows match; all of them for None.

    Raises:
      InputError: it is not a regular expression.
    """
    try:
        return re.compile(only or "")
    except re.error as error:
        raise InputError(f"the choice of methods {only!r} is not a regular expression: {error}") from error


def gradcam_picture(
    experiment: Experiment,
    out: Path,
    *,
    seed: int,
    labels: Sequence[str] = ("scissorhands",),
    data_dir: str | None = None,
    networks: Path | None = None,
    num_images: int = 4,
) -> report.Picture | None:
    """Grad-CAM of the original, the retrained and some unlearned networks, on forget and retain images (Figure 1).

    Args:
      experiment: whose table in `out` is filled for `seed`; its first scenario is shown.
      labels: the rows whose networks are shown beside the references.
      num_images: of the forget set, and as many of the retain set: the first ones.

    Returns:
      The picture, or None where the network has no convolution.
    """
    if models.CAM_LAYERS.get(experiment.model) is None:
        return None
    table = Table(experiment, data_dir, out, networks or out / "networks")
    setting = Setting(table, experiment.scenarios[0], seed)
    parts = [data_lib.take(part, np.arange(num_images)) for part in (setting.data.forget, setting.data.retain)]
    images, classes = (np.concatenate([part[name] for part in parts]) for name in ("image", "label"))
    layer = experiment.gradcam_layer or gradcam.default_layer(experiment.model)
    maps, logits = {}, {}
    for label in (ORIGINAL, RETRAIN, *labels):
        network = setting.load(label)
        maps[label] = gradcam.heatmaps(table.model, network.params, network.model_state, images, classes, layer=layer)
        logits[label] = accuracies.predict(table.model, network.params, network.model_state, images)
    figure = report.gradcam_figure(
        images, maps, num_forget=num_images, labels=classes, logits=logits, class_names=table.splits.class_names
    )
    return report.Picture(
        figure,
        f"Grad-CAM at {layer} for the true class, seed {seed}: where each network looks on images to forget (above) "
        "and to retain (below). A map shows where, not how much.",
        "Heat maps over forget and retain images, one column per network",
        heading="Where the networks look",
        format="png",
        name="gradcam",
    )


def write_report(
    out: Path,
    document: Mapping[str, Any],
    *,
    title: str,
    answer: str | None = None,
    explanations: Sequence[report.Section] = (),
    leading: Sequence[report.Picture] = (),
    figures: Sequence[report.Picture] = (),
) -> None:
    """Writes `report.html` into the folder of a table.

    Args:
      out: the folder.
      document: as returned by `run_grid`.
      title: the heading of the page.
      answer: the result in a sentence; by default which method comes closest to the retrained network.
      explanations: what was done and how to read it, folded at the end of the page.
      leading: the figures at the top of the page, in place of those of the Avg. Gap of every scenario.
      figures: further figures, below the tables.
    """
    rows = document["rows"]
    networks = {f"{c['scenario']}, seed {c['seed']}, {c['method']}": c["network"] for c in document["cells"]}
    forgotten = {f"{c['scenario']}, seed {c['seed']}": c["forget"]["sha256"] for c in document["cells"]}
    drawn = report.row_pictures(rows)
    gaps = [picture for picture in drawn if picture.name == "gap"]
    report.write_html(
        out / "report.html",
        report.Page(
            title=title,
            answer=answer or report.closest_sentence(rows),
            trust=report.gates_summary(document["gates"]),
            leading=leading or gaps,
            gates=document["gates"],
            rows=rows,
            figures=[*(picture for picture in drawn if picture.name != "gap"), *figures],
            explanations=explanations,
            settings=document["config"],
            hashes={"Networks (CRC-32)": networks, "Forget sets (SHA-256)": forgotten},
            environment={"versions": document["versions"], "machine": document["machine"]},
        ),
    )


def resolve(experiment: Experiment) -> dict[str, Any]:
    """Every setting of an experiment, as JSON; each method's with its registry name."""
    document = dataclasses.asdict(dataclasses.replace(experiment, scenarios=()))
    document["scenarios"] = [
        {**vars(scenario), "methods": {label: describe(s) for label, s in scenario.methods.items()}}
        for scenario in experiment.scenarios
    ]
    return json.loads(json.dumps(document, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(f"the settings of an experiment must be JSON-able, found a {type(value).__name__}")


class Table:
    """One table: its data, its network, and what is built and done of it."""

    def __init__(self, experiment: Experiment, data_dir: str | None, out: Path, networks: Path) -> None:
        self.experiment = experiment
        self.resolved = resolve(experiment)
        self.out = out
        self.networks = networks
        self.process = uuid.uuid4().hex
        self.splits = load_splits(experiment, data_dir)
        self.model, self.loss_fn = build(experiment, self.splits)
        self.built: dict[str, Method] = {}
        self.costs: dict[str, dict[str, float] | None] = {}
        self.started = time.perf_counter()
        self.document: dict[str, Any] = {}

    def fill(self, progress: Progress, seeds: Sequence[int], only: re.Pattern) -> None:
        """Makes every cell that is not there yet."""
        plan = [
            (seed, scenario, [ORIGINAL, RETRAIN, *filter(only.search, scenario.methods)])
            for seed in seeds
            for scenario in self.experiment.scenarios
        ]
        total = sum(len(labels) for _, _, labels in plan)
        task = progress.add_task(self.experiment.name, total=total, note="")
        for seed, scenario, labels in plan:
            setting = Setting(self, scenario, seed)
            setting.save_positions()
            for label in labels:
                progress.update(task, description=f"{scenario.name}, seed {seed}: {label}")
                if not setting.cell_file(label).exists():
                    try:
                        setting.make(label, progress)
                    except NonFiniteError as error:
                        if label in (ORIGINAL, RETRAIN):
                            raise
                        setting.give_up(label, error)
                    self.collect()
                progress.advance(task)
        self.collect()

    def method(self, settings: MethodSettings) -> Method:
        """Built once per settings, so that it compiles once for all seeds."""
        key = repr(settings)
        if key not in self.built:
            self.built[key] = settings.build(self.model, self.loss_fn, len(self.splits.class_names))
        return self.built[key]

    def collect(self) -> None:
        """Writes `results.json` from the cells that are there."""
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((self.out / "cells").glob("*.json"))]
        cells = [cell for cell in found if "failure" not in cell]
        places = {
            (scenario.name, label): (number, position)
            for number, scenario in enumerate(self.experiment.scenarios)
            for position, label in enumerate([ORIGINAL, RETRAIN, *scenario.methods])
        }
        cells.sort(key=lambda cell: (places[cell["scenario"], cell["method"]], cell["seed"]))
        references = {(cell["scenario"], cell["seed"]): cell for cell in cells if cell["method"] == RETRAIN}
        rows = [_row(cell, references.get((cell["scenario"], cell["seed"]))) for cell in cells]
        rows.sort(key=lambda row: (places[row["scenario"], row["method"]][0], row["seed"]))
        self.document = {
            "rows": rows,
            "cells": cells,
            "failures": [cell for cell in found if "failure" in cell],
            "gates": [gate._asdict() for gate in gates.of_rows(rows)],
            "config": {"experiment": self.experiment.name, **self.resolved},
            "seconds": time.perf_counter() - self.started,
            **report.environment(),
        }
        report.write_results(self.out / runs.RESULTS_FILE, self.document)

    def load(self, folder: Path) -> Network:
        """The network in a folder.

        Raises:
          CheckpointError: there is none.
        """
        network = checkpoints.load_network(folder, *jax.eval_shape(self.model.init, jax.random.key(0)))
        return Network(*network, self.costs.get(folder.name))

    def train(self, folder: Path, examples: Data, seed: int, progress: Progress) -> Network:
        """The network in a folder, or trained on the retain set of `examples` and put there."""
        identity = {
            "seed": seed,
            "trained_on": hashing.tree_checksum(examples.retain),
            "classes": len(self.splits.class_names),
            **{key: self.resolved[key] for key in ("model", "model_options", "pretrained", "training", "augment")},
        }
        if folder.exists():
            found = {key: checkpoints.read_description(folder).get(key) for key in identity}
            if found != identity:
                key = next(key for key in identity if found[key] != identity[key])
                raise InputError(
                    f"the network in {folder} was made with {key} = {found[key]!r}, not {identity[key]!r}; remove it, "
                    "or name another folder"
                )
            return self.load(folder)
        key = jax.random.fold_in(jax.random.key(seed), 0)
        network = self.run(folder.name, self.experiment.training, key, None, examples, progress)
        checkpoints.save_network(folder, network.params, network.model_state, identity)
        self.costs[folder.name] = network.cost
        return network

    def run(self, name, settings: MethodSettings, key, start: Network | None, examples: Data, progress) -> Network:
        """One run of a method, with its costs."""
        follower = follow(progress, f"  {name}")
        keeper = None
        if self.experiment.checkpoint_cells:
            keeper = checkpoints.Checkpointer(self.out / "checkpoints" / slug(name))
        resumed = keeper is not None and keeper.latest_step is not None
        params, model_state = (None, None) if start is None else (start.params, start.model_state)
        result = run(
            self.method(settings),
            key,
            params,
            model_state,
            examples,
            num_epochs=settings.epochs,
            checkpoint=keeper,
            on_step=follower,
        )
        progress.remove_task(progress.task_ids[-1])
        if keeper is not None:
            keeper.remove()
        # Of a resumed run only the last part was timed, and half a cost is none.
        cost = {"seconds": result.seconds, "compile_seconds": result.compile_seconds, "steps": result.steps}
        return Network(result.params, result.model_state, None if resumed else cost)


class Setting:
    """One scenario with one seed: its data, its networks, its cells."""

    def __init__(self, table: Table, scenario: Scenario, seed: int) -> None:
        self.table = table
        self.scenario = scenario
        self.seed = seed
        splits = table.splits
        self.true_labels = splits.train["label"]
        labels, self.flipped = forget_sets.flip_labels(
            self.true_labels, scenario.flipped_labels, len(splits.class_names), seed=seed
        )
        self.train = {**splits.train, "label": labels}
        self.trained_on, self.held_out = validation_split(
            self.true_labels, table.experiment.validation_share, table.experiment.split_seed
        )
        self.requests = [self._positions(spec.format(seed=seed)) for spec in scenario.forget]
        self.forget_positions = np.unique(np.concatenate(self.requests))
        self.data = self._split(self.forget_positions, self.forget_positions)
        self.test = known_classes(splits.test, self.data.retain)
        self.validation = known_classes(data_lib.take(self.train, self.held_out), self.data.retain)

    def save_positions(self) -> None:
        """Writes down which examples are trained on, held out and forgotten: positions in the limited training set."""
        parts = {
            "trained_on": self.trained_on.tolist(),
            "validation": self.held_out.tolist(),
            "requests": [request.tolist() for request in self.requests],
        }
        folder = self.table.out / "positions"
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / f"{slug(self.scenario.name)}-seed{self.seed}.json", json.dumps(parts) + "\n")

    def _positions(self, spec: str) -> np.ndarray:
        """What a request names, as positions in the training set; all of it was trained on."""
        if spec == FLIPPED:
            return data_lib.check_positions(np.intersect1d(self.flipped, self.trained_on), len(self.true_labels))
        return forget_sets.forget_positions(
            spec,
            self.train["label"],
            seed=self.seed,
            class_names=self.table.splits.class_names,
            trained_on=self.trained_on,
        )

    def _split(self, forget: np.ndarray, forgotten: np.ndarray) -> Data:
        """The examples to forget now, and those of the training set that were never to be forgotten so far."""
        retain = np.setdiff1d(self.trained_on, forgotten)
        return Data(data_lib.take(self.train, forget), data_lib.take(self.train, retain))

    def cell_file(self, label: str) -> Path:
        """The file of a cell."""
        return self.table.out / "cells" / f"{slug(self.scenario.name)}-seed{self.seed}-{slug(label)}.json"

    def network_folder(self, label: str) -> Path:
        """The folder of a network; scenarios with as many wrong labels share the original.

        Other tables may share the references, but not what their own settings of a method have unlearned.
        """
        if label == ORIGINAL:
            flipped = self.scenario.flipped_labels
            return self.table.networks / (f"original-seed{self.seed}" + (f"-flipped{flipped:g}" if flipped else ""))
        networks = self.table.networks if label == RETRAIN else self.table.out / "networks"
        return networks / f"{slug(self.scenario.name)}-seed{self.seed}-{slug(label)}"

    def load(self, label: str) -> Network:
        """The network of a cell that is done."""
        return self.table.load(self.network_folder(label))

    def original(self, progress: Progress) -> Network:
        """Trained on everything, wrong labels included."""
        everything = Data(None, data_lib.take(self.train, self.trained_on))
        return self.table.train(self.network_folder(ORIGINAL), everything, self.seed, progress)

    def retrained(self, progress: Progress) -> Network:
        """Trained without the forget set."""
        # Another seed than the original's: the gold standard shares nothing with it.
        examples = Data(None, self.data.retain)
        return self.table.train(self.network_folder(RETRAIN), examples, self.seed + 1_000, progress)

    def unlearned(self, label: str, progress: Progress) -> Network:
        """The original after all requests, one after another."""
        network = self.original(progress)
        settings = self.scenario.methods[label]
        key = jax.random.fold_in(jax.random.key(self.seed), 1)
        costs, forgotten = [], np.zeros(0, np.int32)
        for number, positions in enumerate(self.requests):
            forgotten = np.union1d(forgotten, positions)
            examples = self._split(positions, forgotten)
            name = f"{self.scenario.name}-seed{self.seed}-{label}-{number}"
            network = self.table.run(name, settings, jax.random.fold_in(key, number), network, examples, progress)
            costs.append(network.cost)
        total = None
        if all(cost is not None for cost in costs):
            total = {field: sum(cost[field] for cost in costs) for field in costs[0]}
        return network._replace(cost=total)

    def make(self, label: str, progress: Progress) -> None:
        """Trains or unlearns one network, measures it, and writes its cell."""
        makers: dict[str, Callable[[Progress], Network]] = {ORIGINAL: self.original, RETRAIN: self.retrained}
        network = makers[label](progress) if label in makers else self.unlearned(label, progress)
        table, experiment = self.table, self.table.experiment
        numbers = measure_row(
            table.model,
            network.params,
            network.model_state,
            self.data,
            self.test,
            seed=self.seed,
            every_attack=experiment.every_attack,
        )
        if len(self.held_out):
            numbers["acc_validation"] = self._accuracy(network, self.validation["image"], self.validation["label"])
        if self.scenario.flipped_labels:
            true = self.true_labels[self.forget_positions]
            numbers["acc_forget_true_labels"] = self._accuracy(network, self.data.forget["image"], true)
        if label == RETRAIN:
            numbers |= self._held_out(network)
        settings = table.experiment.training if label in makers else self.scenario.methods[label]
        cell = {
            "scenario": self.scenario.name,
            "method": label,
            "seed": self.seed,
            **({"sweep": dict(self.scenario.sweeps[label])} if label in self.scenario.sweeps else {}),
            "settings": describe(settings),
            "metrics": numbers,
            "cost": network.cost,
            "process": table.process,
            "network": hashing.tree_checksum((network.params, network.model_state)),
            "forget": {
                "requests": [spec.format(seed=self.seed) for spec in self.scenario.forget],
                "count": len(self.forget_positions),
                "sha256": hashing.positions_sha256(self.forget_positions),
            },
        }
        if experiment.relearn_epochs:
            cell["relearn"] = self._relearn(label, network, numbers["acc_forget"])
        if label not in makers:
            folder = self.network_folder(label)
            checkpoints.save_network(folder, network.params, network.model_state, cell)
        self._write(label, cell)

    def give_up(self, label: str, error: NonFiniteError) -> None:
        """Writes a cell that says why there is no result: the method diverged at these settings."""
        settings = describe(self.scenario.methods[label])
        place = {"scenario": self.scenario.name, "method": label, "seed": self.seed}
        self._write(label, {**place, "settings": settings, "failure": str(error)})

    def _write(self, label: str, cell: dict[str, Any]) -> None:
        file = self.cell_file(label)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(cell, indent=2) + "\n")

    def _relearn(self, label: str, network: Network, acc_forget: float) -> dict[str, Any]:
        experiment = self.table.experiment
        target = acc_forget if label == ORIGINAL else self._original_acc_forget()
        result = relearning.relearn_time(
            self.table.model,
            self.table.method(experiment.relearning),
            jax.random.fold_in(jax.random.key(self.seed), 2),
            network.params,
            network.model_state,
            self.data.forget,
            target=target,
            max_epochs=experiment.relearn_epochs,
        )
        return {"epochs": result.epochs, "cap": experiment.relearn_epochs, "target": target, "curve": result.curve}

    def _original_acc_forget(self) -> float:
        cell = json.loads(self.cell_file(ORIGINAL).read_text(encoding="utf-8"))
        return cell["metrics"]["acc_forget"]

    def _held_out(self, network: Network) -> dict[str, float]:
        """The forget set beside examples that were held out from the training set, or else beside the test set."""
        held, flipped = self.table.splits.test, np.zeros(0, np.int32)
        if len(self.held_out):
            held, flipped = data_lib.take(self.train, self.held_out), np.isin(self.held_out, self.flipped).nonzero()[0]
        shown = []
        for part, wrong in (
            (self.data.forget, np.isin(self.forget_positions, self.flipped).nonzero()[0]),
            (held, flipped),
        ):
            # A wrong label is answered otherwise than a right one, by a network that never saw either.
            kinds = np.array(part["label"], np.int64)
            kinds[wrong] += len(self.table.splits.class_names)
            logits = accuracies.predict(
                self.table.model, network.params, network.model_state, part["image"], batch_size=500
            )
            shown += [logits, part["label"], kinds]
        return gates.held_out_numbers(*shown)

    def _accuracy(self, network: Network, images: np.ndarray, labels: np.ndarray) -> float:
        logits = accuracies.predict(self.table.model, network.params, network.model_state, images, batch_size=500)
        return accuracies.accuracy(logits, labels)


def _row(cell: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, Any]:
    """The row of a cell, compared with the retrained network of the same scenario and seed."""
    cost = cell["cost"] or {}
    row = {name: cell[name] for name in ("scenario", "method", "seed", "sweep") if name in cell}
    row |= cell["metrics"] | {"seconds": cost.get("seconds"), "compile_seconds": cost.get("compile_seconds")}
    row |= {"avg_gap": None, "rte": None}
    if reference is not None:
        row["avg_gap"] = distances.average_gap(cell["metrics"], reference["metrics"])
        same_process = cell["process"] == reference["process"]
        if cell["cost"] and reference["cost"] and same_process:
            row["rte"] = cell["cost"]["seconds"] / reference["cost"]["seconds"]
    if "relearn" in cell:
        row["relearn_epochs"] = cell["relearn"]["epochs"]
        row["relearn_cap"] = cell["relearn"]["cap"]
    first = list(report.ROW_FIELDS)
    return {**{name: row[name] for name in first}, **{name: row[name] for name in row if name not in first}}


def load_splits(experiment: Experiment, data_dir: str | None) -> datasets.Splits:
    """The data set of an experiment, as small as it wants it."""
    splits = datasets.load(experiment.dataset, data_dir)
    train = _limited(splits.train, experiment.train_limit, "train_limit", experiment.split_seed)
    test = _limited(splits.test, experiment.test_limit, "test_limit", experiment.split_seed)
    if experiment.image_size is not None:
        train, test = (
            {**part, "image": augmentation.resize(part["image"], experiment.image_size)} for part in (train, test)
        )
    return splits._replace(train=train, test=test)


def _limited(part: Dataset, limit: int | None, name: str, seed: int) -> Dataset:
    total = data_lib.size(part)
    if limit is None or limit == total:
        return part
    if not 1 <= limit < total:
        raise InputError(f"{name} must be 1 to {total}, got {limit}")
    return data_lib.take(part, validation_split(part["label"], limit / total, seed)[1])


def build(experiment: Experiment, splits: datasets.Splits) -> tuple[Model, StatefulLossFn]:
    """The network of an experiment and its training loss, with augmentation where the experiment wants it."""
    model = _model(experiment, splits)
    augment = splits.augmented if experiment.augment is None else experiment.augment
    crop = functools.partial(augmentation.crop_and_flip, padding=splits.crop_padding)
    return model, losses.classification_loss(model, augment=crop if augment else None)


def _model(experiment: Experiment, splits: datasets.Splits) -> Model:
    model = models.build(
        experiment.model,
        num_classes=len(splits.class_names),
        image_shape=splits.image_shape,
        **experiment.model_options,
    )
    if experiment.pretrained is None:
        return model
    state_dict = torch_weights.read_state_dict(experiment.pretrained)

    def init(key):
        return torch_weights.with_fresh_head(state_dict, *model.init(key))

    return model._replace(init=init)


def slug(text: str) -> str:
    """A text as a part of a file name.

    >>> slug("random 10 %, seed 3")
    'random_10_percent_seed_3'
    """
    return re.sub(r"[^A-Za-z0-9.=]+", "_", text.replace("%", "percent")).strip("_")
