"""How long steps of Stable Diffusion's UNet at batch 16 take on an accelerator: `python -m experiments.unet_step`.

    python -m experiments.unet_step --out unet_step.json
    python -m experiments.unet_step --out unet_step.json --tiny

On random weights, latents of 64x64 and bfloat16: the gradient of the noise loss, and a projected repair step of
Scissorhands (`sd unlearn` with the preset `paper`), each with its rate in that of matrix products, which take turns
with it. Results are written one by one, and what FILE holds is not timed again; one of other code, another machine or
other versions is refused. The gradient with cuDNN's attention is tried as well; if the GPU refuses it, its result is
the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import programs
from experiments.benchmark.limits import MATRIX_PRODUCT, count_flops, matrix_product
from experiments.benchmark.settings import Settings
from experiments.benchmark.timing import compare
from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Data, Dataset, Model
from scissorhands_jax.diffusion import losses, networks
from scissorhands_jax.diffusion.concept_methods.concept_scissorhands import concept_preset
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.unet import Noisy, UNetConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console
from scissorhands_jax.training import loop as training

DTYPE = "bfloat16"
TINY = UNetConfig(widths=(8,), attention=(True,), layers_per_block=1, heads=2, context_width=8, groups=4)
SIDE, TOKENS = 64, 77
"""Height and width of the latents, and tokens of a prompt; with --tiny 8 of each."""


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Times what FILE does not hold yet, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.unet_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has this word")
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="default 16, with --tiny 2")
    parser.add_argument("--tiny", action="store_true", help="rehearse: a small UNet")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    usual = 2 if options.tiny else 16
    batch_size = usual if options.batch_size is None else options.batch_size
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    listed = cases(batch_size, tiny=options.tiny)
    chosen = {name: measure for name, measure in listed.items() if options.only in name}
    if not chosen:
        raise InputError(f"--only {options.only!r} is in no case; there are {', '.join(listed)}")
    settings = {"tiny": options.tiny, "batch_size": batch_size}
    with programs.open_results(options.out, settings, timed=True, overwrite=options.overwrite) as results:
        results.fill(chosen, Console(stderr=True))
    return 0


def cases(batch_size: int, *, tiny: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is timed, by name."""
    recomputed = Compute(dtype=DTYPE, remat=not tiny)  # which takes twice as long to compile
    listed: dict[str, Callable[[], dict[str, Any]]] = {
        "gradient, recomputed": functools.partial(gradient, recomputed, batch_size, tiny=tiny)
    }
    if jax.default_backend() == "gpu":
        fused = Compute(dtype=DTYPE, attention="cudnn")
        listed["gradient, cuDNN's attention"] = functools.partial(_tried, gradient, fused, batch_size, tiny=tiny)
    listed["repair step, recomputed"] = functools.partial(repair, recomputed, batch_size, tiny=tiny)
    return listed


def _tried(call: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    try:
        return call(*arguments, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def gradient(compute: Compute, batch_size: int, *, tiny: bool) -> dict[str, Any]:
    """The noise loss and its gradient."""
    model, params = _network(compute, tiny=tiny)
    loss_fn, batch = losses.noise_loss(model), _examples(batch_size, seed=0, tiny=tiny)

    @jax.jit
    def call(params):
        return jax.value_and_grad(lambda p: loss_fn(p, {}, batch, train=True, key=None)[0])(params)

    return _timed(lambda: call(params), model, params, batch_size, forward_passes=3, images=batch_size, tiny=tiny)


def repair(compute: Compute, batch_size: int, *, tiny: bool) -> dict[str, Any]:
    """A joint step of the repair with its projection, after the trimming that the method begins with."""
    model, params = _network(compute, tiny=tiny)
    settings = dataclasses.replace(concept_preset("paper"), batch_size=batch_size, epochs=1)
    data = Data(*(_examples(batch_size, seed=seed, tiny=tiny) for seed in (0, 1)))
    method = settings.method(model)
    carry = trees.copy(method.begin_epoch(method.init(jax.random.key(1), params, {}, data), data))
    (batch,) = method.batches(jax.random.key(2), data, 0)
    examples = data_lib.gather(data, batch)

    def call():
        nonlocal carry
        carry, metrics = training._step(method.step, carry, examples)
        return carry, metrics

    return _timed(call, model, params, batch_size, forward_passes=6, images=2 * batch_size, tiny=tiny)


def _network(compute: Compute, *, tiny: bool) -> tuple[Model, Any]:
    model = networks.unet(TINY if tiny else networks.SD_V1.unet, compute)
    return model, model.init(jax.random.key(0))[0]


def _examples(count: int, *, seed: int, tiny: bool) -> Dataset:
    side, tokens = (8, 8) if tiny else (SIDE, TOKENS)
    width = (TINY if tiny else networks.SD_V1.unet).context_width
    draw = np.random.default_rng(seed)
    shapes = {"latents": (count, side, side, 4), "context": (count, tokens, width)}
    return {part: jnp.asarray(draw.standard_normal(shape), jnp.float32) for part, shape in shapes.items()}


def _timed(
    call: Callable[[], Any], model: Model, params: Any, batch_size: int, *, forward_passes: int, images: int, tiny: bool
) -> dict[str, Any]:
    """A call against a matrix product; its operations are those of so many forward passes, without recomputation."""
    batch = _examples(batch_size, seed=0, tiny=tiny)
    noisy = Noisy(batch["latents"], jnp.zeros(batch_size, jnp.int32), batch["context"])
    forward = jax.make_jaxpr(lambda params: model.apply(params, {}, noisy, train=False)[0])(params)
    flops = forward_passes * count_flops(forward.jaxpr)
    settings = Settings(repeats=5, quick=tiny)
    product, product_flops = matrix_product(jnp.dtype(DTYPE), settings)
    result = compare("", "", call, {MATRIX_PRODUCT: product}, settings, lambda note: None)
    assert result.seconds is not None
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "batch_size": batch_size,
        "seconds": result.seconds.median,
        "quartiles": (result.seconds.lower, result.seconds.upper),
        "images_per_second": images / result.seconds.median,
        "flops": flops,
        "flops_per_second": flops / result.seconds.median,
        "share_of_matrix_rate": flops / product_flops / result.ratio_to(MATRIX_PRODUCT),
        "compile_seconds": result.compile_seconds,
        "parameters": trees.count_weights(params),
        "peak_bytes_of_process": memory.get("peak_bytes_in_use"),
    }


if __name__ == "__main__":
    sys.exit(main())
