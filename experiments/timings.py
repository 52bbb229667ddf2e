"""How long the paper's CIFAR-10 protocol takes on this machine, compilation apart: `python -m experiments.timings`.

    python -m experiments.timings --out timings.json --data-dir data
    python -m experiments.timings --out timings.json --tiny

Ten epochs of Scissorhands and a retraining at the 160 epochs of the authors' scripts on ResNet-18, in bfloat16 and
float32, and, over the weights of a large network, the exact threshold and a projected step, with the aims for a large
GPU. Results are written one by one, and what FILE holds is not timed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import configs, programs
from experiments.benchmark.settings import FRACTION, Settings, conv_shapes
from experiments.benchmark.timing import Aim, compare
from scissorhands_jax import augmentation, datasets, losses, masks, models, projection
from scissorhands_jax import data as data_lib
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.loop import run

WEIGHTS = 860_000_000  # about the number in the UNet of Stable Diffusion 1.4
STEP_PASSES = 6.25  # of a step: both gradients for their products and again for the step, weights in and out, a mask
PASSES = 11  # of the threshold over float32 scores: 31 bits, three in a pass


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Times what FILE does not hold yet, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.timings", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name has a match")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of CIFAR-10's files")
    parser.add_argument("--tiny", action="store_true", help="rehearse: the digits, few epochs, few weights")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    listed = cases(options.data_dir, tiny=options.tiny)
    try:
        chosen = {name: measure for name, measure in listed.items() if re.search(options.only, name)}
    except re.error as error:
        raise InputError(f"--only {options.only!r} is not a regular expression: {error}; correct it") from error
    if not chosen:
        raise InputError(f"--only {options.only!r} matches no case; there are {', '.join(listed)}")
    dataset = {"dataset": _dataset(options.data_dir, tiny=options.tiny)}
    with programs.open_results(
        options.out,
        {"tiny": options.tiny},
        compose=_judged,
        of_each={name: dataset for name, measure in chosen.items() if measure.func is protocol},
        timed=True,
        overwrite=options.overwrite,
    ) as results:
        results.fill(chosen, Console(stderr=True))
    return 0


def _judged(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"results": results, "aims": [aim.to_json() for aim in aims(results)]}


def cases(data_dir: str | None, *, tiny: bool) -> dict[str, functools.partial[dict[str, Any]]]:
    """What is timed, by name."""
    experiment = configs.load("cifar10")
    scissorhands = dataclasses.replace(experiment.scenarios[0].methods["scissorhands"], epochs=10)
    retrain = RetrainSettings()
    if tiny:
        scissorhands = dataclasses.replace(scissorhands, epochs=2, trim="layer1|head")
        retrain = dataclasses.replace(retrain, epochs=2, milestones=(1,))
    listed: dict[str, functools.partial[dict[str, Any]]] = {}
    count = 50_000 if tiny else WEIGHTS
    listed["threshold"] = functools.partial(threshold, count)
    listed["step"] = functools.partial(step, count)
    for name, settings in (("scissorhands", scissorhands), ("retrain", retrain)):
        for dtype in ("bfloat16",) if tiny else ("bfloat16", "float32"):
            listed[f"{name}, {dtype}"] = functools.partial(protocol, settings, dtype, data_dir, tiny=tiny)
    return listed


def aims(results: Mapping[str, Mapping[str, Any]]) -> list[Aim]:
    """The promises for a GPU of the H200's class that these results can judge."""
    judged = {
        "scissorhands, bfloat16": ("ten epochs of Scissorhands, seconds", 10, False, lambda row: row["seconds"]),
        "retrain, bfloat16": ("retraining at 160 epochs, seconds", 180, False, lambda row: row["seconds"]),
        "threshold": (
            "rate of the threshold's passes in that of a copy, by bytes",
            0.5,
            True,
            lambda row: row["share_of_copy_bandwidth"],
        ),
    }
    return [
        Aim(what=what, case=case, value=value(results[case]), limit=limit, at_least=at_least)
        for case, (what, limit, at_least, value) in judged.items()
        if case in results
    ]


def protocol(settings: MethodSettings, dtype: str, data_dir: str | None, *, tiny: bool) -> dict[str, Any]:
    """One method on a random tenth of the training set, from fresh weights: the time does not depend on them."""
    name, options = ("mlp", {"hidden": (16,)}) if tiny else ("resnet18", {})
    dataset = _dataset(data_dir, tiny=tiny)
    splits = datasets.load(dataset, data_dir)
    model = models.build(
        name, num_classes=len(splits.class_names), image_shape=splits.image_shape, dtype=dtype, **options
    )
    crop = functools.partial(augmentation.crop_and_flip, padding=splits.crop_padding)
    loss_fn = losses.classification_loss(model, augment=crop if splits.augmented else None)
    forget = forget_sets.forget_positions("random:0.1", splits.train["label"], seed=0)
    data = data_lib.split(splits.train, forget)
    method = settings.build(model, loss_fn, len(splits.class_names))
    key, start = jax.random.key(0), model.init(jax.random.key(1))
    # The first epoch compiles every program, so that the run that is timed does not.
    first = run(method, key, *start, data, num_epochs=1)
    result = run(method, key, *start, data, num_epochs=settings.epochs)
    return {
        "dataset": dataset,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "steps": result.steps,
        "seconds": result.seconds,
        "compile_seconds": first.compile_seconds,
        "compile_seconds_later": result.compile_seconds,
    }


def _dataset(data_dir: str | None, *, tiny: bool) -> str:
    return "digits" if tiny and data_dir is None else "cifar10"


def threshold(count: int) -> dict[str, Any]:
    """Times the exact threshold of `count` scores, a pass that reads them, and one that copies them."""
    scores = _random_weights(count, seed=0)
    k = round(FRACTION * count)
    read, copy = jax.jit(lambda tree: sum(map(jnp.sum, tree))), jax.jit(lambda tree: [2 * leaf for leaf in tree])
    calls = {"read pass": lambda: read(scores), "copy pass": lambda: copy(scores)}
    settings = Settings(repeats=5)
    result = compare("threshold", "", lambda: masks.kth_largest(scores, k), calls, settings, lambda note: None)
    assert result.seconds is not None
    medians = {row.name: row.seconds.median for row in result.against}
    return {
        "weights": count,
        "passes": PASSES,
        "seconds": result.seconds.median,
        # A pass reads, a copy also writes.
        "share_of_copy_bandwidth": PASSES / 2 / result.ratio_to("copy pass"),
        "ratio": {row.name: row.ratio.median for row in result.against},
        "copy_bytes_per_second": 8 * count / medians["copy pass"],
    }


def step(count: int) -> dict[str, Any]:
    """Times what a repair step of Scissorhands does with the gradients of `count` weights, and a pass that copies them.

    It projects the retain gradient with one constraint, restricts the plain gradient step to a mask, and takes it.
    """
    weights, gradient, forget = (_random_weights(count, seed=seed) for seed in (0, 1, 2))
    mask = [leaf < FRACTION for leaf in weights]
    projector, masked = projection.project_gradient(1), masks.mask_updates()
    projection_state, mask_state = projector.init(weights), masked.init(weights)

    @jax.jit
    def call(weights, gradient, forget, mask):
        constraints = [leaf[None] for leaf in forget]
        updates, _ = projector.update(gradient, projection_state, constraint_grads=constraints)
        updates, _ = masked.update([-1e-3 * leaf for leaf in updates], mask_state, mask=mask)
        return [weight + update for weight, update in zip(weights, updates, strict=True)]

    copy = jax.jit(lambda tree: [2 * leaf for leaf in tree])
    calls = {"copy pass": lambda: copy(weights)}
    settings = Settings(repeats=5)
    result = compare("step", "", lambda: call(weights, gradient, forget, mask), calls, settings, lambda note: None)
    assert result.seconds is not None
    return {
        "weights": count,
        "passes": STEP_PASSES,
        "seconds": result.seconds.median,
        "share_of_copy_bandwidth": STEP_PASSES / 2 / result.ratio_to("copy pass"),
    }


def _random_weights(count: int, *, seed: int) -> list[jax.Array]:
    """Numbers from 0 to 1 in the shapes of convolutions."""
    shapes = conv_shapes(count, channels=16 if count < 1_000_000 else 1_280)
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.uniform(key, shape) for key, shape in zip(keys, shapes, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
