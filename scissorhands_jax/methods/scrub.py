"""SCRUB (Kurmanji et al., NeurIPS 2023): a student that disobeys its teacher on the forget set alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import ClassVar

import jax
import optax

from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import Batch, Data, Key, Method, Model, StatefulLossFn
from scissorhands_jax.errors import InputError, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, forget_batches, retain_batches
from scissorhands_jax.methods.settings import Gradient, TeacherArguments, TrainingSettings
from scissorhands_jax.tasks import example_weights, weighted_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubOptions:
    """The keyword arguments of `scrub` that are settings as well."""

    forget_epochs: int = 2
    """The number of epochs, counted from the first, that begin with a max pass, at least 1."""
    kl_weight: float = 0.001
    """alpha, the weight of the divergence in a min pass, at least 0."""
    loss_weight: float = 0.99
    """gamma, the weight of the cross-entropy in a min pass, at least 0."""
    temperature: float = 4.0
    """T, the temperature of both softmaxes, above 0."""
    batch_size: int = 128
    """The number of retain examples that a step of a min pass sees."""
    forget_batch_size: int = 32
    """The number of forget examples that a step of a max pass sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubArguments(ScrubOptions, TeacherArguments):
    """The keyword arguments of `scrub`."""


@takes(ScrubArguments)
def scrub(model: Model, optimizer: optax.GradientTransformation, options: ScrubArguments) -> Method:
    """Alternates passes that leave the teacher on the forget set and passes that return to it on the retain set.

    With the original, in evaluation mode, as teacher t, the student s starting there, and
    `d(x) = T^2 KL(softmax(t(x) / T) || softmax(s(x) / T))`,

      max pass, in the first `forget_epochs` epochs:  minimise  -mean over forget examples of d
      min pass, in every epoch:                       minimise  mean over retain examples of alpha d + gamma CE

    Over other outputs than logits of classes, d and CE are the divergence and the loss of the `task`, such as means
    over the tokens of answers.

    The rewinding of SCRUB+R, which returns to the epoch whose forget error suits a validation set, is left out. In a
    network without BatchNorm and dropout the student starts at d = 0, where the gradient of d vanishes: the first max
    pass then does next to nothing. The defaults are those of the authors' notebook for the large scale: 3 epochs of
    `sgd(5e-4)`. Their notebook for the small scale has 10 epochs of Adam at 5e-4, forget_epochs 3, alpha 0.5, gamma 1
    and T = 2.

    Args:
      model: The network.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or the task has no divergence.
    """
    kl_weight, loss_weight, parts, task = options.kl_weight, options.loss_weight, options.microbatches, options.task
    compare = task.divergence
    assert compare is not None
    if options.forget_epochs < 1:
        raise InputError(f"forget_epochs must be at least 1, got {options.forget_epochs}")
    check_not_negative("kl_weight", kl_weight)
    check_not_negative("loss_weight", loss_weight)
    temperature = losses.check_temperature(options.temperature)
    microbatches.check_microbatches((options.batch_size, options.forget_batch_size), parts)
    max_pass, min_pass = forget_batches(options.forget_batch_size), retain_batches(options.batch_size)

    def objective(params, carry, batch, key):
        examples = batch.forget if batch.retain is None else batch.retain
        inputs, key = losses.augmented(options.augment, key, task.inputs(examples))

        def mean_loss(params, model_state, part, key):
            inputs, examples, weights = part
            teacher = losses.teacher_logits(model, carry.aux, inputs)
            student, model_state = model.apply(params, model_state, inputs, train=True, key=key)
            divergence = weighted_mean(compare(teacher, student, examples, temperature), weights)
            loss = weighted_mean(task.loss(student, examples), weights)
            if batch.retain is None:
                return -divergence, (model_state, {"loss_forget": loss, "kl_forget": divergence})
            value = kl_weight * divergence + loss_weight * loss
            return value, (model_state, {"loss_retain": loss, "kl_retain": divergence})

        whole = microbatches.accumulated(mean_loss, parts)
        return whole(params, carry.model_state, (inputs, examples, example_weights(task, examples)), key)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        max_key, min_key = jax.random.split(key)
        retain = min_pass(min_key, data, epoch)
        return itertools.chain(max_pass(max_key, data, epoch), retain) if epoch < options.forget_epochs else retain

    return descend(
        objective,
        optimizer,
        batches=batches,
        reads=("forget", "retain"),
        aux=lambda key, params, model_state, data: trees.copy((params, model_state)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubSettings(ScrubOptions, TrainingSettings):
    """The authors' settings for the large scale."""

    epochs: int = 3
    learning_rate: float = 5e-4
    gradients: ClassVar[tuple[Gradient, ...]] = ("either",)
    compares_outputs: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        method = scrub(
            model,
            self.optimizer(),
            **self.logit_arguments(loss_fn),
            **self.values(ScrubOptions),
        )
        return self.scheduled(method)
