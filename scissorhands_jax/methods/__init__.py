"""Unlearning methods: one file each, one `Method` value each, all run by `training.run`.

`METHODS` names them for the command line and the experiments by their settings;
`settings.build(model, loss_fn, num_classes)` is the method.
"""

from __future__ import annotations

from scissorhands_jax.methods.finetune import FinetuneSettings, finetune
from scissorhands_jax.methods.gradient_ascent import GradientAscentSettings, gradient_ascent
from scissorhands_jax.methods.l1_sparse import L1SparseSettings, l1_sparse
from scissorhands_jax.methods.neggrad_plus import NegGradPlusSettings, neggrad_plus
from scissorhands_jax.methods.retrain import RetrainSettings, retrain
from scissorhands_jax.methods.salun import RandomLabelSettings, SalunSettings, salun
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings, Semantics, scissorhands, trim_network
from scissorhands_jax.methods.settings import TrainingSettings

__all__ = [
    "METHODS",
    "Semantics",
    "TrainingSettings",
    "finetune",
    "gradient_ascent",
    "l1_sparse",
    "neggrad_plus",
    "retrain",
    "salun",
    "scissorhands",
    "trim_network",
]

METHODS: dict[str, type[TrainingSettings]] = {
    "retrain": RetrainSettings,
    "finetune": FinetuneSettings,
    "gradient_ascent": GradientAscentSettings,
    "l1_sparse": L1SparseSettings,
    "random_label": RandomLabelSettings,
    "salun": SalunSettings,
    "neggrad_plus": NegGradPlusSettings,
    "scissorhands": ScissorhandsSettings,
}
