"""Which function replays which kind of trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.parity.baselines import replay_baseline
from tests.parity.checks import Check
from tests.parity.method import replay_epochs, replay_projection, replay_saliency, replay_trim
from tests.parity.metrics import replay_metric
from tests.parity.networks import replay_inputs, replay_network, replay_real_network, replay_structure
from tests.parity.traces import Trace

Replay = Callable[[Trace], list[Check]]


class Kind(NamedTuple):
    """A kind of trace: the number its file names begin with, if any, and its replay."""

    name: str
    prefix: str | None
    replay: Replay


KINDS = (
    Kind("inputs", None, replay_inputs),
    Kind("network", None, replay_network),
    Kind("saliency", "01", replay_saliency),
    Kind("trim", "02", replay_trim),
    Kind("projection", "03", replay_projection),
    Kind("epoch", "04", replay_epochs),
    Kind("two_epochs", "05", replay_epochs),
    Kind("baseline", "06", replay_baseline),
    Kind("metric", "07", replay_metric),
    Kind("real_network", "08", replay_real_network),
    Kind("structure", "09", replay_structure),
)
