"""The memory of `scissorhands sd unlearn` before it is spent: from shapes, and from its programs.

No weights are read and no step is taken. With P the bytes of the parameters, what a method does before its steps holds
P of the original and what `ConceptTraining.beginning` says, and its steps hold P of the parameters, the optimizer's
state, and what the method carries, such as a second network, Fisher information or a mask. Programs need memory for
themselves as well: gradients, of the trained part alone, activations and temporaries. The compiler says how much, for
the device that is here; or it is estimated from the traced programs (`jobs.plan_traced`), for one that is not.

`training.run` holds the only reference to the original. Adding up the parts of the largest phase gives what one device
needs, and on CPU what the process around it takes. Over several devices they are divided by the rule of
`jobs.plan_memory`, the classifiers' planner, or as a given layout divides them, with programs for the share of a batch
that one device has.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scissorhands_jax import report, trees
from scissorhands_jax.base import Batch, Carry, Data, Method, Params, PyTree, StatefulLossFn
from scissorhands_jax.diffusion import generating, networks
from scissorhands_jax.diffusion.concept_methods import ConceptTraining, named_part
from scissorhands_jax.diffusion.concept_methods.concept_scissorhands import ConceptScissorhandsSettings
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.plan_memory import (
    GATHERED,
    HELD,
    NETWORK,
    OPTIMIZER,
    ORIGINAL_NETWORK,
    RunMemory,
    memory_limit,
    process_bytes,
    program_parts,
)
from scissorhands_jax.jobs.plan_report import CostPlan
from scissorhands_jax.jobs.plan_steps import memory_analysis
from scissorhands_jax.jobs.plan_traced import traced_bytes
from scissorhands_jax.training import loop as training
from scissorhands_jax.training import sharding

_STEPS = 64  # An epoch is taken to have at least this many, so that a call takes as many as it does in a long run.
_HINT = (
    "Less takes: --remat, --dtype bfloat16, --attention 64=chunked, --microbatches N, --train PART (of scissorhands "
    "with --trim PART), optimizer=sgd, a smaller --batch-size; ask again with these."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptPlan(CostPlan):
    """The plan of a run that makes a diffusion model forget a concept."""

    method: str
    strategy: str  # how the work is divided over devices
    traced: bool  # whether programs were traced and not compiled
    program_seconds: float  # what tracing or compiling them took

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with the versions and the machine that it was made with."""
        return {
            "method": self.method,
            "parameters": self.parameters,
            "strategy": self.strategy,
            "phases_bytes": self.phases,
            "total_bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "fits": self.fits,
            "traced": self.traced,
            "program_seconds": self.program_seconds,
            **report.environment(),
        }


def plan_concept(
    config: DiffusionConfig,
    settings: ConceptTraining,
    *,
    method: str = "scissorhands",
    generation: generating.GenerationSettings = generating.DEFAULT_GENERATION,
    devices: int = 1,
    layout: sharding.Layout | None = None,
    memory_gib: float | None = None,
    traced: bool = False,
) -> ConceptPlan:
    """Predicts the memory of `unlearning.unlearn_concept` with the same settings, for each of some devices.

    Making the training images and encoding them comes before, and needs less. Checkpoints are written through host
    memory, which on CPU may take the size of what they hold once more.

    Args:
      config: The sizes of the networks.
      settings: The settings of the method.
      method: The name of the method, which the plan is headed by.
      generation: How images are made, of which `size` and `compute` matter here.
      devices: The number of devices that batches, and if needed large arrays, are divided over, as `jobs.plan_memory`
        does it for classifiers.
      layout: How batches and large arrays are divided, in place of `devices`; `sharding.planned_layout` makes one for
        devices that are not here.
      memory_gib: The memory of a device in GiB; None is what this one has.
      traced: Whether programs are traced and not compiled, for an accelerator that is not here. What the process
        around it takes is then left out, and attention by cuDNN is taken to be chunked, which needs more.

    Raises:
      InputError: A setting cannot be used.
    """
    if devices < 1 or settings.batch_size % devices:
        raise InputError(f"--devices must divide the batch size {settings.batch_size}, got {devices}")
    if layout is not None:
        devices = layout.mesh.shape[sharding.DATA]
        if settings.batch_size % devices:
            raise InputError(
                f"the data axis of --mesh must divide the batch size {settings.batch_size}, got {devices} devices"
            )
    compute = generation.compute
    if traced and compute.attention is not None:
        compute = dataclasses.replace(compute, attention=compute.attention.replace("cudnn", "chunked"))
        generation = dataclasses.replace(generation, compute=compute)
    generating.check_generation(generation, config)
    limit = memory_limit(memory_gib)
    settings.check()
    if isinstance(settings, ConceptScissorhandsSettings) and isinstance(settings.ceiling, str):
        settings = dataclasses.replace(settings, ceiling=1.0)  # the number follows from the data, and takes no memory
    model = networks.unet(config.unet, compute)
    run = settings.method(model, config.schedule)
    params = networks.outline("unet", config)
    for part in (getattr(settings, "trim", None), settings.train):
        trees.select(params, named_part(part))  # refuses a pattern that matches nothing
    examples = _Examples(config, settings, generation.size)
    programs = _Programs(run, settings, examples, devices, traced)
    started = time.perf_counter()
    phases = _phases(
        programs,
        params,
        settings.scoring_loss(model, config.schedule),
        trees.nbytes if layout is None else layout.nbytes,
    )
    seconds = time.perf_counter() - started
    # The process is measured with what the compiler has left in it, as in a run.
    around = {"process": 0 if traced else process_bytes()}
    largest = max(map(trees.nbytes, jax.tree.leaves(params)))
    if layout is None:
        placed = {
            phase: RunMemory(parts={**parts, **around}, evaluating=0, largest=largest, limit=limit).place(devices)
            for phase, parts in phases.items()
        }
        strategy = list(placed.values())[-1].strategy
        divided = {phase: placement.parts for phase, placement in placed.items()}
    else:
        if layout.nbytes(params) < trees.nbytes(params):
            around[GATHERED] = 2 * largest
        divided, strategy = {phase: {**parts, **around} for phase, parts in phases.items()}, str(layout)
    parameters = trees.count_weights(params)
    return ConceptPlan(
        title=f"{method}, {parameters:,} parameters, batches of {settings.batch_size}, {strategy}",
        parameters=parameters,
        phases=divided,
        limit_bytes=limit,
        hint=_HINT,
        method=method,
        strategy=strategy,
        traced=traced,
        program_seconds=seconds,
    )


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Shapes and types of the examples of both sets."""

    config: DiffusionConfig
    settings: ConceptTraining
    size: int  # pixels

    def of(self, name: str, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Examples of a set, as `concept_sets.ExampleMaker.encode` makes them."""
        side, text = self.size // self.config.vae.factor, self.config.text
        latents = _array(count, side, side, self.config.unet.channels)
        context = _array(count, text.length, self.config.unet.context_width)
        found = {"latents": latents, "context": context}
        if self.settings.reads_images:
            found["deviation"] = latents
        if name == "forget":
            found |= {read: context for read in self.settings.reads if read != "concept"}
        return found


@dataclasses.dataclass(frozen=True)
class _Programs:
    """What the programs of a run need for themselves on one device."""

    method: Method
    settings: ConceptTraining
    examples: _Examples
    devices: int
    traced: bool

    def first_batch(self, data: Data) -> Batch | None:
        """The positions of the first step; None of a method without steps."""
        return next(iter(self.method.batches(jax.random.key(0), data, 0)), None)

    def share(self, name: str, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What one device has of a batch."""
        return self.examples.of(name, count // self.devices)

    def step(self, carry: Carry, batch: Batch, positions: Batch, data: Data) -> int:
        """The bytes that a step needs."""
        if self.traced:
            return traced_bytes(self.method.step, carry, batch)
        compiled, _ = training.compile_call(self.method.step, carry, batch, data, [positions] * _STEPS)
        return memory_analysis(compiled).temp_size_in_bytes

    def scoring(self, loss: StatefulLossFn, params: Params, batch: PyTree) -> int:
        """The bytes that adding a gradient to a sum needs."""

        def add(total: PyTree, params: Params, batch: PyTree, key: jax.Array) -> PyTree:
            gradient = jax.grad(lambda p: loss(p, {}, batch, train=True, key=key)[0])(params)
            return jax.tree.map(lambda t, g: t + jnp.abs(g), total, gradient)

        arguments = (params, params, batch, _key())
        if self.traced:
            return traced_bytes(add, *arguments)
        return memory_analysis(jax.jit(add, donate_argnums=0).lower(*arguments).compile()).temp_size_in_bytes


def _phases(
    programs: _Programs, params: Params, scoring_loss: StatefulLossFn, size: Callable[[PyTree], int]
) -> Mapping[str, dict[str, int]]:
    """What each phase holds, by what it is for, without the process.

    Args:
      programs: The programs.
      params: The UNet's outline.
      scoring_loss: The loss that weights are scored by.
      size: The bytes that one device has of a tree of arrays.
    """
    settings, phases = programs.settings, {}
    for name, phase in settings.beginning(params, size).items():
        phases[name] = {ORIGINAL_NETWORK: size(params), HELD: phase.held}
        if phase.scores is not None:
            scored = programs.share(phase.scores, settings.batch_size)
            needed = programs.scoring(scoring_loss, params, scored)
            phases[name] |= program_parts(needed, trees.nbytes(params), held=size(params)) | {
                "batch": trees.nbytes(scored)
            }
    data = Data(*(programs.examples.of(name, settings.batch_size) for name in Data._fields))
    positions = programs.first_batch(data)
    if positions is None:
        return phases
    carry = jax.eval_shape(lambda key, p, d: settings.first_carry(programs.method, key, p, d), _key(), params, data)
    counts = positions._asdict()
    batch = Batch(**{name: None if seen is None else programs.share(name, len(seen)) for name, seen in counts.items()})
    chosen = trees.select(params, named_part(settings.train))
    trained = [leaf for leaf, trains in trees.zip_leaves(params, chosen) if trains]
    kept = len(settings.gradients)
    gradients, held = kept * trees.nbytes(trained), kept * size(trained)
    phases["steps"] = {
        NETWORK: size(params),
        OPTIMIZER: size(carry.opt_state),
        HELD: size(carry.aux),
        **program_parts(programs.step(carry, batch, positions, data), gradients, held=held),
        "batch": trees.nbytes(batch),
    }
    return phases


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
