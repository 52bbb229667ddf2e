"""Serves deletion requests: a run makes the network in use forget what was asked for, and leaves a signed record.

A run moves through the history of the ledger from `started` to `recorded`. If the process ends in between, the next
call finishes that run first, with the settings that it was started with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax import files, hashing, reading, report, torch_weights
from scissorhands_jax.deletion import (
    audits,
    erasing,
    records,
    tidying,
    verdicts,
)
from scissorhands_jax.deletion.audits import AuditPlan
from scissorhands_jax.deletion.entries import (
    FORGOTTEN,
    OPEN,
    RETRAIN,
    Request,
    RequestsCovered,
    RunStarted,
    RunUnlearned,
)
from scissorhands_jax.deletion.judging import (
    BEGIN_AGAIN,
    Auditor,
    RunOutcome,
    Unlearned,
    files_as_left,
    judge_run,
    requests_of,
    salt_of,
)
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.recorded_runs import (
    check_erasures,
    check_past,
    forgotten_before,
    network_in_use,
    run_in_use,
    served_was_erased,
)
from scissorhands_jax.deletion.requests import (
    Subject,
    check_content,
    config_in_use,
    positions_text,
    remove_ledger_leftovers,
)
from scissorhands_jax.deletion.trusted_keys import trusted_keys
from scissorhands_jax.errors import InputError, LedgerError, NonFiniteError
from scissorhands_jax.jobs import runs, unlearning
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import WEIGHTS_FILE, parse_run_config
from scissorhands_jax.jobs.job import Job, prepare_job, prepare_network, saved_identity
from scissorhands_jax.jobs.loading import load_run
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import asks_for_held_out
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training.identity import check_same

_MAX_WHY = 1000  # characters of the reason why a run failed
_WITH_AUDITOR = "auditor"  # the entry of a run's configuration in the history that says that it was begun with one


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
    on_outcome: Callable[[RunOutcome], object] | None = None,
    console: Console,
) -> list[RunOutcome]:
    """Makes the network in use forget what all open requests name, and leaves a record of every run.

    A run that was stopped is finished first, with the settings that it was started with. If its data or the network
    that it started from cannot be found, or are other ones, it stays stopped; `tidying.discard_run` gives it up.

    A network takes the place of the one before only if the verdict on it is `FORGOTTEN`.

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
      auditor: A function that gives more evidence, which counts as that of the run does. By default there is none. A
        run that was begun with one is only finished with one.
      on_outcome: Called with the outcome of each run as soon as it has ended, so also if a later one fails.
      console: Where to show progress.

    Returns:
      The outcomes in order. The list is empty if there was nothing to do.

    Raises:
      InputError: An argument cannot be used, an example has changed, an erasure has not ended, or a run has failed.
        Requests whose runs have ended before that are answered; the others are in the state that they were in, except
        that those of a stopped run that cannot be finished yet still wait for it.
      LedgerError: The ledger cannot be used or written, or another process is running.
    """
    if not 0 <= budget < math.inf:
        raise InputError(f"the utility budget must be a finite number that is not negative, got {budget}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    subject = subject or Subject()
    outcomes: list[RunOutcome] = []

    def carry_out(started: RunStarted, config: RunConfig, *, again: bool = False) -> None:
        outcomes.append(_carry_out(book, started, config, auditor, console, again=again))
        if on_outcome is not None:
            on_outcome(outcomes[-1])

    with Ledger(folder, keys) as book, book.sole_run():
        check_erasures(book)
        remove_ledger_leftovers(book, keys)
        tidying.remove_remains(book)
        stopped = tidying.unfinished_run(book)
        if stopped is not None:
            say(console, f"finishing run {stopped.run}, which was stopped")
            carry_out(stopped, _config_of_stopped(book, stopped, subject, auditor, console), again=True)
        states = (OPEN, RETRAIN) if again or method == report.REFERENCE else (OPEN,)
        waiting = [request for request in book.requests() if request.state in states]
        for group in [[request] for request in waiting] if one_by_one else [waiting]:
            left, positions = _still_to_forget(book, group)
            if not left:
                continue
            number = len(book.entries(RunStarted)) + 1
            file = tidying.positions_file(book.folder, number)
            try:
                files.write_text(file, positions_text(positions))
                config = RunConfig(
                    **vars(config_in_use(book, subject)),
                    forget=f"indices:{file.absolute()}",
                    seed=seed,
                    retain_limit=retain_limit,
                    augment=augment,
                    method_name=method,
                    method=settings,
                )
                started = _start(book, number, left, config, budget, level, audit, auditor)
            except BaseException:
                tidying.remove_remains(book)  # A run that was not started leaves nothing that says what to forget.
                with contextlib.suppress(OSError):
                    file.parent.rmdir()  # only if it was the first run
                raise
            carry_out(started, config)
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
    auditor: Auditor | None,
) -> RunStarted:
    """Checks everything that a run needs, and records its start in the history."""
    if asks_for_held_out(config.method) and served_was_erased(book):
        raise InputError(
            "the ceiling 'held-out' is measured on examples that the network never saw, and since a served request was "
            "erased no list says which these are; give method.ceiling=uniform or method.ceiling=NUMBER"
        )
    check_content(book, config, asked)
    job = prepare_job(config)
    check_past(book, job.past)
    forgotten_before(book, len(job.past.forgotten))  # The record will need it, after hours perhaps.
    network = hashing.network_sha256(job.params, job.model_state)
    if network != network_in_use(book):
        place = config.weights or config.checkpoint
        raise InputError(
            f"the network in {place} is not the one in use, whose numbers have the hash {network_in_use(book)}; put "
            f"that one back{', or name its file with --weights' if run_in_use(book) is None else ''}"
        )
    if audit is not None:
        audit = audits.checked_plan(audit, job, level, trusted_keys(book))
        audits.keep_signed(audit, tidying.audit_work_folder(book.folder, number))
    started = RunStarted(
        run=number,
        requests=tuple(request.id for request in asked),
        config=json.dumps(dataclasses.asdict(config) | ({} if auditor is None else {_WITH_AUDITOR: True})),
        budget=repr(float(budget)),
        level=repr(float(level)),
        audit=None if audit is None else audit.as_text(),
        network=network,
    )
    book.append(started)
    return started


def _config_of_stopped(
    book: Ledger, started: RunStarted, subject: Subject, auditor: Auditor | None, console: Console
) -> RunConfig:
    """Returns the configuration of a run that was stopped, with the places where its data and its network are now.

    Raises:
      InputError: They cannot be found, or are not those that the run was started with, or it was started with an
        auditor and there is none now. It stays stopped, because it can be finished when they are put back.
    """
    try:
        found = reading.parse_json(started.config, nan=True)
        config = parse_run_config(found, f"run {started.run} in the ledger")
        if auditor is None and _WITH_AUDITOR in found:
            raise InputError(
                f"run {started.run} was begun with an auditor, whose evidence counts; finish it in Python, with the "
                "same auditor=FUNCTION of `deletion.run`"
            )
        named = ["dataset", "data_dir", "rename"]
        if run_in_use(book) is None and not (subject.weights or subject.checkpoint):
            named += ["weights", "checkpoint"]
        places = {name: getattr(subject, name) or getattr(config, name) for name in named}
        in_use = config_in_use(book, dataclasses.replace(subject, **places))
        forget = f"indices:{tidying.positions_file(book.folder, started.run).absolute()}"
        config = dataclasses.replace(config, **vars(in_use), forget=forget)
        check_content(book, config, requests_of(book, started))
        network = prepare_network(config)
        if hashing.network_sha256(network.params, network.model_state) != started.network:
            raise InputError(
                f"the network that run {started.run} started from has changed; put it back from your backup"
            )
    except InputError:
        say(
            console,
            f"note: run {started.run} stays stopped; `scissorhands request discard --number {started.run}` gives it up",
        )
        raise
    return config


def _carry_out(
    book: Ledger, started: RunStarted, config: RunConfig, auditor: Auditor | None, console: Console, again: bool = False
) -> RunOutcome:
    """Does the rest of a run. If the run fails, its requests are as they were before it.

    A run with an error that nobody has foreseen is left to be finished, since nothing says that it cannot be. If that
    ends in one as well (`again`), it has failed, because it would keep all later ones from beginning; unless it is the
    disk or the memory that does not suffice.
    """
    try:
        done = _unlearned(book, started, config, console, again=again)
        return judge_run(book, done, auditor, console)
    except LedgerError:
        raise
    except Exception as error:
        short = isinstance(error, OSError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error)  # of an accelerator
        if isinstance(error, InputError) or (again and not short):
            tidying.fail_run(book, started, _reason(book, started, error))
            tidying.remove_remains(book)
        raise


def _reason(book: Ledger, started: RunStarted, error: Exception) -> str:
    """Returns the message of an error for the history, which must not say what was to be forgotten."""
    message = str(error).encode(errors="replace").decode()
    if not isinstance(error, NonFiniteError):
        positions = {example.position for request in started.requests for example in book.examples(request)}
        message = re.sub(r"\d+", lambda found: "…" if int(found[0]) in positions else found[0], message)
    return message[:_MAX_WHY]


def _unlearned(book: Ledger, started: RunStarted, config: RunConfig, console: Console, *, again: bool) -> Unlearned:
    """Does the unlearning of a run, unless it was done before the run was stopped."""
    out = records.run_folder(book.folder, started.run)
    asked = requests_of(book, started)
    check_content(book, config, asked)
    job = prepare_job(config)
    check_past(book, job.past)
    if not np.array_equal(job.positions, _still_to_forget(book, asked)[1]):
        raise InputError(f"the list of what run {started.run} must make the network forget was changed; {BEGIN_AGAIN}")
    if hashing.network_sha256(job.params, job.model_state) != started.network:
        raise InputError(f"the network that run {started.run} started from has changed; put it back from your backup")
    left = _left_by_unlearning(book, started, job, out, console, again=again)
    files_as_left(book, started, left, out)
    results = report.read_results(out / runs.RESULTS_FILE)
    identity = saved_identity(out, BEGIN_AGAIN)
    check_same(identity.document(), job.identity(), str(out), BEGIN_AGAIN, warn=False)
    after = load_run(job.model, str(out))
    if hashing.network_sha256(*after) != left.network:
        raise InputError(f"the network in {out} is not the one that run {started.run} has made; {BEGIN_AGAIN}")
    return Unlearned(started, job, out, after, left.network, results, identity.digest, left)


def _left_by_unlearning(
    book: Ledger, started: RunStarted, job: Job, out: Path, console: Console, *, again: bool
) -> RunUnlearned:
    """Unlearns, and says in the history what is in the folder of the run then, unless the history says it already.

    Raises:
      InputError: The file of the network or the results are not what was made.
    """
    done = [entry for entry in book.entries(RunUnlearned) if entry.run == started.run]
    if done:
        return done[0]
    # A run that has just begun has left nothing. Nobody vouches for results of which the history knows nothing, and
    # without its file a run was never begun.
    if not again or out.is_symlink() or (out / runs.RESULTS_FILE).is_file() or not (out / runs.RUN_FILE).is_file():
        files.remove(out)
    # The verdict judges it, and gives its own advice.
    made = unlearning.unlearn(
        job.config,
        out,
        overwrite=not again,
        resume=again,
        insist=True,
        max_loss=math.inf,
        advise=False,
        console=console,
    )
    salt = salt_of(book, started)
    after = load_run(job.model, str(out))
    digest = records.run_files(out, salt).digest(salt)
    # Whoever has hashed the files before and after reading them knows that these were read.
    weights = torch_weights.read_state_dict(out / WEIGHTS_FILE)
    same = hashing.tree_sha256(weights) == hashing.tree_sha256(unlearning.weights_of(job, *after))
    if not same or reading.read_text(out / runs.RESULTS_FILE) != report.results_text(made.document()):
        what = runs.RESULTS_FILE if same else WEIGHTS_FILE
        raise InputError(f"{out / what} is not what run {started.run} has made, so it was changed since; {BEGIN_AGAIN}")
    left = RunUnlearned(run=started.run, network=hashing.network_sha256(*after), files=digest)
    book.append(left)
    return left


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
