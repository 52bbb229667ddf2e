"""An experiment: which network is trained on which data, what it is made to forget, and by which methods.

Tables (`jobs.grid`) and audits (`audit.run_audit`) both start from an `Experiment`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import augmentation, datasets, hashing, losses, models, torch_weights
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Dataset, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.datasets.splits import validation_split
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import check_finite_settings
from scissorhands_jax.methods import MethodSettings, describe
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.settings import of_network, of_task
from scissorhands_jax.metrics import answers
from scissorhands_jax.tasks import CLASSIFICATION, Task, check_relabelled, check_weights, task_loss, with_task
from scissorhands_jax.training.descriptions import describe_value

FLIPPED = "flipped"
"""The forget specification that names all examples whose labels were flipped."""

_TRAINING_SETTINGS = ("model", "model_options", "pretrained", "training", "augment")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The setting that a row of a table varies, and its value there; such rows are drawn as a curve."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is to be forgotten, and by which methods."""

    name: str
    forget: tuple[str, ...]
    """Forget specifications (`forget_sets.forget_positions`), which are requested one after another. `{seed}` is
    replaced by the seed. The word `flipped` stands for all examples whose labels were flipped (corrective unlearning).
    """
    flipped_labels: float = 0.0
    """Share of the training examples that carry a wrong label from the start."""
    methods: Mapping[str, MethodSettings]
    """Settings by the label of their row. The original and the retrained network are added to every scenario."""
    sweeps: Mapping[str, Sweep] = dataclasses.field(default_factory=dict)
    """By the label of the row: what it varies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What the networks of an experiment are, what they see of the data set, and how they are trained."""

    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the network, by name."""
    pretrained: str | None = None
    """A PyTorch file whose layers, except the head, are the initial weights of the original and the retrained network.
    """
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to."""
    train_limit: int | None = None
    """Number of training images to use: each class has its share, rounded down, drawn with `split_seed`."""
    test_limit: int | None = None
    """Number of test images to use, drawn in the same way."""
    validation_share: float = 0.1
    """Share of the training images of every class that no network is trained on."""
    split_seed: int = 1
    """The seed of the limits and of the images that no network is trained on."""
    augment: bool | None = None
    """Whether to train with random crops and flips, those of `training` for all methods alike. None does what is usual
    for the data set."""
    training: RetrainSettings = dataclasses.field(default_factory=RetrainSettings)
    """How the original and the retrained network are trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Setup):
    """One data set, one network and several scenarios."""

    name: str
    dataset: str
    model: str
    scenarios: tuple[Scenario, ...]
    every_attack: bool = True
    """Whether tables have the further membership attacks (`metrics.row.measure_row`)."""
    attack_later: bool = False
    """Whether tables leave the membership attacks out, whose fitting takes longer than training on an accelerator, and
    keep the predictions that they judge in `predictions/`, from which `jobs.late_attacks` computes the same numbers."""
    relearn_epochs: int = 0
    """The most epochs that relearning may take. 0 does not measure the relearn time."""
    relearning: FinetuneSettings = dataclasses.field(default_factory=lambda: FinetuneSettings(learning_rate=1e-2))
    gradcam_layer: str | None = None
    """The layer that Grad-CAM reads. None is the last stage of convolutions."""
    checkpoint_cells: bool = False
    """Whether a checkpoint is written every epoch, so that a long run can also be resumed in the middle."""
    paper_table: str | None = None
    """The table of the paper that this one is compared with."""

    def as_dict(self) -> dict[str, Any]:
        """Every setting as JSON; those of a method include its registry name.

        Raises:
          InputError: A setting has no JSON, or is NaN or infinite.
        """
        document = dataclasses.asdict(dataclasses.replace(self, scenarios=()))
        document["scenarios"] = [
            dataclasses.asdict(dataclasses.replace(scenario, methods={}))
            | {"methods": {label: describe(settings) for label, settings in scenario.methods.items()}}
            for scenario in self.scenarios
        ]
        check_finite_settings(document)
        return json.loads(json.dumps(document, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(f"the settings of an experiment must be JSON-able, found a {type(value).__name__}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OwnNetwork:
    """A network of your own with its data and its task, for tables and audits of what has no name in the package."""

    model: Model
    """The network, which `init` draws afresh for every seed."""
    train: Dataset
    """The training set: a pytree of arrays that share their first axis."""
    test: Dataset
    """Held-out examples of the same form."""
    task: Task = CLASSIFICATION
    """What the network is for."""
    loss_fn: StatefulLossFn | None = None
    """The loss of training and unlearning; None is `tasks.task_loss(model, task)`."""
    owners: np.ndarray | None = None
    """An integer from 0 for each training example, such as a person, a speaker or a series, which `class:3` in a forget
    specification then means. None are the labels of a classifier. shape=(N,)"""
    class_names: tuple[str, ...] = ()
    """The names of the classes, or of the owners; by default their numbers."""


class LoadedExperiment:
    """An experiment with its data in memory and its network built.

    Args:
      experiment: What to load.
      data_dir: The folder of the data set's files. None for data sets that need none.
      own: A network of the user's own, in place of those that the experiment names; its `dataset` and `model` then are
        words for the record.

    Raises:
      InputError: The data or the network cannot be had, a limit is out of range, or the experiment asks something of
        an own network that only those of the package can do.
    """

    def __init__(self, experiment: Experiment, data_dir: str | None, own: OwnNetwork | None = None) -> None:
        self.experiment = experiment
        self.settings = experiment.as_dict()
        named = (experiment.dataset, *(spec for scenario in experiment.scenarios for spec in scenario.forget))
        split = (spec.partition(":") for spec in named)
        words = (*datasets.FILES, *forget_sets.FILE_FORMS)
        self.inputs = [data_dir, experiment.pretrained, *(path for word, _, path in split if word in words)]
        self.task = CLASSIFICATION if own is None else own.task
        self._methods: dict[str, Method] = {}
        if own is not None:
            self._take(own)
            return
        self.splits = load_splits(experiment, data_dir)
        self.task = self.splits.task
        if not self.task.classifies:
            self._check_task()
        self.model = _build_model(experiment, self.splits)
        augment = self.splits.augmented if experiment.augment is None else experiment.augment
        crop = experiment.training.augmentation(self.splits.crop_padding)
        self.loss_fn: StatefulLossFn = (
            losses.classification_loss(self.model, augment=crop) if augment else task_loss(self.model, self.task)
        )
        self.owners = self.splits.groups
        self.owners_are_labels = self.task.classifies
        self.num_classes = self.splits.num_outputs

    def _check_task(self) -> None:
        """Refuses what can be asked of a classifier alone."""
        if self.experiment.augment:
            raise InputError("augment is for images of classifiers; leave it out")
        if self.experiment.attack_later:
            raise InputError(f"attack_later keeps logits of classes, and the task is {self.task.name}; leave it out")
        for scenario in self.experiment.scenarios:
            if any(map(forget_sets.forgets_classes, scenario.forget)):
                raise InputError(
                    f"the examples of {self.experiment.dataset} have no classes, their task is {self.task.name}; name "
                    "what to forget with indices:FILE or random:SHARE, or in Python with the owners of a sh.OwnNetwork"
                )
            for settings in scenario.methods.values():
                of_task(settings, self.task)

    def _take(self, own: OwnNetwork) -> None:
        """Uses a network of the user's own."""
        _check_own(self.experiment, own)
        self.model = own.model
        given = task_loss(own.model, own.task) if own.loss_fn is None else own.loss_fn
        self.loss_fn = with_task(given, own.task)
        groups = answers.example_groups(own.task, own.train)
        highest = max(groups.max(), answers.example_groups(own.task, own.test).max())
        self.num_classes = max(int(highest) + 1, 0 if own.owners is not None else len(own.class_names))
        self.owners = groups if own.owners is None else np.asarray(own.owners)
        self.owners_are_labels = own.owners is None and own.task.classifies
        if self.owners.shape != groups.shape or not np.issubdtype(self.owners.dtype, np.integer):
            raise InputError(
                f"the owners of {len(groups)} examples are {self.owners.dtype} of shape {self.owners.shape}; give an "
                "integer for each example"
            )
        names = own.class_names or tuple(map(str, range(max(self.num_classes, int(self.owners.max()) + 1))))
        self.splits = datasets.Splits(own.train, own.test, names, augmented=False)
        described = describe_value((own.model, own.task, given), "own")
        self.settings["own"] = hashing.sha256(json.dumps(described, sort_keys=True))
        # What a forget specification means, and no part of how networks are trained.
        if own.owners is not None:
            self.settings["owners"] = hashing.described_array(self.owners)
        if own.class_names:
            self.settings["class_names"] = list(own.class_names)

    def method(self, settings: MethodSettings) -> Method:
        """The method with these settings, built once, so that all its runs share one compiled program.

        Raises:
          InputError: The method takes classifiers alone, and the network is none.
        """
        key = repr(settings)
        if key not in self._methods:
            fitted = of_task(settings, self.task)
            self._methods[key] = fitted.build(self.model, self.loss_fn, self.num_classes)
        return self._methods[key]

    def method_of(self, settings: MethodSettings, network: tuple[Params, ModelState], held_out: Dataset) -> Method:
        """The method with these settings for one network, on which a ceiling "held-out" is measured.

        Args:
          settings: The settings, which `held_out.check_scenario` has passed.
          network: The parameters and the state of the network that the run begins with.
          held_out: Examples that it never saw.

        Raises:
          InputError: As `method`, or the loss on the examples is no ceiling.
        """
        return self.method(of_network(settings, lambda: losses.average_loss(self.loss_fn, *network, held_out)))

    def settings_sha256(self) -> str:
        """A hash of every setting except the scenarios, whose methods have their settings in their own cells."""
        shared = {name: value for name, value in self.settings.items() if name != "scenarios"}
        return hashing.sha256(json.dumps(shared, sort_keys=True).encode())

    def data_sha256(self) -> dict[str, str]:
        """Hashes of what the experiment reads: both splits, and the file of pretrained weights if there is one."""
        found = {"train": hashing.tree_sha256(self.splits.train), "test": hashing.tree_sha256(self.splits.test)}
        if self.experiment.pretrained is not None:
            found["pretrained"] = hashing.file_sha256(Path(self.experiment.pretrained))
        return found

    def training_identity(self) -> dict[str, Any]:
        """What decides the weights of a trained network, besides its seed and its examples."""
        chosen = {name: self.settings[name] for name in (*_TRAINING_SETTINGS, "own") if name in self.settings}
        return {"classes": self.num_classes, **chosen}


def _check_own(experiment: Experiment, own: OwnNetwork) -> None:
    """Refuses an experiment that asks for what an own network cannot do.

    Raises:
      InputError: A setting is not for own networks, the test set has another form, methods take classifiers alone, or
        the task weighs or labels the examples in a way that cannot be used.
    """
    usual: dict[str, Any] = dict.fromkeys(("pretrained", "image_size", "train_limit", "test_limit"))
    for name, value in {**usual, "model_options": {}}.items():
        if getattr(experiment, name) != value:
            raise InputError(
                f"{name} is for networks and data of the package; leave it out, and give what it would make"
            )
    if experiment.augment:
        raise InputError("augment is for images of the package; give a loss_fn that augments its batches itself")
    if not own.task.classifies and experiment.attack_later:
        raise InputError(f"attack_later keeps logits of classes, and the task is {own.task.name}; leave it out")
    forms: tuple[Any, Any] = jax.tree.structure(own.train), jax.tree.structure(own.test)
    if forms[0] != forms[1] or not all(map(data_lib.size, (own.train, own.test))):
        raise InputError(
            f"the training set is {forms[0]} and the test set {forms[1]}; give examples of one form in both"
        )
    for scenario in experiment.scenarios:
        for settings in scenario.methods.values():
            of_task(settings, own.task)
            if settings.relabels:
                check_relabelled(
                    own.task, own.train, "other labels", otherwise=f", or do without {type(settings).__name__}"
                )
    for whose, examples in (("the training set", own.train), ("the test set", own.test)):
        check_weights(own.task, examples, whose)


def load_splits(experiment: Experiment, data_dir: str | None) -> datasets.Splits:
    """Reads the data set of an experiment, with its limits and its image size applied.

    Raises:
      InputError: The data set cannot be read, or a limit is out of range.
    """
    splits = datasets.load(experiment.dataset, data_dir)
    if splits.held_out is not None and experiment.train_limit is not None:  # Positions then count what is left anyway.
        left = np.setdiff1d(np.arange(data_lib.size(splits.train)), splits.held_out)
        splits = splits._replace(train=data_lib.take(splits.train, left), held_out=None)
    train = _limited(splits, splits.train, experiment.train_limit, "train_limit", experiment.split_seed)
    test = _limited(splits, splits.test, experiment.test_limit, "test_limit", experiment.split_seed)
    if experiment.image_size is not None:
        train, test = (
            {**part, "image": augmentation.resize(part["image"], experiment.image_size)} for part in (train, test)
        )
    return splits._replace(train=train, test=test)


def _limited(splits: datasets.Splits, part: Dataset, limit: int | None, name: str, seed: int) -> Dataset:
    total, groups = data_lib.size(part), answers.example_groups(splits.task, part)
    if limit is None or limit == total:
        return part
    if not 1 <= limit < total:
        raise InputError(f"{name} must be 1 to {total}, got {limit}")
    return data_lib.take(part, validation_split(groups, limit / total, seed)[1])


def _build_model(experiment: Experiment, splits: datasets.Splits) -> Model:
    model = models.build(
        experiment.model,
        num_classes=splits.num_outputs,
        image_shape=splits.image_shape,
        **experiment.model_options,
    )
    if experiment.pretrained is None:
        return model
    state_dict = torch_weights.read_state_dict(experiment.pretrained)

    def init(key):
        return torch_weights.with_fresh_head(state_dict, *model.init(key), flatten={})

    return model._replace(init=init)
