"""Unlearning methods: one file each, one `Method` value each, all run by `training.run`.

`METHODS` names them for the command line and the experiments by their settings; `settings.build(model, loss_fn)` is the
method.
"""

from __future__ import annotations

from scissorhands_jax.methods.finetune import FinetuneSettings, finetune
from scissorhands_jax.methods.retrain import RetrainSettings, retrain
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings, Semantics, scissorhands, trim_network
from scissorhands_jax.methods.settings import TrainingSettings

__all__ = ["METHODS", "Semantics", "TrainingSettings", "finetune", "retrain", "scissorhands", "trim_network"]

METHODS: dict[str, type[TrainingSettings]] = {
    "retrain": RetrainSettings,
    "finetune": FinetuneSettings,
    "scissorhands": ScissorhandsSettings,
}
