"""What all methods of `scissorhands sd unlearn` have in common: epochs, batches, optimizer, and what they train."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import jax
import optax

from scissorhands_jax import losses as losses_lib
from scissorhands_jax import microbatches, trees
from scissorhands_jax.base import Carry, Data, Key, Method, Model, Params, PyTree, Selection, StatefulLossFn
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_choice, check_finite_number, check_positive
from scissorhands_jax.methods.settings import Gradient

NAMED_PARTS: dict[str, str | None] = {
    "cross-attention": ".*/attn2",
    "attention": ".*/attn[12]",
    "all-but-cross-attention": "(?!.*/attn2/).*",
    "all": None,
}
"""Parts of a UNet by name as patterns for `trees.select`. Cross-attention reads the prompt; attention is both kinds."""


def named_part(name: str | None) -> str | None:
    """The pattern of a part of the UNet, from its name in NAMED_PARTS; any other pattern as it is."""
    return NAMED_PARTS.get(name, name) if name is not None else None


def training_only(optimizer: optax.GradientTransformation, part: str | None) -> optax.GradientTransformation:
    """An optimizer that trains a part of a network, and keeps a state for that part alone; the rest stays bit-equal.

    Args:
      optimizer: The optimizer of the part.
      part: A name in NAMED_PARTS or a pattern for `trees.select`. None and "all" train everything.
    """
    where = named_part(part)
    if where is None:
        return optimizer

    def fixed(params: Params) -> Selection:
        return jax.tree.map(lambda chosen: not chosen, trees.select(params, where))

    trained = functools.partial(trees.select, where=where)
    return optax.chain(optax.masked(optimizer, trained), optax.masked(optax.set_to_zero(), fixed))


@functools.cache
def training_part(model: Model, part: str | None) -> Model:
    """The same network with gradients for a part of its weights alone; those of all others are zero.

    What a loss of it leaves out is neither computed nor kept, and what methods compute from gradients (products, norms,
    bargains) is that of the part. Equal arguments give the same value, so that code is shared.

    Args:
      model: The network.
      part: A name in NAMED_PARTS or a pattern for `trees.select`. None and "all" change nothing.
    """
    where = named_part(part)
    if where is None:
        return model

    def apply(params, model_state, x, *, train, key=None):
        chosen = trees.select(params, where)
        held = jax.tree.map(lambda leaf, moves: leaf if moves else jax.lax.stop_gradient(leaf), params, chosen)
        return model.apply(held, model_state, x, train=train, key=key)

    return Model(model.init, apply)


ByteCount = Callable[[PyTree], int]
"""The bytes of a tree of arrays, or what one of several devices has of it."""


class BeginningPhase(NamedTuple):
    """A phase of what a method does before its steps, as far as memory goes."""

    held: int
    """Bytes of what is held besides the original network."""
    scores: Literal["forget", "retain"] | None = None
    """The set of which the loss of a batch is differentiated by all weights; None is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptTraining:
    """The settings that all methods of `sd unlearn` share."""

    epochs: int = 3
    """The number of epochs, at least 1. An epoch is a pass over the larger set, while the other one is cycled."""
    batch_size: int = 16
    """The number of forget examples and of retain examples that a step sees."""
    microbatches: int = 1
    """The number of parts that the batches of a step are computed in, one after the other, to save memory. The batch
    size must be divisible by it."""
    pseudo: str | None = None
    """A prompt that is to take the concept's place, for methods that know one. By default there is none."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """"adam" with PyTorch's defaults, or "sgd", the plain gradient step, which keeps no state."""
    learning_rate: float = 1e-5
    """The learning rate, above 0; it stays the same in all steps."""
    train: str = "all"
    """The part of the UNet whose weights may move: a name in NAMED_PARTS (cross-attention, attention,
    all-but-cross-attention, all) or a pattern for `trees.select`."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("both",)
    """The gradients, each as large as the part that is trained, that a step holds at the same time; as in
    `methods.MethodSettings`. A method without steps has none."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Those of the settings here that the method does not read, so that they have to stay as they are."""
    reads_images: ClassVar[bool] = True
    """Whether the method needs images; otherwise prompts are enough, and latents are zeros that give their shape."""

    @property
    def reads(self) -> tuple[str, ...]:
        """What the method reads of a forget prompt besides its embedding.

        `pseudo` is the embedding of the prompt that takes its place, `empty` that of the empty prompt, and `concept`
        those of the last tokens of all prompts.
        """
        return ()

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """The method with these settings.

        Args:
          model: The UNet.
          schedule: The noise that it was trained with.

        Raises:
          InputError: A setting is out of its range or unknown.
        """
        raise TypeError(f"{type(self).__name__} does not say how its method is built")

    def trained(self, model: Model) -> Model:
        """The UNet as the losses of the steps see it: with gradients for the part that is trained."""
        return training_part(model, self.train)

    def scoring_loss(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
        """The loss that all weights are scored by before the steps, for methods that do so: the noise loss."""
        return losses_lib.microbatched(losses.noise_loss(model, schedule), self.microbatches)

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """The phases before the steps by name, for `planning`; by default there are none.

        Args:
          params: The UNet, or its outline.
          size: Counts bytes.
        """
        del params, size
        return {}

    def first_carry(self, method: Method, key: Key, params: Params, data: Data) -> Carry:
        """A carry with the shapes of the one that the steps begin with, for `planning`, inside of `jax.eval_shape`.

        Args:
          method: The method of these settings.
          key: A typed PRNG key.
          params: The UNet.
          data: Both sets.
        """
        return method.init(key, params, {}, data)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer with its learning rate, for the part that is trained."""
        plain = optax.adam(self.learning_rate) if self.optimizer == "adam" else optax.sgd(self.learning_rate)
        return training_only(plain, self.train)

    def check(self) -> None:
        """Refuses what no method can use, and what this one does not read.

        Raises:
          InputError: A setting is out of its range, unknown or without effect.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and field.name != "ceiling":
                check_finite_number(field.name, value)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in self.unused:
            if getattr(self, name) != defaults[name]:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}, and has no effect with this method, which does not read it; "
                    "leave it out"
                )
        if self.epochs < 1:
            raise InputError(f"epochs must be at least 1, got {self.epochs}")
        check_positive("learning_rate", self.learning_rate)
        microbatches.check_microbatches([self.batch_size], self.microbatches)
        check_choice("optimizer", self.optimizer, ("adam", "sgd"))
