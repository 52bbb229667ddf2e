"""What all methods have in common as settings, and what a method is built from when a job or a table configures it.

A method declares its keyword arguments once, as the fields of a dataclass `...Options`, which its factory takes
(`keywords.takes`). Its `...Settings`, for the command line and the experiments, are these options together with those
of the training. Arguments that no command line can express (functions) and those that follow from the data (the number
of classes) are in a dataclass `...Arguments` that extends the options, for the factory alone.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, models, optimizers
from scissorhands_jax.base import Batch, Carry, Data, Key, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.tasks import CLASSIFICATION, Task, task_of

Mode = Literal["paper", "authors"]
"""Whether a method follows its paper or the code that its authors published."""

Gradient = Literal["forget", "retain", "both", "either"]
"""What a gradient is of: the loss of one set, one loss of both sets, or the loss of one or the other in turn."""

Range = tuple[float, float]
"""The lowest and the highest value of a setting, both positive."""

Choices = tuple[str, ...]
"""The names that a setting may have."""

HELD_OUT = "held-out"
"""The ceiling that is measured on a network, with examples that it never saw."""

ScheduleName = Literal["drops", "linear", "cosine", "triangle", "restarts"]
"""How the learning rate changes over the steps of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What the command line and the experiments ask of every method, also of one that takes no steps."""

    epochs: int = 0
    """The number of passes over the data."""
    batch_size: int = 256
    """The number of examples that a step, or a pass over the data in parts, sees at once."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("both",)
    """The gradients, each as large as the network, that a step holds at the same time; of a method without steps, those
    that its beginning holds. Gradients of single examples are in `num_gradients`."""
    reads_classes: ClassVar[bool] = False
    """Whether the method reads logits or labels of classes."""
    compares_outputs: ClassVar[bool] = False
    """Whether the method compares the outputs of two networks, for which the task must have a divergence."""
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {}
    """The settings that `jobs.search` tunes: a number with the range in which it is searched on a logarithmic scale, a
    name with the names among which it is chosen."""

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings.

        Args:
          model: The network, for methods that draw a fresh one or read its logits.
          loss_fn: The general form of the loss, a mean over a batch.
          num_classes: The number of classes, for methods that draw labels, widen the last layer or have a ceiling that
            is the loss of a guess.

        Raises:
          InputError: A setting is out of its range.
        """
        raise TypeError(f"{type(self).__name__} does not say how its method is built")

    @property
    def num_gradients(self) -> int:
        """How many gradients, each as large as the network, a step holds at the same time."""
        return len(self.gradients)

    @property
    def beginning_examples(self) -> int:
        """The number of retain examples from which on each further batch costs the beginning of the method the same."""
        return 0

    @property
    def needs_classes(self) -> bool:
        """Whether the method takes classifiers alone; by default if it reads classes."""
        return self.reads_classes

    @property
    def relabels(self) -> bool:
        """Whether the method replaces the `label` of forget examples."""
        return False

    def changed(self, **changes: Any) -> Self:
        """A copy with other values; how `config.override` changes settings."""
        return dataclasses.replace(self, **changes)

    def check_no_epochs(self) -> None:
        """Refuses epochs of a method that takes no steps; its settings call it when the method is built.

        Raises:
          InputError: There are epochs.
        """
        if self.epochs != 0:
            name = type(self).__name__.removesuffix("Settings")
            raise InputError(
                f"epochs = {self.epochs} would change nothing with {name}, which takes no steps; leave it 0"
            )

    def values(self, options: type) -> dict[str, Any]:
        """The values of the settings that are fields of `options`, a dataclass which these settings extend."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(options)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicrobatchOptions:
    """How a batch is computed."""

    microbatches: int = 1
    """The number of parts in which a batch is computed, one after the other, where memory is short. Gradients are those
    of the whole batch (`losses.microbatched`), but BatchNorm normalises each part by itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitArguments(MicrobatchOptions):
    """What methods take that compute their own loss from the logits of a network."""

    augment: losses.Augment | None = None
    """What is done to the images of a step, `(key, images) -> images`, as for `classification_loss`. Teachers and
    student see the same images. None changes nothing."""
    task: Task = CLASSIFICATION
    """What the network is for, which says what it is applied to, what the classes and the weights of examples are, and
    how outputs are compared (`Task.divergence`); classification by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherArguments(LogitArguments):
    """What methods take in which a network learns from the outputs of another one."""

    def __post_init__(self) -> None:
        if self.task.divergence is None:
            raise InputError(f"the task {self.task.name!r} has no divergence of outputs; give it one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(MicrobatchOptions, MethodSettings):
    """Settings of SGD over epochs. The settings of a method add its own, with its authors' values as defaults."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 5e-3
    """The learning rate of SGD."""
    momentum: float = 0.9
    """The momentum of SGD, as PyTorch defines it; 0 does without."""
    weight_decay: float = 5e-4
    """The weight decay of SGD, added to the gradient of every parameter as PyTorch does it."""
    schedule: ScheduleName = "drops"
    """How the learning rate changes over the run. "drops" multiplies it by `gamma` at each of the `milestones`, and
    leaves it constant without any. "linear" and "cosine" fall from it to zero at the end of the run, in a straight line
    or along half a cosine; "triangle" rises to it over the share `warmup` of the steps and falls to `final_rate` times
    it. "restarts" falls along half a cosine towards a twentieth of it, over 1, 2, 4, 8, ... epochs, from epoch to
    epoch."""
    milestones: tuple[int, ...] = ()
    """The epochs, counted from 0, before which "drops" multiplies the learning rate by `gamma`; none by default."""
    gamma: float = 0.1
    """The factor of the learning rate at each milestone, at least 0."""
    warmup: float = 0.23
    """The share of the steps over which the rate of "triangle" rises, at least 0 and below 1."""
    final_rate: float = 0.0
    """The factor of the learning rate that "triangle" ends at, at least 0."""

    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "learning_rate": (1e-4, 1e-1),
        "schedule": ("drops", "linear"),
    }
    mixed: ClassVar[bool] = False
    """Whether the forget and the retain examples of a step are concatenated to one batch."""

    def microbatched(self, loss_fn: StatefulLossFn) -> StatefulLossFn:
        """The same loss, which computes a batch in `microbatches` parts.

        Raises:
          InputError: The number of parts does not divide a batch size.
        """
        sizes = (self.batch_size, getattr(self, "forget_batch_size", None))
        microbatches.check_microbatches([size for size in sizes if size is not None], self.microbatches)
        return losses.microbatched(loss_fn, self.microbatches)

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, typing.get_args(ScheduleName))
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be a share of the steps, at least 0 and below 1, got {self.warmup}")
        check_not_negative("the number of epochs", self.epochs)
        check_not_negative("final_rate", self.final_rate, "; it multiplies the learning rate")
        check_not_negative("gamma", self.gamma, "; it multiplies the learning rate")
        if any(milestone < 0 for milestone in self.milestones):
            raise InputError(f"milestones must be epochs, counted from 0, got {self.milestones}")

    def usual(self) -> Self:
        """The settings of the method when none is given."""
        return type(self)()

    def unread(self) -> dict[str, Any]:
        """The settings that were given a value that this schedule does not read, by name, with their usual values."""
        names = set() if self.schedule == "triangle" else {"warmup", "final_rate"}
        if self.schedule != "drops":
            names |= {"milestones"} if self.milestones else set()
        if self.schedule != "drops" or not self.milestones:
            names.add("gamma")
        usual = self.usual()
        return {name: getattr(usual, name) for name in sorted(names) if getattr(self, name) != getattr(usual, name)}

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with these settings, whose state holds a schedule that `scheduled` sets."""
        return optimizers.sgd(
            self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, scheduled=True
        )

    def logit_arguments(self, loss_fn: StatefulLossFn) -> dict[str, Any]:
        """The values of `LogitArguments`, for a method that computes its own loss from the logits of a network.

        Args:
          loss_fn: The loss that the method is built for, whose task and augmentation it takes over.
        """
        return {
            "task": task_of(loss_fn),
            "augment": losses.augmentation_of(loss_fn),
            "microbatches": self.microbatches,
        }

    def rate_schedule(self, lengths: Sequence[int]) -> optimizers.RateSchedule:
        """The learning rate over the steps of the run, as factors of `learning_rate`.

        Args:
          lengths: The number of steps of every epoch, up to the last milestone where that lies behind `epochs`.
        """
        total = sum(lengths[: self.epochs])
        match self.schedule:
            case "linear":
                return optimizers.linear_decay(total)
            case "cosine":
                return optimizers.cosine_decay(total)
            case "restarts":
                return optimizers.cosine_restarts(lengths[: self.epochs])
            case "triangle":
                return optimizers.triangle(total, warmup=self.warmup, last=self.final_rate)
        if not self.milestones:
            return optimizers.constant()
        return optimizers.drops([sum(lengths[:milestone]) for milestone in self.milestones], self.gamma)

    def scheduled(self, method: Method) -> Method:
        """The method with the learning rate of these settings, whose optimizer must be the one that they make.

        `init` sets the schedule, since the length of an epoch depends on the data, after `check_batches`.

        Raises:
          InputError: A setting was given a value that nothing reads.
        """
        if unread := self.unread():
            deciding = {
                name: value for name, value in vars(self).items() if name in ("schedule", "milestones", "flips")
            }
            given, others = (
                ", ".join(f"{name} = {value!r}" for name, value in values.items())
                for values in (
                    {name: getattr(self, name) for name in unread},
                    {name: value for name, value in deciding.items() if name not in unread},
                )
            )
            raise InputError(f"{given} would change nothing with {others}; leave it out, or choose what reads it")

        def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
            self.check_batches(method, data)
            carry = method.init(key, params, model_state, data)
            if self.schedule == "drops" and not self.milestones:
                return carry
            # Epochs differ in length for some methods, so all are counted.
            epochs = range(max((self.epochs, *self.milestones)))
            lengths = [len(list(method.batches(jax.random.key(0), data, epoch))) for epoch in epochs]
            return carry._replace(opt_state=optimizers.with_schedule(carry.opt_state, self.rate_schedule(lengths)))

        return method._replace(init=init)

    def batch_sizes(self, batch: Batch) -> list[int]:
        """The numbers of examples in the batches that a step computes, each of which is divided into microbatches.

        Args:
          batch: The positions that the step is given.
        """
        sizes = [data_lib.size(part) for part in batch]
        return [sum(sizes)] if self.mixed else sizes

    def check_batches(self, method: Method, data: Data) -> None:
        """Refuses microbatches that do not divide a batch of the data, before anything is compiled.

        Args:
          method: The method with these settings.
          data: The sets that its batches are made of.

        Raises:
          InputError: They do not.
        """
        if self.microbatches > 1:
            for batch in method.batches(jax.random.key(0), data, 0):
                microbatches.check_microbatches(self.batch_sizes(batch), self.microbatches)


class MeasuredNumber(float):
    """A setting that was measured on the network and the data that a run begins with.

    When runs are compared, these stand for it: computed again elsewhere, its last bits may be others. A run that is
    resumed takes it from its checkpoint.
    """

    __identity__ = "measured"


def of_network(settings: MethodSettings, held_out_loss: Callable[[], float]) -> MethodSettings:
    """The settings for one network: a ceiling "held-out" becomes the loss that the network has on held-out examples.

    Args:
      settings: The settings of any method.
      held_out_loss: Measures the loss; only called if the settings ask for it. It raises an InputError where there are
        no such examples.

    Raises:
      InputError: As `held_out_loss`, or the loss is no number above 0.
    """
    if not asks_for_held_out(settings):
        return settings
    ceiling = held_out_loss()
    if not (math.isfinite(ceiling) and ceiling > 0):
        raise InputError(
            f"the network's loss on held-out examples is {ceiling:g}, and a ceiling is a number above 0; give "
            "'uniform' or a number as the ceiling"
        )
    changes: dict[str, Any] = {"ceiling": MeasuredNumber(ceiling)}
    return dataclasses.replace(settings, **changes)


def asks_for_held_out(settings: MethodSettings) -> bool:
    """Whether a run with these settings measures the network that it begins with on held-out examples."""
    return getattr(settings, "ceiling", None) == HELD_OUT


def of_task(settings: MethodSettings, task: Task) -> MethodSettings:
    """The settings for a network with a task: a ceiling "uniform" becomes the task's own, if that has one.

    Args:
      settings: The settings of any method.
      task: What the network is for.

    Raises:
      InputError: The method takes classifiers alone, the task lacks the divergence that it needs, or the ceiling of the
        task is not known, nor its number of classes.
    """
    method = type(settings).__name__.removesuffix("Settings")
    if settings.needs_classes and not task.classifies:
        raise InputError(
            f"{method} reads logits or labels of classes, and the task is {task.name}; take a method that needs only a "
            "loss, such as scissorhands, finetune, gradient_ascent or neggrad_plus"
        )
    if settings.compares_outputs and task.divergence is None:
        raise InputError(
            f"{method} compares the outputs of two networks, and the task {task.name!r} has no divergence of them; "
            "give it one, or take a method that needs only a loss, such as scissorhands or finetune"
        )
    if getattr(settings, "ceiling", None) != "uniform":
        return settings
    if task.ceiling is None:
        if task.classifies:
            return settings  # `build` takes the logarithm of the number of classes.
        raise InputError(
            f"the loss at which a network knows nothing is unknown for the task {task.name!r}; give the ceiling of "
            f"{method} as a number or as 'off', or the task a ceiling"
        )
    changes: dict[str, Any] = {"ceiling": task.ceiling}
    return dataclasses.replace(settings, **changes)


def on_upper_layers(settings: MethodSettings, network: str) -> MethodSettings:
    """The settings with `trim` or `layers`, where they are None, set to the upper layers of a network.

    Args:
      settings: The settings of any method.
      network: The name of a network. For one that is not in the registry nothing changes.
    """
    upper = models.UPPER_LAYERS.get(network)
    changes: dict[str, Any] = {name: upper for name in ("trim", "layers") if getattr(settings, name, "") is None}
    return dataclasses.replace(settings, **changes)
