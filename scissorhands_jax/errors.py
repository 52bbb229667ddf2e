"""Errors that a person can act on: one sentence with what was wrong, what was found and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Something the caller handed in cannot be used; the message is the whole story."""


class WeightsError(InputError):
    """A weights file is damaged, hostile, or belongs to another network."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or belongs to another run."""


class PeerError(RuntimeError):
    """Another process of the same run died or cannot be reached."""


class LedgerError(InputError):
    """A ledger or record is missing, damaged, was changed by hand, or cannot be written."""


class NonFiniteError(InputError):
    """A loss or gradient became NaN or infinite; names the step at which it did."""

    def __init__(self, step: int, metric: str, value: float, advice: str) -> None:
        super().__init__(f"{metric} is {value} at step {step}; {advice}")
        self.step = step
        self.metric = metric
