"""An unlearning job that is ready to run: the network and its past, the data, and what is to be forgotten."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import augmentation, datasets, hashing, losses
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError, check_choice, check_seed
from scissorhands_jax.jobs import held_out, runs
from scissorhands_jax.jobs.config import NetworkConfig, RunConfig, check_finite_settings
from scissorhands_jax.jobs.earlier_runs import Past, past_of
from scissorhands_jax.jobs.loading import ReadNetwork, build_model, read_network
from scissorhands_jax.methods import METHODS, MethodSettings
from scissorhands_jax.methods.settings import asks_for_held_out, of_network, of_task, on_upper_layers
from scissorhands_jax.metrics import answers
from scissorhands_jax.tasks import task_loss
from scissorhands_jax.training import distributed
from scissorhands_jax.training.identity import Identity, identify
from scissorhands_jax.training.sharding import Layout

ORIGINAL_HASH = "original_sha256"
"""The name, in the identity of a job, of the SHA-256 of the network that it begins with."""

TRAIN_HASH = "train_sha256"
"""The name, in the identity of a job, of the SHA-256 of the training split."""
TEST_HASH = "test_sha256"
"""The name, in the identity of a job, of the SHA-256 of the test split."""

_PATHS = ("weights", "checkpoint", "data_dir", "trained_on", "forgotten_before", "rename", "check")
# Settings that say where something lies, or how to read it. Its content is described by a hash.
_PLACES = (*_PATHS, "layout", "prefix", "ema")
# Settings that may name a file after one of these words and a colon. Its content is described by hashes as well.
_FILES = {"dataset": tuple(datasets.FILES), "forget": forget_sets.FILE_FORMS, "validation": ("indices",)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """The data that a network was trained on, and what it still knows of them."""

    config: NetworkConfig
    splits: datasets.Splits
    past: Past
    train_sha256: str  # of the training split

    def forget_set(self, forget: str, seed: int) -> tuple[np.ndarray, Data]:
        """The positions that a specification names, and the forget and the retain set that they make.

        Args:
          forget: The specification, as `forget_sets.forget_positions` takes it.
          seed: The seed of a random choice.

        Returns:
          Sorted int32 positions in the training split, and the sets. Examples that the network was not trained on, or
          has forgotten, are in neither set.

        Raises:
          InputError: The seed is none, or the specification cannot be used or names examples that the network was not
            trained on.
        """
        check_seed(seed)
        train = self.splits.train
        if not self.splits.task.classifies and forget_sets.forgets_classes(forget):
            raise InputError(
                f"the examples of {self.config.dataset} have no classes, their task is {self.splits.task.name}; name "
                "what to forget with indices:FILE or random:SHARE, or in Python with the owners of a sh.OwnNetwork"
            )
        positions = forget_sets.forget_positions(
            forget,
            self.splits.groups,
            seed=seed,
            class_names=self.splits.class_names,
            trained_on=self.past.trained_on,
        )
        return positions, data_lib.split(train, positions, self.past.trained_on)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OriginalNetwork(TrainingData):
    """A network that a job begins with, read and checked, and the data that it was trained on."""

    model: Model
    params: Params
    model_state: ModelState
    names: Mapping[str, str]  # of `loading.ReadNetwork`


@dataclasses.dataclass(frozen=True)
class ValidationSet:
    """Examples that the network has never seen, of the classes that stay."""

    what: str
    """What they are, in words."""
    examples: Dataset

    @property
    def sha256(self) -> str:
        """The hash of the examples."""
        return hashing.tree_sha256(self.examples)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job(OriginalNetwork):
    """Everything that an unlearning job is made of, read and checked."""

    config: RunConfig  # with a value for every setting that depends on the data set or the network
    positions: np.ndarray  # of the forget set, in the training split
    data: Data
    test: Dataset
    set_aside: Dataset | None  # the share of the test split that is for validation
    loss_fn: StatefulLossFn
    right_labels: np.ndarray | None
    """The right labels of a forget set `mislabelled:FILE`, in the order of `positions`; None if nothing says them."""

    def method(self, settings: MethodSettings) -> Method:
        """The method with the given settings, built for this network and these data.

        Raises:
          InputError: The method takes classifiers alone, and the network is none; or its ceiling is "held-out", and
            that cannot be measured (`held_out_loss`).
        """
        fitted = self._measured(of_task(settings, self.splits.task))
        return fitted.build(self.model, self.loss_fn, self.splits.num_outputs)

    @property
    def measured_settings(self) -> MethodSettings:
        """The settings of the method with the number that a ceiling "held-out" stands for."""
        return self._measured(self.config.method)

    def _measured(self, settings: MethodSettings) -> MethodSettings:
        return of_network(settings, lambda: self.held_out_loss)

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the job is read from."""
        settings = dataclasses.asdict(self.config)
        named = [settings[name].partition(":")[2] for name in _FILES if _names_file(settings, name)]
        return [*(settings[name] for name in _PATHS if settings[name] is not None), *named]

    @functools.cached_property
    def validation(self) -> ValidationSet:
        """What the network never saw and the test set has not, as `RunConfig.validation` says.

        Raises:
          InputError: There is no such example, or those that are named were trained on.
        """
        spec, train, total = self.config.validation, self.splits.train, data_lib.size(self.splits.train)
        unseen = np.setdiff1d(np.arange(total), np.union1d(self.past.trained_on, self.past.forgotten))
        if self.splits.held_out is not None:  # They are the test set.
            unseen = np.setdiff1d(unseen, self.splits.held_out)
        if self.set_aside is not None:
            found, what = self.set_aside, f"{spec}, seed {self.config.seed}"
        elif spec is None:
            if unseen.size == 0:
                raise InputError(
                    "the network was trained on the whole training split, so there is nothing to validate with; set a "
                    "part of the test set aside with --validation test:0.5, or say what it saw with --trained-on FILE"
                )
            found, what = (
                data_lib.take(train, unseen),
                "the training split's examples that the network was not trained on",
            )
        else:
            file = spec.partition(":")[2]
            positions = data_lib.check_positions(forget_sets.read_positions(Path(file)), total)
            if not np.isin(positions, unseen).all():
                count = np.count_nonzero(~np.isin(positions, unseen))
                raise InputError(
                    f"{count} of the examples in {file} were trained on or forgotten, or are held out for testing; "
                    "name others"
                )
            found, what = data_lib.take(train, positions), f"{spec}, of the training split"
        found = answers.known_examples(self.splits.task, found, self.data.retain)
        if data_lib.size(found) == 0:
            raise InputError("the validation set holds no example of the classes that stay; name another")
        return ValidationSet(what, found)

    @functools.cached_property
    def forgets_classes(self) -> bool:
        """Whether only whole classes are forgotten, of which the network keeps no example."""
        if not self.splits.task.classifies:
            return False
        labels = answers.example_groups(self.splits.task, self.splits.train)
        known = np.setdiff1d(self.past.trained_on, self.past.forgotten)
        return bool(forget_sets.lost_classes(labels, self.positions, known).all())

    @functools.cached_property
    def held_out_loss(self) -> float:
        """The mean loss of the network on the validation set, which the ceiling "held-out" stands for.

        Raises:
          InputError: There is no validation set, or the forget set is not like it (`held_out.check_forget_sets`).
        """
        self.check_held_out()
        examples = self.validation.examples
        return distributed.from_first(
            lambda: losses.average_loss(self.loss_fn, self.params, self.model_state, examples)
        )

    def check_held_out(self) -> None:
        """Refuses a job in which the ceiling "held-out" cannot be measured.

        Raises:
          InputError: As `held_out_loss`.
        """
        held_out.check_forget_sets([self.config.forget])
        if self.forgets_classes:
            raise held_out.nothing_resembles(self.config.forget, "whole classes")
        try:
            _ = self.validation
        except InputError as error:
            raise InputError(f"the ceiling 'held-out' cannot be measured: {error}") from error

    def identity(self, layout: Layout | None = None) -> Identity:
        """Everything that determines the result of the job. What a file holds counts, and not where it lies.

        Args:
          layout: How the work is divided over devices. By default it is not.
        """
        settings = dataclasses.asdict(self.config)
        places = _places(settings)
        chosen = {
            **{name: value for name, value in settings.items() if name not in places},
            "kinds_of_files": {name: word for name in _FILES if (word := _names_file(settings, name))},
            "forget_sha256": hashing.positions_sha256(self.positions),
            "right_labels_sha256": None if self.right_labels is None else hashing.tree_sha256(self.right_labels),
            "trained_on_sha256": hashing.positions_sha256(self.past.trained_on),
            "forgotten_before_sha256": hashing.positions_sha256(self.past.forgotten),
            TRAIN_HASH: self.train_sha256,
            TEST_HASH: hashing.tree_sha256(self.splits.test),
            **({"validation_sha256": self._held_out_sha256()} if asks_for_held_out(self.config.method) else {}),
            ORIGINAL_HASH: hashing.network_sha256(self.params, self.model_state),
        }
        described = None if layout is None else str(layout)
        return identify(chosen, described, {name: settings[name] for name in places})

    def _held_out_sha256(self) -> str:
        self.check_held_out()
        return self.validation.sha256


def _places(settings: Mapping[str, Any]) -> list[str]:
    """The settings that say where something lies whose content is described by hashes."""
    return [*_PLACES, *(name for name in _FILES if _names_file(settings, name))]


def _names_file(settings: Mapping[str, Any], name: str) -> str | None:
    """The word with which a setting names a file, as in `indices:FILE`; None if it names none."""
    word = str(settings.get(name)).partition(":")[0]
    return word if word in _FILES[name] else None


def saved_identity(folder: Path, advice: str = "put it back from your backup") -> Identity:
    """Returns the identity that a run has saved in its folder.

    Args:
      folder: The folder of the run.
      advice: What to do if it was changed.

    Raises:
      CheckpointError: The folder holds no run, or its description is damaged.
      InputError: The description was changed, or an earlier version of the package wrote it.
    """
    document = runs.read_run(folder)
    try:
        return Identity.of_document(document, _places(document))
    except InputError as error:
        raise InputError(f"{folder / runs.RUN_FILE} cannot be used: {error}; {advice}") from error


def prepare_job(config: RunConfig, check: Callable[[Model], None] | None = None) -> Job:
    """Reads and checks everything that a job needs.

    Args:
      config: The job.
      check: Called with the model before the weights are read and before anything is compiled, to refuse a job early.
        If it is given, a job without weights has random ones.

    Raises:
      InputError: As `unlearning.unlearn`.
    """
    check_seed(config.seed)
    check_finite_settings(config)
    check_choice("method_name", config.method_name, METHODS)
    if config.method is None:
        raise InputError(
            f"the settings of {config.method_name} are missing; give a {METHODS[config.method_name].__name__} as method"
        )
    if type(config.method) is not METHODS[config.method_name]:
        raise InputError(
            f"method_name is {config.method_name!r}, and the settings are {type(config.method).__name__}, those of "
            "another method; choose the method with --method, which takes its settings along"
        )
    if config.retain_limit is not None and config.retain_limit < 1:
        raise InputError(f"--retain-limit must be at least 1, got {config.retain_limit}")
    network = prepare_network(config, check, seed=config.seed)
    splits = network.splits
    positions, data = network.forget_set(config.forget, config.seed)
    test, set_aside = divide_test_set(splits.test, config.validation, config.seed)
    augment = splits.augmented if config.augment is None else config.augment
    if augment and ("image" not in splits.train or not splits.task.classifies):
        raise InputError(
            "--augment crops and flips the images of classifiers, which these examples are not; leave it out"
        )
    found = {name: getattr(network.config, name) for name in ("layout", "model_options")}
    method = on_upper_layers(config.method, config.model)
    config = dataclasses.replace(config, augment=augment, method=method, **found)
    job = Job(
        **{**vars(network), "config": config},
        positions=positions,
        data=_limited(data, config),
        test=answers.known_test_set(splits.task, test, data.retain),
        set_aside=set_aside,
        loss_fn=loss_of(splits, network.model, augment=augment),
        right_labels=_right_labels(config.forget, splits),
    )
    if config.validation is not None:
        _ = job.validation  # is refused here if it cannot be used, whether or not the run looks at it
    return job


def loss_of(splits: datasets.Splits, model: Model, *, augment: bool) -> StatefulLossFn:
    """The loss of training and unlearning of a network for a data set.

    Args:
      splits: The data set.
      model: The network.
      augment: Whether the images of a classifier are cropped and flipped.
    """
    if not augment:
        return task_loss(model, splits.task)
    crop_and_flip = functools.partial(augmentation.crop_and_flip, padding=splits.crop_padding)
    return losses.classification_loss(model, augment=crop_and_flip)


def prepare_network(
    config: NetworkConfig, check: Callable[[Model], None] | None = None, *, seed: int = 0
) -> OriginalNetwork:
    """Reads and checks a network, the data that it was trained on, and its past.

    Args:
      config: The network.
      check: As for `prepare_job`.
      seed: The seed of fresh weights; only used if `check` is given and the configuration names no weights.

    Raises:
      InputError: The data set, the network or the files that say what it was trained on cannot be used.
    """
    splits = datasets.load(config.dataset, config.data_dir)
    model = build_model(config, splits)
    if check is not None:
        check(model)
    if check is not None and config.weights is None and config.checkpoint is None:
        read = ReadNetwork(config, model, *model.init(jax.random.key(seed)))
    else:
        read = read_network(config, splits)
    return OriginalNetwork(**{**vars(_known_data(config, splits)), **read._asdict()})


def prepare_data(config: NetworkConfig) -> TrainingData:
    """Reads the data that a network was trained on and its past, and not the network itself.

    Args:
      config: The network.

    Raises:
      InputError: The data set or the files that say what the network was trained on cannot be used.
    """
    return _known_data(config, datasets.load(config.dataset, config.data_dir))


def _known_data(config: NetworkConfig, splits: datasets.Splits) -> TrainingData:
    train_sha256 = hashing.tree_sha256(splits.train)
    past = past_of(config, data_lib.size(splits.train), train_sha256, splits.held_out)
    return TrainingData(config=config, splits=splits, past=past, train_sha256=train_sha256)


def divide_test_set(test: Dataset, validation: str | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """Divides the test split as the validation set of a job asks for it.

    Args:
      test: The test split.
      validation: As in `RunConfig`.
      seed: The seed of the random choice.

    Returns:
      What is left to test with, and the share that is set aside for validation: None unless `validation` is
      `test:SHARE`.

    Raises:
      InputError: `validation` cannot be read.
    """
    kind, _, value = (validation or "").partition(":")
    if validation is not None and (kind not in ("test", "indices") or not value):
        raise InputError(f"cannot read the validation set {validation!r}; write test:0.5 or indices:FILE")
    if kind != "test":
        return test, None
    try:
        aside = forget_sets.forget_positions(f"random:{value}", test["label"], seed=seed)
    except InputError as error:
        raise InputError(
            f"--validation sets a share of the test set aside, between 0 and 1 and at least one of its "
            f"{len(test['label'])} examples, got {value!r}; write test:0.5"
        ) from error
    rest = np.setdiff1d(np.arange(data_lib.size(test)), aside)
    return data_lib.take(test, rest), data_lib.take(test, aside)


def set_aside_share(validation: str | None) -> str | None:
    """The validation set of a job if it is a share of the test set, which is set aside; None if nothing is.

    Args:
      validation: As in `RunConfig`.
    """
    return validation if validation is not None and validation.startswith("test:") else None


def _right_labels(forget: str, splits: datasets.Splits) -> np.ndarray | None:
    """The right labels of a `mislabelled:FILE` in the order of the forget set; None if the file does not say them."""
    kind, _, path = forget.partition(":")
    if kind != "mislabelled":
        return None
    class_names = splits.class_names
    labels = forget_sets.read_mislabelled(Path(path), class_names)[1]
    if labels is not None and not splits.task.classifies:
        raise InputError(
            f"{path} has right labels, and the task of the data set is {splits.task.name}; give positions alone"
        )
    if labels is not None and labels.max() >= len(class_names):
        raise InputError(f"{path} has the label {labels.max()}; the data set has 0 to {len(class_names) - 1}")
    return labels


def _limited(data: Data, config: RunConfig) -> Data:
    """The same data with at most `config.retain_limit` retained examples, drawn with the seed of the job."""
    count = data_lib.size(data.retain)
    if config.retain_limit is None or config.retain_limit >= count:
        return data
    chosen = np.random.default_rng([config.seed, 1]).choice(count, config.retain_limit, replace=False)
    return data._replace(retain=data_lib.take(data.retain, np.sort(chosen)))
