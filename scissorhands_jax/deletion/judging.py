"""Judges what a run has made, and records it: the evidence, the utility, the verdict, and the signed record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import report
from scissorhands_jax.base import Dataset, ModelState, Params
from scissorhands_jax.deletion import (
    audits,
    record_page,
    records,
    signing,
    statements,
    utility,
    verdicts,
)
from scissorhands_jax.deletion.audits import AuditPlan
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    FORGOTTEN,
    RESTORE,
    Request,
    RequestAdded,
    RunRecorded,
    RunStarted,
    RunUnlearned,
    utc_now,
)
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.recorded_runs import forgotten_before
from scissorhands_jax.deletion.records import (
    DigestedSet,
    Record,
    RecordedNetwork,
    RecordedRequest,
    RecordedUtility,
    RunFiles,
    Share,
)
from scissorhands_jax.deletion.trusted_keys import trusted_keys
from scissorhands_jax.deletion.utility import RunUtility
from scissorhands_jax.deletion.verdicts import Evidence, Scored, Verdict
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical, sha256
from scissorhands_jax.jobs.job import Job
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console

BEGIN_AGAIN = "nothing of it counts, so begin again with `scissorhands request run`"
"""What messages advise if a run is not what it was begun as."""

Auditor = Callable[[Path, str], Evidence]
"""A function `(folder of a run, SHA-256 of its network) -> evidence that counts in addition to that of the run`."""


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The outcome of one run."""

    number: int
    requests: tuple[int, ...]
    verdict: Verdict
    record: Path


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """A run that has made its network, which has not been judged yet."""

    started: RunStarted
    job: Job
    out: Path
    after: tuple[Params, ModelState]
    network: str
    """The SHA-256 of `after`."""
    results: Mapping[str, Any]
    """The content of the run's `results.json`."""
    identity: str
    """The digest of the run's identity."""
    left: RunUnlearned
    """What the run's folder must hold."""

    @property
    def exact(self) -> bool:
        """Whether the network was trained from scratch without the examples."""
        return self.job.config.method_name == report.REFERENCE

    @functools.cached_property
    def held_before(self) -> Scored:
        """The test set, of all classes, with the logits of the network before the run."""
        return self.before(self.job.splits.test)

    @functools.cached_property
    def held_now(self) -> Scored:
        """The test set, of all classes, with the logits of the network after the run."""
        return self.now(self.job.splits.test)

    def before(self, examples: Dataset) -> Scored:
        """Returns examples with the logits of the network before the run."""
        return self._scored((self.job.params, self.job.model_state), examples)

    def now(self, examples: Dataset) -> Scored:
        """Returns examples with the logits of the network after the run."""
        return self._scored(self.after, examples)

    def _scored(self, network: tuple[Params, ModelState], examples: Dataset) -> Scored:
        logits = accuracies.predict(self.job.model, *network, examples["image"], batch_size=500)
        return Scored(logits, np.asarray(examples["label"]))


def judge_run(book: Ledger, done: Unlearned, auditor: Auditor | None, console: Console) -> RunOutcome:
    """Judges the network of a run, and writes the record, its page, and the row of the history.

    Args:
      book: The ledger.
      done: The run.
      auditor: A function that gives evidence in addition to that of the run, or None.
      console: Where to show the progress of an audit.

    Raises:
      InputError: The audit cannot be made, or the folder of the run was changed in the meantime.
    """
    started = done.started
    evidence, names = _evidence(book, done, console)
    audit = {name: records.file_digest(salt_of(book, started), done.out / name) for name in names}
    if auditor is not None:
        evidence = evidence.with_more(auditor(done.out, done.network))
    measured = _utility(done)
    lost = measured.lost(_lost_before(book))
    listed = len(done.job.past.forgotten)
    forgotten = forgotten_before(book, listed)
    verdict = verdicts.judge(
        evidence,
        lost,
        float(started.budget),
        exact=done.exact,
        collapses=measured.collapses(),
        earlier=forgotten,
        not_compared=forgotten - listed,
    )
    left = files_as_left(book, started, done.left, done.out, audit)
    record = _record(book, done, left, evidence, measured, lost, verdict, forgotten)
    rows = [{**row, "scenario": f"run {started.run}"} for row in done.results["rows"]]
    record_page.write_record_page(records.record_page_path(book.folder, started.run), record, rows)
    digest = records.write_record(book.folder, record, book.keys)
    statements.write_envelope(book.folder, started.run, book.keys)
    book.append(
        RunRecorded(
            run=started.run,
            requests=started.requests,
            record=digest,
            verdict=verdict.answer,
            network=done.network,
            # A network that was trained from scratch counts as a first network: later losses are measured from it.
            lost={name: repr(0.0 if done.exact else points) for name, points in lost.items()},
        )
    )
    return RunOutcome(started.run, started.requests, verdict, records.record_path(book.folder, started.run))


def _evidence(book: Ledger, done: Unlearned, console: Console) -> tuple[Evidence, tuple[str, ...]]:
    """Returns the comparison with held-out examples and the evidence of an audit, with the names of the files of it."""
    job, level, plan = done.job, float(done.started.level), done.started.audit
    if plan is not None:
        level = 1 - (1 - level) / 2  # The audit and the comparison share the chance of an error.
    earlier = data_lib.take(job.splits.train, job.past.forgotten) if job.past.forgotten.size else None
    own = verdicts.held_out_comparison(
        done.before(job.data.forget),
        done.now(job.data.forget),
        done.held_before,
        done.held_now,
        None if earlier is None else done.now(earlier),
        level,
    )
    if plan is None:
        return own, ()
    trusted = trusted_keys(book)
    return audits.audit_evidence(AuditPlan.from_text(plan), own, job, done.out, done.network, level, trusted, console)


def _record(
    book: Ledger,
    done: Unlearned,
    left: RunFiles,
    evidence: Evidence,
    measured: RunUtility,
    lost: Mapping[str, float],
    verdict: Verdict,
    forgotten: int,
) -> Record:
    started, job, about = done.started, done.job, book.about
    recorded = book.entries(RunRecorded)
    configuration = records.shown_configuration(dataclasses.asdict(job.config))
    salt = salt_of(book, started)
    positions = canonical(job.positions.tolist())
    return Record(
        ledger=about.ledger,
        number=started.run,
        previous=recorded[-1].record if recorded else CHAIN_START,
        finished=utc_now(),
        requests=tuple(_recorded_request(book, request) for request in requests_of(book, started)),
        earlier_tries=earlier_tries(book, started),
        network=RecordedNetwork(job.config.model, started.network, done.network),
        files=left,
        forget=DigestedSet(len(job.positions), signing.salted_digest(salt, "positions", positions)),
        forgotten_before=forgotten,
        training_set=DigestedSet(data_lib.size(job.splits.train), about.training_set),
        test_set=DigestedSet(data_lib.size(job.splits.test), about.test_set),
        configuration=configuration,
        configuration_sha256=sha256(canonical(configuration)),
        identity=records.identity_digest(salt, done.identity),
        code=provenance.running_code(),
        versions=done.results["versions"],
        machine=done.results["machine"],
        metrics={name: _shares(done.results[name]) for name in ("before", "after")},
        test=_right_by_class(done.held_now, len(job.splits.class_names)),
        evidence=records.RecordedEvidence.of(evidence, started.level),
        utility=RecordedUtility.of(started.budget, lost, measured),
        verdict=verdict,
    )


def salt_of(book: Ledger, started: RunStarted) -> str:
    """Returns the salt of a run that has not ended.

    Raises:
      LedgerError: The ledger has lost it.
    """
    salt = book.run_salt(started.run)
    if salt is None:
        raise LedgerError(f"the private part of the start of run {started.run} is missing in {book.path}; {RESTORE}")
    return salt


def files_as_left(
    book: Ledger, started: RunStarted, left: RunUnlearned, out: Path, audit: Mapping[str, str] | None = None
) -> RunFiles:
    """Returns the hashes of all files of a run, after a check that they are as they were when it had unlearned.

    Args:
      book: The ledger.
      started: The run.
      left: What the folder must hold.
      out: The folder.
      audit: The digests of what its audit has just written there, by name: exactly that must be there as well. None
        before the audit: a run that has one may hold what a killed process has written, and any other run nothing.

    Raises:
      InputError: A file was changed, added or removed, or another folder stands in its place.
    """
    salt = salt_of(book, started)
    found = records.run_files(out, salt)
    may_be_left = audit is None and started.audit is not None
    if found.digest(salt) != left.files or not (may_be_left or found.of_audit == (audit or {})):
        raise InputError(
            f"the folder {out} is not as run {started.run} has left it: a file was changed, added or removed before "
            f"the run was judged; {BEGIN_AGAIN}"
        )
    return found


def requests_of(book: Ledger, started: RunStarted) -> list[Request]:
    """Returns the requests that a run works on."""
    return [request for request in book.requests() if request.id in started.requests]


def _recorded_request(book: Ledger, request: Request) -> RecordedRequest:
    (added,) = (entry for entry in book.entries(RequestAdded) if entry.id == request.id)
    digest = book.event_of(added).commitment or ""
    return RecordedRequest(request.id, request.received, request.due, added.count, digest)


def earlier_tries(book: Ledger, started: RunStarted) -> int:
    """Counts the earlier runs, failed ones included, that worked on any example whose content this run works on.

    A request that names the examples of an older one again, or copies of them elsewhere in the training set, therefore
    begins no new count.
    """

    def contents(entry: RunStarted) -> set[str]:
        return {example.digest for request in entry.requests for example in book.examples(request)}

    own = contents(started)
    before = [entry for entry in book.entries(RunStarted) if entry.run < started.run]
    return sum(not own.isdisjoint(contents(entry)) for entry in before)


def _utility(done: Unlearned) -> RunUtility:
    """Measures the networks before and after a run on the retained examples, and on test examples of their classes."""
    retained = done.job.data.retain
    classes = np.unique(retained["label"])
    return RunUtility(
        *(
            {"retain": utility.measure(scored), "test": utility.measure(utility.of_classes(held, classes))}
            for scored, held in ((done.before(retained), done.held_before), (done.now(retained), done.held_now))
        )
    )


def _lost_before(book: Ledger) -> dict[str, float]:
    """Returns the percentage points that earlier runs have cost the network in use, since the first network or since
    the last one that was trained from scratch."""
    served = [entry for entry in book.entries(RunRecorded) if entry.verdict == FORGOTTEN]
    return {name: float(points) for name, points in served[-1].lost.items()} if served else {}


def _right_by_class(held: Scored, num_classes: int) -> tuple[tuple[int, int], ...]:
    """Counts right answers and examples of each class."""
    right = held.logits.argmax(axis=1) == held.labels
    return tuple(
        (int(np.count_nonzero(right & (held.labels == label))), int(np.count_nonzero(held.labels == label)))
        for label in range(num_classes)
    )


def _shares(numbers: Mapping[str, Any]) -> dict[str, Share]:
    counts = {name: (numbers[f"correct_{name}"], numbers[f"num_{name}"]) for name in ("forget", "retain", "test")}
    counts["forget judged never seen"] = round(numbers["mia"] * numbers["num_forget"] / 100), numbers["num_forget"]
    return {name: Share.of_counts(*pair) for name, pair in counts.items()}
