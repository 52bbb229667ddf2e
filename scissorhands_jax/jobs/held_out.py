"""Where the ceiling "held-out" of a method can be measured: on held-out examples that the forget set resembles."""

from __future__ import annotations

from collections.abc import Iterable

from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.experiment import FLIPPED, Scenario
from scissorhands_jax.methods.settings import asks_for_held_out


def check_forget_sets(specs: Iterable[str]) -> None:
    """Refuses forget sets on which a network that never saw them has another loss than on held-out examples.

    Args:
      specs: The specifications, as `forget_sets.forget_positions` or a scenario takes them.

    Raises:
      InputError: Whole classes, identities or examples with wrong labels are forgotten.
    """
    for spec in specs:
        wrong = spec == FLIPPED or spec.startswith("mislabelled:")
        if wrong or forget_sets.forgets_classes(spec):
            raise nothing_resembles(spec, "examples with wrong labels" if wrong else "whole classes or identities")


def nothing_resembles(spec: str, what: str) -> InputError:
    """The error for a forget set that no held-out example is like.

    Args:
      spec: Its specification.
      what: What it consists of.
    """
    return InputError(
        f"the ceiling 'held-out' is the loss on held-out examples, and none of these resembles what {spec} "
        f"forgets, {what}; give 'uniform' or a number as the ceiling"
    )


def check_scenario(scenario: Scenario, num_held_out: int) -> None:
    """Refuses a scenario with a method whose ceiling is "held-out" where that cannot be measured.

    Args:
      scenario: A scenario of a table or an audit.
      num_held_out: The number of examples that no network is trained on and that the test set has not.

    Raises:
      InputError: There is no such example, or as for `check_forget_sets`.
    """
    asking = [label for label, settings in scenario.methods.items() if asks_for_held_out(settings)]
    if not asking:
        return
    check_forget_sets(scenario.forget)
    if not num_held_out:
        raise InputError(
            f"the ceiling 'held-out' of {asking[0]!r} is measured on examples that no network is trained on, and there "
            "are none; hold some out with validation_share=0.1, or give 'uniform' or a number as the ceiling"
        )
