"""Replays recorded traces of the authors' PyTorch code with this library: `python -m tests.parity FOLDER ...`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.parity.checks import Check, worst
from tests.parity.kinds import KINDS
from tests.parity.traces import Folder, MalformedError

TOLERANCES = "tolerances"  # measurements about the traces, which the limits in `checks` summarise


class Outcome(NamedTuple):
    """What became of one trace: checks, or a message that says why there are none."""

    name: str
    checks: list[Check]
    message: str = ""

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    @property
    def ok(self) -> bool:
        return bool(self.checks) and not self.failed

    def __str__(self) -> str:
        if not self.checks:
            return f"{self.name}: {self.message}: FAILED"
        check = worst(self.checks)
        verdict = f"FAILED ({len(self.failed)} of {len(self.checks)} checks)" if self.failed else "ok"
        return f"{self.name}: {check.name} error {check.error:.2g} tolerance {check.tolerance:.2g} {verdict}"


def replay(folder: Folder, name: str) -> Outcome:
    """Replays one trace. Whatever is wrong with its files becomes a failed outcome."""
    try:
        trace = folder.trace(name)
        kinds = [kind for kind in KINDS if kind.name == trace.kind and kind.prefix == trace.prefix]
        if not kinds:
            raise MalformedError(f"nothing replays kind {trace.kind!r} with number {trace.prefix!r}")
        return Outcome(name, kinds[0].replay(trace) + trace.unchecked())
    except Exception as error:  # A damaged file can fail anywhere in a replay, and must not stop the other replays.
        text = " ".join(str(error).split())
        return Outcome(name, [], f"{type(error).__name__}: {text[:300]}")


def traces(folder: Folder) -> list[str]:
    """Returns the names of all traces to replay: those of every file of the folder except the tolerances."""
    return [name for name in folder.names if name != TOLERANCES]


def passed_over(folder: Folder) -> list[Outcome]:
    """Failures for what no replay would look at: files of other kinds, and traces that were measured but are absent."""
    strangers = [Outcome(name, [], "no trace, which is a JSON file and an npz file") for name in folder.strangers]
    try:
        measured = folder.read_settings(TOLERANCES)["runs"] if TOLERANCES in folder.names else ()
    except Exception as error:
        return [*strangers, Outcome(TOLERANCES, [], f"{type(error).__name__}: {error}")]
    return strangers + [Outcome(name, [], "measured, but absent") for name in measured if name not in folder.names]


def run(path: str | Path) -> Iterator[Outcome]:
    """Yields the outcome of every trace of a folder in the order of names, and a failure for every other file."""
    folder = Folder(Path(path))
    for name in traces(folder):
        yield replay(folder, name)
    yield from passed_over(folder)


def main(path: str | Path) -> int:
    """Prints one line per trace and a summary, and returns 0 if some trace passed and none failed, else 1."""
    passed = failed = 0
    for outcome in run(path):
        print(outcome, flush=True)
        passed += outcome.ok
        failed += not outcome.ok
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0
