"""SalUn (Fan et al., ICLR 2024): random labels for the forget set, and only the salient weights may move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import masks, saliency, trees
from scissorhands_jax.base import Data, Key, Mask, Method, Model, ModelState, Params, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods._gradient import descend, mixed_batches
from scissorhands_jax.methods.settings import TrainingSettings

Relabel = Callable[[Key, jax.Array], jax.Array]
Mode = Literal["paper", "authors"]


def wrong_labels(num_classes: int) -> Relabel:
    """Uniform over all classes but the true one."""
    if num_classes < 2:
        raise InputError(f"random labels need at least 2 classes, got {num_classes}")

    def relabel(key, labels):
        return (labels + jax.random.randint(key, labels.shape, 1, num_classes, labels.dtype)) % num_classes

    return relabel


def any_labels(num_classes: int) -> Relabel:
    """Uniform over all classes, the true one included, as the published code draws them."""

    def relabel(key, labels):
        return jax.random.randint(key, labels.shape, 0, num_classes, labels.dtype)

    return relabel


def salun(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    num_classes: int,
    fraction: float | None = 0.5,
    mode: Mode = "paper",
    relabel: Relabel | None = None,
    batch_size: int = 256,
) -> Method:
    """Minimises the loss of forget examples with random labels and retain examples with their own, in mixed batches.

    The mask marks the top `fraction` of `|dL_f/dw|` over the whole forget set (evaluation mode); other weights stay
    bit-equal. `fraction=None` is the random-label method without a mask. In `mode="authors"` the gradient is masked
    instead of the update, so weight decay and momentum move the other weights, and a random label may be the true one.
    The authors' setting for CIFAR-10: fraction 0.5, 10 epochs, `sgd(5e-3)`, batch 256.

    Args:
      loss_fn: of batches with a "label" entry, which is replaced for forget examples.
      num_classes: labels are drawn from 0 to num_classes - 1.
      relabel: `(key, labels) -> labels`; default `wrong_labels`, in authors' mode `any_labels`.

    Raises:
      InputError: a setting is out of its range.
    """
    if fraction is not None:
        masks.check_fraction(fraction)
    if mode not in ("paper", "authors"):
        raise InputError(f"mode must be paper or authors, got {mode!r}")
    if relabel is None:
        relabel = any_labels(num_classes) if mode == "authors" else wrong_labels(num_classes)
    gradient_masked = fraction is not None and mode == "authors"

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Mask | None:
        del key
        if fraction is None:
            return None
        positions = data_lib.even_batches(data_lib.size(data.forget), batch_size)
        examples = (data_lib.take(data.forget, p) for p in positions)
        return salun_mask(loss_fn, params, model_state, examples, fraction, mode=mode)

    def objective(params, carry, batch, key):
        label_key, loss_key = jax.random.split(key)
        parts = []
        if batch.forget is not None:
            parts.append({**batch.forget, "label": relabel(label_key, batch.forget["label"])})
        if batch.retain is not None:
            parts.append(batch.retain)
        examples = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        if gradient_masked:
            params = _masked_gradient(params, carry.aux)
        loss, model_state = loss_fn(params, carry.model_state, examples, train=True, key=loss_key)
        return loss, (model_state, {"loss_mixed": loss})

    update_masked = fraction is not None and mode == "paper"
    return descend(
        objective,
        optimizer,
        batches=mixed_batches(batch_size),
        reads=("forget", "retain"),
        aux=aux,
        mask_of=(lambda mask: mask) if update_masked else None,
    )


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

    In paper mode every example counts the same and `round(fraction * n)` weights are marked; in authors' mode every
    batch counts the same, whatever its size, and it is `int(fraction * n)`.
    """
    sums = saliency.gradient_sum(loss_fn, params, model_state, batches, weighted=mode == "paper")
    magnitudes = jax.tree.map(jnp.abs, sums.gradient)
    saliency.check_finite(magnitudes)
    if mode == "authors":
        return masks.top_k(magnitudes, int(fraction * trees.size(magnitudes)))
    return masks.top_fraction(magnitudes, fraction)


def _masked_gradient(params: Params, mask: Mask) -> PyTree:
    """The same values; only masked-in entries pass a gradient."""
    return jax.tree.map(lambda keep, w: jnp.where(keep, w, jax.lax.stop_gradient(w)), mask, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalunSettings(TrainingSettings):
    """The authors' CIFAR-10 settings."""

    batch_size: int = 256
    fraction: float | None = 0.5
    mode: Mode = "paper"
    mixed: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model
        return self.scheduled(
            salun(
                self.microbatched(loss_fn),
                self.optimizer(),
                num_classes=num_classes,
                fraction=self.fraction,
                mode=self.mode,
                batch_size=self.batch_size,
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabelSettings(SalunSettings):
    """SalUn without its mask."""

    fraction: None = None
