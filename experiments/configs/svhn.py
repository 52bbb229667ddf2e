"""SVHN (the paper's Table 1): no augmentation, 50 epochs of training, the authors' settings.

    scissorhands data prepare svhn --from train_32x32.mat test_32x32.mat --data-dir data
    python -m experiments.run --config svhn --data-dir data --seeds 0,1,2

The two files are those that the authors of SVHN publish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.configs import cifar10, common
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods.retrain import RetrainSettings


def _table(
    name: str, scenario: str, forget: str, *, upper: str, forget_weight: float = 0.01, table: str | None = None
) -> Experiment:
    settings = {"batch_size": 256, "fraction": 0.1, "forget_weight": forget_weight, "learning_rate": 1e-3}
    methods = common.every_method(upper=upper, projected=cifar10.UPPER, scissorhands=settings)
    return dataclasses.replace(
        cifar10.ten_percent(),
        name=name,
        dataset="svhn",
        augment=False,
        training=RetrainSettings(epochs=50, batch_size=256, learning_rate=0.1, milestones=()),
        scenarios=(Scenario(name=scenario, forget=(forget,), methods=methods),),
        paper_table=table,
    )


def ten_percent() -> Experiment:
    """Makes the table for a random tenth of the training set."""
    return _table("svhn", "random 10 %", "random:0.1", upper=cifar10.UPPER, table="table1_svhn")


def twenty_percent() -> Experiment:
    """Makes the table for a random fifth of the training set."""
    return _table("svhn_20", "random 20 %", "random:0.2", upper=cifar10.UPPER)


def one_class() -> Experiment:
    """Makes the table for one digit, which is the seed. The authors have a script for the zeros.

    The row of the published code follows that script, which projects gradients; one more row does not project them.
    """
    experiment = _table("svhn_class", "one class", "class:{seed}", upper="layer4|fc", forget_weight=0.1)
    (scenario,) = experiment.scenarios
    launched = scenario.methods["scissorhands, published code"]
    unprojected = {"scissorhands, published, no projection": dataclasses.replace(launched, projected=False)}
    scenario = dataclasses.replace(scenario, methods={**scenario.methods, **unprojected})
    return dataclasses.replace(experiment, scenarios=(scenario,))


def small(experiment: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Returns what makes the small version of a table."""
    return common.smaller(experiment, cifar10.SMALL)
