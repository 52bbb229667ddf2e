"""CF-k and EU-k (Goel et al., 2022): only the last layers learn anew, from where they are or from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Data, Key, Mask, Method, Model, ModelState, Params, Selection, StatefulLossFn
from scissorhands_jax.methods._gradient import descend, retain_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings

Where = str | Callable[[str, jax.Array], bool] | None
Start = Callable[[Key, Params, ModelState, Data], tuple[Params, ModelState]]


def cf_k(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, *, layers: Where, batch_size: int = 64
) -> Method:
    """Catastrophic forgetting of the last k layers: minimises the mean retain loss over the selected weights alone.

    All other weights stay bit-equal, and so do the running statistics of layers none of whose weights are selected
    (found by the names of the leaves), so in evaluation those layers compute what the original's do. In training
    passes they normalise by the batch, as in the published code (arXiv 2201.06640), which lets the statistics move.
    The authors' settings: 62 epochs, batch 64, decay 5e-5, cosine restarts from 0.1 to 0.005.

    Args:
      layers: the weights that learn (`trees.select`); None is all of them, which is fine-tuning.
    """
    return _last_layers(loss_fn, optimizer, layers, batch_size, None)


def eu_k(
    model: Model,
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    layers: Where,
    batch_size: int = 64,
) -> Method:
    """Exact unlearning of the last k layers: `cf_k` after re-initialising them by `model.init`.

    Their running statistics start anew as well. What the frozen layers know of the forget set stays.

    Args:
      layers: the weights that learn (`trees.select`); None is all of them, which is retraining.
    """

    def start(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del data
        fresh, fresh_state = model.init(key)
        learns = trees.select(params, layers)
        moves, _ = _owners(learns, model_state)
        return _choose(learns, fresh, params), _choose(moves, fresh_state, model_state)

    return _last_layers(loss_fn, optimizer, layers, batch_size, start)


def _last_layers(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    layers: Where,
    batch_size: int,
    start: Start | None,
) -> Method:
    def objective(params, carry, batch, key):
        learns = trees.select(params, layers)
        # The backward pass then ends at the first layer that learns.
        params = _choose(learns, params, jax.lax.stop_gradient(params))
        loss, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=key)
        _, stays = _owners(learns, model_state)
        return loss, (_choose(stays, carry.model_state, model_state), {"loss_retain": loss})

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Mask:
        return jax.tree.map(jnp.asarray, trees.select(params, layers))

    return descend(
        objective,
        optimizer,
        batches=retain_batches(batch_size),
        reads=("retain",),
        start=start,
        aux=aux,
        mask_of=lambda mask: mask,
    )


def _choose(selection: Selection, a: Params, b: Params) -> Params:
    """Leaves of `a` where selected, else of `b`."""
    return jax.tree.map(lambda chosen, x, y: x if chosen else y, selection, a, b)


def _owners(learns: Selection, model_state: ModelState) -> tuple[Selection, Selection]:
    """Which leaves of the state belong to layers that learn, and which to layers that do not learn at all.

    A layer is what leaf names share up to their last slash; linen's states have the name of a collection before it.
    Leaves whose layer has no weights are neither.
    """

    def layer(name):
        return name.rpartition("/")[0]

    names, flags = trees.leaf_names(learns), jax.tree.leaves(learns)
    learning = {layer(name) for name, flag in zip(names, flags, strict=True) if flag}
    frozen = {layer(name) for name in names} - learning

    def owned_by(layers):
        def owned(path, leaf):
            whole = layer(trees.path_name(path))
            known = whole in learning or whole in frozen
            return (whole if known else whole.partition("/")[2]) in layers

        return jax.tree_util.tree_map_with_path(owned, model_state)

    return owned_by(learning), owned_by(frozen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CfKSettings(TrainingSettings):
    """The authors' epochs, batch size, decay and first learning rate; two drops in place of their cosine restarts."""

    epochs: int = 62
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-5
    milestones: tuple[int, ...] = (31, 46)
    layers: str | None = None
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(
            cf_k(self.microbatched(loss_fn), self.optimizer(), layers=self.layers, batch_size=self.batch_size)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EuKSettings(CfKSettings):
    """As `CfKSettings`."""

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del num_classes
        return self.scheduled(
            eu_k(model, self.microbatched(loss_fn), self.optimizer(), layers=self.layers, batch_size=self.batch_size)
        )
