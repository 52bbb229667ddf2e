"""What the tables share: every method with the authors' settings, and the small version of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods import METHODS, MethodSettings
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings

Settings = dict[str, MethodSettings]
SMALL_NETWORK: dict[str, Any] = {"stage_sizes": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "stem": "imagenet"}
"""A ResNet-18 with one block per stage and a quarter of its channels, on images that the stem halves twice. With the
other stem it would take seven times as long on a CPU."""
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "salun, as published": ("salun", {"mode": "authors", "order": "sequential", "learning_rate": 0.013}),
    "munba, as published": ("munba", {"mode": "authors"}),
    "influence, as published": ("influence", {"mode": "authors"}),
    "cf_k, as in the scripts": ("cf_k", {"epochs": 30, "schedule": "restarts", "milestones": ()}),
    "eu_k, as in the scripts": ("eu_k", {"epochs": 62, "schedule": "restarts", "milestones": ()}),
}
"""Rows of baselines as their own authors published them for CIFAR-10: the method, and what differs from its defaults.
Nothing tunes them, and a small table changes their batch size alone."""


def every_method(
    *,
    upper: str,
    projected: str | None = None,
    published: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Mapping[str, Any],
) -> Settings:
    """Returns the settings of all registered methods except `retrain`, some also as their own authors published them.

    Args:
      upper: A pattern for the layers that Scissorhands trims and that CF-k and EU-k train (see `trees.select`).
      projected: A pattern for the layers whose gradients the published code of Scissorhands projects. The default is
        `upper`.
      published: The settings that differ on this data set from those of `PUBLISHED`, by the label of the row.
      **changes: The settings that differ from the defaults, by method. The defaults are the authors' for CIFAR-10.
    """
    own = {
        "scissorhands": {"trim": upper},
        "cf_k": {"layers": upper},
        "eu_k": {"layers": upper},
        "amun": {"uses_retain": True},
    }
    methods: Settings = {}
    for name, kind in METHODS.items():
        if name != "retrain":
            methods[name] = kind(**{**own.get(name, {}), **changes.get(name, {})})
        for label, (of, fields) in PUBLISHED.items():
            if of == name:
                fields = {"batch_size": methods[name].batch_size, **fields, **(published or {}).get(label, {})}
                methods[label] = kind(**own.get(name, {}), **fields)
    code = methods["scissorhands"].changed(mode="authors", project=projected or upper)
    methods["scissorhands, published code"] = code
    return methods


def smaller(
    experiment: Callable[[], Experiment], changes: Mapping[str, Mapping[str, Any]], **fields: Any
) -> Callable[[], Experiment]:
    """Returns what makes the same table on a small network and a few thousand images.

    One seed takes about ten minutes on 2 CPU cores.

    Without augmentation a small network knows few images by heart after some epochs, and is far worse on others, so
    that what was seen can be told from what was not.

    Args:
      experiment: The function that makes the table in full size.
      changes: The settings that fit the small network, by method. They hold for all rows of a method. A row of
        `PUBLISHED` takes only the batch size from them.
      **fields: The fields of the experiment that differ from those chosen here.
    """

    def make() -> Experiment:
        full = experiment()
        scenarios = tuple(
            dataclasses.replace(
                scenario,
                methods={
                    label: dataclasses.replace(settings, **_fitting(label, scenario, changes))
                    for label, settings in scenario.methods.items()
                },
            )
            for scenario in full.scenarios
        )
        chosen = {
            "name": f"{full.name}_small",
            "model": "resnet18",
            "model_options": SMALL_NETWORK,
            "train_limit": 5_000,
            "test_limit": 2_000,
            "augment": False,
            "training": RetrainSettings(epochs=25, batch_size=64, learning_rate=0.1, milestones=(15, 21)),
            "relearn_epochs": 10,
            "relearning": FinetuneSettings(learning_rate=1e-2, batch_size=64),
            "gradcam_layer": "layer2",
            "checkpoint_cells": False,
        }
        return dataclasses.replace(full, scenarios=scenarios, **{**chosen, **fields})

    return make


def _fitting(label: str, scenario: Scenario, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the changes for one row, without the setting that it sweeps and those in which it differs from others."""
    settings = scenario.methods[label]
    name = next(name for name, kind in METHODS.items() if type(settings) is kind)
    # Methods without epochs take no steps; their settings have no learning rate either.
    shared = {} if settings.epochs == 0 else changes.get("all", {})
    fitting = {"batch_size": 64, **shared, **changes.get(name, {})}
    if label in PUBLISHED:
        fitting = {"batch_size": fitting["batch_size"]}
    plain, sweep = scenario.methods.get(name, settings), scenario.sweeps.get(label)
    return {
        field: value
        for field, value in fitting.items()
        if (sweep is None or field != sweep.name) and getattr(settings, field) == getattr(plain, field)
    }
