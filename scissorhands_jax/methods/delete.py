"""DELETE (Zhou et al., CVPR 2025): distil the original without its true class, on the forget set alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, for_classes, forget_batches
from scissorhands_jax.methods.settings import Choices, Gradient, LogitArguments, Range, TrainingSettings
from scissorhands_jax.tasks import example_weights, weighted_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """The keyword arguments of `delete` that are settings as well."""

    freeze_state: bool = False
    """Whether the student is in evaluation mode too, so that the running statistics of BatchNorm stay those of the
    original. Otherwise they move towards those of the forget set, the only examples that the student sees. Evaluation
    mode also does without dropout; images are augmented either way."""
    batch_size: int = 128
    """The number of forget examples that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeleteArguments(DeleteOptions, LogitArguments):
    """The keyword arguments of `delete`."""


@takes(DeleteArguments)
def delete(model: Model, optimizer: optax.GradientTransformation, options: DeleteArguments) -> Method:
    """Minimises the divergence from the original with the true class taken out. No retained example is read.

    With t the original, frozen and in evaluation mode, and s the student, which starts as t, over forget examples x, y:

      mean of  KL(q || softmax(s(x))),  q = softmax(t(x) with -inf in place of t_y(x)),  so q_y = 0

    q holds the original's other probabilities, divided by 1 - p_y. So the loss takes the true class away and holds the
    ratios of the others where they were ("dark knowledge"), which is to keep the other classes intact without their
    examples. Its gradient with respect to the student's logits is `softmax(s(x)) - q`, divided by the batch size. It
    has a lowest value, 0, unlike the loss of gradient ascent.

    The paper forgets classes; the same loss takes from scattered examples each its own label. The authors' code for
    CIFAR-10 takes 20 epochs of SGD at 1e-4 (for CIFAR-100 and TinyImageNet 5e-5) with momentum 0.9, no weight decay and
    batches of 128 (for TinyImageNet 64). Both networks see the same augmented images. For one class of TinyImageNet it
    keeps BatchNorm, though not dropout, in evaluation mode (`freeze_state`).

    Args:
      model: The network, which also is the teacher.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (when traced) the network has fewer than two classes.
    """
    parts, train, task = options.microbatches, not options.freeze_state, options.task
    microbatches.check_microbatches([options.batch_size], parts)

    def objective(params, carry, batch, key):
        assert task.labels is not None
        images, key = losses.augmented(options.augment, key, task.inputs(batch.forget))

        def mean_loss(params, model_state, examples, key):
            images, labels, weights = examples
            teacher = losses.teacher_logits(model, carry.aux, images)
            key = key if train else None
            student, model_state = model.apply(params, model_state, images, train=train, key=key)
            loss = weighted_mean(losses_without_the_true_class(teacher, student, labels), weights)
            of_labels = weighted_mean(losses.cross_entropies(student, labels), weights)
            return loss, (model_state, {"loss_distilled": loss, "loss_forget": of_labels})

        whole = microbatches.accumulated(mean_loss, parts)
        examples = images, task.labels(batch.forget), example_weights(task, batch.forget)
        return whole(params, carry.model_state, examples, key)

    method = descend(
        objective,
        optimizer,
        batches=forget_batches(options.batch_size),
        reads=("forget",),
        aux=lambda key, params, model_state, data: trees.copy((params, model_state)),
    )
    return for_classes("delete", method, task)


def losses_without_the_true_class(teacher: jax.Array, student: jax.Array, labels: jax.Array) -> jax.Array:
    """`KL(q || softmax(student))` for each example, with q the softmax of the teacher's logits without the true class.

    Args:
      teacher: The teacher's logits, floats, shape=(N, C), with C at least 2.
      student: The student's logits, floats, shape=(N, C).
      labels: The true classes, integers, shape=(N,).

    Returns:
      Floats in float32 or wider, shape=(N,).

    Raises:
      InputError: There is one class only.

    >>> logits = jnp.log(jnp.array([[0.5, 0.4, 0.1]]))
    >>> round(float(losses_without_the_true_class(logits, logits, jnp.array([0]))[0]), 4)  # -log(1 - 0.5)
    0.6931
    """
    if teacher.shape[-1] < 2:
        raise InputError(f"DELETE needs at least 2 classes to leave one out, got {teacher.shape[-1]}")
    true = losses.class_numbers(labels)[:, None] == jnp.arange(teacher.shape[-1])[None]
    targets = jax.nn.softmax(jnp.where(true, -jnp.inf, losses.in_full_precision(teacher)))
    return optax.losses.kl_divergence(jax.nn.log_softmax(losses.in_full_precision(student)), targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeleteSettings(DeleteOptions, TrainingSettings):
    """The authors' settings for CIFAR-10."""

    epochs: int = 20
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        **TrainingSettings.search_ranges,
        "learning_rate": (1e-5, 1e-1),
    }
    reads_classes: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        method = delete(
            model,
            self.optimizer(),
            **self.logit_arguments(loss_fn),
            **self.values(DeleteOptions),
        )
        return self.scheduled(method)
