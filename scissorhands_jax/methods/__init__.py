"""Unlearning methods: one `Method` value each, all run by `training.run`.

`METHODS` names them for the command line and the experiments by their settings;
`settings.build(model, loss_fn, num_classes)` is the method.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from scissorhands_jax.methods.amun import AmunSettings, amun
from scissorhands_jax.methods.bad_teacher import BadTeacherSettings, bad_teacher
from scissorhands_jax.methods.boundary_expand import BoundaryExpandSettings, boundary_expand
from scissorhands_jax.methods.boundary_shrink import BoundaryShrinkSettings, boundary_shrink
from scissorhands_jax.methods.ct import CtSettings, ct
from scissorhands_jax.methods.delete import DeleteSettings, delete
from scissorhands_jax.methods.finetune import FinetuneSettings, finetune
from scissorhands_jax.methods.gradient_ascent import GradientAscentSettings, gradient_ascent
from scissorhands_jax.methods.influence import InfluenceSettings, influence
from scissorhands_jax.methods.l1_sparse import L1SparseSettings, l1_sparse
from scissorhands_jax.methods.last_layers import CfKSettings, EuKSettings, cf_k, eu_k
from scissorhands_jax.methods.msg import MsgSettings, msg
from scissorhands_jax.methods.munba import MunbaSettings, munba
from scissorhands_jax.methods.neggrad_plus import NegGradPlusSettings, neggrad_plus
from scissorhands_jax.methods.orthograd import OrthogradSettings, orthograd
from scissorhands_jax.methods.retrain import RetrainSettings, retrain
from scissorhands_jax.methods.salun import RandomLabelSettings, SalunSettings, salun
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings, scissorhands
from scissorhands_jax.methods.scissorhands_gradient import scissorhands_gradient
from scissorhands_jax.methods.scrub import ScrubSettings, scrub
from scissorhands_jax.methods.semantics import Semantics
from scissorhands_jax.methods.settings import MethodSettings, TrainingSettings
from scissorhands_jax.methods.sfron import SfronSettings, sfron
from scissorhands_jax.methods.ssd import SsdSettings, ssd
from scissorhands_jax.methods.trimming import trim_network

__all__ = [
    "METHODS",
    "MethodSettings",
    "Semantics",
    "TrainingSettings",
    "amun",
    "bad_teacher",
    "boundary_expand",
    "boundary_shrink",
    "cf_k",
    "ct",
    "delete",
    "describe",
    "eu_k",
    "finetune",
    "gradient_ascent",
    "influence",
    "l1_sparse",
    "msg",
    "munba",
    "neggrad_plus",
    "orthograd",
    "retrain",
    "salun",
    "scissorhands",
    "scissorhands_gradient",
    "scrub",
    "sfron",
    "ssd",
    "trim_network",
]

METHODS: dict[str, type[MethodSettings]] = {
    "retrain": RetrainSettings,
    "finetune": FinetuneSettings,
    "gradient_ascent": GradientAscentSettings,
    "l1_sparse": L1SparseSettings,
    "random_label": RandomLabelSettings,
    "salun": SalunSettings,
    "neggrad_plus": NegGradPlusSettings,
    "influence": InfluenceSettings,
    "boundary_shrink": BoundaryShrinkSettings,
    "boundary_expand": BoundaryExpandSettings,
    "scrub": ScrubSettings,
    "bad_teacher": BadTeacherSettings,
    "ssd": SsdSettings,
    "munba": MunbaSettings,
    "orthograd": OrthogradSettings,
    "delete": DeleteSettings,
    "amun": AmunSettings,
    "cf_k": CfKSettings,
    "eu_k": EuKSettings,
    "msg": MsgSettings,
    "ct": CtSettings,
    "sfron": SfronSettings,
    "scissorhands": ScissorhandsSettings,
}


def describe(settings: MethodSettings) -> dict[str, Any]:
    """Settings as a dictionary, with the method's name in METHODS."""
    name = next(name for name, kind in METHODS.items() if type(settings) is kind)
    return {"method": name, **dataclasses.asdict(settings)}
