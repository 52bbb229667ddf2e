"""Changes that make a run fit into memory, and the memory that it then needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from scissorhands_jax import models, trees
from scissorhands_jax.base import Carry, Method
from scissorhands_jax.jobs.job import loss_of
from scissorhands_jax.jobs.loading import build_model
from scissorhands_jax.jobs.plan_memory import GRADIENTS, TEMPORARIES, RunMemory, gradient_bytes
from scissorhands_jax.jobs.plan_report import Advice
from scissorhands_jax.jobs.plan_steps import PlannedJob, StepKind, changed_settings, compile_steps
from scissorhands_jax.methods import MethodSettings, TrainingSettings
from scissorhands_jax.methods.pair_gradients import choose_pair

_DIVISORS = (2, 4, 8, 16, 32, 64)


def advise(run: PlannedJob, memory: RunMemory, carry: Carry) -> tuple[Advice, ...]:
    """Changes that need less memory, each with what is then needed.

    Of numbers of microbatches or devices only the smallest that is enough is given, or else the largest.

    Args:
      run: The run.
      memory: What it needs as it is.
      carry: What a step takes.
    """
    adviser = _Adviser(run, memory, carry)
    settings = run.settings
    if adviser.pairs_at_once():
        one_by_one = adviser.activations(changed_settings(settings, pair="sequential"))
        adviser.suggest("one pass after the other", "method.pair=sequential", one_by_one)
    rematerializes = (
        bool(adviser.sizes) and adviser.network_takes("remat") and not run.job.config.model_options.get("remat")
    )
    if rematerializes:
        needed = adviser.activations(settings, remat=True)
        adviser.suggest("rematerialization", "model_options.remat=true", needed)
    adviser.suggest_microbatches(rematerializes=rematerializes)
    dtype = jnp.dtype(run.job.config.model_options.get("dtype", "float32"))
    if adviser.sizes and adviser.network_takes("dtype") and dtype == jnp.float32:
        needed = adviser.activations(settings, dtype="bfloat16")
        adviser.suggest("bfloat16", "model_options.dtype=bfloat16", needed)
    adviser.suggest_devices()
    return tuple(adviser.found)


class _Adviser:
    """Collects advice about the kind of step that sees the most examples."""

    def __init__(self, run: PlannedJob, memory: RunMemory, carry: Carry) -> None:
        self.run, self.memory, self.carry = run, memory, carry
        largest = max(run.kinds, key=lambda kind: kind.num_examples, default=StepKind(None, None))
        self.kind = largest.divided(run.devices)
        self.sizes = [size for size in self.kind if size is not None]
        self.divisors = [n for n in _DIVISORS if self.sizes and not any(size % n for size in self.sizes)]
        self.found: list[Advice] = []
        # Activations of the whole batch and of a quarter of it, in one pass after the other.
        self.plain = changed_settings(run.settings, microbatches=1, pair="sequential")
        self.whole = self.activations(self.plain) if self.sizes else memory.parts[TEMPORARIES]
        self.quarter = self.activations(self.plain, 4) if 4 in self.divisors else self.whole / 4

    def activations(self, settings: MethodSettings, share: int = 1, **options: Any) -> int:
        """Temporaries of a step with 1/share of the batch, other settings and other options of the network."""
        method = _method(self.run, settings, options)
        program = compile_steps(self.run, method, self.carry, self.kind.divided(share))
        return max(0, program.temporaries - gradient_bytes(self.run.job.config, self.carry.params))

    def share_of(self, share: int) -> float:
        """Activations of 1/share of the batch, on the line through the whole batch and a quarter of it."""
        return self.quarter + (self.whole - self.quarter) * (1 / share - 1 / 4) / (3 / 4)

    def suggest(self, what: str, how: str, temporaries: float, *, more: int = 0, devices: int | None = None) -> bool:
        """Adds a piece of advice and returns whether the run then fits.

        Args:
          what, how: As in `Advice`.
          temporaries: Bytes of activations and temporaries.
          more: Additional bytes of gradients.
          devices: The number of devices of the run; None keeps the present number.
        """
        changes = {TEMPORARIES: max(0, round(temporaries)), GRADIENTS: self.memory.parts[GRADIENTS] + more}
        placement = self.memory.place(devices or self.run.devices, changes)
        fits = placement.total <= self.memory.limit
        what = f"{what}, {placement.strategy}" if devices else what
        self.found.append(Advice(what=what, how=how, total_bytes=placement.total, fits=fits))
        return fits

    def suggest_microbatches(self, *, rematerializes: bool) -> None:
        """Adds microbatches, alone and together with rematerialization."""
        settings = self.run.settings
        sequential = " method.pair=sequential" if getattr(settings, "pair", None) == "vmap" else ""
        now = getattr(settings, "microbatches", 1)
        more = [n for n in self.divisors if n > now] if isinstance(settings, TrainingSettings) else []
        accumulator = trees.nbytes(self.carry.params)

        def divide(count: int) -> bool:
            how = f"method.microbatches={count}{sequential}"
            return self.suggest(f"{count} microbatches", how, self.share_of(count), more=accumulator)

        self._first_that_fits(more, divide)
        if rematerializes and 4 in more:
            both = f"method.microbatches=4{sequential} model_options.remat=true"
            needed = self.activations(self.plain, 4, remat=True)
            self.suggest("rematerialization and 4 microbatches", both, needed, more=accumulator)

    def suggest_devices(self) -> None:
        """Adds more devices."""
        now = self.run.devices

        def add(count: int) -> bool:
            needed = self.share_of(count // now)
            return self.suggest(f"{count} devices", f"--devices {count}", needed, devices=count)

        self._first_that_fits([now * n for n in self.divisors], add)

    def _first_that_fits(self, counts: Sequence[int], suggestion: Callable[[int], bool]) -> None:
        for count in counts:
            if suggestion(count) or count == counts[-1]:
                return
            self.found.pop()

    def network_takes(self, option: str) -> bool:
        """Whether the network has an option of that name."""
        make = models.MODELS[self.run.job.config.model]
        return option in {field.name for field in dataclasses.fields(type(make(num_classes=1)))}

    def pairs_at_once(self) -> bool:
        """Whether a joint step computes both gradients at once."""
        pair = getattr(self.run.settings, "pair", None)
        if pair != "auto" or None in self.kind:
            return pair == "vmap"
        batch = self.kind.examples(self.run.one_of_each)
        return choose_pair(self.run.job.loss_fn, self.carry.params, batch) == "vmap"


def _method(run: PlannedJob, settings: MethodSettings, options: dict[str, Any]) -> Method:
    """The method with other settings, for the network with other options."""
    if not options:
        return run.job.method(settings)
    config, splits = run.job.config, run.job.splits
    model = build_model(dataclasses.replace(config, model_options={**config.model_options, **options}), splits)
    loss_fn = loss_of(splits, model, augment=bool(run.job.config.augment))
    return dataclasses.replace(run.job, model=model, loss_fn=loss_fn).method(settings)
