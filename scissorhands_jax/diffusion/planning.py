"""The memory of `scissorhands sd unlearn` before it is spent: from shapes, and from what the compiler says.

No weights are read and no step is taken: the programs of saliency and of the repair step are compiled for the shapes of
the network. A phase holds, with P the bytes of the parameters,

    scoring     P of the original and P of the summed gradients, and what the program of a batch needs besides
    trimming    P of the original, P of the sum and P of the scores; less once these are a mask
    repair      P of the parameters and the optimizer's state, and what the program of a step needs besides: 2 P of
                gradients, activations, temporaries

where `training.run` holds the only reference to the original. Adding up the parts of the largest phase gives what one
device needs, and on CPU what the process around it takes.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from scissorhands_jax import report, trees
from scissorhands_jax.base import Batch, Data
from scissorhands_jax.diffusion import generating, losses, networks
from scissorhands_jax.diffusion.networks import Config
from scissorhands_jax.diffusion.unlearning import ConceptSettings
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import planning
from scissorhands_jax.losses import microbatched
from scissorhands_jax.methods.scissorhands import Repair
from scissorhands_jax.training import feeding
from scissorhands_jax.training import loop as training

_STEPS = 64  # An epoch is taken to have at least so many.


def plan(
    config: Config,
    settings: ConceptSettings,
    *,
    generation: generating.Settings = generating.DEFAULTS,
    memory_gib: float | None = None,
) -> dict[str, Any]:
    """Predicts the memory of `unlearn.unlearn` with the same settings, on one device.

    Making the training images and encoding them comes before, with less. Checkpoints are written through host memory,
    which on CPU may take as much again as they hold.

    Args:
      config: sizes of the networks.
      settings: of the method.
      generation: `size` and `compute` are looked at.
      memory_gib: of the device, in GiB; None is what this one has.

    Returns:
      A JSON-able document: `parameters`, `phases_bytes` with the parts of each phase, `total_bytes` of the largest one,
      `limit_bytes`, `fits`, `compile_seconds`.

    Raises:
      InputError: a setting cannot be used.
    """
    generating.check_settings(generation, config)
    if memory_gib is not None and not memory_gib > 0:
        raise InputError(f"--memory must be above 0 GiB, got {memory_gib:g}")
    limit = feeding.device_memory() if memory_gib is None else int(memory_gib * 2**30)
    model = networks.unet(config.unet, generation.compute)
    method = settings.method(model)
    params = networks.outline("unet", config)
    trees.select(params, settings.trim)
    key = jax.eval_shape(lambda: jax.random.key(0))
    side = generation.size // config.vae.factor
    latents = _array((settings.batch_size, side, side, config.unet.channels))
    context = _array((settings.batch_size, config.text.length, config.unet.context_width))
    retain = {"latents": latents, "deviation": latents, "context": context}
    forget = retain if settings.pseudo is None else {**retain, "pseudo": context}
    repair = method.step
    assert isinstance(repair, Repair)
    optimizer = settings.transformation()
    carry = jax.eval_shape(lambda key, p: repair.begin(key, p, {}, optimizer, settings.forget_weight), key, params)

    started = time.perf_counter()
    noise_loss = microbatched(losses.noise_loss(model), settings.microbatches)
    gradient = jax.grad(lambda p, batch, key: noise_loss(p, {}, batch, train=True, key=key)[0])
    scoring = _temporaries(jax.jit(gradient).lower(params, forget, key).compile())
    positions = np.arange(settings.batch_size, dtype=np.int32)
    epoch = [Batch(positions, positions)] * _STEPS
    compiled, _ = training.compile_call(method.step, carry, Batch(forget, retain), Data(forget, retain), epoch)
    step = _temporaries(compiled)
    seconds = time.perf_counter() - started
    # With what the compiler has left in it, as in a run.
    process = planning.process_bytes() if jax.default_backend() == "cpu" else 0
    held = trees.nbytes(params)
    around = {"batch": trees.nbytes((forget, retain)), "process": process}
    phases = {
        "scoring": {
            "network": held,
            "sum of gradients": held,
            "gradient": held,
            "activations and temporaries": scoring,
        },
        "trimming": {"network": held, "sum of gradients": held, "scores": held},
        "repair": {
            "network": held,
            "optimizer": trees.nbytes((carry.opt_state, carry.aux)),
            "gradients": 2 * held,
            "activations and temporaries": max(0, step - 2 * held),
        },
    }
    phases = {phase: {**parts, **around} for phase, parts in phases.items()}
    total = max(sum(parts.values()) for parts in phases.values())
    return {
        "parameters": trees.size(params),
        "phases_bytes": phases,
        "total_bytes": total,
        "limit_bytes": limit,
        "fits": total <= limit,
        "compile_seconds": seconds,
        **report.environment(),
    }


def print_plan(document: dict[str, Any], console: Console) -> None:
    """Prints a plan for people."""
    table = Table("phase", "part", "size", title="Memory", show_footer=True)
    table.columns[0].footer, table.columns[2].footer = "largest phase", planning.size_text(document["total_bytes"])
    for phase, parts in document["phases_bytes"].items():
        for name, size in (*parts.items(), ("[bold]together[/]", sum(parts.values()))):
            table.add_row(phase, name, planning.size_text(size))
            phase = ""
        table.add_section()
    console.print(f"{document['parameters']:,} parameters", highlight=False)
    console.print(table)
    limit = planning.size_text(document["limit_bytes"])
    if document["fits"]:
        console.print(f"[bold green]It fits[/] in {limit}.", highlight=False)
    else:
        console.print(
            f"[bold red]It does not fit[/] in {limit}. Less takes: --remat, --dtype bfloat16, --microbatches N, "
            "optimizer=sgd, a smaller --batch-size; ask again with these.",
            highlight=False,
            soft_wrap=True,
        )


def _temporaries(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program needs besides its arguments and results."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise InputError(f"the {jax.default_backend()} backend does not say how much memory compiled code takes")
    return analysis.temp_size_in_bytes


def _array(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
