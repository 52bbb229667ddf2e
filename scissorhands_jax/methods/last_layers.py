"""CF-k and EU-k (Goel et al., 2022, arXiv 2201.06640): only the last layers learn, where they are or from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Data, Key, Mask, Method, Model, ModelState, Params, Selection, StatefulLossFn
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, drawn_afresh, retain_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings
from scissorhands_jax.trees import Where

Start = Callable[[Key, Params, ModelState, Data], tuple[Params, ModelState]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastLayersOptions:
    """The keyword arguments of `cf_k` and `eu_k`."""

    layers: Where
    """The weights that learn, as a pattern for `trees.select`. None is all of them, which makes `cf_k` fine-tuning and
    `eu_k` retraining; the command line then takes the upper layers of a network that it knows."""
    batch_size: int = 64
    """The number of retain examples that a step sees."""


@takes(LastLayersOptions)
def cf_k(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: LastLayersOptions) -> Method:
    """Catastrophic forgetting of the last k layers: minimises the mean retain loss over the selected weights alone.

    All other weights stay bit-equal, and so do the running statistics of layers whose weights are not selected (found
    by the names of the leaves; those of a layer without weights move), so that in evaluation those layers compute what
    the original's do. In training passes they normalise by the batch, as in the published code (arXiv 2201.06640),
    which lets the statistics move.

    The authors' scripts have batches of 64, a momentum of 0.9, a decay of 5e-5 and cosine restarts from 0.1 to 0.005
    (`schedule="restarts"` of the settings), over 30 epochs for CIFAR-10 and 62, the default of their code, for
    CIFAR-100; those of `eu_k` 62 and 126. They clip the norm of a gradient to 10, which is not done here.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: The batch size is below 1, or (from `init`) the pattern selects nothing.
    """
    return _last_layers(loss_fn, optimizer, options, None)


@takes(LastLayersOptions)
def eu_k(
    model: Model, loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: LastLayersOptions
) -> Method:
    """Exact unlearning of the last k layers: `cf_k` after re-initialising them by `model.init`.

    Their running statistics are re-initialised as well. What the frozen layers know of the forget set stays.

    Args:
      model: The network, which draws the fresh weights.
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: The batch size is below 1, or (from `init`) the pattern selects nothing.
    """

    def start(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        fresh, fresh_state = drawn_afresh(model, key, data)
        learns = trees.select(params, options.layers)
        moves, _ = _owners(learns, model_state)
        return _choose(learns, fresh, params), _choose(moves, fresh_state, model_state)

    return _last_layers(loss_fn, optimizer, options, start)


def _last_layers(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    options: LastLayersOptions,
    start: Start | None,
) -> Method:
    def objective(params, carry, batch, key):
        learns = trees.select(params, options.layers)
        # The backward pass then ends at the first layer that learns.
        params = _choose(learns, params, jax.lax.stop_gradient(params))
        loss, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=key)
        _, stays = _owners(learns, model_state)
        return loss, (_choose(stays, carry.model_state, model_state), {"loss_retain": loss})

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Mask:
        return jax.tree.map(jnp.asarray, trees.select(params, options.layers))

    return descend(
        objective,
        optimizer,
        batches=retain_batches(options.batch_size),
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
        def owned(name, leaf):
            del leaf
            whole = layer(name)
            known = whole in learning or whole in frozen
            return (whole if known else whole.partition("/")[2]) in layers

        return trees.map_named(owned, model_state)

    return owned_by(learning), owned_by(frozen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CfKSettings(LastLayersOptions, TrainingSettings):
    """The authors' default epochs, batch size, decay and first learning rate, with two drops in place of their cosine
    restarts."""

    epochs: int = 62
    learning_rate: float = 0.1
    weight_decay: float = 5e-5
    milestones: tuple[int, ...] = (31, 46)
    layers: str | None = None
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        return self.scheduled(cf_k(self.microbatched(loss_fn), self.optimizer(), **self.values(LastLayersOptions)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EuKSettings(CfKSettings):
    """The same settings as `CfKSettings`."""

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        options = self.values(LastLayersOptions)
        return self.scheduled(eu_k(model, self.microbatched(loss_fn), self.optimizer(), **options))
