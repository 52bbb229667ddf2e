"""What methods are made of: steps that follow a direction, an edit without steps, and the batches of an epoch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, masks, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Key,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    Scalar,
    StatefulLossFn,
    keep_carry,
    new_carry,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.models.resnet9 import fit_whitening
from scissorhands_jax.tasks import CLASSIFICATION, Task, check_relabelled

Batches = Callable[[Key, Data, int], Iterable[Batch]]


class Objective(Protocol):
    """What one step minimises: `(params, carry, batch, key) -> (value, (model_state, metrics))`."""

    def __call__(
        self, params: Params, carry: Carry, batch: Batch, key: Key
    ) -> tuple[Scalar, tuple[ModelState, Metrics]]: ...


class Direction(Protocol):
    """What one step follows in place of a gradient: `(carry, batch, key) -> (direction, model_state, metrics)`."""

    def __call__(self, carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]: ...


def descend(objective: Objective, optimizer: optax.GradientTransformation, **options: Any) -> Method:
    """A method that minimises an objective.

    Args:
      objective: The objective of a step.
      optimizer: The optimizer that its gradient is handed to.
      **options: The other arguments of `follow_direction`.
    """

    def gradient_of(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        (_, (model_state, metrics)), gradient = jax.value_and_grad(objective, has_aux=True)(
            carry.params, carry, batch, key
        )
        return gradient, model_state, metrics

    return follow_direction(gradient_of, optimizer, **options)


def follow_direction(
    direction: Direction,
    optimizer: optax.GradientTransformation,
    *,
    batches: Batches,
    reads: tuple[str, ...],
    start: Callable[[Key, Params, ModelState, Data], tuple[Params, ModelState]] | None = None,
    aux: Callable[[Key, Params, ModelState, Data], PyTree] | None = None,
    mask_of: Callable[[Any], PyTree] | None = None,
    begin_epoch: Callable[[Carry, Data], Carry] = keep_carry,
) -> Method:
    """A method whose steps hand a direction to an optimizer in place of a gradient.

    Args:
      direction: The direction of a step, from its carry, batch and key.
      optimizer: The optimizer. With `mask_of` its updates are masked last, so that frozen weights stay bit-equal.
      batches: The batches of an epoch.
      reads: The parts of the data that must not be empty, of "forget" and "retain".
      start: `(key, params, model_state, data)` to the params and the state that the method begins with. None begins
        with the given ones.
      aux: `(key, params, model_state, data)` to what the carry holds in addition to the network. None is nothing.
      mask_of: The mask of the weights that may move, from what `aux` made. None lets all move.
      begin_epoch: As in `Method`.
    """
    if mask_of is not None:
        optimizer = optax.chain(optimizer, masks.mask_updates())

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, reads)
        start_key, aux_key, step_key = jax.random.split(key, 3)
        if start is not None:
            params, model_state = start(start_key, params, model_state, data)
        held = () if aux is None else aux(aux_key, params, model_state, data)
        return new_carry(step_key, params, model_state, optimizer.init(params), held)

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        key = jax.random.fold_in(carry.key, carry.step)
        gradient, model_state, metrics = direction(carry, batch, key)
        extra = {} if mask_of is None else {"mask": mask_of(carry.aux)}
        updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params, **extra)
        carry = carry._replace(
            step=carry.step + 1,
            params=optax.apply_updates(carry.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return carry, {**metrics, "grad_norm": trees.norm(gradient)}

    return Method(init, step, batches, begin_epoch)


def edit(
    change: Callable[[Key, Params, ModelState, Data], tuple[Params, ModelState]], *, reads: tuple[str, ...]
) -> Method:
    """A method that takes no steps: `init` makes the change, and every epoch is empty."""

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, reads)
        return new_carry(key, *change(key, params, model_state, data), opt_state=())

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        raise NotImplementedError("this method has no steps; it is done when it begins")

    return Method(init, step, lambda key, data, epoch: ())


def check_not_empty(data: Data, parts: tuple[str, ...]) -> None:
    """Refuses empty parts of the data.

    Args:
      data: The data of a method.
      parts: The parts to look at, of "forget" and "retain".

    Raises:
      InputError: One of them is empty.
    """
    for part in parts:
        if data_lib.size(getattr(data, part)) == 0:
            raise InputError(f"the {part} set is empty; name at least one training example for it")


def for_classes(
    name: str, method: Method, task: Task, *, relabels: bool = False, of_classes: bool = True, otherwise: str = ""
) -> Method:
    """The method, which refuses examples without classes before it begins.

    Args:
      name: What the method is called.
      method: The method, which reads the classes of examples.
      task: What the network is for, which says what the classes are.
      relabels: Whether the method replaces the `label` of forget examples.
      of_classes: Whether labels have to be classes. A function of the user's own may replace labels of any form.
      otherwise: What a user can do in the first place, such as another setting of the method.

    Raises:
      InputError: When the method begins, if the task or a part of the data has no classes, they are no whole numbers,
        or the task does not read the labels that are replaced.
    """
    advice = f"{otherwise}take a method that needs only a loss, such as scissorhands or finetune"

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        if of_classes and task.labels is None:
            raise InputError(
                f"{name} reads the class of every example, and those of the task {task.name!r} have none; {advice}"
            )
        for part, examples in data._asdict().items():
            if not data_lib.size(examples):
                continue
            labelled = isinstance(examples, Mapping) and "label" in examples
            if not labelled and (relabels or task.labels is CLASSIFICATION.labels):
                found = ", ".join(map(str, examples)) if isinstance(examples, Mapping) else "no names"
                raise InputError(
                    f"{name} reads the class of every example, and the {part} set has {found} and no 'label'; {advice}"
                )
            if task.labels is None:
                continue
            if of_classes:
                losses.check_classes(task.labels(examples), f"the {part} set")
            if relabels and part == "forget":
                check_relabelled(task, examples, "other labels", otherwise=f", or {advice}")
        return method.init(key, params, model_state, data)

    return method._replace(init=init)


def drawn_afresh(model: Model, key: Key, data: Data) -> tuple[Params, ModelState]:
    """A fresh network. One with a whitening layer (`models.resnet9`) has it fitted to the retain set."""
    params, model_state = model.init(key)
    return params, fit_whitening(model_state, data.retain)


def split_key(key: Key | None) -> tuple[Key | None, Key | None]:
    """Two keys from one, or two Nones from None."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


def retain_loss(loss_fn: StatefulLossFn) -> Objective:
    """The mean retain loss as an objective."""

    def objective(params, carry, batch, key):
        loss, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=key)
        return loss, (model_state, {"loss_retain": loss})

    return objective


def retain_batches(batch_size: int) -> Batches:
    """One pass over the retain set per epoch, in a new order each time."""
    return _pass_over("retain", batch_size)


def forget_batches(batch_size: int) -> Batches:
    """One pass over the forget set per epoch, in a new order each time."""
    return _pass_over("forget", batch_size)


def _pass_over(part: str, batch_size: int) -> Batches:
    data_lib.check_batch_size(batch_size)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        total = data_lib.size(getattr(data, part))
        passes = data_lib.shuffled_batches(jax.random.fold_in(key, epoch), total, batch_size)
        return (Batch(**{part: positions}) for positions in passes)

    return batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedOptions:
    """The sizes of the two batches of a step that sees both sets."""

    batch_size: int = 256
    """The number of retain examples that a step sees."""
    forget_batch_size: int | None = None
    """The number of forget examples that a step sees, at most the size of the forget set. None takes `batch_size`."""

    def sizes(self) -> tuple[int, int]:
        """The sizes of the forget and of the retain batch, in this order.

        Raises:
          InputError: One of them is below 1.
        """
        forget = self.batch_size if self.forget_batch_size is None else self.forget_batch_size
        return data_lib.check_batch_size(forget), data_lib.check_batch_size(self.batch_size)


def paired_batches(options: PairedOptions, *, fill: bool = True) -> Batches:
    """Steps that all see both sets: a pass over the retain set per epoch, while the forget set is cycled.

    If the forget set has more batches, it is the one that is passed over, and the retain set is cycled, so that every
    example of both sets is seen in every epoch.

    Args:
      options: The sizes of the batches.
      fill: Whether the last retain batch is filled up (`data.shuffled_batches`). Otherwise it may be smaller.
    """
    forget_batch, retain_batch = options.sizes()

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        retain_key, forget_key = jax.random.split(jax.random.fold_in(key, epoch))
        retain = data_lib.shuffled_batches(retain_key, data_lib.size(data.retain), retain_batch, fill=fill)
        total = data_lib.size(data.forget)
        forget = data_lib.cycled_batches(forget_key, total, forget_batch)
        missing = count_batches(total, forget_batch) - len(retain)
        retain += further_batches(retain_key, data, epoch, retain_batch, missing)
        return (Batch(f, r) for r, f in zip(retain, forget, strict=False))

    return batches


def count_batches(total: int, batch_size: int) -> int:
    """The number of batches of at most `batch_size` that `total` examples fill."""
    return -(-total // batch_size)


def further_batches(key: Key, data: Data, epoch: int, batch_size: int, count: int) -> list[np.ndarray]:
    """Further retain batches for an epoch whose pass over the retain set is over; none if `count` is below 1."""
    total = data_lib.size(data.retain)
    endless = data_lib.cycled_batches(jax.random.fold_in(key, epoch), total, batch_size)
    return list(itertools.islice(endless, max(0, count)))


def mixed_batches(batch_size: int, *, copies: int = 1) -> Batches:
    """One pass over both sets together; every batch holds forget and retain examples in the proportion of the sets.

    A shuffled mixture would hold a different number of each in every batch, and each number would need a compilation.
    The number of forget examples is rounded, up where an epoch would miss some otherwise. Where a batch cannot hold
    that many, the epoch goes on with retain batches of a further pass until every forget example was seen.

    Args:
      batch_size: The number of examples that a step sees; at least one of each set.
      copies: How many of these each forget example stands for, as where the step adds examples made from it.
    """
    data_lib.check_batch_size(batch_size)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        forget_size, retain_size = data_lib.size(data.forget), data_lib.size(data.retain)
        of_forget = _forget_part(forget_size, retain_size, batch_size, copies)
        of_retain = max(1, batch_size - copies * of_forget)
        retain_key, forget_key = jax.random.split(jax.random.fold_in(key, epoch))
        retain = data_lib.shuffled_batches(retain_key, retain_size, of_retain)
        missing = count_batches(forget_size, of_forget) - len(retain)
        retain += further_batches(retain_key, data, epoch, of_retain, missing)
        forget = data_lib.cycled_batches(forget_key, forget_size, of_forget)
        return (Batch(f, r) for r, f in zip(retain, forget, strict=False))

    return batches


def _forget_part(forget_size: int, retain_size: int, batch_size: int, copies: int) -> int:
    """How many examples of a mixed batch are from the forget set, at least 1."""
    share = forget_size / max(1, copies * forget_size + retain_size)
    most = max(1, (batch_size - 1) // copies)
    rounded = min(max(1, round(share * batch_size)), most)
    steps = count_batches(retain_size, max(1, batch_size - copies * rounded))
    return rounded if steps * rounded >= forget_size else min(rounded + 1, most)


def forget_once_batches(options: PairedOptions, *, fill: bool = False) -> Batches:
    """One pass over each set per epoch, as the published code of Scissorhands and MUNBa pairs them.

    Steps see both sets until the forget set is used up, then retain examples alone. If the forget set has more batches,
    which the published code would leave out, the retain set is passed over again until every example was seen.

    Args:
      options: The sizes of the batches.
      fill: Whether the last batch of a set is filled up (`data.shuffled_batches`). By default it may be smaller.
    """
    forget_batch, retain_batch = options.sizes()

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        forget, retain = _both_passes(key, data, epoch, forget_batch, retain_batch, fill=fill)
        retain_key, _ = jax.random.split(jax.random.fold_in(key, epoch))
        retain += further_batches(retain_key, data, epoch, retain_batch, len(forget) - len(retain))
        return (Batch(f, r) for f, r in itertools.zip_longest(forget, retain) if r is not None)

    return batches


def fixed_batches(options: PairedOptions) -> Batches:
    """The first examples of both sets in every step, in their own order, for as many steps as the forget set fills."""
    forget_batch, retain_batch = options.sizes()

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        del key, epoch
        forget_size, retain_size = data_lib.size(data.forget), data_lib.size(data.retain)
        first = Batch(first_positions(forget_size, forget_batch), first_positions(retain_size, retain_batch))
        return itertools.repeat(first, -(-forget_size // forget_batch))

    return batches


def first_positions(total: int, batch_size: int) -> np.ndarray:
    """The positions of the first examples of a set, at most as many as a batch has. int32"""
    return np.arange(min(total, batch_size), dtype=np.int32)


def forget_first_batches(batch_size: int, *, fill: bool) -> Batches:
    """One pass over each set per epoch: all forget batches, then all retain batches.

    Args:
      batch_size: The number of examples of one set that a step sees.
      fill: Whether the last batch of a set is filled up (`data.shuffled_batches`). Otherwise it may be smaller.
    """
    data_lib.check_batch_size(batch_size)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        forget, retain = _both_passes(key, data, epoch, batch_size, batch_size, fill=fill)
        return itertools.chain((Batch(forget=f) for f in forget), (Batch(retain=r) for r in retain))

    return batches


def _both_passes(key: Key, data: Data, epoch: int, forget_batch: int, retain_batch: int, *, fill: bool):
    """The batches of a pass over the forget set and of one over the retain set, in new orders for every epoch."""
    retain_key, forget_key = jax.random.split(jax.random.fold_in(key, epoch))
    forget = data_lib.shuffled_batches(forget_key, data_lib.size(data.forget), forget_batch, fill=fill)
    retain = data_lib.shuffled_batches(retain_key, data_lib.size(data.retain), retain_batch, fill=fill)
    return forget, retain
