"""Records as in-toto statements in signed envelopes, which the tools of auditors read.

A statement (in-toto Statement v1) says something about files that it names by their SHA-256: here about the files of
the network that a run has left. What it says, the predicate, is the record. The envelope (DSSE) holds the statement and
an Ed25519 signature by the ledger's key. `docs/reference/record-format.md` describes every field.

The statement follows from the record, so an envelope adds nothing to what the record says, and `verify` compares them.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

from scissorhands_jax import files, hashing, reading
from scissorhands_jax.deletion import records, signing
from scissorhands_jax.deletion.entries import CHAIN_START, RESTORE
from scissorhands_jax.deletion.records import Record
from scissorhands_jax.deletion.signing import LedgerKeys
from scissorhands_jax.hashing import canonical, sha256

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:scissorhands-jax:unlearning-record:v1"
"""The name of the form of the predicate, which does not lead to a page."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def statement(record: Record, digest: str) -> dict[str, Any]:
    """Returns the in-toto statement about the network that a run has made.

    Args:
      record: The record of the run.
      digest: The hash of the record.
    """
    run = records.run_folder(Path(), record.number).as_posix()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": f"{run}/{name}", "digest": {"sha256": found}}
            for name, found in sorted(record.files.network.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(record, digest),
    }


def envelope_path(folder: Path, number: int) -> Path:
    """Returns the file of the envelope of a ledger's run with a number."""
    return records.record_path(folder, number).with_suffix(".intoto.jsonl")


def write_envelope(folder: Path, number: int, keys: LedgerKeys) -> None:
    """Writes the envelope of the record of a run, which must have been written before.

    Args:
      folder: The folder of the ledger.
      number: The number of the run.
      keys: The keys of the ledger.

    Raises:
      LedgerError: The record is missing or was changed.
      InputError: The envelope is too large to be read again.
    """
    record, digest = records.read_record(records.record_path(folder, number), keys.public)
    payload = canonical(statement(record, digest))
    envelope = _envelope(payload, keys.public, keys.sign_message(_pre_authentication(payload)))
    files.write_bytes(envelope_path(folder, number), records.readable(envelope, record))


def envelope_problems(path: Path, record: Record, digest: str, public: str) -> list[str]:
    """Describes what is wrong with the envelope of a record, in one sentence each.

    Args:
      path: The file of the envelope.
      record: The record, which was verified.
      digest: The hash of the record.
      public: The ledger's public key, in hexadecimal.
    """
    try:
        content = reading.read_bytes(path, reading.MAX_JSON)
    except FileNotFoundError:
        return [f"{path} is missing; {RESTORE}"]
    except (OSError, ValueError) as error:
        return [f"{path} cannot be read: {error}; {RESTORE}"]
    payload = canonical(statement(record, digest))
    try:
        (found,) = hashing.parse_canonical(content.removesuffix(b"\n"))["signatures"]
        signature = base64.b64decode(found["sig"])
    except (ValueError, KeyError, TypeError):
        return [f"{path} was changed: it does not have the form of an envelope; {RESTORE}"]
    if content != _envelope(payload, public, signature):
        return [f"{path} was changed: it does not hold the statement that follows from the record; {RESTORE}"]
    if not signing.message_signed_by(public, _pre_authentication(payload), signature):
        return [f"{path} was changed: its signature is not the ledger's; {RESTORE}"]
    return []


def key_id(public: str) -> str:
    """Returns the name of a public key in envelopes, as securesystemslib and TUF compute it.

    Args:
      public: The public key in hexadecimal.
    """
    return sha256(canonical({"keytype": "ed25519", "keyval": {"public": public}, "scheme": "ed25519"}))


def _envelope(payload: bytes, public: str, signature: bytes) -> bytes:
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(public), "sig": base64.b64encode(signature).decode()}],
    }
    return canonical(document) + b"\n"


def _pre_authentication(payload: bytes) -> bytes:
    """Returns the bytes that are signed (PAE of DSSE v1), which cover the type and the length of the payload too."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _predicate(record: Record, digest: str) -> dict[str, Any]:
    """Returns the record in the order of an auditor's questions: who asked, what was done, with what result, where."""
    found = {field.name: _camel_case(getattr(record, field.name)) for field in dataclasses.fields(record)}
    previous = None if record.previous == CHAIN_START else {"sha256": record.previous}
    taken = {
        "record": {"number": found.pop("number"), "format": found.pop("format"), "sha256": digest},
        "previousRecord": previous,
        "method": record.configuration["method_name"],
        "settings": found.pop("configuration"),
        "settingsDigest": {"sha256": found.pop("configuration_sha256")},
        "environment": {name: found.pop(name) for name in ("code", "versions", "machine")},
        "page": {"sha256": found.pop("report")},
    }
    del found["previous"]
    return {**taken, **{_camel(name): value for name, value in found.items()}}


def _camel_case(value: Any) -> Any:
    """Returns a dataclass as JSON with names in camel case, as in-toto asks for. Keys of dictionaries stay."""
    if dataclasses.is_dataclass(value):
        return {_camel(field.name): _camel_case(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _camel_case(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_camel_case(entry) for entry in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
