"""The two recipes for retraining (`methods.retrain`) compared: the paper's and the fast one.

    python -m experiments.run --config recipes_small --data-dir data --seeds 0,1,2,3,4

Every row is a network retrained without the forget set. The reference has the paper's recipe at full length. The row
"drawn again" shows how far two such networks are apart by chance, and the row "shortened" shows what the paper's recipe
reaches in the time of the fast one. `recipes_small` took nine minutes on one CPU core.
`recipes_resnet9` goes from the recipe of `cifar10_full` towards the fast one, a row for each step, over a quarter of
the epochs. It and `recipes` are not yet run.
"""

from __future__ import annotations

import dataclasses

from experiments.configs import cifar10, common
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods.retrain import RetrainSettings


def _table(name: str, paper: RetrainSettings, epochs: int, milestones: tuple[int, int]) -> Experiment:
    fast = RetrainSettings(recipe="fast", epochs=epochs, batch_size=paper.batch_size)
    methods = {
        "paper, drawn again": paper,
        "paper, shortened": dataclasses.replace(paper, epochs=epochs, milestones=milestones),
        "fast": fast,
        "fast, half as long": dataclasses.replace(fast, epochs=epochs // 2),
    }
    return dataclasses.replace(
        cifar10.ten_percent(),
        name=name,
        training=paper,
        scenarios=(Scenario(name="random 10 %", forget=("random:0.1",), methods=methods),),
        paper_table=None,
        relearn_epochs=0,
        every_attack=False,
    )


def full() -> Experiment:
    """Makes the comparison on ResNet-18 and all of CIFAR-10, with crops and flips."""
    return _table("recipes", cifar10.ten_percent().training, 16, (8, 12))


def resnet9() -> Experiment:
    """Makes the comparison of what the recipe of `cifar10_full` changes in the fast one, over four epochs."""
    base = dataclasses.replace(cifar10.FULL_TRAINING, epochs=4)
    fast = RetrainSettings(recipe="fast", epochs=4)
    methods = {
        "batches of 512": dataclasses.replace(base, batch_size=512),
        "biases of norms 64 times as fast": dataclasses.replace(base, norm_bias_scale=fast.norm_bias_scale),
        "decay and momentum of the fast recipe": dataclasses.replace(
            base, learning_rate=fast.learning_rate, momentum=fast.momentum, weight_decay=fast.weight_decay
        ),
        "label smoothing": dataclasses.replace(base, label_smoothing=fast.label_smoothing),
        "fast": fast,
    }
    return dataclasses.replace(
        cifar10.full(),
        name="recipes_resnet9",
        training=base,
        scenarios=(Scenario(name="random 10 %", forget=("random:0.1",), methods=methods),),
        paper_table=None,
        relearn_epochs=0,
    )


def small() -> Experiment:
    """Makes the comparison on the small network of `cifar10_small` and 2,000 images, without augmentation."""
    paper = RetrainSettings(epochs=20, batch_size=64, milestones=(12, 17))
    return dataclasses.replace(
        _table("recipes_small", paper, 8, (4, 6)),
        model_options=common.SMALL_NETWORK,
        train_limit=2_000,
        test_limit=2_000,
        validation_share=0.0,
        augment=False,
        gradcam_layer="layer2",
        checkpoint_cells=False,
    )
