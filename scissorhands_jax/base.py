"""The vocabulary: losses, models, batches and methods as plain values over parameter pytrees.

Everything else in the package is written against this module; it imports nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

PyTree = Any
Key = jax.Array  # a typed PRNG key, as made by `jax.random.key`
Scalar = jax.Array  # shape ()
Params = PyTree  # what is trained
ModelState = PyTree  # what a forward pass may move: BatchNorm statistics, counters
Scores = PyTree  # one non-negative float per weight, shaped like Params
Mask = PyTree  # one bool per weight, True = salient = will change
Selection = PyTree  # one Python bool per leaf of Params
Dataset = PyTree  # arrays that share their first axis, e.g. {"image": (N, H, W, C), "label": (N,)}
Metrics = dict[str, jax.Array]  # scalars (or short vectors) of one step


class LossFn(Protocol):
    """The simple form: the mean loss of a batch, a function of the parameters alone."""

    def __call__(self, params: Params, batch: PyTree) -> Scalar: ...


class StatefulLossFn(Protocol):
    """The general form: reads and returns `model_state`; `train` and `key` drive BatchNorm, dropout, augmentation."""

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]: ...


class ApplyFn(Protocol):
    """A forward pass: `(params, model_state, x, *, train, key=None) -> (logits, model_state)`."""

    def __call__(
        self, params: Params, model_state: ModelState, x: PyTree, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]: ...

    def __hash__(self) -> int: ...  # compiled functions are kept by it


class Model(NamedTuple):
    """A network as a pair of pure functions, whatever framework it was written in."""

    init: Callable[[Key], tuple[Params, ModelState]]
    apply: ApplyFn


class Data(NamedTuple):
    """What a method may read: the examples to forget and the rest of the training set."""

    forget: Dataset
    retain: Dataset


class Batch(NamedTuple):
    """One step's examples. `None` is an empty subtree, so jit compiles one variant per kind of step.

    `Method.batches` yields batches of int32 positions into `Data`; `run` turns them into examples.
    """

    forget: PyTree | None = None
    retain: PyTree | None = None


class Carry(NamedTuple):
    """Everything a method needs to go on; a checkpoint is one of these."""

    step: jax.Array  # shape=(), dtype=int32: optimizer steps taken so far
    key: Key  # shape=(): fixed for the whole run, use `fold_in(key, step)`
    params: Params
    model_state: ModelState
    opt_state: PyTree
    aux: PyTree  # teachers, masks, constraint gradients; copies, never aliases of params


def keep_carry(carry: Carry, data: Data) -> Carry:
    """The `begin_epoch` of methods that do nothing there."""
    del data
    return carry


def take_model(carry: Carry) -> tuple[Params, ModelState]:
    """The `finish` of methods whose result is what they trained."""
    return carry.params, carry.model_state


class Method(NamedTuple):
    """An unlearning method: five functions, run by `training.run`.

    init:        `(key, params, model_state, data) -> Carry`; on the host, may pass over the data.
    step:        `(carry, batch) -> (carry, metrics)`; pure, jitted by `run`, must advance `carry.step` by one.
    batches:     `(key, data, epoch) -> iterable of Batch` of int32 positions; pure in its arguments.
    begin_epoch: `(carry, data) -> carry`; on the host, once before the first step of every epoch.
    finish:      `(carry) -> (params, model_state)`.
    """

    init: Callable[[Key, Params, ModelState, Data], Carry]
    step: Callable[[Carry, Batch], tuple[Carry, Metrics]]
    batches: Callable[[Key, Data, int], Iterable[Batch]]
    begin_epoch: Callable[[Carry, Data], Carry] = keep_carry
    finish: Callable[[Carry], tuple[Params, ModelState]] = take_model


@dataclasses.dataclass(frozen=True)
class _Lifted:
    """A value that equals others made of the same function, so that they share compiled code."""

    loss_fn: LossFn

    def __call__(self, params, model_state, batch, *, train, key):
        del train, key
        return self.loss_fn(params, batch), model_state


def lift(loss_fn: LossFn) -> StatefulLossFn:
    """Turns `loss_fn(params, batch)` into the general form; the state passes through untouched."""
    return _Lifted(loss_fn)


def freeze(loss_fn: StatefulLossFn, model_state: ModelState, *, train: bool = False, key: Key | None = None) -> LossFn:
    """Turns the general form into `loss_fn(params, batch)` at a fixed state, which is read and never moved."""

    def frozen(params, batch):
        return loss_fn(params, model_state, batch, train=train, key=key)[0]

    return frozen


def new_carry(key: Key, params: Params, model_state: ModelState, opt_state: PyTree, aux: PyTree = ()) -> Carry:
    """A carry at step 0."""
    return Carry(jnp.zeros((), jnp.int32), key, params, model_state, opt_state, aux)
