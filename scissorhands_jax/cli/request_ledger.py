"""The commands about a whole ledger: `scissorhands request export | erase | derive | retire`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

from scissorhands_jax.cli.options import Option
from scissorhands_jax.cli.requests import LedgerOptions
from scissorhands_jax.terminal import Console, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeriveCommand(LedgerOptions):
    """Register a network that was made from one of the ledger's, e.g. fine-tuned, quantised or merged.

    It knows what that network knew, so requests then say that it needs attention. `request list` and `request verify`
    say so as well, until the network has been retired. One that is registered again is in use again.
    """

    example: ClassVar[str] = "request derive --ledger ledger --parent original --child small.safetensors --note int8"

    parent: Annotated[
        str,
        Option(
            "What it was made from: original, the number of a run, or a network that the ledger knows (its file or "
            "SHA-256).",
            metavar="NETWORK",
        ),
    ]
    child: Annotated[str, Option("The file of the new network, or its SHA-256.", metavar="FILE")]
    note: Annotated[str | None, Option("What it is and where it is used.", metavar="TEXT")] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion

        child = deletion.derive(self.ledger, parent=self.parent, child=self.child, note=self.note or "", keys=self.keys)
        say(console, f"registered {child}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetireCommand(LedgerOptions):
    """Note that a registered network is no longer in use, because it has forgotten too or was deleted."""

    example: ClassVar[str] = "request retire --ledger ledger --network small.safetensors"

    network: Annotated[str, Option("The file of the network, or its SHA-256.", metavar="FILE")]

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion

        network = deletion.retire(self.ledger, self.network, keys=self.keys)
        say(console, f"retired {network}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportLedgerCommand(LedgerOptions):
    """Write a copy of the ledger for auditors, without names, contacts, positions and paths.

    `request verify` verifies the copy on another machine and without keys. Tell the auditor by another way than the
    copy what the public key is.
    """

    example: ClassVar[str] = "request export --ledger ledger --out copy"

    out: Annotated[Path, Option("Folder of the copy, which must not exist.", metavar="DIR")]

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion

        head = deletion.export(self.ledger, self.out, keys=self.keys)
        say(console, f"written to {self.out}; its head is {head}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseCommand(LedgerOptions):
    """Remove the personal data of a request from the ledger, the records and the folders of runs.

    Requester, contact and positions go, and so do the files of runs that list the positions. The history stays as it
    was signed, because it holds only salted digests of these, and the salts go as well. Copies and backups elsewhere
    are not reached. If the command is stopped, give it again. A request that has not been served is withdrawn.
    """

    example: ClassVar[str] = "request erase --ledger ledger 3"

    id: Annotated[int, Option("Number of the request.", metavar="ID", flag="id")]

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion
        from scissorhands_jax.deletion.entries import WITHDRAWN

        done = deletion.erase(self.ledger, self.id, keys=self.keys)
        runs = ", ".join(map(str, done.runs))
        what = f", and the files of runs that tell them ({runs})" if runs else ""
        if done.request.state == WITHDRAWN:
            say(console, f"note: request {self.id} had not been served and is withdrawn")
        say(console, f"request {self.id}: its requester, contact and examples were erased{what}; head {done.head}")
