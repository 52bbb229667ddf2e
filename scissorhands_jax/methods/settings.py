"""What every configured method has: the settings of its training, and how it is built from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, models, optimizers
from scissorhands_jax.base import Carry, Data, Key, Method, Model, ModelState, Params, StatefulLossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What the command line and the experiments ask of every method, also of one that takes no steps."""

    epochs: int = 0
    batch_size: int = 256

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        raise TypeError(f"{type(self).__name__} does not say how its method is built")

    def changed(self, **changes: Any) -> Self:
        """A copy with other values; how `config.override` changes settings."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(MethodSettings):
    """Settings of SGD over epochs; each method's own class adds its own, with the authors' values as defaults."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    """Epochs, counted from 0, before which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    microbatches: int = 1
    """Parts that the batches of a step are computed in, one after the other, where memory is short: gradients are those
    of the whole batch (`losses.microbatched`), but BatchNorm sees each part by itself."""

    mixed: ClassVar[bool] = False
    """Whether the forget and the retain examples of a step are one batch."""

    def microbatched(self, loss_fn: StatefulLossFn) -> StatefulLossFn:
        """The loss in microbatches.

        Raises:
          InputError: they do not divide a batch size.
        """
        sizes = (self.batch_size, getattr(self, "forget_batch_size", None))
        microbatches.check([size for size in sizes if size is not None], self.microbatches)
        return losses.microbatched(loss_fn, self.microbatches)

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with these settings."""
        return optimizers.sgd(
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            scheduled=bool(self.milestones),
        )

    def schedule(self, lengths: Sequence[int]) -> optimizers.Schedule:
        """The learning rate over epochs of so many steps: all `epochs`, and those up to the last milestone."""
        return optimizers.drops([sum(lengths[:milestone]) for milestone in self.milestones], self.gamma)

    def scheduled(self, method: Method) -> Method:
        """The method with the learning rate that its steps call for; its optimizer must be the one from here.

        The schedule is set when a run begins, because only the data tell how many steps an epoch has. Then `init` also
        raises InputError if microbatches do not divide a batch of these data, before anything is compiled.
        """
        if self.microbatches > 1:
            method = method._replace(init=self._checked(method))

        def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
            carry = method.init(key, params, model_state, data)
            if optax.tree_utils.tree_get(carry.opt_state, "knots") is None:
                return carry
            # Epochs differ in length for some methods, so all are counted.
            epochs = range(max((self.epochs, *self.milestones)))
            lengths = [len(list(method.batches(jax.random.key(0), data, epoch))) for epoch in epochs]
            return carry._replace(opt_state=optimizers.with_schedule(carry.opt_state, self.schedule(lengths)))

        return method._replace(init=init)

    def _checked(self, method: Method):
        def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
            for batch in method.batches(jax.random.key(0), data, 0):
                sizes = [data_lib.size(part) for part in batch]
                microbatches.check([sum(sizes)] if self.mixed else sizes, self.microbatches)
            return method.init(key, params, model_state, data)

        return init


def on_upper_layers(settings: MethodSettings, network: str) -> MethodSettings:
    """The settings with `trim` or `layers`, where they are left open, as is customary for a network of the registry."""
    upper = models.UPPER_LAYERS.get(network)
    changes: dict[str, Any] = {name: upper for name in ("trim", "layers") if getattr(settings, name, "") is None}
    return dataclasses.replace(settings, **changes)
