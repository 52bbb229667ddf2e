"""The gradient of a repair step of Scissorhands as a pure function, for training loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from scissorhands_jax import projection, trees
from scissorhands_jax.base import Batch, Key, Metrics, ModelState, Params, PyTree, StatefulLossFn, check_loss, new_carry
from scissorhands_jax.errors import InputError, check_not_negative
from scissorhands_jax.methods.pair_gradients import Pair, check_pair
from scissorhands_jax.methods.scissorhands import OptState, Repair, ScissorhandsAux
from scissorhands_jax.methods.semantics import SEMANTICS
from scissorhands_jax.trees import Where


def scissorhands_gradient(
    loss_fn: StatefulLossFn,
    *,
    forget_weight: float = 0.05,
    ceiling: float = math.inf,
    project: Where = None,
    projected: bool = True,
    pair: Pair = "auto",
    axis_name: str | Sequence[str] | None = None,
) -> Callable[..., tuple[PyTree, ModelState, Metrics]]:
    """Returns the function that computes the gradient of a repair step, equations 3 to 5 of the paper.

    It is the gradient of `L_r - forget_weight * min(L_f, ceiling)`, projected so that to first order a step along it
    does not lower the forget loss. Hand it to any optimizer in place of a gradient. `trim_network` is the other half of
    the method, and comes once before the first step.

    Args:
      loss_fn: The general form of the loss, a mean over a batch; `lift` makes it from `loss_fn(params, batch)`.
      forget_weight: The paper's lambda, the weight of the forget loss, at least 0.
      ceiling: The forget loss, above 0, beyond which a step follows the retain gradient alone. The default, no ceiling,
        is the paper's, and with a forget batch in every step the loss can then rise until numbers overflow; for a
        classifier take `math.log(num_classes)`.
      project: The leaves whose gradients are projected, as a pattern for `trees.select`. None is all.
      projected: Whether the gradient is projected at all.
      pair: How the two gradients are computed; see `pair_gradients`.
      axis_name: Only for the inside of `jax.shard_map`, where a projected gradient is refused without it: the mesh axes
        along which parameters are sharded, as for `project_gradient`, or `()` if every device has all of them. Either
        way the loss must be that of the whole batch, summed over devices by the loss itself.

    Returns:
      A function `(params, model_state, forget, retain, *, key=None) -> (gradient, model_state, metrics)` of two
      batches. The gradient is a pytree like `params`. The new model state is the one that the retain batch leaves.
      `metrics` has `loss_retain`, `loss_forget` and, if projected, `dots`, `dual` and `projected`. The function is
      pure, for jit, vmap and scan. `key` seeds dropout and augmentation.

    Raises:
      InputError: The loss does not have the general form, `forget_weight` is negative, `ceiling` is not above 0, `pair`
        is unknown, or it is "vmap" and the loss computes batches in parts. The function that is returned raises it
        if a parameter is no real floating-point number, and inside `shard_map` if it is to project and `axis_name` is
        not given or names an axis that is not there.
    """
    check_loss(loss_fn)
    check_pair(pair, loss_fn)
    check_not_negative("forget_weight", forget_weight)
    if not ceiling > 0:
        raise InputError(f"ceiling must be above 0, got {ceiling}; it is a forget loss, math.inf is no ceiling")
    axes = axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name)
    update, paper = projection.project_gradient().update, SEMANTICS["paper"]
    repair = Repair(loss_fn, update, project, projected, 1, paper, pair, () if axes is None else axes)
    bound = min(ceiling, float(jnp.finfo(jnp.float32).max))

    def gradient(
        params: Params, model_state: ModelState, forget: PyTree, retain: PyTree, *, key: Key | None = None
    ) -> tuple[PyTree, ModelState, Metrics]:
        trees.check_trained(params, "the parameters")
        if projected and axes is None:
            trees.check_whole_arrays(
                "gradients are projected as one vector of the whole network",
                "give scissorhands_gradient axis_name=, the axes that parameters are sharded along, or axis_name=() if "
                "none is",
            )
        state = OptState(repair.projector(params).init(params) if projected else (), ())
        aux = ScissorhandsAux(None, jnp.zeros((), jnp.int32), jnp.float32(forget_weight), jnp.float32(bound))
        unused = jax.random.key(0) if key is None else key  # The pair gets its key apart from the carry.
        carry = new_carry(unused, params, model_state, state, aux)
        found, model_state, _, metrics = repair.joint_gradient(carry, Batch(forget, retain), key)
        return found, model_state, metrics

    return gradient
