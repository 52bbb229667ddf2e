"""SalUn (Fan et al., ICLR 2024): random labels for the forget set, and only the salient weights may move."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, masks, saliency, trees
from scissorhands_jax.base import Data, Key, Mask, Method, Model, ModelState, Params, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, for_classes, forget_first_batches, mixed_batches
from scissorhands_jax.methods.settings import Choices, Mode, Range, TrainingSettings
from scissorhands_jax.tasks import task_of

Relabel = Callable[[Key, jax.Array], jax.Array]
Order = Literal["mixed", "sequential"]


def wrong_labels(num_classes: int) -> Relabel:
    """Labels drawn uniformly from all classes except the true one, as integers of at least 32 bits.

    Raises:
      InputError: There are fewer than 2 classes.
    """
    _check_classes(num_classes)

    def relabel(key, labels):
        wide = losses.class_numbers(labels)
        return (wide + jax.random.randint(key, wide.shape, 1, num_classes, wide.dtype)) % num_classes

    return relabel


def any_labels(num_classes: int) -> Relabel:
    """Labels drawn uniformly from all classes, the true one included, as the published code draws them.

    They are integers of at least 32 bits.

    Raises:
      InputError: There are fewer than 2 classes.
    """
    _check_classes(num_classes)

    def relabel(key, labels):
        wide = losses.class_numbers(labels)
        return jax.random.randint(key, wide.shape, 0, num_classes, wide.dtype)

    return relabel


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise InputError(f"random labels need at least 2 classes, got {num_classes}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelabelArguments:
    """Which labels the forget examples are given, for methods that replace them."""

    num_classes: int
    """The number of classes, at least 2; labels are drawn from 0 to `num_classes - 1`."""
    relabel: Relabel | None = None
    """The function that draws them, `(key, labels) -> labels`, from labels of any form. None takes `wrong_labels`, or
    `any_labels` where the method has a mode "authors" and follows it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalunOptions:
    """The keyword arguments of `salun` that are settings as well."""

    fraction: float | None = 0.5
    """The share of the weights that may move, above 0 and below 1. None has no mask: the random-label method."""
    mode: Mode = "paper"
    """"paper" masks the update. "authors" masks the gradient instead, so that weight decay and momentum move the other
    weights too, and a random label may be the true one."""
    order: Order = "mixed"
    """"mixed" has forget and retain examples in every batch, in the proportion of the sets. "sequential" has all forget
    batches of an epoch before its retain batches; in authors' mode the last batch of a set may then be smaller."""
    batch_size: int = 256
    """The number of examples that a step sees; of both sets together where they are mixed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalunArguments(SalunOptions, RelabelArguments):
    """The keyword arguments of `salun`."""


@takes(SalunArguments)
def salun(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: SalunArguments) -> Method:
    """Minimises the loss of forget examples with random labels and of retain examples with their own.

    The mask marks the top `fraction` of `|dL_f/dw|` over the whole forget set, in evaluation mode. All other weights
    stay bit-equal in paper mode. The random labels are drawn anew in every step.

    SalUn's own code for CIFAR-10 is `mode="authors"`, `order="sequential"`, a fraction of 0.5 and 10 epochs of
    `sgd(0.013)` with batches of 256. For SVHN it has the same order, for CIFAR-100 mixed batches; it draws labels for
    every batch or, where they are mixed, at the beginning of every epoch. Since February 2026 it holds the other
    weights fixed, as `mode="paper"` does. The defaults, mixed batches and `sgd(5e-3)`, are those of the scripts for
    CIFAR-10 that Scissorhands' authors published for this baseline.

    Args:
      loss_fn: The general form of the loss, a mean over a batch with a "label" entry, which is replaced for forget
        examples.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range.
    """
    fraction, mode = options.fraction, options.mode
    if fraction is not None:
        masks.check_fraction(fraction)
    check_choice("mode", mode, typing.get_args(Mode))
    check_choice("order", options.order, typing.get_args(Order))
    draw = any_labels if mode == "authors" else wrong_labels
    relabel = draw(options.num_classes) if options.relabel is None else options.relabel
    gradient_masked = fraction is not None and mode == "authors"

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Mask | None:
        del key
        if fraction is None:
            return None
        positions = data_lib.even_batches(data_lib.size(data.forget), options.batch_size)
        examples = (data_lib.take(data.forget, p) for p in positions)
        return salun_mask(loss_fn, params, model_state, examples, fraction, mode=mode)

    def objective(params, carry, batch, key):
        label_key, loss_key = jax.random.split(key)
        parts = []
        if batch.forget is not None:
            parts.append({**batch.forget, "label": relabel(label_key, batch.forget["label"])})
        if batch.retain is not None:
            parts.append(batch.retain)
        examples = data_lib.joined(*parts)
        if gradient_masked:
            params = _masked_gradient(params, carry.aux)
        loss, model_state = loss_fn(params, carry.model_state, examples, train=True, key=loss_key)
        name = "loss_relabelled" if batch.retain is None else "loss_retain" if batch.forget is None else "loss_mixed"
        return loss, (model_state, {name: loss})

    update_masked = fraction is not None and mode == "paper"
    if options.order == "mixed":
        batches = mixed_batches(options.batch_size)
    else:
        batches = forget_first_batches(options.batch_size, fill=mode == "paper")
    method = descend(
        objective,
        optimizer,
        batches=batches,
        reads=("forget", "retain"),
        aux=aux,
        mask_of=(lambda mask: mask) if update_masked else None,
    )
    of_classes = options.relabel is None
    return for_classes("random labels", method, task_of(loss_fn), relabels=True, of_classes=of_classes)


def salun_mask(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    fraction: float,
    *,
    mode: Mode = "paper",
) -> Mask:
    """Marks the weights with the largest `|sum of forget gradients|`, in evaluation mode.

    In paper mode every example has the same weight in the sum and `round(fraction * n)` weights, at least one, are
    marked. In authors' mode every batch has the same weight, whatever its size, and `int(fraction * n)` are marked.
    Under jit and vmap gradients that are not finite are not refused, because numbers cannot be seen there.

    Args:
      loss_fn: The loss, a mean over the examples of a batch.
      params: The parameters of the original network.
      model_state: Its state.
      batches: The forget set in batches.
      fraction: The share of the weights that are marked.
      mode: "paper" or "authors".

    Raises:
      InputError: A gradient is not finite.
    """
    sums = saliency.gradient_sum(loss_fn, params, model_state, batches, weighted=mode == "paper")
    magnitudes = jax.tree.map(jnp.abs, sums.gradient)
    saliency.check_finite(magnitudes)
    if mode == "authors":
        return masks.top_k(magnitudes, int(fraction * trees.count_weights(magnitudes)))
    return masks.top_fraction(magnitudes, fraction)


def _masked_gradient(params: Params, mask: Mask) -> PyTree:
    """The same values, where only the marked entries have a gradient."""
    return jax.tree.map(lambda keep, w: jnp.where(keep, w, jax.lax.stop_gradient(w)), mask, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalunSettings(SalunOptions, TrainingSettings):
    """The settings of the scripts for CIFAR-10 that Scissorhands' authors published for SalUn."""

    mixed: ClassVar[bool] = True
    reads_classes: ClassVar[bool] = True
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "fraction": (0.03, 0.9),
        **TrainingSettings.search_ranges,
    }

    @property
    def relabels(self) -> bool:
        """Whether the method replaces the `label` of forget examples: always."""
        return True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model
        options = self.values(SalunOptions)
        return self.scheduled(salun(self.microbatched(loss_fn), self.optimizer(), num_classes=num_classes, **options))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabelSettings(SalunSettings):
    """SalUn without its mask."""

    fraction: None = None
    """None, since this method has no mask."""
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = TrainingSettings.search_ranges
