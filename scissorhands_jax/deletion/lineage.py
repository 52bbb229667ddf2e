"""Networks that were derived from those of a ledger, and which of them know what a request asks to forget.

Fine-tuned, quantised or merged copies of a network know what it knew, and no run on the network itself changes them. So
they are registered in the ledger, by their SHA-256 and that of the network they were made from. A request then says
which of them need attention: all that descend from the original or from a run before the one that has forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from scissorhands_jax import hashing, report
from scissorhands_jax.deletion import records
from scissorhands_jax.deletion.entries import (
    FORGOTTEN,
    WITHDRAWN,
    NetworkDerived,
    NetworkRetired,
    Request,
    RunRecorded,
)
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.earlier_runs import WEIGHTS_FILE, origin_folder

_MAX_NOTE = 500


@dataclasses.dataclass(frozen=True)
class DerivedNetwork:
    """A network that was derived from others."""

    sha256: str
    parents: tuple[str, ...]
    """The SHA-256 of the networks that it was made from, in the order in which they were registered."""
    note: str
    """What is known about it; "" if nothing is, or in an auditor's copy."""
    retired: bool
    """Whether it is no longer in use."""


def derive(folder: Path, *, parent: str, child: str, note: str = "", keys: Path | None = None) -> str:
    """Registers a network that was derived from one of a ledger. A network with several parents is registered for each.

    One that was retired is in use again from then on.

    Args:
      folder: The folder of the ledger.
      parent: `original`, the number of a run, or the SHA-256 or the file of a network that the ledger knows.
      child: The file of the new network, or its SHA-256 in hexadecimal.
      note: What is known about the network.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Returns:
      The SHA-256 of the new network.

    Raises:
      InputError: The parent is unknown, the child cannot be read, is empty, is a network of the ledger itself, or is
        among the ancestors of the parent.
      LedgerError: The ledger cannot be used or written.
    """
    if len(note) > _MAX_NOTE or not note.isprintable():
        raise InputError(f"the note is {note[:50]!r}; give at most {_MAX_NOTE} printable characters")
    digest = _digest(child)
    with Ledger(folder, keys) as book:
        above = _parent(book, parent)
        if digest in _generations(book) or digest in _own_files(book):
            raise InputError(f"{child} is a network of the ledger itself; only networks made from it are registered")
        known = {network.sha256: network for network in derived_networks(book)}
        if above in known and digest in {above, *_ancestors(known, above)}:
            raise InputError(f"{child} is an ancestor of {parent}, so it cannot be derived from it")
        if digest in known and above in known[digest].parents and not known[digest].retired:
            raise InputError(f"{child} is registered as derived from {parent} already")
        book.append(NetworkDerived(parent=above, child=digest, note=note))
    return digest


def retire(folder: Path, network: str, *, keys: Path | None = None) -> str:
    """Notes that a registered network is no longer in use. Networks that were derived from it stay in use.

    Args:
      folder: The folder of the ledger.
      network: The SHA-256 or the file of the network.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Returns:
      The SHA-256 of the network.

    Raises:
      InputError: The network is not registered, or was retired before.
      LedgerError: The ledger cannot be used or written.
    """
    digest = _digest(network)
    with Ledger(folder, keys) as book:
        found = [one for one in derived_networks(book) if one.sha256 == digest]
        if not found or found[0].retired:
            what = "is no longer in use already" if found else "is not registered as derived from others"
            raise InputError(f"the network {digest} {what}; `scissorhands request list` shows those that are in use")
        book.append(NetworkRetired(network=digest))
    return digest


def derived_networks(book: Ledger) -> list[DerivedNetwork]:
    """Returns all networks that were derived from others, in the order in which they were registered.

    What the history says last of a network counts: one that is registered after it was retired is in use.
    """
    parents: dict[str, dict[str, None]] = {}
    notes: dict[str, dict[str, None]] = {}
    retired: set[str] = set()
    for event in book.history():
        entry = event.entry
        if isinstance(entry, NetworkRetired):
            retired.add(entry.network)
        elif isinstance(entry, NetworkDerived):
            parents.setdefault(entry.child, {})[entry.parent] = None
            notes.setdefault(entry.child, {})[entry.note] = None
            retired.discard(entry.child)
    return [
        DerivedNetwork(child, tuple(known), "; ".join(filter(None, notes[child])), child in retired)
        for child, known in parents.items()
    ]


def needing_attention(book: Ledger, request: Request) -> list[DerivedNetwork]:
    """Returns the derived networks in use that know what a request asks to forget.

    They descend from the original, or from a run before the one that has answered the request with `FORGOTTEN`. Nothing
    is returned for requests that were withdrawn.
    """
    if request.state == WITHDRAWN:
        return []
    generations, networks = _generations(book), derived_networks(book)
    known = {network.sha256: network for network in networks}

    def knows(ancestor: str) -> bool:
        generation = generations.get(ancestor)
        if generation is None:
            return False
        return request.state != FORGOTTEN or request.run is None or generation < request.run

    return [one for one in networks if not one.retired and any(map(knows, _ancestors(known, one.sha256)))]


def attention_lines(book: Ledger) -> list[str]:
    """Describes the derived networks that know what requests ask to forget, in one line each."""
    asked: dict[str, list[int]] = {}
    for request in book.requests():
        for network in needing_attention(book, request):
            asked.setdefault(network.sha256, []).append(request.id)
    return [
        f"the derived network {described(network)} knows what {_requests(asked[network.sha256])} to forget; make it "
        "forget too or take it out of use (`scissorhands request retire`)"
        for network in derived_networks(book)
        if network.sha256 in asked
    ]


def other_lines(book: Ledger) -> list[str]:
    """Describes the derived networks in use that `attention_lines` leaves out, in one line each."""
    named = {network.sha256 for request in book.requests() for network in needing_attention(book, request)}
    return [
        f"the derived network {described(network)} is in use"
        for network in derived_networks(book)
        if not network.retired and network.sha256 not in named
    ]


def described(network: DerivedNetwork) -> str:
    """Returns the SHA-256 of a network and its note."""
    return f"{network.sha256} ({network.note})" if network.note else network.sha256


def _requests(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"request {numbers[0]} asks"
    return f"requests {', '.join(map(str, numbers))} ask"


def _generations(book: Ledger) -> dict[str, int]:
    """Returns the networks of a ledger with the numbers of the runs that made them; the original has the number 0.

    A run that changed nothing has made the network that was there before.
    """
    found = {book.about.network: 0}
    for entry in book.entries(RunRecorded):
        found.setdefault(entry.network, entry.run)
    return found


def _own_files(book: Ledger) -> dict[str, str]:
    """Returns the SHA-256 of the files of a ledger's networks with those of the networks, which are of their numbers.

    The files of runs are those that the records name. That of the original is known while it is where it was when the
    ledger was begun.
    """
    found: dict[str, str] = {}
    about = book.about
    original = about.weights
    if about.checkpoint is not None:
        with contextlib.suppress(InputError):  # It has moved.
            original = str(origin_folder(about.checkpoint) / WEIGHTS_FILE)
    if original is not None and Path(original).is_file():
        found[_digest(original)] = about.network
    for entry in book.entries(RunRecorded):
        path = records.record_path(book.folder, entry.run)
        if path.is_file():  # `verify` names one that is missing.
            for digest in records.read_record(path, book.public)[0].files.network.values():
                found.setdefault(digest, entry.network)
    return found


def _ancestors(known: dict[str, DerivedNetwork], network: str) -> set[str]:
    """Returns everything that a registered network descends from, without itself."""
    found: set[str] = set()
    waiting = [network]
    while waiting:
        one = known.get(waiting.pop())
        new = set() if one is None else set(one.parents) - found
        found |= new
        waiting += new
    return found


def _parent(book: Ledger, parent: str) -> str:
    runs = {str(entry.run): entry.network for entry in book.entries(RunRecorded)}
    if parent == report.ORIGINAL or parent in runs:
        return runs.get(parent, book.about.network)
    registered = {network.sha256 for network in derived_networks(book)}
    listed = (
        f"`{report.ORIGINAL}`, the number of a run ({', '.join(runs) or 'none has ended'}), or a network that is "
        "registered or of the ledger itself"
    )
    try:
        digest = _digest(parent)
    except InputError as error:
        raise InputError(f"there is no parent {parent[:200]!r}; name {listed}") from error
    digest = _own_files(book).get(digest, digest)
    if digest not in {*registered, *_generations(book)}:
        raise InputError(f"the ledger knows no network {digest}; name {listed}")
    return digest


def _digest(network: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", network):
        return network
    if not Path(network).is_file():
        raise InputError(f"there is no file {network[:200]!r}; name a file, or a SHA-256 in lower-case hexadecimal")
    try:
        if Path(network).stat().st_size == 0:
            raise InputError(f"{network} is empty, so it holds no network; name the file of a network")
        return hashing.file_sha256(Path(network))
    except OSError as error:
        raise InputError(f"{network} cannot be read: {error.strerror}; make it readable and try again") from error
