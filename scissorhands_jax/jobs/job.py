"""An unlearning job made ready: its network, its data, what it forgets, and what the network has forgotten before."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scissorhands_jax import augmentation, datasets, hashing, losses, models, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.datasets.splits import known_classes
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import on_upper_layers
from scissorhands_jax.torch_weights import state_dicts as torch_weights
from scissorhands_jax.training import checkpoints

NETWORK_FOLDER = "network"
WEIGHTS_FILE = "network.safetensors"
FORGET_FILE = "forget_indices.txt"
TRAINED_ON_FILE = "trained_on.txt"
FORGOTTEN_BEFORE_FILE = "forgotten_before.txt"


def describe_run(checkpoint: str | Path) -> dict[str, Any]:
    """The configuration of the run whose network lies in a folder.

    Raises:
      CheckpointError: the folder holds no finished run.
    """
    return checkpoints.read_description(network_folder(checkpoint))


def load_weights(model: Model, *, weights: str | None, checkpoint: str | None) -> tuple[Params, ModelState]:
    """The network from a PyTorch or safetensors file, or from the folder of an earlier run.

    Raises:
      WeightsError: the file is damaged or belongs to another network.
      CheckpointError: the same for a run.
    """
    key = jax.random.key(0)
    params, model_state = jax.eval_shape(model.init, key)
    if checkpoint is not None:
        return checkpoints.load_network(network_folder(checkpoint), params, model_state)
    if weights is None:
        raise InputError("name the original network with --weights FILE or --checkpoint RUN")
    state_dict = torch_weights.read_state_dict(weights)
    # Counters that older files lack keep the template's value, so these are real; fresh weights are not compiled.
    model_state = jax.jit(lambda key: model.init(key)[1])(key)
    network = torch_weights.from_state_dict(state_dict, params, model_state)
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        if not np.all(np.isfinite(leaf)):
            raise WeightsError(
                f"{weights} holds NaN or infinity in {name.partition('/')[2]}, so there is no network to work with"
            )
    return network


def original_network(config: RunConfig) -> tuple[Params, ModelState]:
    """The network that a job would begin with, without what else the job needs.

    Raises:
      InputError: the data set, whose shapes the network has, or the network cannot be read.
    """
    model = build_network(config.model, datasets.load(config.dataset, config.data_dir), config.model_options)
    return load_weights(model, weights=config.weights, checkpoint=config.checkpoint)


class Job(NamedTuple):
    """What an unlearning job is made of, read and checked."""

    config: RunConfig  # with nothing left open
    splits: datasets.Splits
    model: Model
    params: Params
    model_state: ModelState
    past: Past
    positions: np.ndarray  # of the forget set, in the training split
    data: Data
    test: Dataset
    set_aside: Dataset | None  # the share of the test split that is for validation
    train_checksum: str
    loss_fn: StatefulLossFn

    def method(self, settings: MethodSettings) -> Method:
        """The method of some settings for this network and these data."""
        return settings.build(self.model, self.loss_fn, len(self.splits.class_names))


def prepare_job(config: RunConfig, check: Callable[[RunConfig, Model], None] | None = None) -> Job:
    """Reads and checks everything that a job needs; see `unlearn` for the errors.

    Args:
      check: what to look at before the weights are read and anything is compiled; where it is given, a job without
        weights has fresh ones.
    """
    if config.retain_limit is not None and config.retain_limit < 1:
        raise InputError(f"--retain-limit must be at least 1, got {config.retain_limit}")
    splits = datasets.load(config.dataset, config.data_dir)
    config = _resolved(config, splits)
    model = build_network(config.model, splits, config.model_options)
    if check is not None:
        check(config, model)
    if check is not None and config.weights is None and config.checkpoint is None:
        params, model_state = model.init(jax.random.key(config.seed))
    else:
        params, model_state = load_weights(model, weights=config.weights, checkpoint=config.checkpoint)
    train_checksum = hashing.tree_checksum(splits.train)
    past = past_of(config, data_lib.size(splits.train), train_checksum)
    positions = forget_sets.forget_positions(
        config.forget,
        splits.train["label"],
        seed=config.seed,
        class_names=splits.class_names,
        trained_on=past.trained_on,
    )
    data = data_lib.split(splits.train, positions, past.trained_on)
    test, set_aside = divide_test_set(splits.test, config.validation, config.seed)
    test = known_classes(test, data.retain)
    data = _limited(data, config)
    augment = functools.partial(augmentation.crop_and_flip, padding=splits.crop_padding) if config.augment else None
    loss_fn = losses.classification_loss(model, augment=augment)
    return Job(
        config, splits, model, params, model_state, past, positions, data, test, set_aside, train_checksum, loss_fn
    )


def divide_test_set(test: Dataset, validation: str | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """The test split, and the share of it that is set aside for validation, if any."""
    kind, _, value = (validation or "").partition(":")
    if validation is not None and (kind not in ("test", "indices") or not value):
        raise InputError(f"cannot read the validation set {validation!r}; write test:0.5 or indices:FILE")
    if kind != "test":
        return test, None
    aside = forget_sets.forget_positions(f"random:{value}", test["label"], seed=seed)
    rest = np.setdiff1d(np.arange(data_lib.size(test)), aside)
    return data_lib.take(test, rest), data_lib.take(test, aside)


def network_folder(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint)
    # A network's own folder has a part of that name in it, too.
    return folder / NETWORK_FOLDER if (folder / NETWORK_FOLDER / NETWORK_FOLDER).is_dir() else folder


class Past(NamedTuple):
    """What became of a network before a run; sorted int32 positions in the training split of its data set."""

    trained_on: np.ndarray  # and has not forgotten since
    forgotten: np.ndarray  # by earlier runs


def past_of(config: RunConfig, total: int, train_checksum: str) -> Past:
    """As the user says, or as the run that made the network has written it down; else all was trained on.

    Raises:
      InputError: nobody knows, or both say it.
    """
    nothing = np.zeros(0, np.int32)
    told = None
    if config.trained_on is not None:
        told = data_lib.check_training_set(forget_sets.read_positions(Path(config.trained_on)), total)
    if config.checkpoint is not None and "forget" in describe_run(config.checkpoint):
        folder = run_folder_of(config.checkpoint)
        what = f"the network in {config.checkpoint} has forgotten examples before"
        if not (folder / runs.RUN_FILE).is_file():
            known = False
        else:
            known = runs.read_description(folder).get("train_checksum") == train_checksum
        if known and told is not None:
            raise InputError(f"{what}, and its run has noted what it was trained on; leave --trained-on out")
        if known:
            past, forgotten = read_past(folder, total)
            return Past(
                np.setdiff1d(past.trained_on, forgotten, assume_unique=True),
                np.union1d(past.forgotten, forgotten),
            )
        if told is None:
            raise InputError(
                f"{what}, of other data than these or in a run that is not there; add --trained-on FILE with the "
                "positions in these data that it was trained on and has not forgotten"
            )
    return Past(np.arange(total, dtype=np.int32) if told is None else told, nothing)


def read_past(folder: Path, total: int) -> tuple[Past, np.ndarray]:
    """What a run has noted: the past of its original network, and what the run itself forgot."""
    trained_on = data_lib.check_training_set(forget_sets.read_positions(folder / TRAINED_ON_FILE), total)
    forgotten = data_lib.check_positions(forget_sets.read_positions(folder / FORGET_FILE), total)
    before = forget_sets.read_positions(folder / FORGOTTEN_BEFORE_FILE)
    return Past(trained_on, data_lib.check_positions(before, total) if before.size else before), forgotten


def run_folder_of(checkpoint: str | Path) -> Path:
    """The folder of the run that a network came from, which may be given by the folder of the network itself."""
    return network_folder(checkpoint).parent


def build_network(name: str, splits: datasets.Splits, options: Mapping[str, Any]) -> Model:
    return models.build(name, num_classes=len(splits.class_names), image_shape=splits.image_shape, **options)


def _resolved(config: RunConfig, splits: datasets.Splits) -> RunConfig:
    """Fills in what depends on the data set and the network."""
    if config.augment is None:
        config = dataclasses.replace(config, augment=splits.augmented)
    return dataclasses.replace(config, method=on_upper_layers(config.method, config.model))


def _limited(data: Data, config: RunConfig) -> Data:
    count = data_lib.size(data.retain)
    if config.retain_limit is None or config.retain_limit >= count:
        return data
    chosen = np.random.default_rng([config.seed, 1]).choice(count, config.retain_limit, replace=False)
    return data._replace(retain=data_lib.take(data.retain, np.sort(chosen)))
