"""Gates of comparisons with retrained language models: the original is found, and nothing in honest networks."""

from __future__ import annotations

from collections.abc import Sequence

from scissorhands_jax.report.gates import CAUGHT, FARTHER, SILENT, Gate

TOLD = 0.05
"""The p-value below which a test tells a network from retrained ones."""


def language_gates(
    original_p: Sequence[float],
    retrained_p: Sequence[float],
    original_area: Sequence[float],
    retrained_area: Sequence[float],
) -> list[Gate]:
    """Makes the gates of the calibrated test and of a membership attack.

    The test must tell every original from retrained networks, and no retrained network from the others. These p-values
    are of the same networks, so the smallest is judged by Bonferroni's bound, which holds however they depend on each
    other. The attack must find the forget set in every original more clearly than in any retrained network; this gate
    decides about the attack alone.

    Args:
      original_p: p-values of the calibrated test, one for each original.
      retrained_p: Those of retrained networks, each against others; () leaves this gate out as not run.
      original_area: The areas of the attack on the originals.
      retrained_area: Those on retrained networks.
    """
    caught = [p < TOLD for p in original_p]
    said = f"the calibrated test has p = {_listed(original_p)} for the original, must be below {TOLD}: "
    found = [
        Gate(CAUGHT, all(caught), said + ("it is" if all(caught) else "it misses what is there"), "calibrated_p"),
        _silent(retrained_p),
    ]
    least, most = min(original_area), max(retrained_area)
    why = f"min-k AUC {least:.2f} or more for the original against {most:.2f} or less for retrained networks, "
    why += "must be above: " + ("it is" if least > most else "it is not, so it says nothing about forgetting here")
    return [*found, Gate(FARTHER, least > most, why, "min_k_auc", decides=False)]


def _silent(retrained_p: Sequence[float]) -> Gate:
    if not retrained_p:
        return Gate(SILENT, None, "no retrained network is left to compare with the others", "calibrated_p")
    count = len(retrained_p)
    bound = min(1.0, count * min(retrained_p))
    passed = bound > TOLD
    why = f"the calibrated test of each retrained network against the others has p = {_listed(retrained_p)}; the "
    why += f"smallest times {count} is {bound:.2g}, must be above {TOLD}: "
    why += "it is" if passed else "the test finds what is not there"
    why += f" (it fails in about {100 * TOLD:g} % of sound evaluations at most)"
    return Gate(SILENT, passed, why, "calibrated_p")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)
