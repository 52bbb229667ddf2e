"""The one loop: runs any method over its epochs, with progress, checkpoints and exact resume."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Dataset,
    Key,
    Method,
    Metrics,
    ModelState,
    Params,
    StatefulLossFn,
    check_key,
)
from scissorhands_jax.errors import InputError, NonFiniteError, check_whole
from scissorhands_jax.methods.finetune import finetune
from scissorhands_jax.training import compilation, distributed, feeding
from scissorhands_jax.training.checkpoints import Checkpointer, Position, describe_arrays
from scissorhands_jax.training.descriptions import describe_value
from scissorhands_jax.training.identity import Identity, identify
from scissorhands_jax.training.sharding import Layout

# How often the host looks at what the device has done; more often would cost small networks dearly.
_SECONDS_PER_LOOK = 0.1
# Calls that may wait for the device, each with its examples; many where a call is a single step.
_CALLS_AHEAD = 2
_STEPS_AHEAD = 32

OnStep = Callable[["Progress"], None]
OddEntries = Mapping[tuple[str, str], np.ndarray]
"""What was not finite in a network before a run, entry by entry, as `odd_entries` finds it."""


class Progress(NamedTuple):
    """What `on_step` is called with after every step."""

    step: int  # steps taken so far, this one included
    epoch: int  # counted from 0
    offset: int  # steps taken in this epoch
    steps_in_epoch: int
    num_epochs: int
    metrics: dict[str, np.ndarray]


class Result(NamedTuple):
    """What a run gives back."""

    params: Params
    model_state: ModelState
    steps: int
    seconds: float  # wall time without compilation
    compile_seconds: float  # spent on tracing, lowering and compiling


def run(
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    data: Data,
    *,
    num_epochs: int,
    checkpoint: Checkpointer | None = None,
    on_step: OnStep | None = None,
    steps_per_call: int | None = None,
    feed_from: feeding.FeedFrom = "auto",
    layout: Layout | None = None,
) -> Result:
    """Runs a method from its `init` to its `finish`.

    The result is a pure function of the arguments: shuffles come from (key, epoch), the randomness of a step from (key,
    step). So a run that was stopped at any moment and is called again with the same arguments and checkpoint folder
    ends in bit-identical weights, provided that it is resumed in the same environment, which is the kind of machine and
    devices, their number, and the versions of Python and the libraries. Elsewhere a warning says that the bits may
    differ. With other arguments it is refused, also with another loss or method of your own (`identity.identify`).

    Args:
      method: The method to run. Calling `run` again with the same value and shapes compiles nothing again.
      key: A typed PRNG key.
      params: Parameters of the original network, a pytree of floating-point arrays (or floats, which become some);
        never changed or donated. Where the call holds the only reference to the network, its memory is free again once
        the method has begun, and no second copy is made.
      model_state: The state of the original network, a pytree of arrays of any type; treated as `params` are.
      data: Forget and retain sets, pytrees of arrays that share their first axis.
      num_epochs: How many epochs to run, as the method counts them; 0 returns what the method's `init` makes.
      checkpoint: Where to save, and where to resume from; None saves nothing.
      on_step: Called with a `Progress` for every step, in order, once its metrics are there. The device does not wait
        for it, and what it raises ends the run some steps later.
      steps_per_call: How many steps one compiled program takes. None takes many on accelerators and 1 on CPU
        (`feeding.steps_per_call`). All numbers of steps give the same results up to rounding.
      feed_from: "device" puts the data there once, "host" loads batches ahead of the device, "auto" decides by size
        (`feeding.make_feed`). All give the same numbers.
      layout: How network, optimizer state and batches are divided over many devices, perhaps those of many processes
        (`sharding.make_layout`); each process then makes the same call and reads its own share of the data. None uses
        one device. All layouts give the same numbers up to rounding, and a run may be resumed with another one.

    Returns:
      The unlearned network and what it cost.

    Raises:
      InputError: `num_epochs` is negative, `steps_per_call` is below 1, one of them is no whole number, the key is a
        number, the parameters hold something else than real floating-point arrays, the model state something else than
        arrays, the data hold NaN, infinity, a negative label or arrays of one name and two types,
        the method refuses the data or names examples that they lack, or the layout does not divide a batch.
      NonFiniteError: A metric, or the network that a step made, became NaN or infinite. The network is looked at in the
        end and before it is saved, so that every checkpoint is of a good one; those before that step stay.
      CheckpointError: The checkpoint folder belongs to another run, or is damaged.
      BusyError: Another process writes to the checkpoint folder.
    """
    num_epochs = check_arguments([(key, params, model_state)], data, num_epochs)
    feeding.check_feed(feed_from, layout, steps_per_call)
    data_lib.check_values(data)  # reads all of them, so arguments that are wrong are refused before
    params, model_state = trees.as_arrays((params, model_state))
    identity = None
    if checkpoint is not None or jax.process_count() > 1:
        identity = _identify(method, key, (params, model_state), data, num_epochs, layout)
    with contextlib.ExitStack() as stack:
        if checkpoint is not None:
            held = files.sole_writer(checkpoint.directory)
            distributed.from_first(lambda: stack.enter_context(held))
            checkpoint.open()
        network = [params, model_state]
        del params, model_state
        return _run(
            method, key, network, data, num_epochs, checkpoint, identity, on_step, steps_per_call, feed_from, layout
        )


def check_arguments(
    beginnings: Sequence[tuple[Key, Params, ModelState]], data: Data, num_epochs: int, *, whose: str = ""
) -> int:
    """Refuses what no run can begin with, and returns the number of epochs as an int of Python.

    The data are not read here; `run` looks at their values (`data.check_values`).

    Args:
      beginnings: The key and the network of each run.
      data: The data of all of them.
      num_epochs: The epochs of each of them.
      whose: The end of what a network is called in errors, such as " of a member".

    Raises:
      InputError: As for `run`.
    """
    num_epochs = check_whole("the number of epochs", num_epochs, 0)
    for key, params, model_state in beginnings:
        check_key(key)
        trees.check_trained(params, f"the parameters{whose}")
        trees.check_arrays(model_state, f"the model state{whose}")
    data_lib.check_parts(data)
    return num_epochs


def _run(
    method: Method,
    key: Key,
    network: list,  # emptied, so that the memory can be free again
    data: Data,
    num_epochs: int,
    checkpoint: Checkpointer | None,
    identity: Identity | None,
    on_step: OnStep | None,
    steps_per_call: int | None,
    feed_from: feeding.FeedFrom,
    layout: Layout | None,
) -> Result:
    """Does what `run` says, with arguments that were checked."""
    model_state, params = network.pop(), network.pop()
    started, compiled = time.perf_counter(), compilation.seconds()
    feed = feeding.make_feed(data, feed_from, layout)
    init_key, batch_key = jax.random.split(key)
    first = _listed(method, batch_key, feed.data, 0) if num_epochs else []
    if layout is not None:
        layout.check_batches(first)
        params, model_state = layout.place((params, model_state))
    odd = odd_entries(params, model_state)  # such as those of a mask of attention among the parameters
    # A copy, because steps donate the carry, and init may have put the caller's arrays into it, or one array twice.
    # Where nobody else holds the network, each of its arrays is free again once it is copied.
    begun = [method.init(init_key, params, model_state, feed.data)]
    del params, model_state
    carry = _placed(layout, trees.copy(begun.pop()))
    # A method may carry something else than the network, by other names.
    odd_at_first = {} if checkpoint is None else odd_entries(carry.params, carry.model_state)
    position = Position(0, 0)
    if checkpoint is not None and identity is not None:
        step = checkpoint.agreed_step()
        if step is not None:
            carry, position = checkpoint.restore(carry, identity, step=step)
    watch = _Watch(on_step, checkpoint, num_epochs, int(carry.step), data_lib.largest_label(data))
    take_epoch = _Epochs(method.step, feed, watch, checkpoint, identity, odd_at_first, steps_per_call, layout)
    for epoch in range(position.epoch, num_epochs):
        batches = _listed(method, batch_key, feed.data, epoch) if epoch else first
        done = position.offset if epoch == position.epoch else 0
        if done == 0:
            carry = _placed(layout, method.begin_epoch(carry, feed.data))
        carry = take_epoch(carry, batches, Position(epoch, done))
    params, model_state = jax.block_until_ready(method.finish(carry))
    if int(carry.step):
        watch.refuse(broken(params, model_state, odd), int(carry.step))
    compiling = compilation.seconds() - compiled
    elapsed = time.perf_counter() - started
    return Result(params, model_state, int(carry.step), max(0.0, elapsed - compiling), compiling)


def _listed(method: Method, key: Key, data: Data, epoch: int) -> list[Batch]:
    """The batches of an epoch, which are examples of the data.

    Raises:
      InputError: As `data.check_batches`.
    """
    batches = list(method.batches(key, data, epoch))
    data_lib.check_batches(data, batches)
    return batches


def broken(params: Params, model_state: ModelState, odd: OddEntries | None = None) -> set[tuple[str, str]]:
    """What is not finite in a network: NaN and infinity among the parameters, and NaN in the state.

    The metrics of a step are of the network before it, so they do not tell what the last step made. A network may have
    infinity on purpose, as in masks of attention; an entry that had it before a run may have it after, and no NaN.

    Args:
      params: The parameters.
      model_state: The state.
      odd: What may be there. By default nothing may.

    Returns:
      Pairs of the name of an array, such as `params/head/bias`, and of "nan" or "inf".
    """
    found = trees.not_finite({"params": params, "model_state": model_state}, odd)
    return {(name, kind) for name, kind in found if kind == "nan" or name.partition("/")[0] == "params"}


def odd_entries(params: Params, model_state: ModelState) -> OddEntries:
    """The entries of a network that are not finite, of the arrays that have any; the network itself is not kept."""
    found = broken(params, model_state)
    return trees.entries_not_finite({"params": params, "model_state": model_state}, found)


def train(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    key: Key,
    params: Params,
    model_state: ModelState,
    dataset: Dataset,
    *,
    num_epochs: int,
    batch_size: int = 128,
    **options: Any,
) -> Result:
    """Trains a network on all of a data set, by the loop that runs methods; it is fine-tuning with nothing to forget.

    Args:
      loss_fn: The general form of the loss, the mean over a batch; `base.lift` makes it from a simple one.
      optimizer: Any optax optimizer whose updates need the gradient, its state and the parameters alone. Those that
        search along a line or look at the loss, such as `optax.lbfgs` and `optax.contrib.reduce_on_plateau`, need more.
      key: A typed PRNG key, from which shuffles, dropout and augmentation are derived.
      params: What is trained; never changed or donated.
      model_state: BatchNorm statistics and the like, `()` where there are none.
      dataset: A pytree of arrays that share their first axis.
      num_epochs: Passes over the data set.
      batch_size: Examples of a step. The last batch of a pass is filled up from the front of the same order.
      **options: Passed on to `run`.

    Returns:
      The trained network and what it cost.

    Raises:
      InputError: The data set is empty, the optimizer needs more than that, or as in `run`.
      NonFiniteError: The loss became NaN or infinite.
    """
    if data_lib.size(dataset) == 0:
        raise InputError("the data set is empty; give at least one example to train on")
    nothing = data_lib.take(dataset, np.zeros(0, np.int32))
    method = finetune(loss_fn, optimizer, batch_size=batch_size)
    return run(method, key, params, model_state, Data(nothing, dataset), num_epochs=num_epochs, **options)


def _identify(
    method: Method,
    key: Key,
    network: tuple[Params, ModelState],
    data: Data,
    num_epochs: int,
    layout: Layout | None,
) -> Identity:
    """Describes everything that determines the result, on which the processes of the run must agree."""
    chosen = {
        "method": describe_value(method, "method"),
        "epochs": num_epochs,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "forget examples": f"{data_lib.size(data.forget)}, SHA-256 {hashing.tree_sha256(data.forget)[:16]}",
        "retain examples": f"{data_lib.size(data.retain)}, SHA-256 {hashing.tree_sha256(data.retain)[:16]}",
    }
    described = None if layout is None else str(layout)
    distributed.agree("run", identify({**chosen, "original network": describe_arrays(network)}, described).compared())
    # Only now, because a network that is divided over processes has to be gathered, which those of another run cannot.
    found = identify({**chosen, "original network": f"SHA-256 {hashing.tree_sha256(network)[:16]}"}, described)
    distributed.agree("network", found.compared())
    return found


@dataclasses.dataclass
class _Epochs:
    """Takes the steps of one epoch after the other."""

    step: Callable
    feed: feeding.Feed
    watch: _Watch
    checkpoint: Checkpointer | None
    identity: Identity | None  # of a run with checkpoints
    odd: OddEntries  # of the carry that a run with checkpoints begins with
    steps_per_call: int | None
    layout: Layout | None
    shapes: set[str] = dataclasses.field(default_factory=set)  # of calls that were made

    def __call__(self, carry: Carry, batches: Sequence[Batch], position: Position) -> Carry:
        """The carry after the steps from this position to the end of its epoch."""
        every = None if self.checkpoint is None else self.checkpoint.every_steps
        per_call = self.steps_per_call or feeding.steps_per_call(self.feed.data, batches)
        calls = feeding.group_steps(batches, position.offset, per_call=per_call, every=every)
        for call, examples in zip(calls, self.feed.examples(batches, calls), strict=True):
            if (shapes := str(jax.tree.map(np.shape, (call.rows, examples)))) not in self.shapes:
                # It may be compiled now, and steps that run meanwhile would be taken for a part of that.
                self.shapes.add(shapes)
                jax.block_until_ready(carry)
            if call.rows is None:
                carry, metrics = _step(self.step, carry, examples, self.layout)
            else:
                carry, metrics = _steps(self.step, carry, examples, call.steps, self.layout)
            self.watch.add(metrics, position.epoch, call, len(batches))
            offset = call.first + call.steps
            if offset == len(batches) or (every and offset % every == 0):
                self.watch.read_all()
                if self.checkpoint is not None and self.identity is not None:
                    self.watch.refuse(broken(carry.params, carry.model_state, self.odd), int(carry.step))
                    self.checkpoint.save(carry, Position(position.epoch, offset), self.identity)
            else:
                self.watch.look(at_most=_STEPS_AHEAD if call.rows is None else _CALLS_AHEAD)
        return carry


def compile_call(
    step: Callable, carry: Carry, examples: Batch, data: Data, batches: list[Batch]
) -> tuple[jax.stages.Compiled, int | None]:
    """The program that `run` calls for steps like these on one device, and the batches that a call has room for.

    Args:
      step: The step of a method.
      carry: What the step takes; arrays or their outlines.
      examples: The examples of one step; arrays or their outlines.
      data: The data of the run.
      batches: The batches of one of its epochs, all of one shape.

    Returns:
      The compiled `(carry, examples)`; or, with room for `rows` batches, `(carry, stacked examples, count)`.
    """
    rows = feeding.group_steps(batches, 0, per_call=feeding.steps_per_call(data, batches))[0].rows
    if rows is None:
        return _step.lower(step, carry, examples).compile(), None
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), examples)
    return _steps.lower(step, carry, stacked, rows).compile(), rows


def _placed(layout: Layout | None, carry: Carry) -> Carry:
    return carry if layout is None else layout.place(carry)


def _divided(layout: Layout | None, step):
    """The step for a layout: the carry comes out as it goes in, and the host can read the metrics anywhere."""

    def divided(carry: Carry, batch: Batch):
        carry, metrics = step(carry, batch)
        return (carry, metrics) if layout is None else (layout.constrain(carry), layout.replicate(metrics))

    return divided


@functools.partial(jax.jit, static_argnames=("step", "layout"), donate_argnames="carry")
def _step(step, carry: Carry, batch: Batch, layout: Layout | None = None):
    return _divided(layout, step)(carry, batch)


@functools.partial(jax.jit, static_argnames=("step", "layout"), donate_argnames="carry")
def _steps(step, carry: Carry, batches: Batch, count: jax.Array, layout: Layout | None = None):
    """The first `count` steps of a stack of batches; row i of the metrics is the i-th step's, the rest are zeros.

    The number is not compiled in, so that a call may end wherever a checkpoint is due.
    """

    def row(tree, index):
        return jax.tree.map(lambda leaf: leaf[index], tree)

    def body(index, state):
        carry, metrics = state
        carry, found = step(carry, row(batches, index))
        return carry, jax.tree.map(lambda kept, new: kept.at[index].set(new), metrics, found)

    step = jax.jit(_divided(layout, step), inline=True)  # traced once
    rows = len(jax.tree.leaves(batches)[0])
    _, shapes = jax.eval_shape(step, carry, row(batches, 0))
    metrics = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (carry, metrics))


class _Watch:
    """Holds back metrics until the device has them, refuses those that are not finite, and passes them on."""

    def __init__(
        self,
        on_step: OnStep | None,
        checkpoint: Checkpointer | None,
        num_epochs: int,
        steps_taken: int,
        largest_label: int | None,
    ) -> None:
        self._largest_label = largest_label
        self._on_step = on_step
        self._checkpoint = checkpoint
        self._num_epochs = num_epochs
        self._step = steps_taken
        self._pending: collections.deque[tuple] = collections.deque()
        self._looked = time.monotonic()

    def add(self, metrics, epoch: int, call: feeding.StepGroup, steps_in_epoch: int) -> None:
        self._pending.append((metrics, epoch, call, steps_in_epoch))

    def look(self, *, at_most: int) -> None:
        """Reads, now and then, what is there already; waits only where more calls than `at_most` are under way."""
        count = max(0, len(self._pending) - at_most)
        if time.monotonic() - self._looked > _SECONDS_PER_LOOK:
            while count < len(self._pending) and _is_ready(self._pending[count][0]):
                count += 1
            self._looked = time.monotonic()
        self._read(count)

    def read_all(self) -> None:
        """Waits for everything."""
        self._read(len(self._pending))

    def _read(self, count: int) -> None:
        taken = [self._pending.popleft() for _ in range(count)]
        for found, (_, epoch, call, steps) in zip(jax.device_get([row[0] for row in taken]), taken, strict=True):
            for index in range(call.steps):
                self._step += 1
                row = found if call.rows is None else {name: value[index] for name, value in found.items()}
                self._pass_on(Progress(self._step, epoch, call.first + index + 1, steps, self._num_epochs, row))

    def _pass_on(self, progress: Progress) -> None:
        for name, value in progress.metrics.items():
            bad = np.ravel(value)[~np.isfinite(np.ravel(value))]
            if bad.size:
                raise NonFiniteError(progress.step, name, float(bad[0]), self._advice(progress.epoch))
        if self._on_step is not None:
            self._on_step(progress)

    def refuse(self, found: set[tuple[str, str]], step: int) -> None:
        """Raises NonFiniteError if the network that a step made has something that is not finite (`broken`)."""
        for name, kind in sorted(found):
            raise NonFiniteError(step, name, float(kind), self._advice())

    def _advice(self, epoch: int | None = None) -> str:
        kept = None if self._checkpoint is None else self._checkpoint.latest_step
        good = "nothing was saved" if kept is None else f"the checkpoint of step {kept} is good and stays"
        labels = ""
        if epoch == 0 and self._largest_label is not None:  # A label that is no class makes the loss NaN.
            labels = f", and see that every label is below the number of classes (the largest is {self._largest_label})"
        return f"{good}; lower the learning rate or the forget weight{labels}"


def _is_ready(metrics: Metrics) -> bool:
    return all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))
