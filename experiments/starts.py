"""What unlearning begins with: results of one seed are not put beside those of another original or forget set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scissorhands_jax import hashing
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.scenarios import SeededScenario, TrainedNetwork


def start_of(prepared: SeededScenario, original: TrainedNetwork) -> dict[str, str]:
    """What unlearning begins with: hashes of the original network and of the positions of the forget set."""
    return {
        "original": hashing.network_sha256(original.params, original.model_state),
        "forget_sha256": prepared.forget_summary().sha256,
    }


def check_same_start(rows: Iterable[Mapping[str, Any]], now: Mapping[str, Any], where: str) -> None:
    """Refuses to put a row beside others of its seed that began with another original or forgot other examples.

    Args:
      rows: The rows that there are; of an earlier version they do not say it, and are taken.
      now: The new row, with its `seed` and what `start_of` returns.
      where: What holds them, for the message.

    Raises:
      InputError: One is of another start.
    """
    words = {"original": "from another original", "forget_sha256": "of another forget set"}
    for row in rows:
        for name, which in words.items():
            if row["seed"] == now["seed"] and row.get(name) not in (None, now[name]):
                raise InputError(
                    f"{where} holds results of seed {row['seed']} {which}; go on with the data and the networks of "
                    "those, or name another place"
                )
