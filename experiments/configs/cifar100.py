"""CIFAR-100 (the paper's Table 1): as CIFAR-10, with the authors' settings. SalUn's own code names no rate for it.

    python -m experiments.run --config cifar100 --data-dir data --seeds 0,1,2

The small version takes the data set `cifar100_own`, 10,000 images with their own split, 100 per class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.configs import cifar10, common
from scissorhands_jax.jobs.experiment import Experiment, Scenario

UPPER = "layer4|fc"


def _table(name: str, scenario: str, forget: str, scissorhands: dict[str, Any], table: str | None) -> Experiment:
    settings = {"batch_size": 256, "fraction": 0.01, "forget_weight": 1.0, "learning_rate": 5e-3, **scissorhands}
    published = {
        "salun, as published": {"order": "mixed"},
        "cf_k, as in the scripts": {"epochs": 62},
        "eu_k, as in the scripts": {"epochs": 126},
    }
    methods = common.every_method(upper=UPPER, projected=cifar10.UPPER, published=published, scissorhands=settings)
    return dataclasses.replace(
        cifar10.ten_percent(),
        name=name,
        dataset="cifar100",
        scenarios=(Scenario(name=scenario, forget=(forget,), methods=methods),),
        paper_table=table,
    )


def ten_percent() -> Experiment:
    """Makes the table for a random tenth of the training set."""
    return _table("cifar100", "random 10 %", "random:0.1", {}, "table1_cifar100")


def twenty_percent() -> Experiment:
    """Makes the table for a random fifth of the training set."""
    return _table("cifar100_20", "random 20 %", "random:0.2", {}, None)


def fifty_percent() -> Experiment:
    """Makes the table for a random half of the training set, with settings of its own for Scissorhands."""
    changes = {"fraction": 0.1, "forget_weight": 0.01, "learning_rate": 1e-3, "departures": {"project_every": 10}}
    return _table("cifar100_50", "random 50 %", "random:0.5", changes, None)


def small(experiment: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Returns what makes the small version of a table."""
    return common.smaller(experiment, cifar10.SMALL, dataset="cifar100_own", train_limit=4_000, test_limit=1_000)
