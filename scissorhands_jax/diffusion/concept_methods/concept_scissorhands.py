"""The settings of Scissorhands in `scissorhands sd unlearn`, and its three presets.

The paper's section 4.3 says no more about the losses than Algorithm 1 does. The preset `paper` therefore takes them as
they stand there, with the loss that the network was trained with: L(theta; D) is the mean of
(noise - predicted noise)^2 over the images of D with their prompts, at random timesteps. Weights are scored by
|E[dL(D_f)/dw] * w|, the top fraction of all kernels is re-initialised, and the repair descends
`L(D_r) - lambda L(D_f)`, projected so that no gradient decreases the L(D_f) of its step to first order. Fraction,
lambda, optimizer and epochs are not in the paper; they are those of the published code.

The presets `released` and `released-objects` are what the published code does, which is something else (`PRESETS`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

from scissorhands_jax import losses as losses_lib
from scissorhands_jax import reinit, trees
from scissorhands_jax.base import Carry, Data, Key, Method, Model, Params, StatefulLossFn
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.anchors import check_anchor
from scissorhands_jax.diffusion.ceilings import OTHER_PROMPTS
from scissorhands_jax.diffusion.concept_methods.concept_training import (
    BeginningPhase,
    ByteCount,
    ConceptTraining,
    named_part,
)
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import KEYS
from scissorhands_jax.methods import scissorhands
from scissorhands_jax.methods.scissorhands import Repair
from scissorhands_jax.methods.semantics import Semantics
from scissorhands_jax.methods.settings import Gradient

_RELEASED_TRIM = r"up_blocks/[12]/attentions/1/transformer_blocks/0/attn1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptScissorhandsSettings(ConceptTraining):
    """The settings of Scissorhands for forgetting a concept.

    On the command line `departures.NAME=VALUE` sets single fields of `Semantics`.
    """

    fraction: float = 0.005
    """The share of the ranked weights that is re-initialised, above 0 and below 1."""
    forget_weight: float = 0.1
    """The paper's lambda, the weight of the forget loss in the repair, at least 0."""
    initializer: str = "uniform"
    """What trimmed weights become: a name in `reinit.INITIALIZERS` or "trunc_normal", which is N(0, 0.02^2). Biases
    become 0 where they are trimmed at all."""
    trim: str | None = None
    """The layers that are trimmed: a name in NAMED_PARTS (cross-attention, attention, all-but-cross-attention, all) or
    a pattern for `trees.select`. By default all layers are."""
    projected: bool = True
    """Whether gradients are projected. With `optimizer=adam` the projection holds for the gradient only, since Adam's
    step has another direction; with `sgd` it holds for the step."""
    pseudo: str | None = None
    """A prompt that is to take the concept's place. The forget loss is then that of `losses.concept_loss`. By default
    there is none, and the forget loss is the noise loss."""
    anchor: float = 0.0
    """The share of the retain images, 0 to 1, that is seen a second time with the forgotten prompts, so that these draw
    something that is kept and no noise; see `anchors.anchored`. 0.2 worked on digits."""
    ceiling: float | Literal["other-prompts"] | None = None
    """The forget loss, above 0, up to which forget images are driven: a step whose forget batch has a larger loss
    follows the retain images alone. "other-prompts" is the loss that the original has on forget images under the
    prompts of retain images (`ceilings.other_prompts_ceiling`), which worked on digits. None is no ceiling, as in the
    paper. With `pseudo` the forget loss is at most 0, and there can be none."""
    guided: float | None = None
    """The scale s of guidance in the loss that scores weights, `(1 + s) e(c) - s e(empty)` in place of e(c), as the
    published code for objects has it with 7.5. None scores by the noise loss."""
    departures: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"saliency_train": True}, metadata={KEYS: Semantics}
    )
    """Single fields of `Semantics` whose values differ from those of Algorithm 1. The one in the preset `paper` does
    not contradict it: batches for the saliency get timesteps and noise of their own."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """The sum of the gradients, then the scores as well; less once these are a mask."""
        network = size(params)
        return {"scoring": BeginningPhase(network, "forget"), "trimming": BeginningPhase(2 * network)}

    def scoring_loss(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
        """The noise loss, or that of the guided prediction; see `ConceptTraining.scoring_loss`."""
        if self.guided is None:
            return super().scoring_loss(model, schedule)
        return losses_lib.microbatched(losses.guided_noise_loss(model, self.guided, schedule), self.microbatches)

    def first_carry(self, method: Method, key: Key, params: Params, data: Data) -> Carry:
        """As of a network that was trimmed, since shapes cannot be scored; see `ConceptTraining.first_carry`."""
        del data
        assert isinstance(method.step, Repair)
        return method.step.begin(key, params, {}, self.transformation(), self.forget_weight)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the losses read of a prompt besides its embedding, see `ConceptTraining.reads`."""
        return (("pseudo",) if self.pseudo is not None else ()) + (("empty",) if self.guided is not None else ())

    def check(self) -> None:
        """Refuses settings of which one leaves another without effect, in addition to `ConceptTraining.check`."""
        super().check()
        check_anchor(self.anchor)
        if self.anchor and self.departures.get("fixed_batches"):
            raise InputError(
                f"anchor is {self.anchor:g}, and with departures.fixed_batches no step sees the retain images that it "
                "adds; leave anchor out, or set departures.fixed_batches=false"
            )
        if self.pseudo is not None and self.ceiling not in (None, math.inf):
            raise InputError(
                f"ceiling is {self.ceiling}, and with pseudo the forget loss is at most 0, below every ceiling; leave "
                "one of them out"
            )

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """Scissorhands with these settings.

        Args:
          model: The UNet.
          schedule: The noise that it was trained with, and what it predicts.

        Raises:
          InputError: A setting is out of its range or unknown.
        """
        self.check()
        if isinstance(self.ceiling, str):
            check_choice("ceiling", self.ceiling, (OTHER_PROMPTS,))
            raise InputError(
                f"the ceiling {OTHER_PROMPTS!r} follows from the data; give the number that "
                "ceilings.other_prompts_ceiling finds"
            )
        if self.guided is not None:
            check_not_negative("guided", self.guided)
        return scissorhands(
            losses_lib.microbatched(losses.concept_loss(self.trained(model), schedule), self.microbatches),
            self.transformation(),
            fraction=self.fraction,
            forget_weight=self.forget_weight,
            initializer=reinit.with_zero_biases(_initializer(self.initializer)),
            trim=named_part(self.trim),
            project=named_part(self.train),
            projected=self.projected,
            batch_size=self.batch_size,
            saliency_loss_fn=self.scoring_loss(model, schedule),
            ceiling=math.inf if self.ceiling is None else self.ceiling,
            departures=self.departures,
        )


def _initializer(name: str) -> reinit.Initializer:
    """The initializer of a name; timm's `trunc_normal_` cuts N(0, 0.02^2) at 2, which no number reaches."""
    return reinit.normal(0.02) if name == "trunc_normal" else reinit.by_name(name)


PRESETS: dict[str, ConceptScissorhandsSettings] = {
    "paper": ConceptScissorhandsSettings(),
    "released": ConceptScissorhandsSettings(
        initializer="kaiming_uniform",
        trim=_RELEASED_TRIM,
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
    "released-objects": ConceptScissorhandsSettings(
        fraction=0.001,
        initializer="trunc_normal",
        trim=_RELEASED_TRIM,
        projected=False,
        guided=7.5,
        epochs=3,
        batch_size=8,
        learning_rate=2e-5,
        departures={
            "saliency_train": True,
            "saliency_absolute": True,
            "saliency_batches": 10,
            "published_cut": True,
            "rank_all": True,
            "trim_vectors": True,
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

`released-objects` is the authors' second script, `shs_cls.py`, for classes of objects: weights are scored by the guided
prediction, the top thousandth of all weights is cut, and the repair minimises `L(D_r) - 0.1 L(D_f)` of noise losses,
without a ceiling and without the projection. That code sees the first forget batch in every step and shuffles what is
retained; here both sets are shuffled.

Two things differ from the first script: latents are drawn once for both predictions, not once for each, and its cut
does not have the fallback of `masks.kept_fraction_mask`, which applies where salient and other weights have the same
score.
"""


def concept_preset(name: str) -> ConceptScissorhandsSettings:
    """The settings with a name in PRESETS.

    Raises:
      InputError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
