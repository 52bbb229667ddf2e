"""Verifies a ledger, its records and its networks, and describes everything that is not as it was written."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from scissorhands_jax import datasets, files, hashing, reading, torch_weights
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.deletion import contents, lineage, records, signing, statements
from scissorhands_jax.deletion.contents import Contents
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    FORGOTTEN,
    RESTORE,
    RequestErased,
    RunDiscarded,
    RunFailed,
    RunRecorded,
    RunStarted,
)
from scissorhands_jax.deletion.ledger import DATABASE_FILE, KEYS_FOLDER, Ledger
from scissorhands_jax.deletion.recorded_runs import (
    changed,
    erasure_going_on,
    expected_files,
    file_problems,
    files_left,
    identity_problems,
    missing,
    run_in_use,
)
from scissorhands_jax.deletion.records import Record
from scissorhands_jax.deletion.requests import (
    Subject,
    check_place,
    config_in_use,
    past_files,
    positions_digest,
    positions_text,
)
from scissorhands_jax.deletion.tidying import (
    audit_work_folder,
    audited_positions_file,
    positions_file,
    unfinished_run,
)
from scissorhands_jax.errors import CheckpointError, InputError, LedgerError, WeightsError
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.earlier_runs import (
    FORGOTTEN_BEFORE_FILE,
    NETWORK_FOLDER,
    WEIGHTS_FILE,
    network_folder,
)
from scissorhands_jax.jobs.evaluating import evaluate_network
from scissorhands_jax.jobs.loading import read_network
from scissorhands_jax.terminal import Console, say

_WITHOUT_SECRET = (
    "without the ledger's secret, it cannot be verified that the lists of what the first network was trained on and "
    "had forgotten are what their digests stand for"
)

_RECORD_FILES = (records.record_path, records.record_page_path, statements.envelope_path)
_OF_A_COPY = (
    "this is an auditor's copy, which names no person, example or place; only the ledger's owner can verify what its "
    "salted digests stand for"
)
_WITHOUT_ORIGINAL = (
    "the original network is in use; name it with --weights or --checkpoint, and its data with --dataset, to verify "
    "that as well"
)
_WITHOUT_DATA = (
    "the network was not evaluated again, because a copy does not say where the data are; name them with --dataset and "
    "--data-dir to do that"
)


def verify_ledger(
    folder: Path,
    *,
    head: str | None = None,
    evaluate: bool = True,
    subject: Subject | None = None,
    keys: Path | None = None,
    public: Path | None = None,
    console: Console,
) -> tuple[list[str], str | None]:
    """Looks for everything in a ledger, its records and its networks that is not as it was written.

    The module `ledger` says what is found in the ledger itself, and what is not.

    Args:
      folder: The folder of the ledger.
      head: A head that was kept elsewhere, which the history must contain. An older copy of the ledger does not.
      evaluate: Whether to evaluate the network in use again and compare the numbers with its record. The original,
        which is in use until a run has forgotten, has no record; its weights are always compared with the hash that
        the ledger holds.
      subject: What has moved since the ledger was begun.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.
      public: A file with the public key, for an auditor who does not have the keys. Everything that a signature covers
        is verified, the network included. Not verified are the list of what the first network was trained on, whose
        digest takes the secret, and in an auditor's copy what has salted digests; a note says so. The default, in an
        auditor's copy, is the public key in the copy itself.
      console: Where to show progress and notes.

    Returns:
      Everything that was found, in one sentence each, and the head. The list is empty if all is well, and the head is
      None if the ledger was changed or cannot be read, or if the public key is another one: a ledger that somebody
      else has signed looks like that.

    Raises:
      InputError: `head` is no head, or `subject` says what it cannot or must not say. Or nothing was changed as far as
        it was verified, and the network in use could not be: its data or the original cannot be found where they are
        said to be, or do not fit together.
      LedgerError: The file `public` holds no public key, so nothing can be said about the ledger.
    """
    subject = subject or Subject()
    if head is not None and re.fullmatch("[0-9a-f]{64}", head) is None:
        raise InputError(
            "a head is 64 hexadecimal digits in lower case, as `scissorhands request verify` prints it; "
            f"got {head[:100]!r}"
        )
    if public is not None:
        signing.read_public(public)
    try:
        book = _opened(folder, keys, public, console)
    except LedgerError as error:
        return [str(error)], None
    with book:
        found = book.problems()
        if found:
            return found, None
        events = book.history()
        if head is not None and head not in (event.hash for event in events):
            found.append(
                f"the history in {book.path} has no row {head}: it is an older copy or another ledger; put the newest "
                "copy back, or name the right folder"
            )
        hashes = {entry.run: entry.record for entry in book.entries(RunRecorded)}
        current = run_in_use(book)
        check_place(subject, current)
        found += _foreign(book, list(hashes), console)
        stopped = _stopped_run(book)
        if stopped is not None:
            _note(console, f"run {stopped.run} has not ended, so nothing that it has left so far was verified")
        found += _settled(book, lambda: _record_problems(book, hashes, console))
        found += _public_key_problems(folder, book.public, needed=bool(hashes))
        if book.secrets is None:
            _note(console, _OF_A_COPY if book.is_copy else _WITHOUT_SECRET)
        else:
            for name, file in past_files(folder).items():
                found += _list_problems(book, file, getattr(book.about, name))
        if current is None and book.is_copy and not (subject.weights or subject.checkpoint):
            _note(console, _WITHOUT_ORIGINAL)
        elif evaluate and current is not None and book.is_copy and not subject.dataset:
            _note(console, _WITHOUT_DATA)
        elif current is None or (evaluate and not found):
            wrong: list[str] = []
            failure: InputError | None = None
            try:
                if current is None:
                    wrong = _original_problems(book, subject)
                else:
                    wrong = _evaluated(book, current, subject, console)
            except InputError as error:
                failure = error
            if run_in_use(book) != current:  # It was looked at in part as what it was, and in part as what it is now.
                _note(console, "a run has ended meanwhile, so the network in use was not verified; verify again")
            elif failure is None:
                found += wrong
            elif found:
                _note(console, f"the network in use was not verified: {failure}")
            else:
                raise failure
        for line in lineage.attention_lines(book):
            _note(console, line)
        return found, events[-1].hash


def _opened(folder: Path, keys: Path | None, public: Path | None, console: Console) -> Ledger:
    """Opens a ledger to verify it, or an auditor's copy, with the public key that it holds unless another is named."""
    own = records.public_path(folder)
    if public is None and keys is None and not (folder / KEYS_FOLDER).exists() and own.is_file():
        book = Ledger(folder, public=own, check=False)
        if book.is_copy:
            digest = hashing.file_sha256(own)
            _note(
                console,
                f"the public key is the one in the copy itself, a file with the SHA-256 {digest}; compare it with what "
                "the owner told you by another way, or name the key from there with --public",
            )
            return book
        book.close()
    return Ledger(folder, keys, public=public, check=False)


def _note(console: Console, text: str) -> None:
    say(console, f"note: {text}")


def _settled(book: Ledger, look: Callable[[], list[str]]) -> list[str]:
    """Looks at files until no row was added meanwhile by a process that has changed them."""
    while True:
        head = book.head
        found = look()
        if not found or book.head == head:
            return found


def _record_problems(book: Ledger, hashes: Mapping[int, str], console: Console) -> list[str]:
    """Describes what is wrong with a ledger's records, their pages, and the folders of their runs.

    Args:
      book: The ledger.
      hashes: The hashes of the records that the ledger holds, by their numbers in the order of the history.
      console: Where to note that files were left out, because an erasure is removing them.
    """
    folder, public = book.folder, book.public
    erasing = erasure_going_on(book)
    if erasing is not None:
        _note(console, erasing)
    found = []
    previous = CHAIN_START
    forgotten = _forgotten_at_first(book)
    with_erased = _judged_after_an_erasure(book)
    for number, expected in hashes.items():
        path = records.record_path(folder, number)
        try:
            record, digest = records.read_record(path, public)
        except LedgerError as error:
            found.append(str(error))
            previous, forgotten = expected, None
            continue
        if digest != expected:
            found.append(f"{path} is not the record that the ledger has for run {number}; {RESTORE}")
        elif record.previous != previous or record.number != number:
            found.append(f"{path} does not follow the record before it; {RESTORE}")
        else:
            found += _page_problems(records.record_page_path(folder, number), record)
            found += statements.envelope_problems(statements.envelope_path(folder, number), record, digest, public)
            only = record.files.network if erasing else None
            wrong = file_problems(book, record, only) or ([] if erasing else identity_problems(book, record))
            found += wrong
            if forgotten is None and previous == CHAIN_START:
                forgotten = record.forgotten_before
            if forgotten is not None:
                after = number in with_erased
                found += _number_problems(path, record, forgotten, console, after_erasure=after)
            if not (wrong or erasing):
                found += _list_number_problems(book, record, path)
        if digest != expected:
            forgotten = None
        elif forgotten is not None and record.verdict.answer == FORGOTTEN:
            forgotten += record.forget.count
        previous = expected
    return found


def _forgotten_at_first(book: Ledger) -> int | None:
    """Returns how many examples the first network had forgotten, as the list in the ledger's folder says it.

    None if that list cannot be verified. The number in the first record then stands for it.
    """
    file = past_files(book.folder)["forgotten_before"]
    if book.secrets is None or _list_problems(book, file, book.about.forgotten_before):
        return None
    return len(forget_sets.read_positions(file))


def _judged_after_an_erasure(book: Ledger) -> set[int]:
    """Returns the runs that were recorded after a request that had been served was erased."""
    found: set[int] = set()
    erased = False
    for event in book.history():
        entry = event.entry
        erased = erased or (isinstance(entry, RequestErased) and not entry.withdrawn)
        if erased and isinstance(entry, RunRecorded):
            found.add(entry.run)
    return found


def _number_problems(path: Path, record: Record, forgotten: int, console: Console, *, after_erasure: bool) -> list[str]:
    """Compares what a record says was forgotten before its run with what follows from the records before it.

    Args:
      path: The file of the record.
      record: The record.
      forgotten: The number of examples that follows.
      console: Where to note a number that an earlier version has signed, which did not count what was erased.
      after_erasure: Whether a served request had been erased.
    """
    limit = record.verdict.not_compared
    if limit is None and after_erasure and record.forgotten_before < forgotten:
        _note(
            console,
            f"{path} was written by an earlier version, which did not count what erased requests had named: it says "
            f"that {record.forgotten_before} examples were forgotten before, and {forgotten} were, of which "
            f"{forgotten - record.forgotten_before} were not compared",
        )
        return []
    said = {record.forgotten_before, *([] if limit is None else [limit[0]])}
    if said == {forgotten} and (limit is None or (after_erasure and limit[1] <= forgotten)):
        return []
    return [
        f"{path} says that {' or '.join(map(str, sorted(said)))} examples were forgotten before, "
        + ("" if limit is None else f"{limit[1]} of them not compared, ")
        + f"and by the records before it and the history {forgotten} were; put no trust in that record"
    ]


def _list_number_problems(book: Ledger, record: Record, path: Path) -> list[str]:
    """Compares how many examples a record says were compared with the list of its run, if no erasure has changed it."""
    file = records.run_folder(book.folder, record.number) / FORGOTTEN_BEFORE_FILE
    is_signed = FORGOTTEN_BEFORE_FILE in expected_files(book, record).other and book.run_salt(record.number) is not None
    if not is_signed or files_left(book, record.number) is not None:
        return []
    try:
        listed = len(forget_sets.read_positions(file))
    except InputError:  # An erasure has begun meanwhile.
        return [missing(file)]
    _, lacking = record.verdict.not_compared or (0, 0)
    if record.forgotten_before - lacking == listed:
        return []
    return [
        f"{path} says that {record.forgotten_before} examples were forgotten before and that {lacking} of them were "
        f"not compared, and the list of its run names {listed}; put no trust in that record"
    ]


def _page_problems(path: Path, record: Record) -> list[str]:
    if not path.is_file():
        return [missing(path)]
    return [] if hashing.file_sha256(path) == record.report else [changed(path)]


def _foreign(book: Ledger, with_record: Iterable[int], console: Console) -> list[str]:
    """Names everything in a ledger's folder that is not a part of it, unless another process is just making it.

    Args:
      book: The ledger.
      with_record: The numbers of the runs that have a record.
      console: Where to note that another process is working.
    """
    folder = book.folder
    with book.unwritten():
        working, allowed = files.holder(folder), _allowed(book, with_record)
        found = contents.foreign(folder, allowed)
        working = working or files.holder(folder)  # It may have begun since.
        if book.journals:
            _note(console, f"another program has {book.path} open; close it and verify again")
        if working is not None:
            found = contents.foreign(folder, _allowed_meanwhile(book, allowed))
            _note(
                console,
                f"{working} is working on the ledger, so what that process is making or removing was left out; verify "
                "again when it has ended",
            )
    return found


def _allowed_meanwhile(book: Ledger, allowed: Contents) -> Contents:
    """Adds what may be there only while another process works on a ledger, which removes it (`tidying`)."""
    folder = book.folder
    next_run = max((entry.run for entry in book.entries(RunStarted)), default=0) + 1
    lists: set[Path] = set()
    working = {records.run_folder(folder, next_run)}
    for run in range(1, next_run + 1):
        lists |= {positions_file(folder, run), audited_positions_file(folder, run)}
        working |= {audit_work_folder(folder, run), records.run_folder(folder, run) / "checkpoints"}
    working |= {records.run_folder(folder, entry.run) for entry in book.entries(RunFailed)}
    working |= {records.run_folder(folder, entry.run) for entry in book.entries(RunDiscarded)}
    lists |= {path(folder, next_run) for path in _RECORD_FILES}
    return Contents(allowed.files | lists, allowed.folders, allowed.open_folders | working, leftovers=True)


def _allowed(book: Ledger, with_record: Iterable[int]) -> Contents:
    """Returns everything that may stand in the folder of a ledger.

    Args:
      book: The ledger.
      with_record: The numbers of the runs that have a record.
    """
    folder, keys = book.folder, book.folder / KEYS_FOLDER
    expected = {folder / DATABASE_FILE, *book.journals, records.public_path(folder)}
    if files.is_lock_file(folder / files.LOCK_FILE):
        expected.add(folder / files.LOCK_FILE)
    if _are_own(book, keys):
        expected |= {keys / name for name in (signing.SECRET_FILE, signing.SIGNING_FILE)}
    numbers = [entry.run for entry in book.entries(RunRecorded)]
    working: set[Path] = set()
    stopped = _stopped_run(book)
    if not book.is_copy:
        expected |= set(past_files(folder).values())
    if stopped is not None:
        numbers.append(stopped.run)
        working |= {records.run_folder(folder, stopped.run), audit_work_folder(folder, stopped.run)}
        expected |= {positions_file(folder, stopped.run), audited_positions_file(folder, stopped.run)}
    expected |= {path(folder, run) for run in numbers for path in _RECORD_FILES}
    for run in with_record:
        run_folder = records.run_folder(folder, run)
        try:
            listed = expected_files(book, records.read_record(records.record_path(folder, run), book.public)[0])
        except LedgerError:  # The record is named elsewhere, and what it lists is not known.
            if book.is_copy:
                expected.add(run_folder / WEIGHTS_FILE)
            else:
                working.add(run_folder)
        else:
            expected |= {run_folder / name for name in (*listed.network, *listed.other)}
    folders = frozenset({folder / records.RECORDS_FOLDER, folder / records.RUNS_FOLDER})
    return Contents(frozenset(expected), folders, frozenset(working))


def _stopped_run(book: Ledger) -> RunStarted | None:
    """Returns the run that was stopped and may have left something. An auditor's copy has nothing of it."""
    return None if book.is_copy else unfinished_run(book)


def _are_own(book: Ledger, keys: Path) -> bool:
    """Says whether a folder holds the keys of a ledger. An auditor's copy has none."""
    if book.is_copy or not keys.is_dir():
        return False
    try:
        Ledger(book.folder, keys, check=False).close()
    except LedgerError:
        return False
    return True


def _public_key_problems(folder: Path, public: str, *, needed: bool) -> list[str]:
    path = records.public_path(folder)
    if not path.is_file():
        return [missing(path)] if needed else []
    pem = signing.public_pem(public)
    same = path.stat().st_size == len(pem) and reading.read_bytes(path, len(pem)) == pem
    return [] if same else [changed(path, ": it is not the ledger's key")]


def _list_problems(book: Ledger, file: Path, expected: str) -> list[str]:
    """Compares a list of what the first network knew with its digest and with the form in which it is written."""
    if not file.is_file():
        return [missing(file)]
    try:
        positions = forget_sets.read_positions(file)
        same = reading.read_bytes(file, reading.MAX_TEXT) == positions_text(positions).encode()
    except (ValueError, OSError) as error:
        return [changed(file, f": {error}")]
    return [] if same and positions_digest(book.keys, positions) == expected else [changed(file)]


def _original_problems(book: Ledger, subject: Subject) -> list[str]:
    """Compares the weights of the original network with their hash.

    Raises:
      InputError: What was named is not there or does not fit together, or nothing says how an auditor is to read it.
    """
    about, config = book.about, config_in_use(book, subject)
    splits = datasets.load(config.dataset, config.data_dir)
    if config.rename is not None:
        torch_weights.read_renaming(config.rename)  # It is no part of the network, as little as the data are.
    named = [Path(subject.weights)] if subject.weights else []
    if subject.checkpoint:
        named.append(network_folder(subject.checkpoint) / NETWORK_FOLDER)
    place = subject.weights or subject.checkpoint or about.weights or about.checkpoint
    try:
        network = read_network(config, splits)
    except (WeightsError, CheckpointError) as error:
        message = f"the original network in {place} cannot be read: {error}"
        if book.is_copy or not all(path.exists() for path in named):
            raise InputError(message) from error
        return [message]
    if hashing.network_sha256(network.params, network.model_state) != about.network:
        return [changed(str(place), ": it is not the network that the ledger was begun with")]
    return []


def _evaluated(book: Ledger, current: int, subject: Subject, console: Console) -> list[str]:
    """Evaluates the network in use again. Counts may differ a little, because another machine rounds differently.

    Its files are as they were signed. Whether the one that auditors get holds the network that the record names, and
    not another one that was put there before it was signed, shows in its numbers.

    Raises:
      InputError: The data cannot be found where they are said to be, or do not fit the network.
    """
    record, _ = records.read_record(records.record_path(book.folder, current), book.public)
    try:
        config = _config_to_evaluate(book, record, subject)
        file = records.run_folder(book.folder, current) / WEIGHTS_FILE
        held = read_network(_of_file(config, file), datasets.load(config.dataset, config.data_dir))
        if hashing.network_sha256(held.params, held.model_state) != record.network.after:
            return [f"{file} holds another network than run {current} has made; put no trust in that file"]
        numbers = evaluate_network(config, console=console).numbers
    except InputError as error:
        raise InputError(f"the network of run {current} cannot be evaluated: {error}") from error
    measured = record.metrics["after"]
    expected = {name: (measured[name].count, measured[name].of) for name in ("forget", "retain", "test")}
    if "num_forget" not in numbers:
        # These data are not those of the run, so its positions may mean nothing in them.
        correct, total = (sum(column) for column in zip(*record.test, strict=True))
        expected = {"test": (correct, total)}
    found = []
    for name, (correct, total) in expected.items():
        if name == "retain" and record.configuration["retain_limit"] is not None:
            continue  # The record has a random part of it.
        now, of = numbers[f"correct_{name}"], numbers[f"num_{name}"]
        if of != total or abs(now - correct) > 1 + total // 1000:
            found.append(
                f"the network of run {current} now gets {now} of {of} {name} examples right, and its "
                f"record says {correct} of {total}: the network, the data or the code has changed; "
                "put back what was, and verify again"
            )
    return found


def _config_to_evaluate(book: Ledger, record: Record, subject: Subject) -> NetworkConfig:
    """Returns the configuration of the network in use.

    In an auditor's copy, and after an erasure, it names the file of the network instead of the run, so that only the
    test set is evaluated: what was forgotten is not known, or is not all that the record has counted.
    """
    file = records.run_folder(book.folder, record.number) / WEIGHTS_FILE
    if book.is_copy:
        return NetworkConfig(
            model=book.about.model,
            model_options=_with_numbers(record.configuration.get("model_options", {})),
            weights=str(file),
            dataset=subject.dataset or "",
            data_dir=subject.data_dir,
        )
    config = config_in_use(book, subject)
    return config if files_left(book, record.number) is None else _of_file(config, file)


def _of_file(config: NetworkConfig, file: Path) -> NetworkConfig:
    """Returns the configuration of the same network, read from its file."""
    return dataclasses.replace(config, checkpoint=None, weights=str(file), trained_on=None, check=None)


def _with_numbers(value: Any) -> Any:
    """Returns options in which texts that stand for numbers are numbers again (see `hashing.without_floats`)."""
    if isinstance(value, dict):
        return {name: _with_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    with contextlib.suppress(ValueError, TypeError):
        return float(value) if isinstance(value, str) else value
    return value
