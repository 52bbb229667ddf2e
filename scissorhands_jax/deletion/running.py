"""Serves deletion requests: a run makes the network in use forget what was asked for, and leaves a signed record.

A run moves through the history of the ledger from `started` to `recorded`. If the process ends in between, the next
call finishes that run first, with the settings that it was started with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, reading, report
from scissorhands_jax.base import Dataset, ModelState, Params
from scissorhands_jax.deletion import (
    audits,
    erasing,
    record_page,
    records,
    signing,
    statements,
    tidying,
    utility,
    verdicts,
)
from scissorhands_jax.deletion.audits import AuditPlan
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    FORGOTTEN,
    OPEN,
    RESTORE,
    RETRAIN,
    Request,
    RequestAdded,
    RequestsCovered,
    RunFailed,
    RunRecorded,
    RunStarted,
    utc_now,
)
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.records import (
    DigestedSet,
    Record,
    RecordedNetwork,
    RecordedRequest,
    RecordedUtility,
    Share,
)
from scissorhands_jax.deletion.requests import (
    Subject,
    check_content,
    config_in_use,
    positions_text,
    remove_ledger_leftovers,
)
from scissorhands_jax.deletion.trust import trusted_keys
from scissorhands_jax.deletion.utility import RunUtility
from scissorhands_jax.deletion.verdicts import Evidence, Scored, Verdict
from scissorhands_jax.errors import InputError, LedgerError, NonFiniteError
from scissorhands_jax.hashing import canonical, sha256
from scissorhands_jax.jobs import runs, unlearning
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import parse_run_config
from scissorhands_jax.jobs.job import Job, load_weights, prepare_job
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, say

Auditor = Callable[[Path, str], Evidence]
"""A function `(folder of a run, SHA-256 of its network) -> the evidence to judge it by`."""

_MAX_WHY = 1000  # characters of the reason why a run failed


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The outcome of one run."""

    number: int
    requests: tuple[int, ...]
    verdict: Verdict
    record: Path


@dataclasses.dataclass(frozen=True)
class _Unlearned:
    """A run that has made its network, which has not been judged yet."""

    started: RunStarted
    job: Job
    out: Path
    after: tuple[Params, ModelState]
    network: str
    """The SHA-256 of `after`."""
    results: Mapping[str, Any]
    """The content of the run's `results.json`."""

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


def run_requests(
    folder: Path,
    settings: MethodSettings,
    *,
    method: str,
    seed: int = 0,
    retain_limit: int | None = None,
    augment: bool | None = None,
    one_by_one: bool = False,
    again: bool = False,
    budget: float = verdicts.UTILITY_BUDGET,
    level: float = verdicts.EVIDENCE_LEVEL,
    subject: Subject | None = None,
    keys: Path | None = None,
    audit: AuditPlan | None = None,
    auditor: Auditor | None = None,
    console: Console,
) -> list[RunOutcome]:
    """Makes the network in use forget what all open requests name, and leaves a record of every run.

    A run that was stopped is finished first, with the settings that it was started with. A network takes the place of
    the one before only if the verdict on it is `FORGOTTEN`.

    Args:
      folder: The folder of the ledger.
      settings: The settings of the method.
      method: The name of the method, as in `RunConfig`.
      seed: The seed of the runs.
      retain_limit: The largest number of retained examples to use, as in `RunConfig`. The default is all.
      augment: Whether to augment images, as in `RunConfig`. The default is that of the data set.
      one_by_one: Whether each request has a run of its own, instead of one run for all.
      again: Whether to include requests that were answered `RETRAIN`. With `method="retrain"` they are always included.
      budget: The number of percentage points of retain or test accuracy that all runs together may cost.
      level: The level of the evidence; see `verdicts`.
      subject: What has moved since the ledger was begun.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.
      audit: An audit of the run's procedure, whose evidence counts in addition to `verdicts.held_out_comparison`.
      auditor: A function that gives the evidence in place of both.
      console: Where to show progress.

    Returns:
      The outcomes in order. The list is empty if there was nothing to do.

    Raises:
      InputError: An argument cannot be used, or an example has changed. The requests stay open.
      LedgerError: The ledger cannot be used or written, or another process is running.
    """
    if not 0 <= budget < math.inf:
        raise InputError(f"the utility budget must be a finite number that is not negative, got {budget}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    subject = subject or Subject()
    outcomes = []
    with Ledger(folder, keys) as book, book.sole_run():
        remove_ledger_leftovers(book, keys)
        tidying.remove_remains(book)
        stopped = tidying.unfinished_run(book)
        if stopped is not None:
            say(console, f"finishing run {stopped.run}, which was stopped")
            outcomes.append(_carry_out(book, stopped, subject, auditor, console))
        states = (OPEN, RETRAIN) if again or method == report.REFERENCE else (OPEN,)
        waiting = [request for request in book.requests() if request.state in states]
        for group in [[request] for request in waiting] if one_by_one else [waiting]:
            left, positions = _still_to_forget(book, group)
            if not left:
                continue
            number = len(book.entries(RunStarted)) + 1
            file = tidying.positions_file(book.folder, number)
            files.write_text(file, positions_text(positions))
            try:
                config = RunConfig(
                    **vars(config_in_use(book, subject)),
                    forget=f"indices:{file.absolute()}",
                    seed=seed,
                    retain_limit=retain_limit,
                    augment=augment,
                    method_name=method,
                    method=settings,
                )
                started = _start(book, number, left, config, budget, level, audit)
            except InputError:
                file.unlink()  # A run that was refused leaves nothing that says what is to be forgotten.
                with contextlib.suppress(OSError):
                    file.parent.rmdir()  # only if it was the first run
                raise
            outcomes.append(_carry_out(book, started, subject, auditor, console))
        tidying.remove_remains(book)
    return outcomes


def _start(
    book: Ledger,
    number: int,
    asked: Sequence[Request],
    config: RunConfig,
    budget: float,
    level: float,
    audit: AuditPlan | None,
) -> RunStarted:
    """Checks everything that a run needs, and records its start in the history."""
    check_content(book, config, asked)
    job = prepare_job(config)
    if audit is not None:
        audit = audits.checked_plan(audit, job, level, trusted_keys(book))
        audits.keep_signed(audit, tidying.audit_work_folder(book.folder, number))
    started = RunStarted(
        run=number,
        requests=tuple(request.id for request in asked),
        config=json.dumps(dataclasses.asdict(config)),
        budget=repr(float(budget)),
        level=repr(float(level)),
        audit=None if audit is None else audit.as_text(),
        network=hashing.network_sha256(job.params, job.model_state),
    )
    book.append(started)
    return started


def _carry_out(
    book: Ledger, started: RunStarted, subject: Subject, auditor: Auditor | None, console: Console
) -> RunOutcome:
    """Does the rest of a run. If the run fails, its requests are opened again."""
    try:
        done = _unlearned(book, started, subject, console)
        return _judged(book, done, auditor, console)
    except LedgerError:
        raise
    except InputError as error:
        book.append(RunFailed(run=started.run, requests=started.requests, why=_reason(book, started, error)))
        tidying.remove_remains(book)
        raise


def _reason(book: Ledger, started: RunStarted, error: InputError) -> str:
    """Returns the message of an error for the history, which must not say what was to be forgotten."""
    message = str(error).encode(errors="replace").decode()
    if not isinstance(error, NonFiniteError):
        positions = {example.position for request in started.requests for example in book.examples(request)}
        message = re.sub(r"\d+", lambda found: "…" if int(found[0]) in positions else found[0], message)
    return message[:_MAX_WHY]


def _unlearned(book: Ledger, started: RunStarted, subject: Subject, console: Console) -> _Unlearned:
    """Does the unlearning of a run, unless it was done before the run was stopped."""
    config = parse_run_config(reading.parse_json(started.config, nan=True), f"run {started.run} in the ledger")
    config = dataclasses.replace(config, data_dir=subject.data_dir or config.data_dir)
    out = records.run_folder(book.folder, started.run)
    check_content(book, config, _asked(book, started))
    job = prepare_job(config)
    if hashing.network_sha256(job.params, job.model_state) != started.network:
        raise InputError(f"the network that run {started.run} started from has changed; put it back from your backup")
    if not (out / runs.RESULTS_FILE).is_file() or not (out / "report.html").is_file():
        if out.exists() and not (out / runs.RUN_FILE).is_file():
            shutil.rmtree(out)  # The run was stopped while it made the folder.
        unlearning.unlearn(config, out, resume=True, console=console)
    results = report.read_results(out / runs.RESULTS_FILE)
    after = load_weights(job.model, weights=None, checkpoint=str(out))
    return _Unlearned(started, job, out, after, hashing.network_sha256(*after), results)


def _judged(book: Ledger, done: _Unlearned, auditor: Auditor | None, console: Console) -> RunOutcome:
    """Judges the network of a run, and writes the record, its page, and the row of the history."""
    started = done.started
    evidence = auditor(done.out, done.network) if auditor else _evidence(book, done, console)
    measured = _utility(done)
    lost = measured.lost(_lost_before(book))
    verdict = verdicts.judge(evidence, lost, float(started.budget), exact=done.exact, collapses=measured.collapses())
    record = _record(book, done, evidence, measured, lost, verdict)
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


def _evidence(book: Ledger, done: _Unlearned, console: Console) -> Evidence:
    """Returns the comparison with held-out examples, and the evidence of the audit if the run has one."""
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
        return own
    trusted = trusted_keys(book)
    return audits.audit_evidence(AuditPlan.from_text(plan), own, job, done.out, done.network, level, trusted, console)


def _record(
    book: Ledger,
    done: _Unlearned,
    evidence: Evidence,
    measured: RunUtility,
    lost: Mapping[str, float],
    verdict: Verdict,
) -> Record:
    started, job, about = done.started, done.job, book.about
    recorded = book.entries(RunRecorded)
    configuration = records.shown_configuration(dataclasses.asdict(job.config))
    salt = book.run_salt(started.run)
    if salt is None:
        raise LedgerError(f"the private part of the start of run {started.run} is missing in {book.path}; {RESTORE}")
    positions = canonical(job.positions.tolist())
    return Record(
        ledger=about.ledger,
        number=started.run,
        previous=recorded[-1].record if recorded else CHAIN_START,
        finished=utc_now(),
        requests=tuple(_recorded_request(book, request) for request in _asked(book, started)),
        earlier_tries=_earlier_tries(book, started),
        network=RecordedNetwork(job.config.model, started.network, done.network),
        files=records.run_files(done.out, salt),
        forget=DigestedSet(len(job.positions), signing.salted_digest(salt, "positions", positions)),
        forgotten_before=len(job.past.forgotten),
        training_set=DigestedSet(data_lib.size(job.splits.train), about.training_set),
        configuration=configuration,
        configuration_sha256=sha256(canonical(configuration)),
        code=provenance.running_code(),
        versions=done.results["versions"],
        machine=done.results["machine"],
        metrics={name: _shares(done.results[name]) for name in ("before", "after")},
        test=_right_by_class(done.held_now, len(job.splits.class_names)),
        evidence=records.RecordedEvidence.of(evidence),
        utility=RecordedUtility.of(started.budget, lost, measured),
        verdict=verdict,
    )


def _asked(book: Ledger, started: RunStarted) -> list[Request]:
    return [request for request in book.requests() if request.id in started.requests]


def _recorded_request(book: Ledger, request: Request) -> RecordedRequest:
    (added,) = (entry for entry in book.entries(RequestAdded) if entry.id == request.id)
    digest = book.event_of(added).commitment or ""
    return RecordedRequest(request.id, request.received, request.due, added.count, digest)


def _earlier_tries(book: Ledger, started: RunStarted) -> int:
    """Counts the earlier runs, failed ones included, that worked on any example whose content this run works on.

    A request that names the examples of an older one again, or copies of them elsewhere in the training set, therefore
    begins no new count.
    """

    def contents(entry: RunStarted) -> set[str]:
        return {example.digest for request in entry.requests for example in book.examples(request)}

    own = contents(started)
    before = [entry for entry in book.entries(RunStarted) if entry.run < started.run]
    return sum(not own.isdisjoint(contents(entry)) for entry in before)


def _still_to_forget(book: Ledger, group: Sequence[Request]) -> tuple[list[Request], np.ndarray]:
    """Returns the requests that name examples left to forget, and these examples. Other requests are closed."""
    done: dict[int, int] = {}
    for request in book.requests():
        if request.state == FORGOTTEN and request.run is not None:
            done |= {example.position: request.run for example in book.examples(request.id)}
    left: list[Request] = []
    positions: set[int] = set()
    for request in group:
        own = {example.position for example in book.examples(request.id)}
        done |= erasing.forgotten_for_erased(book, own - set(done))
        if own <= set(done):
            latest = max(done[position] for position in own)
            book.append(RequestsCovered(run=latest, requests=(request.id,)))
        else:
            left.append(request)
            positions |= own - set(done)
    return left, np.asarray(sorted(positions), np.int64)


def _utility(done: _Unlearned) -> RunUtility:
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
