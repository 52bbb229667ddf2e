"""The keys whose signed audits a ledger takes as evidence, which are a part of its signed history."""

from __future__ import annotations

import re
from pathlib import Path

from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.entries import KeyTrusted, KeyUntrusted
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError


def trusted_keys(book: Ledger) -> list[str]:
    """Returns the public keys that a ledger trusts, in hexadecimal, in the order in which they were named."""
    trusted: dict[str, None] = {}
    for event in book.history():
        if isinstance(event.entry, KeyTrusted):
            trusted[event.entry.key] = None
        elif isinstance(event.entry, KeyUntrusted):
            trusted.pop(event.entry.key, None)
    return list(trusted)


def trust_key(folder: Path, public: Path, *, keys: Path | None = None) -> str:
    """Lets a ledger take audits that were signed with the private key of an auditor.

    Args:
      folder: The folder of the ledger.
      public: The file with the public key, in PEM form.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Returns:
      The key in hexadecimal.

    Raises:
      InputError: The key is trusted already.
      LedgerError: The key cannot be read, or the ledger cannot be used or written.
    """
    key = signing.read_public(public)
    with Ledger(folder, keys) as book:
        if key in trusted_keys(book):
            raise InputError(f"the key in {public} is trusted already")
        book.append(KeyTrusted(key=key))
    return key


def untrust_key(folder: Path, public: Path | str, *, keys: Path | None = None) -> str:
    """Lets a ledger take no more audits of an auditor. Records of earlier runs stay, and name the key.

    Args:
      folder: The folder of the ledger.
      public: The file with the public key, in PEM form; or the key as 64 hexadecimal digits, where the file is lost.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Returns:
      The key in hexadecimal.

    Raises:
      InputError: The key is not trusted.
      LedgerError: The key cannot be read, or the ledger cannot be used or written.
    """
    is_written_out = re.fullmatch("[0-9a-f]{64}", str(public)) is not None
    key = str(public) if is_written_out else signing.read_public(Path(public))
    with Ledger(folder, keys) as book:
        if key not in trusted_keys(book):
            raise InputError(
                f"the key {'' if is_written_out else 'in '}{public} is not trusted; `scissorhands request list` shows "
                "those that are"
            )
        book.append(KeyUntrusted(key=key))
    return key
