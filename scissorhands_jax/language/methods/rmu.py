"""RMU (Li et al., ICML 2024): steer the activations of a layer to one random direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Carry, Data, Key, Method, ModelState, Params, PyTree, Scalar
from scissorhands_jax.errors import check_not_negative, check_positive
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import forget_epochs
from scissorhands_jax.language.packing import network_inputs
from scissorhands_jax.language.token_losses import answers_of, mean_over_tokens, sums_over_answers
from scissorhands_jax.methods._gradient import descend
from scissorhands_jax.trees import Where

Activations = Callable[[Params, ModelState, PyTree], jax.Array]
"""`(params, model_state, inputs) -> activations` of shape (N, T, D), where the inputs are `packing.network_inputs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RmuOptions:
    """The keyword arguments of `rmu`."""

    steering: float = 2.0
    """c, the length of the vector that activations are moved to, above 0. The paper takes 20 and more for WMDP."""
    trained: Where = None
    """The leaves that are trained, as a pattern for `trees.select`. None is all; the paper trains the down-projections
    of the layer and of the two before it."""
    forget_weight: float = 1.0
    """The weight of the forget loss, at least 0."""
    retain_weight: float = 1.0
    """alpha, the weight of the retain loss, at least 0. At 0 no retain example is read."""
    batch_size: int = 32
    """The number of rows of packed forget examples that a step sees, and of retain examples."""


@takes(RmuOptions)
def rmu(activations: Activations, optimizer: optax.GradientTransformation, options: RmuOptions) -> Method:
    """Moves the activations of forget examples to a random vector and keeps those of retain examples where they are.

    With h the activations of a layer at the tokens of answers, h_o the original's, and u drawn once from [0, 1)^D,

      L_f = mean of  |h - c u / |u||^2 / D,     L_r = mean of  |h - h_o|^2 / D

    where the mean is over the tokens of each answer and then over answers. The paper takes layer 7 of 32. What comes
    after that layer is not looked at.

    Args:
      activations: The activations of the layer.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range, or the pattern matches no leaf.

    References:
      Li et al., The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning, ICML 2024.
    """
    for name in ("forget_weight", "retain_weight"):
        check_not_negative(name, getattr(options, name))
    check_positive("steering", options.steering)

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> PyTree:
        first = jax.tree.map(jnp.asarray, network_inputs(data_lib.take(data.forget, slice(1))))
        size = jax.eval_shape(activations, params, model_state, first).shape[-1]
        vector = jax.random.uniform(key, (size,))
        return trees.copy(params), options.steering * vector / jnp.linalg.norm(vector)

    def distance(batch: PyTree, own: jax.Array, target: jax.Array) -> Scalar:
        answers_of(batch)
        mask, segment = batch["answer"].astype(bool), batch.get("segment")
        sums, are_answers = sums_over_answers(jnp.mean(jnp.square(own - target), axis=-1), mask, segment)
        lengths, _ = sums_over_answers(jnp.ones(mask.shape), mask, segment)
        return mean_over_tokens(sums / jnp.maximum(lengths, 1), are_answers)

    def objective(params, carry: Carry, batch: Batch, key: Key):
        del key
        original, steered = carry.aux
        assert batch.forget is not None
        seen = activations(params, carry.model_state, network_inputs(batch.forget))
        forget = distance(batch.forget, seen, jnp.broadcast_to(steered, seen.shape))
        value, metrics = options.forget_weight * forget, {"loss_forget": forget}
        if batch.retain is not None:
            before = jax.lax.stop_gradient(activations(original, carry.model_state, network_inputs(batch.retain)))
            retain = distance(
                batch.retain, activations(params, carry.model_state, network_inputs(batch.retain)), before
            )
            value, metrics["loss_retain"] = value + options.retain_weight * retain, retain
        return value, (carry.model_state, metrics)

    return descend(
        objective,
        optimizer if options.trained is None else only(optimizer, options.trained),
        batches=forget_epochs(options.batch_size, with_retain=options.retain_weight > 0),
        reads=("forget", "retain") if options.retain_weight > 0 else ("forget",),
        aux=aux,
    )


def only(optimizer: optax.GradientTransformation, where: Where) -> optax.GradientTransformation:
    """The optimizer with updates of the leaves that a pattern for `trees.select` matches, and none of the others."""

    def others(params: Params) -> PyTree:
        return jax.tree.map(lambda chosen: not chosen, trees.select(params, where))

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), others))
