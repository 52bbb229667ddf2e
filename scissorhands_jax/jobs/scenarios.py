"""One scenario with one seed: its examples, and its networks, which are trained, unlearned, kept and measured."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing
from scissorhands_jax.base import Data, Dataset, Key, ModelState, Params, PyTree
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.datasets.splits import validation_split
from scissorhands_jax.errors import MAX_SEED, InputError
from scissorhands_jax.jobs import late_attacks
from scissorhands_jax.jobs.cells import slug
from scissorhands_jax.jobs.experiment import FLIPPED, Experiment, LoadedExperiment, OwnNetwork, Scenario
from scissorhands_jax.jobs.held_out import check_scenario
from scissorhands_jax.jobs.progress import follow_steps
from scissorhands_jax.jobs.table_cells import Cost, ForgetSummary, RelearnSummary, TableCell
from scissorhands_jax.methods import MethodSettings, describe
from scissorhands_jax.metrics import answers, relearning
from scissorhands_jax.metrics.row import accuracy_numbers, attack_numbers, predict_sets
from scissorhands_jax.report import ORIGINAL, REDRAWN, REFERENCE, provenance, table_gates
from scissorhands_jax.tasks import check_relabelled
from scissorhands_jax.terminal import Progress
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.identity import check_same, identify
from scissorhands_jax.training.loop import run

REFERENCES = (ORIGINAL, REFERENCE, REDRAWN)
"""The networks that every scenario has without naming them, in the order of their rows."""

# Each is trained from another seed: the retrained ones share nothing with the original, nor with each other.
_SEEDS = {ORIGINAL: 0, REFERENCE: 1_000, REDRAWN: 2_000}


def check_seeds(seeds: Iterable[int], further: Mapping[str, int] | None = None) -> None:
    """Refuses seeds of one table with which two of its networks would be trained from the same random numbers.

    Args:
      seeds: The seeds of the table. Each trains the networks of `REFERENCES`.
      further: The seeds of further networks that are trained, by what these are called in messages.

    Raises:
      InputError: Two networks would have one seed, or a network one that is no seed (`errors.check_seed`).
    """
    wanted = {f"{label!r} of seed {seed}": seed + offset for seed in seeds for label, offset in _SEEDS.items()}
    known: dict[int, str] = {}
    for name, number in (wanted | dict(further or {})).items():
        if number > MAX_SEED:
            raise InputError(
                f"the network {name} would be trained with the seed {number}, and the largest is {MAX_SEED}; take a "
                "smaller seed"
            )
        if number in known:
            raise InputError(
                f"the networks {known[number]} and {name} would both be trained with the seed {number}, so they would "
                "not be independent; take other seeds"
            )
        known[number] = name


class TrainedNetwork(NamedTuple):
    """A network, and what it cost if it was made in this process from its beginning."""

    params: Params
    model_state: ModelState
    cost: Cost | None
    code: str | None = None
    """The code that made it (`provenance.Code.name`). None if it was read from a folder that does not say so."""


class TableNetworks:
    """The networks of one table: trained or unlearned when they are first needed, kept in folders, and read again.

    Args:
      experiment: What the table is about.
      data_dir: The folder of the data set's files. None for data sets that need none.
      out: The folder of the table.
      networks: The folder of its original and retrained networks.
      own: A network of the user's own, in place of what the experiment names.
    """

    def __init__(
        self, experiment: Experiment, data_dir: str | None, out: Path, networks: Path, own: OwnNetwork | None = None
    ) -> None:
        files.check_name(networks)
        self.loaded = LoadedExperiment(experiment, data_dir, own)
        self.data_sha256 = self.loaded.data_sha256()
        self.experiment = experiment
        self.out = out
        self.networks = networks
        self.process = uuid.uuid4().hex
        self._costs: dict[str, Cost | None] = {}

    def load(self, folder: Path) -> TrainedNetwork:
        """The network in a folder.

        Raises:
          CheckpointError: The folder holds no network, or another one.
        """
        shapes = jax.eval_shape(self.loaded.model.init, jax.random.key(0))
        params, model_state = checkpoints.load_network(folder, *shapes)
        code = checkpoints.read_description(folder).get("code")
        return TrainedNetwork(params, model_state, self._costs.get(folder.name), code)

    def train(self, folder: Path, examples: Data, seed: int, progress: Progress) -> TrainedNetwork:
        """Reads the network in a folder, or trains it on the retain set of `examples` and keeps it there.

        Tables can share the folder: one trains the network, and the others wait for it.

        Raises:
          InputError: The folder holds a network that was trained in another way.
        """
        chosen = {
            "seed": seed,
            **self.loaded.training_identity(),
            "trained_on_sha256": hashing.tree_sha256(examples.retain),
            "pretrained_sha256": self.data_sha256.get("pretrained"),
        }
        identity = identify(chosen, noted={"code": provenance.running_code().name})
        with files.sole_writer(folder.parent, of=folder.name, seconds=math.inf):
            if folder.exists():
                found, where = checkpoints.read_description(folder), f"the network in {folder}"
                check_same(found, identity, where, "remove it, or name another folder", warn=False)
                self.forget_steps(folder.name)
                return self.load(folder)
            key = jax.random.fold_in(jax.random.key(seed), 0)
            network = self.run(folder.name, self.experiment.training, key, None, examples, None, progress)
            checkpoints.save_network(folder, network.params, network.model_state, identity.document())
            self.forget_steps(folder.name)
            self._costs[folder.name] = network.cost
            return network

    def run(
        self,
        name: str,
        settings: MethodSettings,
        key: Key,
        start: TrainedNetwork | None,
        examples: Data,
        held_out: Dataset | None,
        progress: Progress,
    ) -> TrainedNetwork:
        """Runs a method with its progress shown and, if the experiment says so, a checkpoint every epoch.

        A ceiling "held-out" is measured on `held_out`.

        The checkpoints stay until the network is kept and `forget_steps` is called.
        """
        on_step = follow_steps(progress, f"  {name}")
        keeper = None
        if self.experiment.checkpoint_cells:
            keeper = checkpoints.Checkpointer(self._steps_folder(name))
        resumed = keeper is not None and keeper.latest_step is not None
        params, model_state = (None, None) if start is None else (start.params, start.model_state)
        result = run(
            self.loaded.method_of(settings, (params, model_state), held_out),
            key,
            params,
            model_state,
            examples,
            num_epochs=settings.epochs,
            checkpoint=keeper,
            on_step=on_step,
        )
        progress.remove_task(progress.task_ids[-1])
        if keeper is not None:
            keeper.close()
        # Of a resumed run only the last part was timed, which is no cost of the whole.
        cost = None if resumed else Cost(result.seconds, result.compile_seconds, result.steps)
        return TrainedNetwork(result.params, result.model_state, cost, provenance.running_code().name)

    def forget_steps(self, name: str) -> None:
        """Removes the checkpoints of a run whose network is kept."""
        if self.experiment.checkpoint_cells:
            files.remove(self._steps_folder(name))

    def _steps_folder(self, name: str) -> Path:
        return self.out / "checkpoints" / slug(name)


def run_name(scenario: Scenario, seed: int, label: str, number: int) -> str:
    """The name of the run of a method that serves one of the requests of a scenario.

    Args:
      scenario: The scenario.
      seed: The seed of the run.
      label: The name of the method in the table.
      number: The number of the request, counted from 0.
    """
    return f"{scenario.name}-seed{seed}-{label}-{number}"


class DrawnScenario:
    """Which examples one scenario with one seed trains on, holds out and forgets.

    Args:
      loaded: The experiment.
      scenario: One of its scenarios.
      seed: Decides the forget set and the wrong labels.

    Raises:
      InputError: The scenario does not fit the data, or a file that it names cannot be read.
    """

    def __init__(self, loaded: LoadedExperiment, scenario: Scenario, seed: int) -> None:
        experiment, splits = loaded.experiment, loaded.splits
        self.seed = seed
        self._loaded = loaded
        self.train, self.flipped = _with_wrong_targets(loaded, scenario.flipped_labels, seed)
        self.trained_on, self.held_out = validation_split(
            answers.example_groups(loaded.task, splits.train),
            experiment.validation_share,
            experiment.split_seed,
            splits.held_out,
        )
        self._specs = [spec.replace("{seed}", str(seed)) for spec in scenario.forget]
        self.requests = [self._positions(spec) for spec in self._specs]
        self.forget_positions = np.unique(np.concatenate(self.requests))

    def forget_summary(self) -> ForgetSummary:
        """What is forgotten, for the record."""
        return ForgetSummary(self._specs, len(self.forget_positions), hashing.positions_sha256(self.forget_positions))

    def _positions(self, spec: str) -> np.ndarray:
        """What a request names, as positions in the training set; the networks are trained on all of it."""
        if spec == FLIPPED:
            return data_lib.check_positions(np.intersect1d(self.flipped, self.trained_on), data_lib.size(self.train))
        # With wrong labels a class is all examples that carry its label; whose an example is does not change.
        loaded = self._loaded
        owners = self.train["label"] if self.flipped.size and loaded.owners_are_labels else loaded.owners
        return forget_sets.forget_positions(
            spec,
            owners,
            seed=self.seed,
            class_names=loaded.splits.class_names,
            trained_on=self.trained_on,
        )


class SeededScenario(DrawnScenario):
    """One scenario with one seed: its examples and its networks.

    Args:
      store: The networks of the table that it belongs to.
      scenario: One of the experiment's scenarios.
      seed: Decides the forget set, the wrong labels and all networks.
    """

    def __init__(self, store: TableNetworks, scenario: Scenario, seed: int) -> None:
        super().__init__(store.loaded, scenario, seed)
        self.store = store
        self.scenario = scenario
        splits, self.task = store.loaded.splits, store.loaded.task
        self.true_train = splits.train
        self.data = self._split(self.forget_positions, self.forget_positions)
        self.test = answers.known_test_set(self.task, splits.test, self.data.retain)
        held_out = data_lib.take(self.train, self.held_out)
        self.validation = answers.known_examples(self.task, held_out, self.data.retain)
        check_scenario(scenario, data_lib.size(self.validation))
        self._target: float | None = None
        self._digest: str | None = None

    def save_positions(self) -> None:
        """Saves which examples are trained on, held out and forgotten, as positions in the limited training set."""
        parts = {
            "trained_on": self.trained_on.tolist(),
            "validation": self.held_out.tolist(),
            "requests": [request.tolist() for request in self.requests],
        }
        file = self.store.out / "positions" / f"{slug(self.scenario.name)}-seed{self.seed}.json"
        files.write_text(file, json.dumps(parts) + "\n")

    def _split(self, forget: np.ndarray, forgotten: np.ndarray) -> Data:
        """The examples to forget now, and the training examples that have not been forgotten so far."""
        retain = np.setdiff1d(self.trained_on, forgotten)
        return Data(data_lib.take(self.train, forget), data_lib.take(self.train, retain))

    def network_folder(self, label: str) -> Path:
        """The folder of a network. Scenarios with the same share of wrong labels have the same original.

        Tables may share the reference networks, but not the unlearned ones, whose settings may differ.
        """
        if label == ORIGINAL:
            flipped = self.scenario.flipped_labels
            return self.store.networks / (f"original-seed{self.seed}" + (f"-flipped{flipped:g}" if flipped else ""))
        networks = self.store.networks if label in REFERENCES else self.store.out / "networks"
        return networks / f"{slug(self.scenario.name)}-seed{self.seed}-{slug(label)}"

    def load(self, label: str) -> TrainedNetwork:
        """The network of a cell that has been computed."""
        return self.store.load(self.network_folder(label))

    def original(self, progress: Progress) -> TrainedNetwork:
        """The network that is trained on everything, wrong labels included."""
        return self._trained(ORIGINAL, data_lib.take(self.train, self.trained_on), progress)

    def retrained(self, progress: Progress) -> TrainedNetwork:
        """The network that is trained without the forget set."""
        return self._trained(REFERENCE, self.data.retain, progress)

    def redrawn(self, progress: Progress) -> TrainedNetwork:
        """Another network that is trained without the forget set: what two such networks differ in is the floor."""
        return self._trained(REDRAWN, self.data.retain, progress)

    def _trained(self, label: str, examples: Dataset, progress: Progress) -> TrainedNetwork:
        return self.store.train(self.network_folder(label), Data(None, examples), self.seed + _SEEDS[label], progress)

    def unlearned(self, label: str, progress: Progress) -> TrainedNetwork:
        """The original after all requests, one after another."""
        network = self.original(progress)
        settings = self.scenario.methods[label]
        key = jax.random.fold_in(jax.random.key(self.seed), 1)
        total: Cost | None = Cost(0, 0, 0)
        forgotten = np.zeros(0, np.int32)
        for number, positions in enumerate(self.requests):
            forgotten = np.union1d(forgotten, positions)
            examples = self._split(positions, forgotten)
            name = run_name(self.scenario, self.seed, label, number)
            key_of_run = jax.random.fold_in(key, number)
            network = self.store.run(name, settings, key_of_run, network, examples, self.validation, progress)
            total = _sum(total, network.cost)
        return network._replace(cost=total)

    def measure(self, label: str, progress: Progress) -> TableCell:
        """Trains or unlearns one network, keeps it, and measures it.

        Args:
          label: One of `REFERENCES` or a method of the scenario.
          progress: Shows the steps.

        Raises:
          DivergedError: The run diverged.
        """
        is_reference = label in REFERENCES
        makers = {ORIGINAL: self.original, REFERENCE: self.retrained, REDRAWN: self.redrawn}
        network = makers[label](progress) if is_reference else self.unlearned(label, progress)
        metrics = self._metrics(label, network)
        cell = TableCell(
            scenario=self.scenario.name,
            method=label,
            seed=self.seed,
            sweep=self.scenario.sweeps.get(label),
            settings=describe(self.store.experiment.training if is_reference else self.scenario.methods[label]),
            metrics=metrics,
            cost=network.cost,
            process=self.store.process,
            network=hashing.network_sha256(network.params, network.model_state),
            original=None if is_reference else self._original_sha256(progress),
            code=provenance.running_code().name,
            trained_by=None if network.code == provenance.running_code().name else network.code,
            experiment_sha256=self.store.loaded.settings_sha256(),
            data_sha256=self.store.data_sha256,
            flipped_labels=self.scenario.flipped_labels,
            forget=self.forget_summary(),
            relearn=self._relearn(label, network, metrics[f"{self.quality}_forget"], progress),
        )
        if not is_reference:
            folder = self.network_folder(label)
            checkpoints.save_network(folder, network.params, network.model_state, cell.as_dict())
        return cell

    @property
    def quality(self) -> str:
        """The name of the measure of quality: `acc`, or the first metric of the task."""
        return self.task.metrics[0].name

    def _metrics(self, label: str, network: TrainedNetwork) -> dict[str, Any]:
        loaded, experiment = self.store.loaded, self.store.experiment
        found = predict_sets(loaded.model, network.params, network.model_state, self.data, self.test, task=self.task)
        numbers = accuracy_numbers(found, task=self.task)
        if experiment.attack_later:
            name = late_attacks.predictions_name(self.scenario.name, self.seed, label)
            digest = hashing.network_sha256(network.params, network.model_state)
            late_attacks.save_predictions(self.store.out / name, found, seed=self.seed, network=digest, task=self.task)
        else:
            numbers |= attack_numbers(found, seed=self.seed, every_attack=experiment.every_attack, task=self.task)
        if len(self.held_out):
            numbers[f"{self.quality}_validation"] = self._quality(network, self.validation)
        if self.scenario.flipped_labels:
            true = data_lib.take(self.true_train, self.forget_positions)
            numbers[f"{self.quality}_forget_true_labels"] = self._quality(network, true)
        if label in REFERENCES:
            numbers |= self._held_out_numbers(network)
        return numbers

    def _relearn(
        self, label: str, network: TrainedNetwork, forget_quality: float, progress: Progress
    ) -> RelearnSummary | None:
        experiment = self.store.experiment
        if not experiment.relearn_epochs:
            return None
        target = forget_quality if label == ORIGINAL else self._original_quality(progress)
        result = relearning.relearn_time(
            self.store.loaded.model,
            self.store.loaded.method(experiment.relearning),
            jax.random.fold_in(jax.random.key(self.seed), 2),
            network.params,
            network.model_state,
            self.data.forget,
            target=target,
            max_epochs=experiment.relearn_epochs,
            task=self.task,
        )
        return RelearnSummary(result.epochs, experiment.relearn_epochs, target, result.curve)

    def _original_quality(self, progress: Progress) -> float:
        """The accuracy of the original on the forget set, in percent, or what the task has in its place."""
        if self._target is None:
            self._target = self._quality(self.original(progress), self.data.forget)
        return self._target

    def _original_sha256(self, progress: Progress) -> str:
        """The SHA-256 of the original."""
        if self._digest is None:
            original = self.original(progress)
            self._digest = hashing.network_sha256(original.params, original.model_state)
        return self._digest

    def _held_out_numbers(self, network: TrainedNetwork) -> dict[str, float]:
        """How the network treats the forget set and held-out examples (test examples if none are held out)."""
        held, flipped = self.store.loaded.splits.test, np.zeros(0, np.intp)
        if len(self.held_out):
            held, flipped = data_lib.take(self.train, self.held_out), np.isin(self.held_out, self.flipped).nonzero()[0]
        shown = []
        for part, wrong in (
            (self.data.forget, np.isin(self.forget_positions, self.flipped).nonzero()[0]),
            (held, flipped),
        ):
            # A network that saw neither answers a wrong label differently from a right one.
            kinds = np.array(answers.example_groups(self.task, part), np.int64)
            kinds[wrong] += self.store.loaded.num_classes
            shown += [answers.certainties(self.task, self._outputs(network, part), part), kinds]
        return table_gates.held_out_ranks(*shown)

    def _quality(self, network: TrainedNetwork, examples: Dataset) -> float:
        return answers.quality(self.task, self._outputs(network, examples), examples)

    def _outputs(self, network: TrainedNetwork, examples: Dataset) -> PyTree:
        model = self.store.loaded.model
        return answers.outputs_of(self.task, model, network.params, network.model_state, examples)


def _with_wrong_targets(loaded: LoadedExperiment, share: float, seed: int) -> tuple[Dataset, np.ndarray]:
    """The training set with wrong targets at a random share of its examples, and the positions of these.

    Raises:
      InputError: The share cannot be used, or the task does not say what wrong targets are.
    """
    train, task = loaded.splits.train, loaded.task
    if share and task.labels is not None:
        check_relabelled(task, train, "wrong targets")
    if isinstance(train, Mapping) and "label" in train and task.classifies and task.flip is None:
        labels, flipped = forget_sets.flip_labels(train["label"], share, max(loaded.num_classes, 2), seed=seed)
        return {**train, "label": labels}, flipped
    if not share:
        return train, np.zeros(0, np.int32)
    if task.flip is None or not isinstance(train, Mapping) or "label" not in train or not 0 < share <= 1:
        raise InputError(
            f"a share of {share} of the targets of the task {task.name!r} cannot be made wrong; give a share from 0 to "
            "1, a task with `flip`, and examples that are a dict with the targets as 'label'"
        )
    generator = np.random.default_rng([seed, 7])
    chosen = np.sort(generator.choice(data_lib.size(train), round(share * data_lib.size(train)), replace=False))
    targets = np.array(train["label"])
    if chosen.size:
        right = targets[chosen]
        targets[chosen] = task.flip(right.copy(), generator)
        if same := int((targets[chosen] == right).reshape(len(chosen), -1).all(axis=1).sum()):
            raise InputError(
                f"the `flip` of the task {task.name!r} leaves {same} of {len(chosen)} targets as they were; have it "
                "change each of them"
            )
    return {**train, "label": targets}, chosen.astype(np.int32)


def _sum(first: Cost | None, second: Cost | None) -> Cost | None:
    """The cost of two runs together, or None if that of one is unknown."""
    if first is None or second is None:
        return None
    return Cost(*(getattr(first, field.name) + getattr(second, field.name) for field in dataclasses.fields(Cost)))
