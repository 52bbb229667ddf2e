"""MUNBa (Wu & Harandi, 2024, arXiv 2411.15537): retaining and forgetting bargain over every step."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Carry, Key, Method, Metrics, Model, ModelState, PyTree, StatefulLossFn
from scissorhands_jax.errors import check_choice
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import (
    PairedOptions,
    follow_direction,
    for_classes,
    forget_once_batches,
    paired_batches,
)
from scissorhands_jax.methods.pair_gradients import pair_gradients
from scissorhands_jax.methods.salun import RelabelArguments, any_labels, wrong_labels
from scissorhands_jax.methods.settings import Gradient, Mode, TrainingSettings
from scissorhands_jax.tasks import task_of

ForgetLoss = Literal["random_label", "ascent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaOptions(PairedOptions):
    """The keyword arguments of `munba` that are settings as well."""

    forget_loss: ForgetLoss = "random_label"
    """The loss of the forget batch: the loss with random labels, or "ascent", the negative of the loss."""
    mode: Mode = "paper"
    """"paper" steps against the exact bargain and cycles the forget set, so that every step bargains. "authors" is the
    published code: `published_bargain`, one pass over the forget set per epoch, and random labels that may be the true
    ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaArguments(MunbaOptions, RelabelArguments):
    """The keyword arguments of `munba`."""

    num_classes: int = 0
    """The number of classes, at least 2 for random labels, which are drawn from 0 to `num_classes - 1`; "ascent" does
    not read it."""


@takes(MunbaArguments)
def munba(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: MunbaArguments) -> Method:
    """Steps against the Nash bargain of the retain and the forget gradient, one batch of each per step.

    `bargain` has the mathematics. Every direction but zero has the norm sqrt(2), however small the gradients are, so
    the learning rate alone sets the pace: let it decay. Both gradients are those of training passes from the same
    network state, which only the retain pass moves.

    In `mode="authors"`, the published code, the direction is `published_bargain`'s, whose norm is at most 1. Once the
    forget examples of an epoch are used up, steps follow the retain gradient alone, which is not clipped; the last
    batch of a set may be smaller. Random labels are drawn anew in every step and may be the true ones. The forget pass
    starts from the network state that the retain pass left, and moves it again. The defaults of that code are 10 epochs
    of `sgd(1e-2)` with batches of 256; it has no launch script for classification.

    Args:
      loss_fn: The general form of the loss, a mean over a batch. With random labels, batches have a "label" entry;
        without one, as in batches of text, take `forget_loss="ascent"`.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range.
    """
    check_choice("forget_loss", options.forget_loss, typing.get_args(ForgetLoss))
    check_choice("mode", options.mode, typing.get_args(Mode))
    ascent, published = options.forget_loss == "ascent", options.mode == "authors"
    usual = any_labels if published else wrong_labels
    draw = None if ascent else options.relabel or usual(options.num_classes)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        label_key, key = jax.random.split(key)
        if batch.forget is None:
            (loss, model_state), gradient = jax.value_and_grad(
                lambda params: loss_fn(params, carry.model_state, batch.retain, train=True, key=key), has_aux=True
            )(carry.params)
            return gradient, model_state, {"loss_retain": loss}
        if draw is not None:
            forgotten = typing.cast(dict, batch.forget)
            batch = batch._replace(forget={**forgotten, "label": draw(label_key, forgotten["label"])})
        (retain_loss, loss), retain, forget, model_state = pair_gradients(
            loss_fn, carry.params, carry.model_state, batch, key, forget_moves_state=published
        )
        if ascent:
            forget = jax.tree.map(jnp.negative, forget)
        metrics: Metrics = {"loss_retain": retain_loss, "loss_forget" if ascent else "loss_relabelled": loss}
        if published:
            agreed, weights, succeeded = published_bargain(retain, forget)
            return agreed, model_state, {**metrics, "weights": weights, "bargained": succeeded}
        agreed, cosine = bargain(retain, forget)
        return agreed, model_state, {**metrics, "cosine": cosine}

    batches = forget_once_batches(options) if published else paired_batches(options)
    method = follow_direction(direction, optimizer, batches=batches, reads=("forget", "retain"))
    if draw is None:
        return method
    return for_classes(
        "munba with random labels",
        method,
        task_of(loss_fn),
        relabels=True,
        of_classes=options.relabel is None,
        otherwise='give it forget_loss="ascent", or ',
    )


def bargain(retain: PyTree, forget: PyTree) -> tuple[PyTree, jax.Array]:
    """The Nash bargaining solution of two gradients, and their cosine, shape=().

    The players' gains along g are `<g, g_r>` and `<g, g_f>`; the bargain maximises the sum of their logarithms over a
    ball. There g is parallel to `g_r / <g, g_r> + g_f / <g, g_f>`. With the length for which it equals that, and
    `alpha_i = 1 / <g, g_i>`, this says `g = alpha_r g_r + alpha_f g_f` and, with G the Gram matrix of both gradients,
    `G alpha = 1 / alpha`. Row i times alpha_i is `alpha_i^2 |g_i|^2 + alpha_r alpha_f <g_r, g_f> = 1`. So
    `alpha_r |g_r| = alpha_f |g_f|`, and with c the cosine `alpha_i = 1 / (|g_i| sqrt(1 + c))`. As 1 + c is half the
    squared norm of the sum of the unit gradients u_i,

      g = sqrt(2) (u_r + u_f) / |u_r + u_f|

    which is computed: the bisector, of one length whatever the scales, where only the sum can cancel.
    A gradient that is zero has no say, and the other one is followed. Of exactly opposite gradients (the sum is
    within rounding, 16 eps, of zero) no direction serves both, and the result is zero.
    """
    first, second = _unit(retain), _unit(forget)
    total = jax.tree.map(jnp.add, first, second)
    norm = trees.norm(total)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(total))
    agree = norm > 16 * eps
    scale = jnp.where(agree, jnp.sqrt(2.0) / jnp.where(agree, norm, 1), 0)
    agreed = jax.tree.map(lambda leaf, like: (leaf * scale.astype(leaf.dtype)).astype(like.dtype), total, retain)
    return agreed, trees.vdot(first, second)


def published_bargain(retain: PyTree, forget: PyTree) -> tuple[PyTree, jax.Array, jax.Array]:
    """The bargain as the published code computes it, in float32: two weights, and their sum of gradients at norm 1.

    With a, b and c the products `<g_r, g_r>`, `<g_r, g_f>` and `<g_f, g_f>`:

      alpha_r = sqrt((a c - b sqrt(a c)) / (a^2 c - a b^2 + 1e-8)),  alpha_f = (1 - a alpha_r^2) / (b alpha_r + 1e-8)

    Without the terms of 1e-8 this is `bargain`. They are absolute, so they decide where gradients are small: where both
    norms are well below 0.05, the sixth root of 1e-8, the direction is nearly that of the forget gradient alone, or the
    bargain fails.
    Where a weight is not positive or not a number the bargain counts as failed, and the weights are 1 and 0.1. The sum
    is then clipped to norm 1, as is that of a bargain, which without the terms has the norm sqrt(2).

    Returns:
      The direction, like the gradients; the weights of the retain and the forget gradient before clipping, float32 of
      shape (2,); and whether the bargain succeeded, bool of shape ().
    """
    a, b, c = trees.vdot(retain, retain), trees.vdot(retain, forget), trees.vdot(forget, forget)
    first = jnp.sqrt((a * c - b * jnp.sqrt(a * c)) / (a * a * c - a * b * b + 1e-8))
    second = (1 - a * first * first) / (b * first + 1e-8)
    succeeded = (first > 0) & (second > 0)
    weights = jnp.where(succeeded, jnp.stack([first, second]), jnp.array([1, 0.1], first.dtype))
    total = jax.tree.map(lambda r, f: weights[0].astype(r.dtype) * r + weights[1].astype(f.dtype) * f, retain, forget)
    scale = jnp.minimum(1, 1 / (trees.norm(total) + 1e-6))
    return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, total), weights, succeeded


def _unit(tree: PyTree) -> PyTree:
    """The tree at norm 1, float32 or wider; zero stays zero. Squares of tiny entries must not underflow."""

    def divide(tree, number):
        return jax.tree.map(lambda leaf: leaf / jnp.where(number > 0, number, 1).astype(leaf.dtype), tree)

    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
    tree = divide(
        tree, functools.reduce(jnp.maximum, (jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)))
    )
    return divide(tree, trees.norm(tree))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaSettings(MunbaOptions, TrainingSettings):
    """The defaults of the published code, except for the mode."""

    learning_rate: float = 1e-2
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")

    @property
    def needs_classes(self) -> bool:
        """Whether forget examples are given random labels."""
        return self.forget_loss == "random_label"

    @property
    def relabels(self) -> bool:
        """Whether forget examples are given random labels."""
        return self.needs_classes

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model
        options = self.values(MunbaOptions)
        return self.scheduled(munba(self.microbatched(loss_fn), self.optimizer(), num_classes=num_classes, **options))
