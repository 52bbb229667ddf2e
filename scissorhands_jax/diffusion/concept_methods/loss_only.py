"""The library's own methods that need a loss alone, with the noise loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from scissorhands_jax import losses as losses_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Method, Model, Params, StatefulLossFn
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.concept_methods.concept_training import BeginningPhase, ByteCount, ConceptTraining
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import finetune, gradient_ascent, l1_sparse, neggrad_plus, ssd
from scissorhands_jax.methods.settings import Gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOnlySettings(ConceptTraining):
    """What these methods share: they see noise losses of images with their own prompts."""

    unused: ClassVar[tuple[str, ...]] = ("pseudo",)

    def loss(self, model: Model, schedule: Schedule) -> StatefulLossFn:
        """The noise loss, in microbatches, with gradients for the part that is trained."""
        self.check()
        return losses_lib.microbatched(losses.noise_loss(self.trained(model), schedule), self.microbatches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptFinetuneSettings(LossOnlySettings):
    """`methods.finetune`: trains on with the retain images."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings; see `ConceptTraining.method`."""
        return finetune(self.loss(model, schedule), self.transformation(), batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptAscentSettings(LossOnlySettings):
    """`methods.gradient_ascent`: drives the noise loss of the forget images up, without bound."""

    epochs: int = 1

    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings; see `ConceptTraining.method`."""
        return gradient_ascent(self.loss(model, schedule), self.transformation(), batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptNegGradPlusSettings(LossOnlySettings):
    """`methods.neggrad_plus`: minimises `L_r - forget_weight L_f`."""

    forget_weight: float = 0.05
    """The weight of the forget loss, as `neggrad_plus` has it."""

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings; see `ConceptTraining.method`."""
        loss_fn = self.loss(model, schedule)
        return neggrad_plus(
            loss_fn, self.transformation(), forget_weight=self.forget_weight, batch_size=self.batch_size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptL1SparseSettings(LossOnlySettings):
    """`methods.l1_sparse`: fine-tuning with a penalty on the sum of absolute weights, which falls to 0."""

    penalty: float = 1e-5
    """The weight of the penalty in the first epoch."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings; see `ConceptTraining.method`."""
        loss_fn = self.loss(model, schedule)
        return l1_sparse(
            loss_fn,
            self.transformation(),
            penalty=self.penalty,
            num_epochs=self.epochs,
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptSsdSettings(LossOnlySettings):
    """`methods.ssd`: dampens weights whose Fisher information is larger for the forget images. It takes no steps."""

    selection: float = 10.0
    """How many times larger the Fisher information of the forget set is for a weight to be dampened, above 0."""
    dampening: float = 1.0
    """The strength of the dampening, above 0."""

    gradients: ClassVar[tuple[Gradient, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("pseudo", "epochs", "optimizer", "learning_rate")

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """The Fisher information of both sets, then the new weights and which of them are dampened."""
        network = size(params)
        return {
            "scoring": BeginningPhase(2 * network, "forget"),
            "dampening": BeginningPhase(3 * network + network // 4),
        }

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings; see `ConceptTraining.method`."""
        if self.train != "all":
            raise InputError(f"ssd looks at all weights; leave train out, which is {self.train!r}")
        loss_fn = self.loss(model, schedule)
        return ssd(loss_fn, selection=self.selection, dampening=self.dampening, batch_size=self.batch_size)
