"""The settings of the digits' demonstration, and the networks that it compares."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from scissorhands_jax.diffusion import schedules
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.errors import InputError, check_seed
from scissorhands_jax.report import ORIGINAL, REFERENCE

NUM_DIGITS = 10
DIGITS_NETWORK = UNetConfig(widths=(40,), attention=(False,), layers_per_block=1, heads=4, context_width=32, groups=8)
DIGITS_SCHEDULE = schedules.Schedule(kind="cosine")
NO_DIGIT = NUM_DIGITS
"""What the judge calls an image that looks like no digit."""
WHOLE_METHOD = "scissorhands"
RETRAINED_AGAIN = "retrain again"
"""A second retrained network, of another seed: what two of them differ by is the floor of every distance."""
LITERAL = "Algorithm 1"
"""The variant without anchor and ceiling, which is what the paper writes."""
PUBLISHED = "another text"
"""The variant with the loss of the published code, which needs a digit to draw in place of the forgotten one."""


class Variant(NamedTuple):
    """What Scissorhands does in one of the variants that are compared."""

    trimmed: bool
    """Whether salient weights are re-initialised."""
    projected: bool
    """Whether gradients are projected so that, to first order, they do not lower the forget loss of their step."""
    anchored: bool = True
    """Whether the forget loss has a ceiling and retain images are also seen under the forgotten text."""
    replaced: bool = False
    """Whether the forget loss is that of the published code for Stable Diffusion, the distance to what is predicted for
    another digit, instead of the paper's, which is the noise loss."""


VARIANTS = {
    WHOLE_METHOD: Variant(True, True),
    LITERAL: Variant(True, True, anchored=False),
    "no projection": Variant(True, False),
    "no re-initialisation": Variant(False, True),
    PUBLISHED: Variant(True, False, anchored=False, replaced=True),
}
"""The variants by name: the whole method, Algorithm 1 as the paper has it, the whole without one of its parts, and the
published code."""
DEMONSTRATED = (ORIGINAL, REFERENCE, WHOLE_METHOD, LITERAL, "no projection")
"""The networks that the demonstration has time for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsTraining:
    """How networks learn to draw: with Adam, whose rate falls to zero along half a cosine."""

    epochs: int = 40
    """The number of passes over the training digits."""
    batch_size: int = 128
    """The number of examples in a step."""
    learning_rate: float = 4e-3
    """The learning rate of the first step."""
    dropped: float = 0.1
    """The share of the examples whose text is replaced by the empty one, so that the network learns that too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsUnlearning:
    """The settings of `scissorhands`. Every step has forget and retain examples, and Adam's rate falls as in training.

    Only weights of the attention are re-initialised, as in the published code for Stable Diffusion.
    """

    epochs: int = 12
    """The number of passes over the retained digits, the anchor included."""
    batch_size: int = 128
    """The number of retain examples in a step."""
    forget_batch_size: int = 64
    """The number of forget examples in a step."""
    learning_rate: float = 1e-3
    """The learning rate of the first step."""
    fraction: float = 0.003
    """The share of the ranked weights that is re-initialised."""
    forget_weight: float = 0.02
    """The paper's lambda, the weight of the forget loss."""
    published_weight: float = 1.0
    """The same where the forget loss is that of the published code."""
    anchor: float = 0.2
    """The share of the retained digits that is also seen under the forgotten text, see `anchors.anchored`."""
    ceiling: float | None = None
    """The forget loss up to which forgotten digits are driven; a step above it follows the retained digits alone. None
    takes the loss that the original has on forgotten digits under the texts of others, see
    `ceilings.other_prompts_ceiling`."""
    trim: str | None = ".*/attn."
    """The layers that are trimmed, as a pattern for `trees.select`; None is all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSampling:
    """How digits are drawn, and how many of them are judged."""

    steps: int = 20
    """The number of steps of DDIM."""
    guidance: float = 2.0
    """The scale of the guidance, see `schedules.guided`."""
    forgotten: int = 150
    """The number of drawings of the forgotten digit."""
    kept: int = 50
    """The number of drawings of each other digit."""
    unasked: int = 100
    """The number of drawings with the empty text."""
    batch_size: int = 100
    """The number of drawings that are made at a time."""
    reach: float = 99.0
    """The percentile, over held-out digits, of the distance to the nearest training digit, up to which a drawing looks
    like a digit to the judge."""
    resamples: int = 100
    """The number of resamples of the bootstrap behind the interval of the Fréchet distance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Everything that the numbers depend on.

    Raises:
      InputError: The digit or the seed is out of its range.
    """

    digit: int = 0
    """The digit that is forgotten, 0 to 9."""
    seed: int = 0
    """The seed of texts, networks and noise."""
    network: UNetConfig = DIGITS_NETWORK
    """The sizes of the UNet, whose latents have four channels."""
    training: DigitsTraining = DigitsTraining()
    """How the original and the retrained network are trained."""
    unlearning: DigitsUnlearning = DigitsUnlearning()
    """How all variants unlearn."""
    sampling: DigitsSampling = DigitsSampling()
    """What is drawn and judged."""

    def __post_init__(self) -> None:
        if not 0 <= self.digit < NUM_DIGITS:
            raise InputError(f"--digit must be 0 to {NUM_DIGITS - 1}, got {self.digit}")
        check_seed(self.seed)
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed must be 0 to {2**31 - 1}, got {self.seed}")

    @property
    def replacement(self) -> int:
        """The digit that the variant `PUBLISHED` draws in place of the forgotten one."""
        return (self.digit + 1) % NUM_DIGITS
