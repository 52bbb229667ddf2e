"""Several runs of one method at once: over seeds, learning rates, fractions, forget weights, or networks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Carry, Data, Key, Method, Metrics, ModelState, Params, PyTree, keep_carry
from scissorhands_jax.errors import DivergedError, InputError, NonFiniteError, check_choice
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.training import feeding
from scissorhands_jax.training.loop import OnStep, Result, broken, check_arguments, odd_entries, run

How = Literal["auto", "batched", "scanned", "turns", "sharded"]
_MEMBERS = "members"
_TIMED_STEPS = 3


class Member(NamedTuple):
    """One run of a sweep."""

    method: Method
    key: Key
    params: Params
    model_state: ModelState


def run_many(
    members: Sequence[Member], data: Data, *, num_epochs: int, how: How = "auto", on_step: OnStep | None = None
) -> list[Result | DivergedError]:
    """What `run` would give for every member, in one compiled program or in turns.

    Args:
      members: The runs. Their methods must have equal steps, as methods of Scissorhands have that differ in numbers
        only, and as `methods_of` makes them for settings that differ in the learning rate. Keys, initial networks,
        fractions and the order of examples may differ.
      data: Forget and retain sets, as for `run`; the same for all members.
      num_epochs: How many epochs each member runs.
      how: "batched" maps the step over a batch axis of members, "sharded" does so with that axis divided over the
        devices of this process, "scanned" takes one member after another within the compiled program, and "turns" makes
        one run after another. "auto" times a few steps of each and takes the fastest (`fastest`).
      on_step: Called after every step with the metrics of all members, shape=(members, ...), in which
        NaN and infinity of a member that diverged are finite numbers; with "turns" it is called
        with the metrics of one member at a time. None calls nothing.

    Returns:
      One result for each member, in order, equal to that of `run` up to rounding; its seconds are the member's share.
      A member that diverged, in a step or as its method begins, has its error in place of a result and does not end the
      others.

    Raises:
      InputError: There is no member, their steps, networks or batches differ so that they cannot share a program, `how`
        is unknown, or keys, parameters, data, batches or `num_epochs` cannot be used, as for `run`.
    """
    if not members:
        raise InputError("a sweep needs at least one member, got none")
    check_choice("how", how, get_args(How))
    num_epochs = check_arguments([member[1:] for member in members], data, num_epochs, whose=" of a member")
    members = [Member(method, key, *trees.as_arrays(network)) for method, key, *network in members]
    if how == "turns":
        return [_run_one(member, data, num_epochs, on_step) for member in members]
    _check_alike(members, data)
    if how == "auto":
        data_lib.check_values(data)  # as each run does, but before steps are timed
    return _run_alike(members, data, num_epochs, how, on_step)


def _run_alike(
    members: Sequence[Member], data: Data, num_epochs: int, how: How, on_step: OnStep | None
) -> list[Result | DivergedError]:
    """Does what `run_many` says, with arguments that were checked."""
    try:
        return _run_together(members, data, num_epochs, how, on_step)
    except _MemberDivergedError as error:  # The others begin again without it.
        rest = [*members[: error.number], *members[error.number + 1 :]]
        found = _run_alike(rest, data, num_epochs, how, on_step) if rest else []
        return [*found[: error.number], error.cause, *found[error.number :]]


def _run_together(
    members: Sequence[Member], data: Data, num_epochs: int, how: How, on_step: OnStep | None
) -> list[Result | DivergedError]:
    """One try of `_run_alike`, which ends with the first member that diverges outside of a step."""
    if how == "auto":
        timed = fastest(members, data)
        how = min(timed, key=timed.__getitem__)
    if how == "turns":
        return [_run_one(member, data, num_epochs, on_step) for member in members]
    mesh = _mesh(len(members)) if how == "sharded" else None
    if mesh is not None and feeding.fits_on_device(data):
        # Every device reads all examples, and keeps them.
        data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    finished: list[tuple[list, jax.Array]] = []
    method = _together(members, how, mesh, finished)
    stacked = run(method, members[0].key, (), (), data, num_epochs=num_epochs, on_step=on_step)
    ((networks, bad_steps),) = finished
    if mesh is not None:  # Each network by itself again, on one device as all others.
        networks = jax.tree.map(_on_one_device, networks)
    seconds, compile_seconds = stacked.seconds / len(members), stacked.compile_seconds / len(members)
    return [
        Result(network[0], network[1], stacked.steps, seconds, compile_seconds)
        if bad_step < 0 and network is not None
        else NonFiniteError(
            bad_step + 1 if bad_step >= 0 else stacked.steps,
            "a metric" if bad_step >= 0 else "a weight",
            float("nan"),
            "lower the learning rate or the forget weight",
        )
        for network, bad_step in zip(networks, bad_steps.tolist(), strict=True)
    ]


class _MemberDivergedError(DivergedError):
    """Outside of a step one member of several diverged."""

    def __init__(self, number: int, cause: DivergedError) -> None:
        super().__init__(str(cause))
        self.number = number
        self.cause = cause


def _of_each(call: Callable[..., PyTree], *columns: Sequence) -> list:
    """What a function gives for each member; where one diverges, the error says which."""
    found = []
    for number, row in enumerate(zip(*columns, strict=True)):
        try:
            found.append(call(*row))
        except DivergedError as error:
            raise _MemberDivergedError(number, error) from error
    return found


def _on_one_device(leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_on_one_device(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jnp.asarray(np.asarray(leaf))


def fastest(members: Sequence[Member], data: Data) -> dict[How, float]:
    """Seconds per step of all members, for each way that is worth trying on this device.

    The best of a few steps after compilation, on the first batch; "sharded" where there are devices to divide the
    members over (`_mesh`). Convolutions within a loop or a batch axis of networks are many times slower on CPU (grouped
    convolutions; jax issue 12868), so only "turns" is there for them.
    """
    first = members[0]
    ((carry, batch),) = _of_each(lambda member: _first_step(member, data), [first])
    if jax.default_backend() == "cpu" and trees.has_image_kernels(carry.params):
        return {"turns": float("inf")}
    carries, batches = _stack(_of_each(lambda member: _first_step(member, data), members))
    seconds: dict[How, float] = {"turns": len(members) * _best_seconds(first.method.step, carry, batch)}
    for how in ("batched", "scanned"):
        seconds[how] = _best_seconds(_Many(first.method.step, how), _wrap(carries), batches)
    mesh = _mesh(len(members))
    if mesh.size > 1:
        divided, rows = _divided(_wrap(carries), mesh), jax.device_put(batches, NamedSharding(mesh, PartitionSpec()))
        seconds["sharded"] = _best_seconds(_Many(first.method.step, "sharded", mesh), divided, rows)
    return seconds


def _mesh(count: int) -> Mesh:
    """A mesh of the most devices of this process that divide this number of members evenly."""
    devices = jax.local_devices()
    size = max(size for size in range(1, len(devices) + 1) if count % size == 0)
    return Mesh(np.array(devices[:size]), (_MEMBERS,))


def _divided(carry: Carry, mesh: Mesh) -> Carry:
    """A carry of `_Many` whose members lie on the devices of a mesh, some on each; what they share is on all."""
    shared = jax.device_put(carry._replace(params=()), NamedSharding(mesh, PartitionSpec()))
    own = jax.device_put((carry.params, carry.aux), NamedSharding(mesh, PartitionSpec(_MEMBERS)))
    return shared._replace(params=own[0], aux=own[1])


def methods_of(build: Callable[[MethodSettings], Method], variants: Sequence[MethodSettings]) -> list[Method]:
    """The methods of some settings; what differs in the learning rate alone shares one step, and so its program.

    That works where the optimizer keeps the rate in its state, as `optimizers.sgd` does.

    Raises:
      InputError: by `init` of a method that does not.
    """
    steps: list[tuple[MethodSettings, Method]] = []
    methods = []
    for settings in variants:
        method = build(settings)
        for known, other in steps:
            if _without_rate(settings) == _without_rate(known):
                same = settings == known
                init = method.init if same else _with_rate(method.init, type(settings).__name__)
                method = method._replace(step=other.step, init=init)
                break
        else:
            steps.append((settings, method))
        methods.append(method)
    return methods


def _without_rate(settings: MethodSettings) -> tuple[type, dict]:
    fields = dataclasses.asdict(settings)
    return type(settings), {name: value for name, value in fields.items() if name != "learning_rate"}


def _with_rate(init: Callable[..., Carry], name: str) -> Callable[..., Carry]:
    def checked(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        carry = init(key, params, model_state, data)
        if optax.tree_utils.tree_get(carry.opt_state, "learning_rate") is None:
            raise InputError(f"{name} keeps no learning rate in its state; sweep over something else")
        return carry

    return checked


def _run_one(member: Member, data: Data, num_epochs: int, on_step: OnStep | None) -> Result | DivergedError:
    method, key, params, model_state = member
    try:
        return run(method, key, params, model_state, data, num_epochs=num_epochs, on_step=on_step)
    except DivergedError as error:
        return error


@dataclasses.dataclass(frozen=True)
class _Many:
    """One step of every member; a value, so that sweeps of equal steps compile once.

    What is run is a carry whose `params` are the stacked carries of the members and whose `aux` says at which step each
    of them first had a metric that is not finite, -1 for none.
    """

    step: Callable[[Carry, Batch], tuple[Carry, Metrics]]
    how: How
    mesh: Mesh | None = None

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        if self.mesh is not None:
            # No member asks for anything of another, so each device works by itself.
            own = PartitionSpec(_MEMBERS)
            mapped = jax.shard_map(jax.vmap(self.step), mesh=self.mesh, in_specs=own, out_specs=own, check_vma=False)
            carries, metrics = mapped(carry.params, batch)
        elif self.how == "batched":
            carries, metrics = jax.vmap(self.step)(carry.params, batch)
        else:
            carries, metrics = jax.lax.map(lambda pair: self.step(*pair), (carry.params, batch))
        floats = {name: value for name, value in metrics.items() if jnp.issubdtype(value.dtype, jnp.inexact)}
        good = jnp.ones(carry.aux.shape, bool)
        for value in floats.values():
            good &= jnp.isfinite(value).reshape(len(value), -1).all(axis=1)
        bad_step = jnp.where((carry.aux < 0) & ~good, carry.step, carry.aux)
        # The loop ends a run whose metrics are not finite, which one member must not do to the others.
        metrics |= {name: jnp.nan_to_num(value, posinf=0.0, neginf=0.0) for name, value in floats.items()}
        return carry._replace(step=carry.step + 1, params=carries, aux=bad_step), metrics


def _together(members: Sequence[Member], how: How, mesh: Mesh | None, finished: list) -> Method:
    """All members as one method.

    Its `finish` appends the networks of the members, None for one that is not finite, and `_Many`'s `aux` to
    `finished`. The loop refuses a network that is not finite, which one member must not do to the others, and which may
    have been so from the beginning.
    """
    methods = [member.method for member in members]
    step = methods[0].step

    def placed(carry: Carry) -> Carry:
        return carry if mesh is None else _divided(carry, mesh)

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        del key, params, model_state
        return placed(_wrap(_stack(_of_each(lambda member: _start(member, data), members))))

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        if all(method.begin_epoch is keep_carry for method in methods):
            return carry
        carries = _unstack(carry.params, len(members))
        begun = _of_each(lambda method, each: method.begin_epoch(each, data), methods, carries)
        return placed(carry._replace(params=_stack(begun)))

    def batches(key: Key, data: Data, epoch: int) -> list[Batch]:
        del key
        each = _batches_of(members, data, epoch)
        return [jax.tree.map(lambda *positions: np.stack(positions), *rows) for rows in zip(*each, strict=True)]

    def finish(carry: Carry) -> tuple[PyTree, PyTree]:
        carries = _unstack(carry.params, len(members))
        networks = _of_each(lambda method, each: method.finish(each), methods, carries)
        odd = [odd_entries(member.params, member.model_state) for member in members]
        bad = [
            carry.step and broken(params, model_state, before)
            for (params, model_state), before in zip(networks, odd, strict=True)
        ]
        good = [None if found else network for found, network in zip(bad, networks, strict=True)]
        finished.append((good, carry.aux))
        return (), ()

    return Method(init, _Many(step, how, mesh), batches, begin_epoch, finish)


def _check_alike(members: Sequence[Member], data: Data) -> None:
    """Refuses members whose steps, networks or first batches differ, before anything is compiled."""
    if any(member.method.step != members[0].method.step for member in members):
        raise InputError(
            f"the steps of the {len(members)} methods differ, so they cannot share a program; make them with "
            'methods_of, or take how="turns"'
        )
    forms = [jax.tree.map(lambda leaf: (np.shape(leaf), jnp.result_type(leaf)), member[2:]) for member in members]
    if any(form != forms[0] for form in forms):
        raise InputError(
            "the networks of the members differ in the names, shapes or types of their arrays, so they cannot share a "
            'program; take how="turns"'
        )
    _batches_of(members, data, 0)


def _batches_of(members: Sequence[Member], data: Data, epoch: int) -> list[list[Batch]]:
    """The batches of every member.

    Raises:
      InputError: They differ in shape or number, or name examples that the data lack.
    """
    each = [list(member.method.batches(_keys(member)[1], data, epoch)) for member in members]
    for rows in each:
        data_lib.check_batches(data, rows)
    if any(jax.tree.map(np.shape, rows) != jax.tree.map(np.shape, each[0]) for rows in each):
        raise InputError("the members' batches differ in size or number, so they cannot share a program; use turns")
    return each


def _keys(member: Member) -> jax.Array:
    """The keys of its `init` and of its batches, as `run` derives them."""
    return jax.random.split(member.key)


def _start(member: Member, data: Data) -> Carry:
    return member.method.init(_keys(member)[0], member.params, member.model_state, data)


def _first_step(member: Member, data: Data) -> tuple[Carry, Batch]:
    """What the first step of its first epoch is given.

    Raises:
      InputError: it takes no step, or the batch names examples that the data lack.
    """
    batch = next(iter(member.method.batches(_keys(member)[1], data, 0)), None)
    if batch is None:
        raise InputError('a method without steps has nothing to share; sweep over it with how="turns"')
    data_lib.check_batches(data, [batch])
    return member.method.begin_epoch(_start(member, data), data), data_lib.gather(data, batch)


def _best_seconds(step: Callable, carry: Carry, batch: Batch) -> float:
    """The least that a step took, compiled already."""
    compiled = jax.jit(step)
    seconds = []
    for _ in range(_TIMED_STEPS + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(carry, batch))
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _wrap(carries: Carry) -> Carry:
    count = len(carries.step)
    return Carry(jnp.zeros((), jnp.int32), carries.key[0], carries, (), (), jnp.full((count,), -1, jnp.int32))


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: PyTree, count: int) -> list[PyTree]:
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(count)]
