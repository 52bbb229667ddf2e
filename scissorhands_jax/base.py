"""The vocabulary of the package: losses, models, batches and methods as plain values over parameter pytrees.

Losses, methods and training are written against this module, which knows nothing of the rest of the package. What is
passed to functions by these names can be checked here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scissorhands_jax import keywords
from scissorhands_jax.errors import InputError

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
    """The simple form of a loss: `(params, batch) -> mean loss of the batch`, a scalar."""

    def __call__(self, params: Params, batch: PyTree) -> Scalar: ...


class StatefulLossFn(Protocol):
    """The general form of a loss, for networks with state or randomness.

    It takes the network's state and returns the loss together with the new state. `train` says whether BatchNorm and
    dropout behave as in training, and `key` seeds dropout and augmentation; `None` means that nothing is random.
    """

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]: ...


class ApplyFn(Protocol):
    """A forward pass: `(params, model_state, x, *, train, key=None) -> (logits, model_state)`."""

    def __call__(
        self, params: Params, model_state: ModelState, x: PyTree, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]: ...

    def __hash__(self) -> int: ...  # It is a static argument of compiled functions, which JAX caches by hash.


class Model(NamedTuple):
    """A network as a pair of pure functions, whatever framework it was written in.

    Attributes:
      init: `(key) -> (params, model_state)` draws a fresh network.
      apply: The forward pass, `(params, model_state, x, *, train, key=None) -> (logits, model_state)`.
    """

    init: Callable[[Key], tuple[Params, ModelState]]
    apply: ApplyFn


class Data(NamedTuple):
    """The examples that a method may read: those to forget, and the rest of the training set."""

    forget: Dataset
    retain: Dataset


class Batch(NamedTuple):
    """The examples of one step.

    `Method.batches` yields batches of int32 positions into `Data`, and `run` turns them into examples. A part that a
    step does not use is `None`, which JAX treats as an empty subtree, so that jit compiles one variant of the step for
    each combination of parts.
    """

    forget: PyTree | None = None
    retain: PyTree | None = None


class Carry(NamedTuple):
    """Everything that a method needs in order to continue. A checkpoint holds one carry."""

    step: jax.Array  # shape=(), dtype=int32: the number of optimizer steps taken so far
    key: Key  # shape=(): fixed for the whole run; derive the randomness of a step with `fold_in(key, step)`
    params: Params
    model_state: ModelState
    opt_state: PyTree
    # Teachers, masks, constraint gradients. They must be copies of parameters, never aliases: `run` donates the carry
    # to the compiled step, and XLA refuses to donate one buffer twice.
    aux: PyTree


def keep_carry(carry: Carry, data: Data) -> Carry:
    """Returns the carry as it is: the `begin_epoch` of methods that do nothing at the start of an epoch."""
    del data
    return carry


def take_model(carry: Carry) -> tuple[Params, ModelState]:
    """Returns the trained network: the `finish` of methods whose result is what they trained."""
    return carry.params, carry.model_state


class Method(NamedTuple):
    """An unlearning method: five functions, which `training.run` calls.

    Attributes:
      init: `(key, params, model_state, data) -> Carry`. It runs on the host and may pass over the data.
      step: `(carry, batch) -> (carry, metrics)`. It is pure, `run` compiles it, and it must advance `carry.step` by
        one.
      batches: `(key, data, epoch) -> iterable of Batch`, with int32 positions in the batches. The result depends on
        the arguments alone, so that a resumed run sees the same batches. Those of epoch 0 are asked for before `init`.
      begin_epoch: `(carry, data) -> carry`. It runs on the host, once before the first step of every epoch.
      finish: `(carry) -> (params, model_state)`.
    """

    init: Callable[[Key, Params, ModelState, Data], Carry]
    step: Callable[[Carry, Batch], tuple[Carry, Metrics]]
    batches: Callable[[Key, Data, int], Iterable[Batch]]
    begin_epoch: Callable[[Carry, Data], Carry] = keep_carry
    finish: Callable[[Carry], tuple[Params, ModelState]] = take_model


@dataclasses.dataclass(frozen=True)
class _Lifted:
    """What `lift` returns. Two of the same function are equal, so that they share compiled code."""

    loss_fn: LossFn

    def __call__(self, params, model_state, batch, *, train, key):
        del train, key
        loss = self.loss_fn(params, batch)
        if not hasattr(loss, "shape") and not isinstance(loss, float | int):
            raise InputError(f"the loss function returns a {type(loss).__name__}; let it return the mean loss alone")
        if jnp.shape(loss):
            raise InputError(f"the loss function returns an array of shape {jnp.shape(loss)}; let it return its mean")
        return loss, model_state


def lift(loss_fn: LossFn) -> StatefulLossFn:
    """Turns the simple form of a loss, `loss_fn(params, batch)`, into the general form.

    The model state passes through untouched, and `train` and `key` are ignored.

    Raises:
      InputError: The loss does not have the simple form; or when it is called, if it is not a single number.
    """
    _check_form(
        loss_fn, ((), ()), {}, "(params, batch); a loss of the general form needs no lift, and freeze undoes it"
    )
    return _Lifted(loss_fn)


def check_loss(loss_fn: StatefulLossFn) -> None:
    """Raises an error unless a loss can be called in the general form.

    Raises:
      InputError: It cannot, for instance because it has the simple form.
    """
    advice = "(params, model_state, batch, *, train, key); give lift(loss_fn) where it is a loss_fn(params, batch)"
    _check_form(loss_fn, ((), (), ()), {"train": True, "key": None}, advice)


def _check_form(loss_fn: Any, args: tuple, kwargs: dict[str, Any], form: str) -> None:
    """Raises InputError unless a loss can be called with such arguments."""
    try:
        signature = inspect.signature(loss_fn)
    except TypeError as error:
        raise InputError(f"the loss is a {type(loss_fn).__name__}; give a function") from error
    except ValueError:  # Functions that are written in C need not have one.
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(map(str, signature.parameters.values()))
        raise InputError(f"the loss takes ({names}), and it is called with {form}") from error


def check_model(model: Model) -> None:
    """Raises an error unless this is a `Model`.

    Raises:
      InputError: It is something else, for instance a module, or a network with its weights.
    """
    if not isinstance(model, Model):
        advice = "its .model" if isinstance(getattr(model, "model", None), Model) else "a Model"
        raise InputError(
            f"the network is a {type(model).__name__}; give {advice}, as from_linen, from_nnx and from_equinox make it"
        )


def check_optimizer(optimizer: Any) -> None:
    """Raises an error unless this is an optimizer that needs no more than the gradient, its state and the parameters.

    Raises:
      InputError: It is something else, for instance a learning rate, or a function that makes an optimizer; or every
        update of it needs more, such as the value of the loss.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        given = getattr(optimizer, "__name__", repr(optimizer))
        raise InputError(f"the optimizer is {given:.40}; give one of optax, such as optax.sgd(0.1)")
    # A chain hides in its signature what its parts need, so an update is tried, of which only shapes are computed.
    weights = jax.ShapeDtypeStruct((2,), jnp.float32)
    try:
        jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except TypeError as error:
        _, missing, names = str(error).partition("required keyword-only argument")
        if missing:
            raise InputError(
                f"the optimizer needs {names.partition(': ')[2]} in every update, and steps hand it the gradient, its "
                "state and the parameters alone; give another of optax, such as optax.adam(1e-3)"
            ) from error
    except Exception:  # One that is made for a certain tree of parameters cannot be tried on another.
        return


def check_key(key: Key) -> None:
    """Raises an error unless this is a key, typed or as an array of uint32.

    Raises:
      InputError: It is something else, for instance a seed.
    """
    dtype = getattr(key, "dtype", None)
    if not (dtype == jnp.uint32 and jnp.ndim(key)) and (
        dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key)
    ):
        raise InputError(f"the key is {key!r:.40}; give one that jax.random.key(0) makes, with any seed")


keywords.CHECKS.update(loss_fn=check_loss, model=check_model, optimizer=check_optimizer)


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """What `freeze` returns, of which the loss within can be asked (`unfrozen`).

    Two are equal, and so share compiled code, if they have equal losses and the same arrays. Arrays are compared as
    objects; one of NumPy can change, and one that is traced ends, so that with these a frozen loss equals itself alone.
    """

    loss_fn: StatefulLossFn
    model_state: ModelState
    train: bool
    key: Key | None

    def __call__(self, params: Params, batch: PyTree) -> Scalar:
        return self.loss_fn(params, self.model_state, batch, train=self.train, key=self.key)[0]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frozen) and self._identity == other._identity)

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple:
        leaves, structure = jax.tree.flatten((self.model_state, self.key))
        fixed = [isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves]
        return (self.loss_fn, self.train, structure, *map(id, leaves)) if all(fixed) else (id(self),)


@dataclasses.dataclass(frozen=True)
class _Thawed:
    """The general form of a frozen loss whose state is what the loss was frozen at, so that compiled code takes it."""

    loss_fn: StatefulLossFn
    train: bool

    def __call__(self, params, model_state, batch, *, train, key):
        del train, key
        held, held_key = model_state
        return self.loss_fn(params, held, batch, train=self.train, key=held_key)[0], model_state


def freeze(loss_fn: StatefulLossFn, model_state: ModelState, *, train: bool = False, key: Key | None = None) -> LossFn:
    """Turns the general form of a loss into the simple form `(params, batch) -> mean loss`.

    Args:
      loss_fn: The general form.
      model_state: The state at which every call evaluates the loss. The state that a call returns is dropped.
      train: Whether the network behaves as in training.
      key: The PRNG key of every call; `None` means that nothing is random.

    Returns:
      The simple form. It weighs batches and divides them into parts as `loss_fn` does. Those of an equal loss and the
      same arrays are equal, so that they share compiled code.
    """
    return Frozen(loss_fn, model_state, train, key)


def frozen_in(loss_fn: LossFn | StatefulLossFn) -> Frozen | None:
    """What `freeze` returned, if this is that or a `lift` of it; None for any other loss."""
    within = loss_fn.loss_fn if isinstance(loss_fn, _Lifted) else loss_fn
    return within if isinstance(within, Frozen) else None


def unfrozen(loss_fn: StatefulLossFn) -> StatefulLossFn:
    """The loss that `freeze` was given, if this is a `lift` of what it returned; any other loss itself."""
    within = loss_fn if isinstance(loss_fn, _Thawed) else frozen_in(loss_fn)
    return loss_fn if within is None else unfrozen(within.loss_fn)


def thawed(loss_fn: StatefulLossFn, model_state: ModelState) -> tuple[StatefulLossFn, ModelState]:
    """A loss and a state to call it with that keep arrays out of the loss, where it is a `lift` of a frozen one.

    A function that is compiled for a loss then takes what the loss was frozen at as an argument, and serves every other
    state as well. The value is the same; the state that such a call returns is the one that it was given.

    Args:
      loss_fn: The general form of the loss.
      model_state: The state that it would be called with, which is returned for any other loss.
    """
    frozen = frozen_in(loss_fn)
    if frozen is None:
        return loss_fn, model_state
    return _Thawed(frozen.loss_fn, frozen.train), (frozen.model_state, frozen.key)


def new_carry(key: Key, params: Params, model_state: ModelState, opt_state: PyTree, aux: PyTree = ()) -> Carry:
    """Returns a carry at step 0; see `Carry` for the arguments."""
    return Carry(jnp.zeros((), jnp.int32), key, params, model_state, opt_state, aux)
