"""The one loop: runs any method over its epochs, with progress, checkpoints and exact resume."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Carry, Data, Key, Method, ModelState, Params
from scissorhands_jax.checkpoints import Checkpointer, Position, checksum, fingerprint
from scissorhands_jax.errors import InputError, NonFiniteError

# The host waits for the device, to look at the metrics, this often; more often would cost small networks dearly.
_SECONDS_PER_SYNC = 0.1

OnStep = Callable[["Progress"], None]


class Progress(NamedTuple):
    """What `on_step` is told after every step."""

    step: int  # counted from 1
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
    compile_seconds: float


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
) -> Result:
    """Runs a method from its `init` to its `finish`.

    The result is a pure function of the arguments: shuffles come from (key, epoch), the randomness of a step from (key,
    step), so a run that was stopped at any moment and called again with the same arguments and checkpoint folder ends
    in bit-identical weights.

    Args:
      method: what to run; call `run` again with the same value and shapes, and nothing is compiled anew.
      key: typed PRNG key.
      params, model_state: the original network; never changed or donated.
      data: forget and retain sets, put on the device once.
      num_epochs: passes, as the method counts them.
      checkpoint: where to save and from where to go on; None saves nothing.
      on_step: called with a `Progress` after every step.

    Returns:
      The unlearned network and what it cost.

    Raises:
      InputError: `num_epochs` is negative, or the method refuses the data.
      NonFiniteError: a metric became NaN or infinite; the checkpoints before that step stay.
      CheckpointError: the checkpoint folder belongs to another run.
    """
    if num_epochs < 0:
        raise InputError(f"num_epochs must not be negative, got {num_epochs}")
    started, compiled = time.perf_counter(), _compile_seconds()
    data = jax.tree.map(jnp.asarray, data)
    init_key, batch_key = jax.random.split(key)
    # A copy, because steps donate the carry, and init may have put the caller's arrays into it, or one array twice.
    carry = trees.copy(method.init(init_key, params, model_state, data))
    position = Position(0, 0)
    identity: dict[str, Any] = {}
    if checkpoint is not None:
        identity = fingerprint(carry) | {
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "original network": checksum((params, model_state)),
            "forget examples": f"{data_lib.size(data.forget)}, checksum {checksum(data.forget)}",
            "retain examples": f"{data_lib.size(data.retain)}, checksum {checksum(data.retain)}",
        }
        if checkpoint.latest_step is not None:
            carry, position = checkpoint.restore(carry, identity)
    watch = _Watch(on_step, checkpoint, num_epochs)

    for epoch in range(position.epoch, num_epochs):
        batches = list(method.batches(batch_key, data, epoch))
        done = position.offset if epoch == position.epoch else 0
        if done == 0:
            carry = method.begin_epoch(carry, data)
        for offset, batch in enumerate(batches[done:], start=done + 1):
            carry, metrics = _step(method.step, carry, _gather(data, batch))
            watch.add(metrics, epoch, offset, len(batches))
            save = checkpoint is not None and (
                offset == len(batches) or (checkpoint.every_steps and offset % checkpoint.every_steps == 0)
            )
            if save or watch.is_due() or offset == len(batches):
                watch.flush(int(carry.step))
            if checkpoint is not None and save:
                checkpoint.save(carry, Position(epoch, offset), identity)
    params, model_state = jax.block_until_ready(method.finish(carry))
    compiling = _compile_seconds() - compiled
    elapsed = time.perf_counter() - started
    return Result(params, model_state, int(carry.step), max(0.0, elapsed - compiling), compiling)


# Apart from the step, so that the step compiles for the shape of a batch and not anew for every size of a data set.
_gather = jax.jit(data_lib.gather)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(step, carry: Carry, batch: Batch):
    return step(carry, batch)


class _Watch:
    """Holds back metrics until the host looks at them, refuses those that are not finite, and passes them on."""

    def __init__(self, on_step: OnStep | None, checkpoint: Checkpointer | None, num_epochs: int) -> None:
        self._on_step = on_step
        self._checkpoint = checkpoint
        self._num_epochs = num_epochs
        self._pending: list[tuple] = []
        self._looked = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() - self._looked > _SECONDS_PER_SYNC

    def add(self, metrics, epoch: int, offset: int, steps_in_epoch: int) -> None:
        self._pending.append((metrics, epoch, offset, steps_in_epoch))

    def flush(self, step: int) -> None:
        first = step - len(self._pending) + 1
        rows = jax.device_get([row[0] for row in self._pending])
        for number, (metrics, (_, epoch, offset, steps)) in enumerate(zip(rows, self._pending, strict=True), first):
            for name, value in metrics.items():
                if not np.all(np.isfinite(value)):
                    raise NonFiniteError(number, name, float(np.ravel(value)[0]), self._advice())
            if self._on_step is not None:
                self._on_step(Progress(number, epoch, offset, steps, self._num_epochs, metrics))
        self._pending = []
        self._looked = time.monotonic()

    def _advice(self) -> str:
        kept = None if self._checkpoint is None else self._checkpoint.latest_step
        good = "nothing was saved" if kept is None else f"the checkpoint of step {kept} is good and stays"
        return f"{good}; lower the learning rate or the forget weight"


_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
_compile_total = 0.0


def _compile_seconds() -> float:
    """Seconds that this process has spent on lowering and compiling since this module was imported."""
    return _compile_total


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    global _compile_total
    if event in _COMPILE_EVENTS:
        _compile_total += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_event)
