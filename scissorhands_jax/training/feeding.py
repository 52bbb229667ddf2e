"""Where the examples of a step come from: data that lie on the device, or a host that loads ahead of it.

Both give the same examples for the same positions, so what a run computes does not depend on where its data lie.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, Dataset
from scissorhands_jax.errors import InputError, check_choice, check_whole
from scissorhands_jax.training import sharding

FeedFrom = Literal["auto", "device", "host"]

# The share of the memory that data may take; the rest is for the network, its gradients and activations.
_DATA_SHARE = 0.25
# What the examples of one call may take in addition to the data set itself.
_CALL_BYTES = 256 * 2**20
_STEPS_PER_CALL = 64
_LOADED_AHEAD = 2


class StepGroup(NamedTuple):
    """Consecutive steps of an epoch that one call takes: their batches have one structure and one shape."""

    first: int  # offset in the epoch of the first of them
    steps: int
    rows: int | None  # batches that the call has room for, `steps` of which are taken; None: one batch, one step


def group_steps(batches: Sequence[Batch], done: int, *, per_call: int, every: int | None = None) -> list[StepGroup]:
    """Cuts what is left of an epoch into calls.

    Args:
      batches: The batches of the whole epoch.
      done: How many of its steps were taken already.
      per_call: The most steps that one call takes.
      every: A call ends at each offset that is a multiple of this, because a checkpoint is saved there; None if no
        checkpoint is saved within an epoch.
    """
    ends = _ends_of_alike(batches)
    found, first = [], done
    while first < len(batches):
        end = min(ends[first], first + per_call)
        if every is not None:
            end = min(end, (first // every + 1) * every)
        # Room for a power of two, by all equal batches in a row: where they are cut must not make it compile again.
        whole = ends[first] - ends.index(ends[first])
        rows = None if per_call == 1 else min(per_call, 1 << (whole - 1).bit_length())
        found.append(StepGroup(first, min(end - first, rows or 1), rows))
        first += found[-1].steps
    return found


def _ends_of_alike(batches: Sequence[Batch]) -> list[int]:
    """For every batch the offset at which those of its structure and shape end."""
    shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    ends, end = [0] * len(batches), len(batches)
    for offset in reversed(range(len(batches))):
        if offset + 1 < len(batches) and shapes[offset] != shapes[offset + 1]:
            end = offset + 1
        ends[offset] = end
    return ends


class Feed(Protocol):
    """Turns positions into examples on the device."""

    data: Data  # what methods may read

    def examples(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        """The examples of each call, with a leading axis over its rows unless it is a single step."""
        ...


class DeviceFeed:
    """Data that lie on the device; a batch is a gather of rows."""

    def __init__(self, data: Data) -> None:
        self.data = jax.tree.map(jnp.asarray, data)

    def examples(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        """As `Feed` says."""
        return (_gather(self.data, _positions(batches, call)) for call in calls)


class HostFeed:
    """Data that stay on the host (arrays, or maps of files into memory); threads read ahead of the device."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def examples(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        """As `Feed` says."""
        return (jax.device_put(batch) for batch in self._loaded(batches, calls))

    def _loaded(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        try:
            import grain
        except ModuleNotFoundError as error:
            raise InputError(
                "data that stay on the host are loaded by grain, which is not installed; install it, or feed from "
                "the device"
            ) from error

        loaded = (
            grain.MapDataset.source(calls)
            .map(lambda call: data_lib.gather(self.data, _positions(batches, call)))
            .to_iter_dataset(grain.ReadOptions(num_threads=_LOADED_AHEAD, prefetch_buffer_size=_LOADED_AHEAD))
        )
        return iter(loaded)


class DividedFeed(HostFeed):
    """A `HostFeed` for many devices: each process reads the rows of its own, and no data set is on a device.

    Methods see their data by `sharding.HostRows`, so that the batches they take themselves are divided too.
    """

    def __init__(self, data: Data, layout: sharding.Layout) -> None:
        super().__init__(sharding.host_rows(data, layout))

    def examples(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        """As `Feed` says."""
        return self._loaded(batches, calls)


class ResidentFeed(DividedFeed):
    """Data that lie whole on every device of one process, each of which gathers the rows that are its own."""

    def __init__(self, data: Data, layout: sharding.Layout) -> None:
        super().__init__(data, layout)
        self._layout = layout
        self._resident = layout.everywhere(data)

    def examples(self, batches: Sequence[Batch], calls: Sequence[StepGroup]) -> Iterator[Batch]:
        """As `Feed` says."""
        for call in calls:
            yield _gather_divided(self._resident, self._layout.divided(_positions(batches, call)), self._layout)


def make_feed(data: Data, feed_from: FeedFrom = "auto", layout: sharding.Layout | None = None) -> Feed:
    """The feed for some data.

    Args:
      data: Forget and retain sets, pytrees of arrays.
      feed_from: "device" copies the data there at once, "host" leaves them where they are and loads batches ahead, and
        "auto" takes "device" if they fill no more than a quarter of its memory.
      layout: Where batches lie on many devices; None is one device. With a layout "device" puts all data on each
        device, and where the devices belong to many processes, each process loads its share from its host.

    Raises:
      InputError: `feed_from` is unknown, or it is "device" and the layout is over many processes.
    """
    check_feed(feed_from, layout)
    if feed_from == "auto":
        feed_from = "device" if fits_on_device(data) and not _is_shared(layout) else "host"
    if layout is None:
        return DeviceFeed(data) if feed_from == "device" else HostFeed(data)
    return ResidentFeed(data, layout) if feed_from == "device" else DividedFeed(data, layout)


def check_feed(feed_from: FeedFrom, layout: sharding.Layout | None = None, steps_per_call: int | None = None) -> None:
    """Raises InputError for what `make_feed` refuses, and for fewer steps in a call than one."""
    check_choice("feed_from", feed_from, get_args(FeedFrom))
    if feed_from == "device" and _is_shared(layout):
        raise InputError("with many processes each feeds its share from the host; leave feed_from out")
    if steps_per_call is not None:
        check_whole("steps_per_call", steps_per_call, 1)


def _is_shared(layout: sharding.Layout | None) -> bool:
    return layout is not None and jax.process_count() > 1


def fits_on_device(data: Data) -> bool:
    """Whether the data are no more than a quarter of the device's memory, and are put there by themselves."""
    return trees.nbytes(data) <= _DATA_SHARE * device_memory()


def steps_per_call(data: Data, batches: Sequence[Batch]) -> int:
    """How many steps one call of a compiled program should take on the default device.

    On accelerators many: the loop runs on the device, which then never waits for the host. On CPU one: a call costs
    little there, while XLA's convolutions are about 25 times slower in a loop than outside of one (jax issue 12868).

    Args:
      data: The data of the run, whose rows say how large the examples are.
      batches: The positions of an epoch; the largest batch decides.
    """
    if jax.default_backend() == "cpu":
        return 1
    largest = max((_batch_bytes(data, batch) for batch in batches), default=1)
    return max(1, min(_STEPS_PER_CALL, _CALL_BYTES // max(1, largest)))


def _batch_bytes(data: Data, batch: Batch) -> int:
    total = 0
    for part, positions in zip(data, batch, strict=True):
        if positions is not None:
            total += sum(np.size(positions) * trees.nbytes(leaf) // max(1, len(leaf)) for leaf in jax.tree.leaves(part))
    return total


def device_memory() -> int:
    """Bytes of the memory of one device; on CPU that of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _positions(batches: Sequence[Batch], call: StepGroup) -> Batch:
    """The positions of a call, stacked; what it has room for beyond its steps repeats the last."""
    if call.rows is None:
        return batches[call.first]
    rows = [batches[call.first + min(row, call.steps - 1)] for row in range(call.rows)]
    return jax.tree.map(lambda *positions: np.stack(positions), *rows)


# Apart from the step, so that the step compiles for the shape of a batch and not again for every size of a data set.
_gather = jax.jit(data_lib.gather)


@functools.partial(jax.jit, static_argnames="layout")
def _gather_divided(data: Data, positions: Batch, layout: sharding.Layout) -> Batch:
    examples = data_lib.gather(data, positions)

    def divide(batch: jax.Array, part: Dataset) -> Dataset:
        return jax.tree.map(lambda leaf: layout.constrain_rows(leaf, batch.ndim), part)

    return jax.tree.map(divide, positions, examples)
