"""An experiment: which network is trained on which data, what it is made to forget, and by which methods.

Tables (`jobs.grid`) and audits (`audit.run_audit`) both start from an `Experiment`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import augmentation, datasets, hashing, losses, models, torch_weights
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Dataset, Method, Model, StatefulLossFn
from scissorhands_jax.datasets.splits import validation_split
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import MethodSettings, describe
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings

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
class Experiment:
    """One data set, one network and several scenarios."""

    name: str
    dataset: str
    model: str
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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
    augment: bool | None = None
    """Whether to train with random crops and flips. None does what is usual for the data set."""
    training: RetrainSettings
    """How the original and the retrained network are trained."""
    scenarios: tuple[Scenario, ...]
    every_attack: bool = True
    """Whether tables have the further membership attacks (`metrics.row.evaluate`)."""
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
          InputError: A setting has no JSON.
        """
        document = dataclasses.asdict(dataclasses.replace(self, scenarios=()))
        document["scenarios"] = [
            dataclasses.asdict(dataclasses.replace(scenario, methods={}))
            | {"methods": {label: describe(settings) for label, settings in scenario.methods.items()}}
            for scenario in self.scenarios
        ]
        return json.loads(json.dumps(document, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(f"the settings of an experiment must be JSON-able, found a {type(value).__name__}")


class LoadedExperiment:
    """An experiment with its data in memory and its network built.

    Args:
      experiment: What to load.
      data_dir: The folder of the data set's files. None for data sets that need none.

    Raises:
      InputError: The data or the network cannot be had, or a limit is out of range.
    """

    def __init__(self, experiment: Experiment, data_dir: str | None) -> None:
        self.experiment = experiment
        self.settings = experiment.as_dict()
        self.splits = load_splits(experiment, data_dir)
        self.model = _build_model(experiment, self.splits)
        augment = self.splits.augmented if experiment.augment is None else experiment.augment
        crop = functools.partial(augmentation.crop_and_flip, padding=self.splits.crop_padding)
        self.loss_fn: StatefulLossFn = losses.classification_loss(self.model, augment=crop if augment else None)
        self._methods: dict[str, Method] = {}

    def method(self, settings: MethodSettings) -> Method:
        """The method with these settings, built once, so that all its runs share one compiled program."""
        key = repr(settings)
        if key not in self._methods:
            self._methods[key] = settings.build(self.model, self.loss_fn, len(self.splits.class_names))
        return self._methods[key]

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
        return {"classes": len(self.splits.class_names), **{name: self.settings[name] for name in _TRAINING_SETTINGS}}


def load_splits(experiment: Experiment, data_dir: str | None) -> datasets.Splits:
    """Reads the data set of an experiment, with its limits and its image size applied.

    Raises:
      InputError: The data set cannot be read, or a limit is out of range.
    """
    splits = datasets.load(experiment.dataset, data_dir)
    if splits.held_out is not None and experiment.train_limit is not None:  # Positions then count what is left anyway.
        left = np.setdiff1d(np.arange(data_lib.size(splits.train)), splits.held_out)
        splits = splits._replace(train=data_lib.take(splits.train, left), held_out=None)
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


def _build_model(experiment: Experiment, splits: datasets.Splits) -> Model:
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
        return torch_weights.with_fresh_head(state_dict, *model.init(key), flatten={})

    return model._replace(init=init)
