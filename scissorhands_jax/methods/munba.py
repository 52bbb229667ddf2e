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
from scissorhands_jax.methods._gradient import PairedOptions, follow_direction, paired_batches
from scissorhands_jax.methods.pair_gradients import pair_gradients
from scissorhands_jax.methods.salun import RelabelArguments, wrong_labels
from scissorhands_jax.methods.settings import Gradient, TrainingSettings

ForgetLoss = Literal["random_label", "ascent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaOptions(PairedOptions):
    """The keyword arguments of `munba` that are settings as well."""

    forget_loss: ForgetLoss = "random_label"
    """The loss of the forget batch: the loss with random labels, or "ascent", the negative of the loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaArguments(MunbaOptions, RelabelArguments):
    """The keyword arguments of `munba`."""


@takes(MunbaArguments)
def munba(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: MunbaArguments) -> Method:
    """Steps against the Nash bargain of the retain and the forget gradient, one batch of each per step.

    `bargain` has the mathematics. Every direction has the norm sqrt(2), however small the gradients are, so the
    learning rate alone sets the pace: let it decay. Both gradients are those of training passes from the same network
    state, which only the retain pass moves. The published code (arXiv 2411.15537, batches of 256) clips the norm to 1,
    takes steps on retained examples alone once the forget examples of an epoch are used up, and lets a random label be
    the true one.

    Args:
      loss_fn: The general form of the loss, a mean over a batch. With random labels, batches have a "label" entry.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range.
    """
    check_choice("forget_loss", options.forget_loss, typing.get_args(ForgetLoss))
    ascent = options.forget_loss == "ascent"
    draw = None if ascent else options.relabel or wrong_labels(options.num_classes)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        label_key, key = jax.random.split(key)
        if draw is not None:
            forgotten = typing.cast(dict, batch.forget)
            batch = batch._replace(forget={**forgotten, "label": draw(label_key, forgotten["label"])})
        (retain_loss, loss), retain, forget, model_state = pair_gradients(
            loss_fn, carry.params, carry.model_state, batch, key
        )
        if ascent:
            forget = jax.tree.map(jnp.negative, forget)
        agreed, cosine = bargain(retain, forget)
        metrics = {"loss_retain": retain_loss, "loss_forget" if ascent else "loss_relabelled": loss, "cosine": cosine}
        return agreed, model_state, metrics

    return follow_direction(direction, optimizer, batches=paired_batches(options), reads=("forget", "retain"))


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


def _unit(tree: PyTree) -> PyTree:
    """The tree at norm 1, float32 or wider; zero stays zero. Squares of tiny entries must not underflow."""

    def divide(tree, number):
        return jax.tree.map(lambda leaf: leaf / jnp.where(number > 0, number, 1).astype(leaf.dtype), tree)

    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
    tree = divide(tree, functools.reduce(jnp.maximum, (jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree))))
    return divide(tree, trees.norm(tree))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MunbaSettings(MunbaOptions, TrainingSettings):
    """The batch size of the authors, with a learning rate of ours."""

    learning_rate: float = 1e-2
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model
        options = self.values(MunbaOptions)
        return self.scheduled(munba(self.microbatched(loss_fn), self.optimizer(), num_classes=num_classes, **options))
