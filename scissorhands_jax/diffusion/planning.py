"""The memory of `scissorhands sd unlearn` before it is spent: from shapes, and from what the compiler says.

No weights are read and no step is taken: the programs of saliency and of the repair step are compiled for the shapes of
the network. With P the bytes of the parameters, a phase holds

    scoring     P of the original and P of the summed gradients, and what the program of a batch needs for itself
    trimming    P of the original, P of the sum and P of the scores; less once these are a mask
    repair      P of the parameters and the optimizer's state, and what the program of a step needs for itself: 2 P of
                gradients, activations, temporaries

where `training.run` holds the only reference to the original. Adding up the parts of the largest phase gives what one
device needs, and on CPU what the process around it takes. Over several devices they are divided by the rule of
`jobs.plan_memory`, the classifiers' planner, with programs compiled for the share of a batch that one device has.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import report, trees
from scissorhands_jax.base import Batch, Data
from scissorhands_jax.diffusion import generating, losses, networks
from scissorhands_jax.diffusion.concept_methods import named_part
from scissorhands_jax.diffusion.concept_settings import ConceptSettings
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.plan_memory import (
    GRADIENTS,
    NETWORK,
    OPTIMIZER,
    TEMPORARIES,
    RunMemory,
    memory_limit,
    process_bytes,
    trimming_phases,
)
from scissorhands_jax.jobs.plan_report import CostPlan
from scissorhands_jax.jobs.plan_steps import memory_analysis
from scissorhands_jax.losses import microbatched
from scissorhands_jax.methods.scissorhands import Repair
from scissorhands_jax.training import loop as training

_STEPS = 64  # An epoch is taken to have at least this many, so that a call takes as many as it does in a long run.
_HINT = (
    "Less takes: --remat, --dtype bfloat16, --attention 64=chunked, --microbatches N, optimizer=sgd, a smaller "
    "--batch-size; ask again with these."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptPlan(CostPlan):
    """The plan of a run that makes a diffusion model forget a concept."""

    compile_seconds: float

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with the versions and the machine that it was made with."""
        return {
            "parameters": self.parameters,
            "phases_bytes": self.phases,
            "total_bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "fits": self.fits,
            "compile_seconds": self.compile_seconds,
            **report.environment(),
        }


def plan_concept(
    config: DiffusionConfig,
    settings: ConceptSettings,
    *,
    generation: generating.GenerationSettings = generating.DEFAULT_GENERATION,
    devices: int = 1,
    memory_gib: float | None = None,
) -> ConceptPlan:
    """Predicts the memory of `unlearning.unlearn_concept` with the same settings, for each of some devices.

    Making the training images and encoding them comes before, and needs less. Checkpoints are written through host
    memory, which on CPU may take the size of what they hold once more.

    Args:
      config: The sizes of the networks.
      settings: The settings of the method.
      generation: How images are made, of which `size` and `compute` matter here.
      devices: The number of devices that batches, and if needed large arrays, are divided over, as `jobs.plan_memory`
        does it for classifiers.
      memory_gib: The memory of a device in GiB; None is what this one has.

    Raises:
      InputError: A setting cannot be used.
    """
    if devices < 1 or settings.batch_size % devices:
        raise InputError(f"--devices must divide the batch size {settings.batch_size}, got {devices}")
    generating.check_generation(generation, config)
    limit = memory_limit(memory_gib)
    model = networks.unet(config.unet, generation.compute)
    repair = settings.method(model, config.schedule).step
    assert isinstance(repair, Repair)
    params = networks.outline("unet", config)
    trees.select(params, named_part(settings.trim))
    side = generation.size // config.vae.factor
    batch_size = settings.batch_size // devices  # of one device
    latents = _array((batch_size, side, side, config.unet.channels))
    context = _array((batch_size, config.text.length, config.unet.context_width))
    retain = {"latents": latents, "deviation": latents, "context": context}
    forget = {**retain, **dict.fromkeys(settings.reads, context)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    optimizer = settings.transformation()
    carry = jax.eval_shape(lambda key, p: repair.begin(key, p, {}, optimizer, settings.forget_weight), key, params)

    started = time.perf_counter()
    scored = losses.noise_loss(model, config.schedule)
    if settings.guided is not None:
        scored = losses.guided_noise_loss(model, settings.guided, config.schedule)
    noise_loss = microbatched(scored, settings.microbatches)
    gradient = jax.grad(lambda p, batch, key: noise_loss(p, {}, batch, train=True, key=key)[0])
    scoring = memory_analysis(jax.jit(gradient).lower(params, forget, key).compile()).temp_size_in_bytes
    positions = np.arange(batch_size, dtype=np.int32)
    epoch = [Batch(positions, positions)] * _STEPS
    compiled, _ = training.compile_call(repair, carry, Batch(forget, retain), Data(forget, retain), epoch)
    step = memory_analysis(compiled).temp_size_in_bytes
    seconds = time.perf_counter() - started
    held = trees.nbytes(params)
    # The process is measured with what the compiler has left in it, as in a run.
    around = {"batch": trees.nbytes((forget, retain)), "process": process_bytes()}
    phases = {
        **trimming_phases(params, scoring),
        "repair": {
            NETWORK: held,
            OPTIMIZER: trees.nbytes((carry.opt_state, carry.aux)),
            GRADIENTS: 2 * held,
            TEMPORARIES: max(0, step - 2 * held),
        },
    }
    largest = max(map(trees.nbytes, jax.tree.leaves(params)))
    placed = {
        phase: RunMemory(parts={**parts, **around}, evaluating=0, largest=largest, limit=limit).place(devices)
        for phase, parts in phases.items()
    }
    parameters = trees.count_weights(params)
    return ConceptPlan(
        title=f"{parameters:,} parameters, {placed['repair'].strategy}",
        parameters=parameters,
        phases={phase: placement.parts for phase, placement in placed.items()},
        limit_bytes=limit,
        hint=_HINT,
        compile_seconds=seconds,
    )


def _array(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
