"""Boundary expanding (Chen et al., CVPR 2023): move the forget examples to an extra class, then remove that class."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import ApplyFn, Carry, Data, Key, Method, Model, ModelState, Params, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import check_not_empty, descend, for_classes, forget_batches
from scissorhands_jax.methods.settings import Gradient, LogitArguments, Mode, TrainingSettings
from scissorhands_jax.tasks import example_weights, weighted_mean

_CHECKED_IMAGES = 8
_ROUNDING = 1e-2  # relative; also of bfloat16


class Expanded(NamedTuple):
    """A network of K classes and what its last layer lacks to a class more, the shadow class."""

    params: Params
    shadow: PyTree  # like params, None but in the last layer: its arrays with the class axis of length 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryExpandOptions:
    """The keyword arguments of `boundary_expand` that are settings as well."""

    head: str | None = None
    """The last linear layer, as a pattern for `trees.select`, in networks of any framework. None finds it."""
    batch_size: int = 256
    """The number of forget examples that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryExpandArguments(BoundaryExpandOptions, LogitArguments):
    """The keyword arguments of `boundary_expand`."""

    num_classes: int
    """K, the number of classes, at least 2. What class a forget example has makes no difference."""
    mode: Mode = "paper"
    """"paper" returns the network in its original shape; "authors" keeps all K + 1 outputs, for a model of K + 1
    classes."""


@takes(BoundaryExpandArguments)
def boundary_expand(model: Model, optimizer: optax.GradientTransformation, options: BoundaryExpandArguments) -> Method:
    """Minimises the loss of forget examples under a label of their own, K, in the network widened by one output.

    The K + 1 logits are those of the network and that of the shadow class, which is drawn as a fresh linear layer is.
    The result is the network without the shadow class. The authors' setting for CIFAR-10 is 10 epochs of `sgd(1e-6)`
    with batches of 256.

    Args:
      model: The network.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (from `init`) the last layer is not found, or is not linear.
    """
    num_classes, batch_size, parts = options.num_classes, options.batch_size, options.microbatches
    check_choice("mode", options.mode, typing.get_args(Mode))
    if num_classes < 2:
        raise InputError(f"boundary expanding needs at least 2 classes, got {num_classes}")
    microbatches.check_microbatches([batch_size], parts)
    task, wider = options.task, widened(model)

    def objective(expanded, carry, batch, key):
        microbatches.check_microbatches([data_lib.size(batch.forget)], parts)
        inputs, key = losses.augmented(options.augment, key, task.inputs(batch.forget))

        def mean_loss(expanded, model_state, part, key):
            inputs, weights = part
            logits, model_state = wider.apply(expanded, model_state, inputs, train=True, key=key)
            each = losses.cross_entropies(logits, jnp.full(len(logits), num_classes))
            loss = weighted_mean(each, weights)
            return loss, (model_state, {"loss_shadow": loss})

        whole = microbatches.accumulated(mean_loss, parts)
        return whole(expanded, carry.model_state, (inputs, example_weights(task, batch.forget)), key)

    method = descend(objective, optimizer, batches=forget_batches(batch_size), reads=("forget",))

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, ("forget",))
        key, shadow_key = jax.random.split(key)
        images = data_lib.take(task.inputs(data.forget), slice(_CHECKED_IMAGES))
        first_class = find_head(model, params, model_state, images, num_classes=num_classes, head=options.head)
        return method.init(key, Expanded(params, draw_shadow(shadow_key, first_class)), model_state, data)

    def finish(carry: Carry) -> tuple[Params, ModelState]:
        params = widen(carry.params) if options.mode == "authors" else carry.params.params
        return params, carry.model_state

    return for_classes("boundary_expand", method._replace(init=init, finish=finish), task)


def widened(model: Model) -> Model:
    """The model with one logit more, over `Expanded` parameters, whatever framework it was written in.

    Logits are linear in the last layer, so the shadow's logit is the derivative of that of class 0 along the direction
    that holds the shadow in the place of class 0 and zeros elsewhere, in which no other logit moves. Forward mode gives
    it with the logits: one pass, one set of batch statistics, one more product with the features. No network is asked
    to take other shapes. `init` still makes the network without a shadow.
    """

    def apply(
        params: Expanded, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        def forward(head):
            filled = jax.tree.map(lambda leaf, ours: leaf if ours is None else ours, params.params, head)
            return model.apply(filled, model_state, x, train=train, key=key)

        def in_place_of_first(leaf, shadow):
            return None if shadow is None else jnp.zeros_like(leaf).at[tuple(map(slice, shadow.shape))].set(shadow)

        head = jax.tree.map(lambda leaf, shadow: None if shadow is None else leaf, *params)
        direction = jax.tree.map(in_place_of_first, *params)
        logits, slopes, model_state = jax.jvp(forward, (head,), (direction,), has_aux=True)
        return jnp.concatenate([logits, slopes.sum(axis=1, keepdims=True)], axis=1), model_state

    return model._replace(apply=apply)


def widen(expanded: Expanded) -> Params:
    """The parameters of a network of K + 1 classes: the shadow joins the last layer's arrays as their last class."""

    def joined(leaf, shadow):
        if shadow is None:
            return leaf
        axis = next(axis for axis in range(leaf.ndim) if leaf.shape[axis] != shadow.shape[axis])
        return jnp.concatenate([leaf, shadow], axis=axis)

    return jax.tree.map(joined, *expanded)


def draw_shadow(key: Key, first_class: PyTree) -> PyTree:
    """A class more, shaped as `find_head` returns one and drawn as PyTorch draws linear layers: uniform in
    +-1/sqrt(fan_in)."""
    leaves, structure = jax.tree.flatten(first_class)
    bound = max(leaf.size for leaf in leaves) ** -0.5
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def find_head(
    model: Model,
    params: Params,
    model_state: ModelState,
    images: jax.Array,
    *,
    num_classes: int,
    head: str | None = None,
) -> PyTree:
    """Finds the last linear layer, and gives what belongs to its first class.

    Candidates are the arrays of one module that have an axis of length `num_classes`, and the first class is what lies
    at its beginning. In the last linear layer that determines one logit, linearly, and moves no other: a few images in
    evaluation mode tell.

    Args:
      images: shape=(N, ...), a few.
      head: pattern of the layer (`trees.select`); None tries every module.

    Returns:
      A tree like `params`, None outside of the layer; inside, slices in which the class axis has length 1.

    Raises:
      InputError: there is no such layer, or `head` is not one.
    """
    leaves, structure = jax.tree.flatten(params)

    def response(slices: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and their derivative along a direction that only the first class has."""
        direction = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        for whole, part in zip(direction, slices, strict=True):
            if part is not None:
                whole[tuple(map(slice, part.shape))] = part
        tree = jax.tree.unflatten(structure, direction)
        logits, slopes = _slopes(model.apply, params, model_state, images, tree)
        return trees.on_host(logits).astype(np.float64), trees.on_host(slopes).astype(np.float64)

    for slices in _first_classes(params, num_classes, head):
        logits, moved = response([None if part is None else np.ones_like(part) for part in slices])
        *others, moved_most = np.sort(np.abs(moved).max(axis=0))
        if moved_most > 0 and max(others) <= _ROUNDING * moved_most:
            column = np.argmax(np.abs(moved).max(axis=0))
            # Of a linear layer with all of its bias, the derivative along itself is its value.
            _, own = response(slices)
            if np.abs(own - logits)[:, column].max() <= _ROUNDING * np.abs(logits).max():
                return jax.tree.unflatten(structure, slices)
    if head is not None:
        raise InputError(f"head = {head!r} does not select the last linear layer of {num_classes} classes, whole")
    raise InputError(
        f"found no last linear layer of {num_classes} classes in the network; name it, with its bias, by head = PATTERN"
    )


def _first_classes(params: Params, num_classes: int, head: str | None) -> Iterator[list[np.ndarray | None]]:
    """Per module: the first slice of its arrays along an axis of length `num_classes`, None for all other arrays.

    Classes are the last axis in Flax and the first one in Equinox.
    """
    leaves = jax.tree.leaves(params)
    if head is None:
        modules = [name.rpartition("/")[0] for name in trees.leaf_names(params)]
        layers = [[module == one for module in modules] for one in dict.fromkeys(reversed(modules))]
    else:
        layers = [jax.tree.leaves(trees.select(params, head))]
    for layer in layers:
        for axis in (-1, 0):
            fits = [
                chosen and leaf.ndim > 0 and leaf.shape[axis] == num_classes
                for leaf, chosen in zip(leaves, layer, strict=True)
            ]
            if any(fits) and (head is None or fits == layer):
                pairs = zip(leaves, fits, strict=True)
                yield [trees.on_host(leaf).take([0], axis) if fit else None for leaf, fit in pairs]


@functools.partial(jax.jit, static_argnums=0)
def _slopes(
    apply: ApplyFn, params: Params, model_state: ModelState, images: jax.Array, direction: Params
) -> tuple[jax.Array, jax.Array]:
    """Logits, and their derivative along a direction of the parameters."""
    return jax.jvp(lambda p: apply(p, model_state, images, train=False)[0], (params,), (direction,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryExpandSettings(BoundaryExpandOptions, TrainingSettings):
    """The authors' settings for CIFAR-10; the shadow class is removed in the end, as in the paper."""

    learning_rate: float = 1e-6
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)
    reads_classes: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings, the loss's augmentation and its task; see `MethodSettings.build`."""
        method = boundary_expand(
            model,
            self.optimizer(),
            num_classes=num_classes,
            **self.logit_arguments(loss_fn),
            **self.values(BoundaryExpandOptions),
        )
        return self.scheduled(method)
