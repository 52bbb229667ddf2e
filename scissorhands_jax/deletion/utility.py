"""What a run costs: accuracy and loss of the network before and after it, on the same retained and test examples.

They are measured for every method. A network that was trained from scratch has certainly forgotten, but it can be
useless, for instance if it was not trained long enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from scissorhands_jax.deletion.verdicts import Scored
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies, attacks, intervals


@dataclasses.dataclass(frozen=True)
class MeasuredSet:
    """The answers of a network on one set of examples."""

    right: int
    """The number of right answers."""
    of: int
    """The number of examples."""
    guessed: int
    """The number of right answers if every answer were the most common class of the set."""
    loss: float
    """The mean cross-entropy, in nats."""

    @property
    def percent(self) -> float:
        """The accuracy, in percent."""
        return 100 * self.right / self.of

    @property
    def better_than_guessing(self) -> bool:
        """Whether the 95 % Clopper-Pearson interval of the accuracy lies above the share of the most common class."""
        return intervals.share_estimate(self.right, self.of).low > self.guessed / self.of


@dataclasses.dataclass(frozen=True)
class RunUtility:
    """The utility of a network before and after a run, by the name of the set: `retain` or `test`."""

    before: Mapping[str, MeasuredSet]
    after: Mapping[str, MeasuredSet]

    def lost(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """Adds the percentage points of accuracy that the run has cost to those that earlier runs have cost.

        Args:
          earlier: The percentage points by set. A set that is missing has lost none.
        """
        return {
            name: earlier.get(name, 0.0) + self.before[name].percent - self.after[name].percent for name in self.before
        }

    def collapses(self) -> list[str]:
        """Says where the network after the run has become useless, in one sentence each.

        It is useless if it is no better than an answer that is always the same although the network before was better,
        or if its loss is not finite.
        """
        found = []
        for name, before in self.before.items():
            after = self.after[name]
            if not math.isfinite(after.loss):
                found.append(f"the loss on {name} data is {after.loss}, so nothing can be said about the network")
            elif before.better_than_guessing and not after.better_than_guessing:
                found.append(
                    f"the network has collapsed: it gets {after.right} of {after.of} {name} examples right, no better "
                    f"than an answer that is always the same ({after.guessed}), and the network before got "
                    f"{before.right}"
                )
        return found


def measure(scored: Scored) -> MeasuredSet:
    """Measures the answers of a network on a set of examples.

    Raises:
      InputError: There is no example, or a logit is not finite.
    """
    labels = np.asarray(scored.labels)
    if not len(labels):
        raise InputError("there is no retained or test example to measure the utility on; forget fewer examples")
    return MeasuredSet(
        right=accuracies.correct(scored.logits, labels),
        of=len(labels),
        guessed=int(np.bincount(labels).max()),
        loss=float(attacks.cross_entropy_per_example(scored.logits, labels).mean()),
    )


def of_classes(scored: Scored, labels: np.ndarray) -> Scored:
    """Returns the examples whose class is one of `labels`, with their logits."""
    chosen = np.isin(scored.labels, labels)
    return Scored(scored.logits[chosen], np.asarray(scored.labels)[chosen])
