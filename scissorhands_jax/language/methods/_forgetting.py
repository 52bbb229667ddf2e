"""What the methods for language models share: a forget loss and a retain loss, added with weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import microbatches, trees
from scissorhands_jax.base import Batch, Carry, Data, Key, Method, Metrics, Model, ModelState, Params, PyTree, Scalar
from scissorhands_jax.errors import check_choice, check_not_negative
from scissorhands_jax.language.packing import network_inputs
from scissorhands_jax.language.token_losses import (
    Answers,
    answers_of,
    kl_to,
    mean_over_tokens,
    sums_over_answers,
    token_nll,
)
from scissorhands_jax.methods._gradient import Batches, descend

RetainLoss = Literal["nll", "kl", "kl_everywhere"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgettingOptions:
    """The keyword arguments that all methods for language models have."""

    forget_weight: float = 1.0
    """gamma, the weight of the forget loss, at least 0."""
    retain_weight: float = 1.0
    """alpha, the weight of the retain loss, at least 0. At 0 no retain example is read."""
    retain_loss: RetainLoss = "nll"
    """"nll" is the mean negative log-likelihood of a token of the retained answers, "kl" the mean divergence of their
    predictions from the original's, KL(original || network). "kl_everywhere" takes that mean over prompts and padding
    as well, as the published code does."""
    batch_size: int = 32
    """The number of rows of packed forget examples that a step sees, and of retain examples. An epoch passes once over
    the forget set, and each of its batches goes with a random batch of the retain set, as in the published code."""
    microbatches: int = 1
    """The number of parts in which the batch of each set is computed, one after the other, where memory is short.
    Losses that are means over tokens are then means over the parts of such means."""


class Seen(NamedTuple):
    """What a forget loss is made of: one set of answers, and what two networks predict."""

    answers: Answers
    logits: jax.Array
    """The network's predictions of the labels. shape=(N, T - 1, V)"""
    original: jax.Array | None
    """The original's, without a gradient; None if the method does not compare with it."""


class Networks:
    """The network that forgets and the original, as a forget loss sees them."""

    def __init__(self, model: Model, params: Params, carry: Carry, key: Key | None) -> None:
        self._model, self._params, self._carry, self._key = model, params, carry, key

    def see(self, batch: PyTree, *, part: str = "") -> Seen:
        """The predictions of a batch; `part` as for `answers_of`."""
        answers, inputs = answers_of(batch, part=part), network_inputs(batch, part=part)
        logits, _ = self._model.apply(self._params, self._carry.model_state, inputs, train=True, key=self._key)
        return Seen(answers, logits[:, :-1], self.original(inputs))

    def original(self, inputs: PyTree) -> jax.Array | None:
        """The original's predictions; None if the carry does not hold it."""
        if not self._carry.aux:
            return None
        logits, _ = self._model.apply(self._carry.aux, self._carry.model_state, inputs, train=False)
        return jax.lax.stop_gradient(logits[:, :-1])


def answer_losses(logits: jax.Array, answers: Answers) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of each answer, summed over its tokens, and where there is one, as
    `token_losses.sums_over_answers` has it."""
    return sums_over_answers(token_nll(logits, answers), answers.mask, answers.segment)


AnswersLoss = Callable[[Networks, PyTree], Scalar]
"""`(networks, forget batch) -> loss`."""


def forget_by(
    forget_loss: AnswersLoss,
    model: Model,
    optimizer: optax.GradientTransformation,
    options: ForgettingOptions,
    *,
    compares: bool,
) -> Method:
    """A method that minimises `forget_weight * L_f + retain_weight * L_r` from the original weights.

    The state of a network, if it has one, stays as it is.

    Args:
      forget_loss: L_f.
      model: The network; `apply` takes tokens of shape (N, T) and returns logits of shape (N, T, V).
      optimizer: The optimizer, such as `optax.adamw`.
      options: Weights, the retain loss and the size of batches.
      compares: Whether the forget loss compares with the original, of which the carry then holds a copy.

    Raises:
      InputError: A setting is out of its range.
    """
    _check(options)
    holds = compares or (options.retain_weight > 0 and options.retain_loss != "nll")

    def objective(params: Params, carry: Carry, batch: Batch, key: Key) -> tuple[Scalar, tuple[ModelState, Metrics]]:
        def in_parts(loss: AnswersLoss, examples: PyTree, key: Key) -> Scalar:
            def mean(
                params: Params, model_state: ModelState, examples: PyTree, key: Key | None
            ) -> tuple[Scalar, tuple[ModelState, Metrics]]:
                return loss(Networks(model, params, carry, key), examples), (model_state, {})

            return microbatches.accumulated(mean, options.microbatches)(params, (), examples, key)[0]

        forget_key, retain_key = jax.random.split(key)
        forget = in_parts(forget_loss, batch.forget, forget_key)
        value, metrics = options.forget_weight * forget, {"loss_forget": forget}
        if batch.retain is not None:
            retain_loss = functools.partial(_retain_loss, options.retain_loss)
            metrics["loss_retain"] = in_parts(retain_loss, batch.retain, retain_key)
            value = value + options.retain_weight * metrics["loss_retain"]
        return value, (carry.model_state, metrics)

    return descend(
        objective,
        optimizer,
        batches=forget_epochs(options.batch_size, with_retain=options.retain_weight > 0),
        reads=("forget", "retain") if options.retain_weight > 0 else ("forget",),
        aux=_original if holds else None,
    )


def forget_epochs(batch_size: int, *, with_retain: bool = True) -> Batches:
    """One pass over the forget set per epoch; each batch goes with a random batch of the retain set.

    Args:
      batch_size: The number of rows of packed examples of each set that a step sees.
      with_retain: Whether steps see retain examples at all.
    """
    data_lib.check_batch_size(batch_size)

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        retain_key, forget_key = jax.random.split(jax.random.fold_in(key, epoch))
        forget = data_lib.shuffled_batches(forget_key, data_lib.size(data.forget), batch_size)
        if not with_retain:
            return (Batch(forget=positions) for positions in forget)
        retain = data_lib.cycled_batches(retain_key, data_lib.size(data.retain), batch_size)
        return (Batch(f, r) for f, r in zip(forget, retain, strict=False))

    return batches


def _original(key: Key, params: Params, model_state: ModelState, data: Data) -> Params:
    """The parameters of the original; its state is that of the carry, which stays as it is."""
    del key, model_state, data
    return trees.copy(params)


def _retain_loss(kind: RetainLoss, networks: Networks, examples: PyTree) -> Scalar:
    seen = networks.see(examples)
    if kind == "nll":
        return mean_over_tokens(token_nll(seen.logits, seen.answers), seen.answers.mask)
    assert seen.original is not None
    divergence = kl_to(seen.original, seen.logits)
    return jnp.mean(divergence) if kind == "kl_everywhere" else mean_over_tokens(divergence, seen.answers.mask)


def _check(options: ForgettingOptions) -> None:
    for name in ("forget_weight", "retain_weight"):
        check_not_negative(name, getattr(options, name))
    check_choice("retain_loss", options.retain_loss, get_args(RetainLoss))
    microbatches.check_microbatches([options.batch_size], options.microbatches)
