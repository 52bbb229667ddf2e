"""Measures how time, memory and traffic grow with weights, examples and devices: `python -m experiments.scaling`.

    python -m experiments.scaling --out experiments/results/scaling.json --write experiments/scaling.md

Every row is a multi-layer perceptron on a mesh of virtual CPU devices, whose compiled programs are read: what their
collectives hand to a device, and what a device holds, next to the formulas. Virtual devices share one machine, so times
are measured on one of them only.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import programs
from experiments.collectives import bytes_by_kind
from scissorhands_jax import files, masks, models, projection, reading, report, trees
from scissorhands_jax.base import Batch, Carry, Data, Method
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.report import provenance
from scissorhands_jax.training import loop as training
from scissorhands_jax.training.sharding import Layout, make_layout

MESHES = (
    *((1, 1, False), (2, 1, False), (4, 1, False), (8, 1, False)),
    *((2, 1, True), (4, 1, True), (8, 1, True), (4, 2, True)),
)
WIDTHS = (128, 256, 512, 1024)
FORGET_SIZES = (64, 256, 1024)
START, END = "<!-- numbers -->\n", "<!-- end of numbers -->\n"
_BYTES = 4  # of a number
_BATCH = 64
_KEY = jax.random.key(0)


@programs.ending("nothing is kept of it")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measures in a process with eight virtual devices, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m experiments.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers, as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file whose tables are replaced")
    parser.add_argument("--measure", choices=("many", "alone"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    provenance.note_code()
    if options.measure is not None:
        json.dump(many_devices() if options.measure == "many" else one_device(), sys.stdout)
        return 0
    with programs.sole_writer_of(options.out), programs.sole_writer_of(options.write):
        found = _measured()
        text = tables(found)
        if options.out is not None:
            files.write_text(options.out, json.dumps(found, indent=2) + "\n")
        if options.write is not None:
            before, _, rest = reading.read_text(options.write).partition(START)
            files.write_text(options.write, before + START + text + END + rest.partition(END)[2])
    sys.stdout.write(text)
    return 0


def _measured() -> dict[str, Any]:
    found: dict[str, Any] = {}
    # In a process of its own, because JAX works differently with many devices, even on one of them.
    for part, flags in (("many", "--xla_force_host_platform_device_count=8"), ("alone", "")):
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "experiments.scaling", "--measure", part]
        found |= reading.parse_json(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return found


def many_devices(width: int = WIDTHS[2], meshes: Sequence[tuple[int, int, bool]] = MESHES) -> dict[str, Any]:
    """Returns the rows of one network on every mesh."""
    return {"devices": [on_mesh(width, *mesh) for mesh in meshes]}


def one_device(widths: Sequence[int] = WIDTHS, forget_sizes: Sequence[int] = FORGET_SIZES) -> dict[str, Any]:
    """Returns the rows of every width, and of one network with every size of the forget set."""
    middle = widths[len(widths) // 2]
    return {
        "parameters": [with_width(width) for width in widths],
        "forget_examples": [with_forget_size(middle, size) for size in forget_sizes],
        **report.environment(),
    }


def predicted(total: int, divided: int, large: int, data: int, model: int, fsdp: bool) -> dict[str, int | None]:
    """Returns how many bytes the collectives of a joint step, the threshold and the projection hand to a device.

    Data parallel, every device has all weights: an all-reduce of two gradients, 8 bytes for every weight, and of two
    losses. With divided weights the compiler chooses between moving weights and moving activations, so that a step has
    no formula; forward and backward passes of two batches that gather all of them and sum up two gradients hand out 24
    bytes for every divided weight, which is a bound. The threshold counts, and the projection takes dot products and
    largest entries, of divided arrays only: seven 32-bit counts per array and pass, three numbers per array.

    Args:
      total: The number of weights of the network.
      divided: The number of those that are divided over devices.
      large: The number of divided arrays.
    """
    alone = data * model == 1
    parallel = None if fsdp or model > 1 else 0 if alone else 2 * _BYTES * total + 2 * _BYTES
    return {
        "step": parallel,
        "step_at_most": 2 * _BYTES * (total - divided) + 6 * _BYTES * divided if parallel is None else parallel,
        "threshold_pass": 7 * _BYTES * large,
        "projection": 3 * _BYTES * large,
    }


def on_mesh(width: int, data: int, model: int, fsdp: bool) -> dict[str, Any]:
    """Returns what the compiled programs for one network on one mesh move and hold, next to the formulas."""
    layout = make_layout(data, model, fsdp=fsdp)
    carry, batch, method = _job(width, layout, forget=_BATCH)
    step = training._step.lower(method.step, carry, batch, layout).compile()
    held = step.memory_analysis()
    scores = jax.tree.map(jnp.abs, carry.params)
    threshold = jax.jit(masks.top_k).lower(scores, 10).compile().as_text()
    transform = projection.project_gradient(1)

    def project(gradient, constraint):
        rows = jax.tree.map(lambda leaf: leaf[None], constraint)
        return transform.update(gradient, transform.init(gradient), constraint_grads=rows)[0]

    projecting = jax.jit(project).lower(carry.params, carry.params).compile().as_text()
    parts = [leaf for leaf in jax.tree.leaves(carry.params) if not leaf.sharding.is_fully_replicated]
    # A threshold has two loops, one for the cut and one for ties at the cut, with the same counts.
    return {
        "data": data,
        "model": model,
        "fsdp": fsdp,
        "parameters": trees.count_weights(carry.params),
        "step_bytes": bytes_by_kind(step.as_text()),
        "threshold_bytes": {kind: size // 2 for kind, size in bytes_by_kind(threshold).items()},
        "projection_bytes": bytes_by_kind(projecting),
        "predicted": predicted(
            trees.count_weights(carry.params), sum(part.size for part in parts), len(parts), data, model, fsdp
        ),
        "state_bytes": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((carry, batch))),
        "temporary_bytes": held.temp_size_in_bytes,
        "flops": step.cost_analysis().get("flops"),
    }


def with_width(width: int) -> dict[str, Any]:
    """Measures memory, arithmetic and time of a step on one device, for one width of the network."""
    carry, batch, method = _job(width, None, forget=_BATCH)
    step = training._step.lower(method.step, carry, batch).compile()
    row = {
        "parameters": trees.count_weights(carry.params),
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves((carry, batch))),
        "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        "flops": step.cost_analysis().get("flops"),
    }
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        carry, _ = jax.block_until_ready(training._step(method.step, carry, batch))
        seconds.append(time.perf_counter() - began)
    return {**row, "seconds": statistics.median(seconds)}


def with_forget_size(width: int, count: int) -> dict[str, Any]:
    """Measures the saliency pass with the trimming, for one size of the forget set, and counts steps."""
    model, start = _network(width)
    data, method = Data(_examples(count), _examples(16 * _BATCH)), _method(model)
    batches = list(method.batches(_KEY, data, 0))
    seconds = []
    for _ in range(4):  # The first compiles.
        began = time.perf_counter()
        jax.block_until_ready(method.init(_KEY, *start, data).params)
        seconds.append(time.perf_counter() - began)
    return {
        "forget_examples": count,
        "steps": len(batches),
        "joint_steps": sum(batch.forget is not None for batch in batches),
        "trim_seconds": statistics.median(seconds[1:]),
    }


def _job(width: int, layout: Layout | None, forget: int) -> tuple[Carry, Batch, Method]:
    """Returns a carry, a joint batch and the method, on the devices of the layout if there is one."""
    model, start = _network(width)
    data = Data(_examples(forget), _examples(_BATCH))
    method = _method(model)
    batch = Batch(jax.tree.map(jnp.asarray, data.forget), jax.tree.map(jnp.asarray, data.retain))
    carry = method.init(_KEY, *start, data)
    if layout is None:
        return trees.copy(carry), batch, method
    rows = functools.partial(layout.rows, positions=np.arange(_BATCH))
    return layout.place(carry), Batch(*jax.tree.map(rows, data)), method


@functools.cache
def _network(width: int):
    model = models.build("mlp", num_classes=16, image_shape=(8, 8, 1), hidden=(width, width))
    return model, model.init(jax.random.key(1))


@functools.cache
def _method(model) -> Method:
    return scissorhands(classification_loss(model), sgd(0.01), fraction=0.1, batch_size=_BATCH, every_step_joint=False)


def _examples(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {
        "image": rng.random((count, 8, 8, 1), np.float32),
        "label": rng.integers(0, 16, count).astype(np.int32),
    }


def tables(found: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "",
        "| mesh | step: found | formula | threshold, per pass | formula | projection | formula | held by a device |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["devices"]:
        name = f"{row['data']} x {row['model']}" + (", fsdp" if row["fsdp"] else "")
        formula = row["predicted"]
        step = f"{formula['step']:,}" if formula["step"] is not None else f"at most {formula['step_at_most']:,}"
        moved = [_sum(row[f"{what}_bytes"]) for what in ("step", "threshold", "projection")]
        lines.append(
            f"| {name} | {moved[0]:,} | {step} | {moved[1]:,} | {formula['threshold_pass']:,} | {moved[2]:,} | "
            f"{formula['projection']:,} | {row['state_bytes']:,} + {row['temporary_bytes']:,} |"
        )
    kinds = sorted({kind for row in found["devices"] for kind in row["step_bytes"]})
    lines += [
        "",
        "Bytes of a step by collective:",
        "",
        f"| mesh | {' | '.join(kinds)} |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for row in found["devices"]:
        name = f"{row['data']} x {row['model']}" + (", fsdp" if row["fsdp"] else "")
        lines.append(f"| {name} | " + " | ".join(f"{row['step_bytes'].get(kind, 0):,}" for kind in kinds) + " |")
    lines += [
        "",
        "| weights | bytes per weight held | temporary | flops per weight | time |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    first = found["parameters"][0]
    for row in found["parameters"]:
        weights = row["parameters"]
        lines.append(
            f"| {weights:,} | {row['state_bytes'] / weights:.1f} | {row['temporary_bytes'] / weights:.1f} | "
            f"{row['flops'] / weights:.0f} | {row['seconds'] / first['seconds']:.1f} |"
        )
    lines += [
        "",
        "| forget examples | steps of an epoch | of them joint | time of the trimming |",
        "| ---: | ---: | ---: | ---: |",
    ]
    first = found["forget_examples"][0]
    for row in found["forget_examples"]:
        ratio = row["trim_seconds"] / first["trim_seconds"]
        lines.append(f"| {row['forget_examples']:,} | {row['steps']} | {row['joint_steps']} | {ratio:.1f} |")
    return "\n".join([*lines, "", ""])


def _sum(by_kind: dict[str, int]) -> int:
    return sum(by_kind.values())


if __name__ == "__main__":
    sys.exit(main())
