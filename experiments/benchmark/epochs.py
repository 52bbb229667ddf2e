"""Times whole epochs of the repair as `training.run` makes them, with crops and flips, joint and retain-only steps."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from experiments.benchmark import against_torch
from experiments.benchmark.settings import FRACTION, Settings, network_of, random_images
from experiments.benchmark.steps import LEARNING_RATE, repair_of
from experiments.benchmark.timing import Call, OnRound, Result, compare
from scissorhands_jax import augmentation, losses, optimizers, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.training import loop as training

OWN, SINGLE = "own", "one step per call"
RETAIN_BATCHES = 10  # For one forget batch, as if a tenth of the set were forgotten.


def epoch_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """Compares an epoch with one that has a call for every step, and with two of PyTorch's where it is installed."""
    data, own, references, single_steps = epochs(network, settings)
    few = dataclasses.replace(settings, repeats=min(settings.repeats, max(3, (settings.repeats + 1) // 2)))
    what = f"repair epoch, one joint step in {RETAIN_BATCHES}, crops and flips, without the trimming"
    before = {name: single_steps[name] for name in references} | {name: single_steps[OWN]}
    result = compare(name, what, own, references, few, on_round, before)
    assert result.seconds is not None
    images = sum(map(data_lib.size, data))
    return dataclasses.replace(result, numbers={"images_per_second": images / result.seconds.median})


def epochs(network: str, settings: Settings) -> tuple[Data, Call, dict[str, Call], dict[str, Call]]:
    """Returns random images, an epoch of the library on them, the epochs to compare it with, and a joint step of each.

    All epochs of the library begin at the same weights, and so do the first epochs of PyTorch.
    """
    carry = trees.copy(repair_of(network, settings).carry)
    shape, size = settings.networks[network]["image_shape"], settings.batch_size
    data = Data(random_images(shape, size, seed=1), random_images(shape, RETAIN_BATCHES * size, seed=2))
    method = scissorhands(
        losses.classification_loss(network_of(network, settings)[0], augment=augmentation.crop_and_flip),
        optimizers.sgd(LEARNING_RATE),
        fraction=FRACTION,
        batch_size=size,
        every_step_joint=False,
    )
    trimmed = method._replace(init=lambda *_: carry)

    def own(data: Data = data, **options: Any) -> Any:
        key = jax.random.key(1)
        return training.run(trimmed, key, carry.params, carry.model_state, data, num_epochs=1, **options)[:2]

    step = functools.partial(own, Data(data.forget, data_lib.take(data.retain, np.arange(size))))
    references: dict[str, Call] = {SINGLE: functools.partial(own, steps_per_call=1)}
    steps: dict[str, Call] = {OWN: step, SINGLE: step}
    if against_torch.is_there():
        from experiments.benchmark import torch_steps

        forget, retain = (torch_steps.tensors(part) for part in data)
        first = tuple(part[:size] for part in retain)
        for name, published in ((against_torch.PYTORCH, False), (against_torch.PUBLISHED, True)):
            made = against_torch.steps_of(network, carry, settings, published=published)
            references[name] = functools.partial(made.epoch, retain, forget, size)
            steps[name] = functools.partial(made.epoch, first, forget, size)
    return data, own, references, steps
