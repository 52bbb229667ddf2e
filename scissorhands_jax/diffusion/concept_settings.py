"""The settings of `scissorhands sd unlearn`, and its two presets.

The paper's section 4.3 says no more about the losses than Algorithm 1 does. The preset `paper` therefore takes them as
they stand there, with the loss that the network was trained with: L(theta; D) is the mean of
(noise - predicted noise)^2 over the images of D with their prompts, at random timesteps. Weights are scored by
|E[dL(D_f)/dw] * w|, the top fraction of all kernels is re-initialised, and the repair descends
`L(D_r) - lambda L(D_f)`, projected so that no gradient decreases the L(D_f) of its step to first order. Fraction,
lambda, optimizer and epochs are not in the paper; they are those of the published code.

The preset `released` is what the published code does, which is something else (see `PRESETS`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import optax

from scissorhands_jax import losses as losses_lib
from scissorhands_jax import microbatches, reinit
from scissorhands_jax.base import Method, Model
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.keywords import KEYS
from scissorhands_jax.methods import scissorhands
from scissorhands_jax.methods.semantics import Semantics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """The settings of Scissorhands for forgetting a concept.

    On the command line `departures.NAME=VALUE` sets single fields of `Semantics`.
    """

    fraction: float = 0.005
    """The share of the ranked weights that is re-initialised, above 0 and below 1."""
    forget_weight: float = 0.1
    """The paper's lambda, the weight of the forget loss in the repair, at least 0."""
    initializer: str = "uniform"
    """What trimmed weights become, a name in `reinit.INITIALIZERS`. Biases become 0 where they are trimmed at all."""
    trim: str | None = None
    """The layers that are trimmed, as a pattern for `trees.select`. By default all layers are."""
    projected: bool = True
    """Whether gradients are projected. With `optimizer=adam` the projection holds for the gradient only, since Adam's
    step has another direction; with `sgd` it holds for the step."""
    pseudo: str | None = None
    """A prompt that is to take the concept's place. The forget loss is then that of `losses.concept_loss`. By default
    there is none, and the forget loss is the noise loss."""
    epochs: int = 3
    """The number of epochs, at least 1. An epoch is a pass over the retain set or, with the departure `fixed_batches`,
    has one step for each batch of the forget set."""
    batch_size: int = 16
    """The number of forget examples and of retain examples that a step sees."""
    microbatches: int = 1
    """The number of parts that the batches of a step are computed in, one after the other, to save memory. The batch
    size must be divisible by it."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """"adam" with PyTorch's defaults, or "sgd", the plain gradient step of Algorithm 1, which keeps no state."""
    learning_rate: float = 1e-5
    """The learning rate, above 0; it stays the same in all steps."""
    departures: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"saliency_train": True}, metadata={KEYS: Semantics}
    )
    """Single fields of `Semantics` whose values differ from those of Algorithm 1. The one in the preset `paper` does
    not contradict it: batches for the saliency get timesteps and noise of their own."""

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer with its learning rate."""
        return optax.adam(self.learning_rate) if self.optimizer == "adam" else optax.sgd(self.learning_rate)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """Scissorhands with these settings.

        Args:
          model: The UNet.
          schedule: The noise that it was trained with, and what it predicts.

        Raises:
          InputError: A setting is out of its range or unknown.
        """
        if self.epochs < 1:
            raise InputError(f"epochs must be at least 1, got {self.epochs}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate:g}")
        microbatches.check_microbatches([self.batch_size], self.microbatches)
        check_choice("optimizer", self.optimizer, ("adam", "sgd"))
        forget_loss, noise_loss = (
            losses_lib.microbatched(make(model, schedule), self.microbatches)
            for make in (losses.concept_loss, losses.noise_loss)
        )
        return scissorhands(
            forget_loss,
            self.transformation(),
            fraction=self.fraction,
            forget_weight=self.forget_weight,
            initializer=reinit.with_zero_biases(reinit.by_name(self.initializer)),
            trim=self.trim,
            projected=self.projected,
            batch_size=self.batch_size,
            saliency_loss_fn=noise_loss,
            ceiling=math.inf,
            departures=self.departures,
        )


PRESETS: dict[str, ConceptSettings] = {
    "paper": ConceptSettings(),
    "released": ConceptSettings(
        initializer="kaiming_uniform",
        trim=r"up_blocks/[12]/attentions/1/transformer_blocks/0/attn1",
        projected=False,
        pseudo="a photo of a person wearing clothes",
        epochs=5,
        departures={
            "saliency_train": True,
            "saliency_absolute": True,
            "saliency_batches": 10,
            "published_cut": True,
            "rank_all": True,
            "trim_vectors": True,
            "fixed_batches": True,
        },
    ),
}
"""`paper` is described above. `released` is the published code, `shs_nsfw.py` with the settings of its script:

* the saliency is |w| times the sum over ten forget batches of |gradient of the noise loss|; the cut ranks all weights
  of the network, but only self-attention in ten arrays is re-initialised, Kaiming-uniform with zero biases;
* the repair minimises `L(D_r) + lambda E (e(x_t, t, c_f) - e(x_t, t, pseudo))^2`, with the second prediction held
  fixed; the projection, which that code defines, is never called;
* `departures.fixed_batches`: its loaders start again at every step and do not shuffle, so all batches are the first
  examples of each set; `departures.fixed_batches=false` sees all of them.

Two things differ from that code: latents are drawn once for both predictions, not once for each, and its cut does not
have the fallback of `masks.kept_fraction_mask`, which applies where salient and other weights have the same score.
"""


def concept_preset(name: str) -> ConceptSettings:
    """The settings with a name in PRESETS.

    Raises:
      InputError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
