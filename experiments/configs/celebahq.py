"""CelebAMask-HQ identities (the paper's Table 2): ResNet-34 from ImageNet weights at 224, 30 of 307 forgotten.

    scissorhands data prepare faces --from CelebAMask-HQ-identities --data-dir data
    python -m experiments.run --config celebahq --data-dir data --seeds 0,1,2 pretrained=resnet34.pth

The folder holds one folder of pictures per identity; the weights are torchvision's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.configs import cifar10, common, faces
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods.retrain import RetrainSettings

UPPER = "layer4|fc"


def identities() -> Experiment:
    """Makes the table for a tenth of the identities. How the original is trained is our choice, not the paper's."""
    batch = {name: {"batch_size": 8} for name in common.METHODS}
    settings = {
        "epochs": 5,
        "fraction": 0.05,
        "forget_weight": 0.5,
        "learning_rate": 2e-4,
        "departures": {"project_every": 10},
    }
    methods = common.every_method(upper=UPPER, **{**batch, "scissorhands": {**batch["scissorhands"], **settings}})
    return dataclasses.replace(
        cifar10.ten_percent(),
        name="celebahq",
        dataset="faces",
        model="resnet34",
        model_options={"normalize": "fixed"},  # torchvision's files hold no mean and deviation
        image_size=(224, 224),
        augment=False,
        training=RetrainSettings(epochs=10, batch_size=8, learning_rate=1e-3, milestones=()),
        scenarios=(Scenario(name="30 identities", forget=("identity:random:30",), methods=methods),),
        paper_table="table2_celebahq",
    )


def small(experiment: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Returns what makes the small version: a small network, trained from scratch on images of 56 pixels."""
    return common.smaller(
        experiment,
        faces.SMALL,
        image_size=(56, 56),
        train_limit=None,
        test_limit=None,
        validation_share=0.0,
        pretrained=None,
    )
