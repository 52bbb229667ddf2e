"""What an unlearning run did, in sentences: what it cost, what its steps saw, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Method
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.metrics.distances import quality_of

MAX_LOSS = 10.0
"""Percentage points of accuracy on the retain or the test set that a run may cost by default."""

_STILL_KNOWN = 2.0  # percentage points by which an answered forget set is ahead of the test set


def lost_points(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Returns the percentage points of accuracy that a run cost, on the retain or the test set, whichever lost more.

    Of another task than classification they are those by which its first metric got worse.

    Args:
      before, after: The numbers of the original and of the unlearned network, as `metrics.row.measure_row` has them.
    """
    metric = quality_of(before)
    sign = 1 if metric["better"] == "higher" else -1
    return max(sign * (before[name] - after[name]) for name in (f"{metric['name']}_retain", f"{metric['name']}_test"))


def seen_by_steps(method: Method, seed: int, data: Data, epochs: int) -> int:
    """Counts the forget examples that the steps of a run see at least once.

    Args:
      method: The method.
      seed: The seed of the run.
      data: The forget and the retain set.
      epochs: The number of epochs.
    """
    _, key = jax.random.split(jax.random.key(seed))  # as `training.run` does it
    seen = np.zeros(data_lib.size(data.forget), bool)
    for epoch in range(epochs):
        for batch in method.batches(key, data, epoch):
            if batch.forget is not None:
                seen[np.asarray(batch.forget)] = True
        if seen.all():
            break
    return int(seen.sum())


def run_summary(
    config: RunConfig,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]],
    *,
    seen: int,
    steps: int,
    max_loss: float = MAX_LOSS,
) -> list[str]:
    """Says what a run did, and what to do next.

    Args:
      config: The job.
      before, after: As for `lost_points`.
      gates: The gates of the run's rows.
      seen: The number of forget examples that its steps saw.
      steps: The number of its steps.
      max_loss: The percentage points that it may cost.

    Returns:
      Sentences, of which the first is a warning if it cost more.
    """
    lost, metric = lost_points(before, after), quality_of(before)
    quality = "accuracy" if metric["name"] == "acc" else metric["title"]
    of_set = {name: f"{metric['name']}_{name}" for name in ("forget", "retain", "test")}
    changes = ", ".join(f"{name} {before[key]:.1f} to {after[key]:.1f} %" for name, key in of_set.items())
    told = [f"{quality}: {changes}; {config.method_name} cost {max(lost, 0.0):.1f} points"]
    if lost > max_loss:
        told = [
            f"warning: {quality} has collapsed ({changes}): {config.method_name} cost {lost:.1f} points, more than the "
            f"{max_loss:g} that --max-loss allows"
        ]
    told.append(_coverage(config, after["num_forget"], seen, steps))
    return [*told, _next_step(config, after, gates, collapsed=lost > max_loss)]


def _coverage(config: RunConfig, total: int, seen: int, steps: int) -> str:
    name = config.method_name
    if not steps:
        return f"{name} takes no steps"
    if not seen:
        return f"no step of {name} sees forget examples"
    if seen == total:
        return f"its {steps} steps saw all {total} forget examples"
    return (
        f"its {steps} steps saw {seen} of the {total} forget examples, because they are too few or too small for more: "
        "add --epochs, or raise method.forget_batch_size or method.batch_size"
    )


def _next_step(
    config: RunConfig, after: Mapping[str, Any], gates: Sequence[Mapping[str, Any]], *, collapsed: bool
) -> str:
    if collapsed:
        strong = [
            f"method.{name}" for name in ("learning_rate", "forget_weight") if name in config.method.search_ranges
        ]
        lower = f"lower {' or '.join(strong)}, or " if strong else ""
        return f"next: {lower}let `scissorhands tune` choose; --max-loss POINTS allows the loss"
    metric, whole = quality_of(after), forget_sets.forgets_classes(config.forget)
    if metric["name"] != "acc":
        return _next_step_of_task(config, after, gates, metric)
    ahead = after["acc_forget"] - after["acc_test"]
    if config.method_name != "retrain" and (whole or ahead > _STILL_KNOWN) and after["acc_forget"] > _STILL_KNOWN:
        known = f"{after['acc_forget']:.1f} % of the forgotten " + ("classes" if whole else "examples")
        unseen = "" if whole else f", and {after['acc_test']:.1f} % of unseen ones"
        return f"next: it still answers {known}{unseen}, so it has not forgotten all; {_to_forget_more(config)}"
    return _about_gates(gates)


def _to_forget_more(config: RunConfig) -> str:
    """What to type; a method without epochs takes no steps."""
    return "add --epochs, or `scissorhands tune`" if config.method.epochs else "let `scissorhands tune` choose"


def _next_step_of_task(
    config: RunConfig, after: Mapping[str, Any], gates: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]
) -> str:
    """As `_next_step`, for a task without classes, which is measured by another metric."""
    forget, test = (after[f"{metric['name']}_{name}"] for name in ("forget", "test"))
    ahead = forget - test if metric["better"] == "higher" else test - forget
    if config.method_name != "retrain" and ahead > _STILL_KNOWN:
        return (
            f"next: its {metric['title']} is {forget:.1f} % on the forgotten examples, and {test:.1f} % on unseen "
            f"ones, so it has not forgotten all; {_to_forget_more(config)}"
        )
    return _about_gates(gates)


def _about_gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not any(gate["passed"] is not None for gate in gates):
        return (
            "next: no gate was run, so nothing shows yet that this can be trusted; run the same command with --method "
            "retrain and another --out, and compare with `scissorhands evaluate --checkpoint RUN --retrained OTHER`"
        )
    return "next: see the gates above for whether this can be trusted"
