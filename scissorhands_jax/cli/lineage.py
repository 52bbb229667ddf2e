"""The commands about networks that were derived from a ledger's: `scissorhands request derive | retire`."""

from __future__ import annotations

import dataclasses
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
