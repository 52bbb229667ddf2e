"""The tables by name: those of the paper, variants from the authors' scripts, and small ones for two CPU cores."""

from __future__ import annotations

import dataclasses
import difflib

from experiments.configs import celebahq, cifar10, cifar100, faces, recipes, svhn
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import demo
from scissorhands_jax.jobs.experiment import Experiment


def demo_audit() -> Experiment:
    """Makes an audit of the demonstration's network and methods on a random tenth of the digits, rightly labelled."""
    scenario = dataclasses.replace(demo.EXPERIMENT.scenarios[0], name="random 10 %", flipped_labels=0.0)
    return dataclasses.replace(demo.EXPERIMENT, name="demo_audit", scenarios=(scenario,))


CONFIGS = {
    "demo": lambda: demo.EXPERIMENT,
    "demo_audit": demo_audit,
    "cifar10": cifar10.ten_percent,
    "cifar10_20": cifar10.twenty_percent,
    "cifar10_50": cifar10.fifty_percent,
    "cifar10_class": cifar10.one_class,
    "cifar10_ablation": cifar10.ablation,
    "cifar10_scenarios": cifar10.scenarios,
    "cifar10_audit": cifar10.audit,
    "cifar10_audit_resnet9": cifar10.audit_resnet9,
    "cifar10_full": cifar10.full,
    "cifar100": cifar100.ten_percent,
    "cifar100_20": cifar100.twenty_percent,
    "cifar100_50": cifar100.fifty_percent,
    "svhn": svhn.ten_percent,
    "svhn_20": svhn.twenty_percent,
    "svhn_class": svhn.one_class,
    "celebahq": celebahq.identities,
    "cifar10_small": cifar10.small(cifar10.ten_percent),
    "cifar10_20_small": cifar10.small(cifar10.twenty_percent),
    "cifar10_50_small": cifar10.small(cifar10.fifty_percent),
    "cifar10_class_small": cifar10.small(cifar10.one_class),
    "cifar10_ablation_small": cifar10.small(cifar10.ablation),
    "cifar10_scenarios_small": cifar10.small(cifar10.scenarios),
    "cifar10_audit_small": cifar10.small(cifar10.audit),
    "cifar100_small": cifar100.small(cifar100.ten_percent),
    "cifar100_20_small": cifar100.small(cifar100.twenty_percent),
    "cifar100_50_small": cifar100.small(cifar100.fifty_percent),
    "svhn_small": svhn.small(svhn.ten_percent),
    "svhn_20_small": svhn.small(svhn.twenty_percent),
    "svhn_class_small": svhn.small(svhn.one_class),
    "celebahq_small": celebahq.small(celebahq.identities),
    "faces": faces.identities,
    "recipes": recipes.full,
    "recipes_small": recipes.small,
    "recipes_resnet9": recipes.resnet9,
}
"""Functions without arguments that make an `Experiment`, by its name."""


def load(name: str) -> Experiment:
    """Makes the experiment with a name.

    Raises:
      InputError: No experiment has this name. The message lists the most similar names.
    """
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, n=3, cutoff=0.4) or list(CONFIGS)
        raise InputError(f"there is no configuration {name!r}; near matches: {', '.join(near)}")
    return CONFIGS[name]()
