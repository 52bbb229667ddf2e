"""Bad Teacher (Chundawat et al., AAAI 2023): learn from an incompetent teacher what to forget."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import Batch, Data, Key, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, mixed_batches
from scissorhands_jax.methods.settings import TeacherArguments, TrainingSettings
from scissorhands_jax.tasks import example_weights, weighted_mean


class Teachers(NamedTuple):
    """Two networks in evaluation mode, each params and model state."""

    competent: tuple[Params, ModelState]  # the original
    incompetent: tuple[Params, ModelState]  # freshly drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacherOptions:
    """The keyword arguments of `bad_teacher` that are settings as well."""

    retain_fraction: float = 0.3
    """The share of the retain set that is read, above 0 and at most 1. It is drawn once and stands for all of it."""
    temperature: float = 1.0
    """T, the temperature of both softmaxes, above 0."""
    batch_size: int = 256
    """The number of examples of both sets together that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacherArguments(BadTeacherOptions, TeacherArguments):
    """The keyword arguments of `bad_teacher`."""


@takes(BadTeacherArguments)
def bad_teacher(model: Model, optimizer: optax.GradientTransformation, options: BadTeacherArguments) -> Method:
    """Minimises the divergence from a random network on forget and from the original on retain examples.

    With c the original, b a network that `model.init` draws, s the student, which starts as c, over mixed batches:

      mean over the batch of  T^2 KL(softmax(t(x) / T) || softmax(s(x) / T)),  t = b on forget, c on retain examples

    Labels of classes are not read. Over other outputs than logits of classes, T^2 KL is the divergence of the `task`,
    such as a mean over the tokens of answers. The authors' settings are a retain_fraction of 0.3, T = 1, and one epoch
    of Adam at 1e-4 with batches of 256; their code also divides by the number of classes and has no T^2.

    Args:
      model: The network, which also draws the incompetent teacher.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or the task has no divergence.
    """
    retain_fraction, batch_size, parts = options.retain_fraction, options.batch_size, options.microbatches
    task, compare = options.task, options.task.divergence
    assert compare is not None
    if not 0 < retain_fraction <= 1:
        raise InputError(f"retain_fraction must lie above 0 and not above 1, got {retain_fraction}")
    temperature = losses.check_temperature(options.temperature)
    microbatches.check_microbatches([batch_size], parts)
    mixed = mixed_batches(batch_size)

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Teachers:
        del data
        return Teachers(trees.copy((params, model_state)), model.init(key))

    def objective(params, carry, batch, key):
        count = data_lib.size(batch.forget)
        examples = data_lib.joined(batch.forget, batch.retain)
        inputs, key = losses.augmented(options.augment, key, task.inputs(examples))
        first, rest = (data_lib.take(inputs, part) for part in (slice(count), slice(count, None)))
        taught = ((carry.aux.incompetent, first), (carry.aux.competent, rest))
        of_each = [
            microbatches.mapped(functools.partial(losses.teacher_logits, model, teacher), x, parts)
            for teacher, x in taught
        ]
        outputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *of_each)
        total = count + data_lib.size(batch.retain)
        forgets, weights = jnp.arange(total) < count, example_weights(task, examples)
        shares = jnp.ones(total) if weights is None else weights
        # What either kind weighs, as a share of the whole.
        of_forget, of_retain = (jnp.mean(jnp.where(chosen, shares, 0)) for chosen in (forgets, ~forgets))

        def mean_loss(params, model_state, part, key):
            inputs, examples, teacher, forgets, weights = part
            student, model_state = model.apply(params, model_state, inputs, train=True, key=key)
            each = compare(teacher, student, examples, temperature)
            # Sums over either kind in this part, so that the mean over parts is that over the kind.
            forget, retain = (
                weighted_mean(jnp.where(chosen, each, 0), weights) / jnp.where(share > 0, share, 1)
                for chosen, share in ((forgets, of_forget), (~forgets, of_retain))
            )
            loss = weighted_mean(each, weights)
            return loss, (model_state, {"loss_mixed": loss, "kl_forget": forget, "kl_retain": retain})

        whole = microbatches.accumulated(mean_loss, parts)
        parts_of = (inputs, examples, outputs, forgets, weights)
        return whole(params, carry.model_state, parts_of, key)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        subset_key, key = jax.random.split(key)
        total = data_lib.size(data.retain)
        # A data set of positions: what is drawn from it are positions in the retain set.
        subset = data_lib.permutation(subset_key, total)[: max(1, round(retain_fraction * total))]
        for batch in mixed(key, data._replace(retain=subset), epoch):
            yield batch._replace(retain=subset[batch.retain])

    return descend(objective, optimizer, batches=batches, reads=("forget", "retain"), aux=aux)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacherSettings(BadTeacherOptions, TrainingSettings):
    """The authors' subset and temperature, with SGD in place of their one epoch of Adam."""

    learning_rate: float = 1e-2
    mixed: ClassVar[bool] = True
    compares_outputs: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        method = bad_teacher(
            model,
            self.optimizer(),
            **self.logit_arguments(loss_fn),
            **self.values(BadTeacherOptions),
        )
        return self.scheduled(method)
