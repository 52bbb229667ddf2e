"""Reading the network of a configuration: from the folder of an earlier run, or from a file of whatever origin."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from scissorhands_jax import datasets, models, torch_weights, trees
from scissorhands_jax.base import Model, ModelState, Params
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.jobs import logits_check
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.earlier_runs import WEIGHTS_FILE, network_folder, origin_folder
from scissorhands_jax.models import layouts
from scissorhands_jax.training import checkpoints

IN_ORDER = "in-order"
"""The layout of a file whose arrays are those of the network in order, whatever their names."""

_logger = logging.getLogger(__name__)


class ReadNetwork(NamedTuple):
    """A network that was read, and its configuration with what was found out about the file."""

    config: NetworkConfig
    model: Model
    params: Params
    model_state: ModelState
    names: Mapping[str, str] = MappingProxyType({})
    """What the file that the network comes from calls its arrays, by PyTorch's names of them that differ."""


def build_model(config: NetworkConfig, splits: datasets.Splits) -> Model:
    """The model of a configuration, for the examples and targets of its data set.

    Raises:
      InputError: There is no such model, or an option of it cannot be used.
    """
    num_classes = splits.num_outputs
    return models.build(config.model, num_classes=num_classes, image_shape=splits.image_shape, **config.model_options)


def load_run(model: Model, checkpoint: str) -> tuple[Params, ModelState]:
    """Reads the network of an earlier run.

    Args:
      model: The model that the network belongs to.
      checkpoint: The folder of the run or of its network.

    Raises:
      CheckpointError: The folder holds no network, or one that is damaged or another one.
    """
    return checkpoints.load_network(network_folder(checkpoint), *jax.eval_shape(model.init, jax.random.key(0)))


def read_network(config: NetworkConfig, splits: datasets.Splits) -> ReadNetwork:
    """Reads the network that a configuration names.

    Options of the network that decide its form, and that a file shows by the names or shapes of its arrays, are found
    by trying the layouts of `models.layouts` where the network does not fit as it is described. What was found and
    done to the names is logged as a warning.

    Args:
      config: The network. Options that it has are never changed.
      splits: The data set, which decides the network's shapes.

    Returns:
      The network, and the configuration with the layout and the options of the network that was read.

    Raises:
      InputError: The configuration names neither a file nor a run, or a layout that its network does not have; or the
        network does not answer as in the file of `config.check`.
      WeightsError: The file is damaged, belongs to another network, or holds NaN or infinity.
      CheckpointError: The folder holds no network, or one that is damaged or another one.
    """
    if config.checkpoint is not None:
        if config.weights is not None:
            raise InputError(
                f"the original is both the file {config.weights} and the run {config.checkpoint}; leave one of them out"
            )
        _refuse_descriptions(config)
        model = build_model(config, splits)
        found = ReadNetwork(config, model, *load_run(model, config.checkpoint), _names_of_run(config, model))
    elif config.weights is None:
        raise InputError("name the original network with --weights FILE or --checkpoint RUN")
    else:
        fitted = _Fitter(config, splits).found()
        for note in fitted.notes:
            _logger.warning("%s: %s", config.weights, note)
        found = ReadNetwork(fitted.config, fitted.model, *_network(fitted, config.weights), fitted.names)
    if config.check is not None:
        network = (found.model, found.params, found.model_state)
        found_options = found.config.model_options
        agreed = logits_check.check_answers(config.check, config.model, found_options, network, splits.image_shape)
        _logger.warning("%s", agreed)
    return found


def _names_of_run(config: NetworkConfig, model: Model) -> Mapping[str, str]:
    """The names that the file of a run's network has, which are those of the file that the first run began with."""
    assert config.checkpoint is not None
    file = origin_folder(config.checkpoint) / WEIGHTS_FILE
    if not file.is_file():
        return {}
    if told := torch_weights.read_names(file):
        return {new: old for old, new in told.items()}
    shapes = torch_weights.state_dict_shapes(*jax.eval_shape(model.init, jax.random.key(0)))
    try:
        return torch_weights.fit_names(torch_weights.read_state_dict(file), shapes).names
    except WeightsError:  # The network itself is in other files, and is read from them.
        return {}


def _refuse_descriptions(config: NetworkConfig) -> None:
    for name in ("layout", "prefix", "rename", "ema"):
        if getattr(config, name) is not None:
            raise InputError(
                f"--{name} says how to read a file of --weights, and a --checkpoint needs none; leave it out"
            )


class _Attempt(NamedTuple):
    """A file read as a network with certain options."""

    config: NetworkConfig
    model: Model
    state_dict: Mapping[str, np.ndarray]
    notes: list[str]
    names: Mapping[str, str]  # of `torch_weights.fit_names`
    misfits: float  # the number of arrays that do not fit; those that keep a mean and a standard deviation count little


class _Fitter:
    """Finds the layout of a file."""

    def __init__(self, config: NetworkConfig, splits: datasets.Splits) -> None:
        self.config, self.splits = config, splits
        assert config.weights is not None
        with torch_weights.open_state_dict(config.weights, ema=config.ema) as tensors:
            self.arrays, self.where = tensors.read(), tensors.where
        self.rename = {} if config.rename is None else torch_weights.read_renaming(config.rename)

    def found(self) -> _Attempt:
        """The attempt that fits, or the one that fits best, for a message that says what does not."""
        config = self.config
        if config.layout == IN_ORDER:
            return self._in_order(config)
        if config.layout is not None:
            return self._attempt(config, [layouts.find_layout(config.layout, config.model)])
        attempts = [self._attempt(config, [])]
        names = [self.rename.get(name, name) for name in self.arrays]
        by_options: dict[str, list[layouts.AuthorLayout]] = {}
        for layout in layouts.LAYOUTS:
            if attempts[0].misfits and layout.fits(config.model, names):
                by_options.setdefault(repr(self._options(layout)), []).append(layout)
        attempts += [self._attempt(config, alike) for alike in by_options.values()]
        best = min(attempts, key=lambda attempt: attempt.misfits)
        if best.misfits and (told := self._as_told(config)) is not None:
            return told
        if best.misfits and (part := re.search(r"-0*(\d+)-of-0*(\d+)\.", str(config.weights))):
            raise WeightsError(
                f"{config.weights} is part {part[1]} of {part[2]} of a network that was saved in parts; put the arrays "
                "of all parts into one file, as by loading the network with PyTorch and saving its state dict"
            )
        if best.misfits and (offered := self._try_in_order(config)) is not None:
            raise WeightsError(
                f"the names in {config.weights} are not those of a {config.model}, but its {len(offered.state_dict)} "
                "arrays have the shapes of one in order; if it is one, add --layout in-order and compare its answers "
                "with --check FILE, or name the arrays with --rename FILE"
            )
        return best

    def _as_told(self, config: NetworkConfig) -> _Attempt | None:
        """Reads the file by the names that it says itself, where nothing else explains its own, or returns None."""
        assert config.weights is not None
        names = {old: new for old, new in torch_weights.read_names(config.weights).items() if old in self.arrays}
        if self.rename or not names:
            return None
        self.rename = names
        found = self._attempt(config, [])
        return None if found.misfits else found

    def _options(self, layout: layouts.AuthorLayout) -> dict[str, Any]:
        options = layout.options(self.splits.num_outputs).items()
        # Lists, as in a configuration that was written as JSON.
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options}
        return {**listed, **self.config.model_options}

    def _attempt(self, config: NetworkConfig, alike: list[layouts.AuthorLayout]) -> _Attempt:
        """Reads the file with the options of layouts that are alike, or as it is described."""
        options = self._options(alike[0]) if alike else config.model_options
        config = dataclasses.replace(config, model_options=options, layout=alike[0].name if alike else None)
        model = build_model(config, self.splits)
        shapes = torch_weights.state_dict_shapes(*jax.eval_shape(model.init, jax.random.key(0)))
        fitted = torch_weights.fit_names(self.arrays, shapes, rename=self.rename, prefix=config.prefix, ema=config.ema)
        if config.ema and not torch_weights.is_averaged(self.where) and not torch_weights.is_averaged(fitted.prefix):
            raise WeightsError(f"{config.weights} has no averaged weights (EMA); leave --ema out")
        notes = list(fitted.notes)
        if alike and options != self.config.model_options:
            said = " ".join(f"{name}={_shown(value)}" for name, value in options.items())
            authors = " or ".join(layout.name for layout in alike)
            notes.append(
                f"it was read as a network of {authors}, with {said}; a file does not show all of this, so compare the "
                "answers with --check FILE"
            )
        misfits = _count_misfits(fitted.state_dict, shapes)
        return _Attempt(config, model, fitted.state_dict, notes, fitted.names, misfits)

    def _try_in_order(self, config: NetworkConfig) -> _Attempt | None:
        """Reads the file by the order of its arrays; None where their shapes do not allow it."""
        model = build_model(config, self.splits)
        shapes = torch_weights.state_dict_shapes(*jax.eval_shape(model.init, jax.random.key(0)))
        ranks = {path: rank for rank, path in enumerate(layouts.called_modules(model))}
        kinds = ("weight", "bias", "running_mean", "running_var")

        def rank(name: str) -> tuple[int, int]:
            module, _, last = name.rpartition(".")
            return ranks.get(module, len(ranks)), kinds.index(last) if last in kinds else len(kinds)

        fitted = torch_weights.fit_in_order(self.arrays, {name: shapes[name] for name in sorted(shapes, key=rank)})
        return None if fitted is None else _Attempt(config, model, fitted.state_dict, fitted.notes, fitted.names, 0)

    def _in_order(self, config: NetworkConfig) -> _Attempt:
        found = self._try_in_order(config)
        if found is None:
            raise WeightsError(
                f"the arrays of {config.weights} do not have the shapes of a {config.model} in order (a .safetensors "
                "file keeps none, it is sorted by name); name the arrays with --rename FILE, or leave --layout "
                "in-order out, and the message says which names do not fit"
            )
        return found


def _count_misfits(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> float:
    counters = {name for name in {*arrays, *shapes} if name.endswith("num_batches_tracked")}
    apart = (arrays.keys() ^ shapes.keys()) - counters
    missing = [0.25 if name.startswith("normalize.") else 1 for name in apart]
    return sum(missing) + sum(arrays[name].shape != shapes[name] for name in (arrays.keys() & shapes.keys()) - counters)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _network(fitted: _Attempt, weights: str) -> tuple[Params, ModelState]:
    """Converts the arrays of a file that was fitted to the trees of its network."""
    outline = jax.eval_shape(fitted.model.init, jax.random.key(0))  # Counters that older files lack are 0, as in it.
    network = torch_weights.from_state_dict(fitted.state_dict, *outline, flatten={})
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        if not np.all(np.isfinite(leaf)):
            raise WeightsError(
                f"{weights} holds NaN or infinity in {name.partition('/')[2]}, so there is no network to work with"
            )
    return network
