"""Signed records of unlearning runs, which form a chain.

A record is a file of canonical JSON with three parts: `record`, its SHA-256 `hash`, and the `signature` of that hash
by the ledger's Ed25519 key. The record holds the hash of the record before it, and the ledger's history holds the hash
of every record. So no record, not even the last, can be changed, left out, inserted or moved unnoticed.

A record holds no content of an example, and measurements of the forgotten ones only as a whole. Everything that
describes forgotten examples (their contents, their positions, the files of a run that list them) is there only as a
digest under a salt of the request or the run, which is destroyed when the requester is erased, or under the ledger's
secret; see `signing`. The name of the person who asked is only in the ledger. Networks, code and the page have plain
SHA-256 hashes.

All numbers except counts are text, as Python's `repr` writes them, so that the bytes are the same everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scissorhands_jax import files, hashing, reading
from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.deletion.entries import RESTORE
from scissorhands_jax.deletion.signing import LedgerKeys
from scissorhands_jax.deletion.utility import RunUtility
from scissorhands_jax.deletion.verdicts import Evidence, EvidenceGate, Verdict
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical, sha256
from scissorhands_jax.metrics import intervals
from scissorhands_jax.report.provenance import Code

RECORDS_FOLDER = "records"
RUNS_FOLDER = "runs"
AUDIT_FOLDER = "audit"
"""The folder of an audit in that of its run."""
RECORD_FORMAT = 1

_PURPOSE = "record"
# Files of a run whose names begin with these words are hashed without the secret. The others describe what was
# forgotten.
_NETWORK_FILES = ("network/", "network.safetensors")
_CHECKPOINTS = "checkpoints/"
# Fields of a configuration that hold paths.
_PATHS = (
    "weights",
    "checkpoint",
    "data_dir",
    "forget",
    "trained_on",
    "forgotten_before",
    "validation",
    "rename",
    "check",
)


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of examples: how many, of how many, in percent, and its 95 % Clopper-Pearson interval in percent."""

    count: int
    of: int
    percent: str
    low: str
    high: str

    @classmethod
    def of_counts(cls, count: int, total: int) -> Share:
        """Returns the share that `count` of `total` examples are."""
        found = intervals.share_estimate(count, total)
        return cls(count, total, *(f"{100 * value:.4f}" for value in (count / total, found.low, found.high)))


@dataclasses.dataclass(frozen=True)
class DigestedSet:
    """A set of examples: how many there are, and a digest of them under a salt or the ledger's secret."""

    count: int
    digest: str


@dataclasses.dataclass(frozen=True)
class RecordedRequest:
    """A request that a run worked on, without the name of the requester.

    `digest` is the salted digest of the private part of the request, which is also in the history of the ledger.
    """

    id: int
    received: str
    due: str
    examples: int
    digest: str


@dataclasses.dataclass(frozen=True)
class RecordedNetwork:
    """The kind of the network, and the SHA-256 of its numbers before and after the run."""

    model: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The hashes of all files that a run has left, by their names in its folder.

    `network` holds plain SHA-256 hashes. `other` holds digests under the salt of the run, because these files list what
    was forgotten. These digests are None if the salt is not known.
    """

    network: dict[str, str]
    other: dict[str, str | None]

    @property
    def of_audit(self) -> dict[str, str | None]:
        """The part of `other` that the audit of the run has added, after the run had made its network."""
        return {name: digest for name, digest in self.other.items() if name.startswith(f"{AUDIT_FOLDER}/")}

    def digest(self, salt: str) -> str:
        """Returns a digest of all names and hashes under the salt of the run, without those of its audit."""
        other = {name: digest for name, digest in self.other.items() if name not in self.of_audit}
        return signing.salted_digest(salt, "files", canonical({"network": self.network, "other": other}))


@dataclasses.dataclass(frozen=True)
class RecordedFinding:
    """A finding of the evidence, with its numbers as text, and whether it speaks for forgetting."""

    name: str
    value: str
    low: str
    high: str
    holds: bool


@dataclasses.dataclass(frozen=True)
class RecordedEvidence:
    """The evidence of a run (`verdicts.Evidence`) with its numbers as text."""

    source: str
    level: str
    """The least chance that all findings hold in a network that never saw the examples."""
    findings: tuple[RecordedFinding, ...]
    gates: tuple[EvidenceGate, ...]

    @classmethod
    def of(cls, evidence: Evidence, level: str) -> RecordedEvidence:
        """Converts evidence, with numbers rounded to six decimals."""
        findings = tuple(
            RecordedFinding(
                name=finding.name,
                value=_text(finding.value),
                low=_text(finding.low),
                high=_text(finding.high),
                holds=finding.holds,
            )
            for finding in evidence.findings
        )
        return cls(evidence.source, level, findings, evidence.gates)


@dataclasses.dataclass(frozen=True)
class RecordedSet:
    """The answers of a network on one set: how many are right, of how many, and the mean cross-entropy in nats."""

    right: int
    of: int
    loss: str


@dataclasses.dataclass(frozen=True)
class RecordedUtility:
    """The accuracy and loss of the network before and after a run on the same data, and what all runs have cost.

    `retain` and `test` are the percentage points of accuracy that all runs together have cost since the first network,
    or since the last one that was trained from scratch, and `budget` is the limit for each.
    """

    budget: str
    retain: str
    test: str
    before: dict[str, RecordedSet]
    after: dict[str, RecordedSet]

    @classmethod
    def of(cls, budget: str, lost: Mapping[str, float], measured: RunUtility) -> RecordedUtility:
        """Converts measured utility, with points and losses rounded."""
        before, after = (
            {name: RecordedSet(found.right, found.of, _text(found.loss)) for name, found in sets.items()}
            for sets in (measured.before, measured.after)
        )
        return cls(budget, f"{lost['retain']:.4f}", f"{lost['test']:.4f}", before, after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The content of a signed record about one run."""

    format: int = RECORD_FORMAT
    ledger: str
    """The random name of the ledger."""
    number: int
    """The number of the run."""
    previous: str
    """The hash of the record before, or `CHAIN_START`."""
    finished: str
    requests: tuple[RecordedRequest, ...]
    earlier_tries: int
    """The number of earlier runs, failed ones included, that worked on any of the same examples."""
    network: RecordedNetwork
    files: RunFiles
    forget: DigestedSet
    forgotten_before: int
    """The number of examples that the network had forgotten before the run, those that erased requests named included.

    If some of them could not be compared for that reason, the verdict says how many (`Verdict.not_compared`)."""
    training_set: DigestedSet
    test_set: DigestedSet
    configuration: dict[str, Any]
    configuration_sha256: str
    identity: str
    """The digest of the run's identity (`training.identity`) under the salt of the run, because it follows from what
    was forgotten."""
    code: Code
    versions: dict[str, Any]
    machine: dict[str, Any]
    metrics: dict[str, dict[str, Share]]
    """Shares by name, of the network `before` and `after`."""
    test: tuple[tuple[int, int], ...]
    """Right answers and examples of each class of the test set, of the network after the run."""
    evidence: RecordedEvidence
    utility: RecordedUtility
    verdict: Verdict
    report: str = ""
    """The SHA-256 of the page that shows the record."""


def record_path(folder: Path, number: int) -> Path:
    """Returns the file of the record of a ledger's run with a number."""
    return folder / RECORDS_FOLDER / f"{number:06d}.json"


def record_page_path(folder: Path, number: int) -> Path:
    """Returns the file of the page that shows the record of a ledger's run with a number."""
    return record_path(folder, number).with_suffix(".html")


def run_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a ledger's run with a number."""
    return folder / RUNS_FOLDER / f"{number:06d}"


def write_record(folder: Path, record: Record, keys: LedgerKeys) -> str:
    """Signs a record and writes it, wholly or not at all. The page that shows it must have been written before.

    Args:
      folder: The folder of the ledger.
      record: The record. Its `report`, the hash of the page, is filled in here.
      keys: The keys of the ledger.

    Returns:
      The hash of the record.

    Raises:
      InputError: The record is too large to be read again.
    """
    page = record_page_path(folder, record.number)
    document = dataclasses.asdict(dataclasses.replace(record, report=hashing.file_sha256(page)))
    digest = sha256(canonical(document))
    envelope = {"record": document, "hash": digest, "signature": keys.sign(_PURPOSE, digest)}
    files.write_bytes(record_path(folder, record.number), readable(canonical(envelope), record))
    if not public_path(folder).exists():
        write_public(folder, keys)
    return digest


def readable(content: bytes, record: Record) -> bytes:
    """Returns what is to be written about a record, unless it is too large to be read again.

    Raises:
      InputError: It is too large.
    """
    try:
        reading.check_json_size(content)
    except ValueError as error:
        raise InputError(
            f"the record of run {record.number}, with {len(record.requests)} requests, could not be read again: "
            f"{error}; serve fewer requests in a run, with --one-by-one"
        ) from error
    return content


def read_record(path: Path, public: str) -> tuple[Record, str]:
    """Reads a record and its hash, after a check that it was not changed.

    Args:
      path: The file.
      public: The ledger's public key, in hexadecimal.

    Raises:
      LedgerError: The file is missing, a byte in it was changed, or another version of the package wrote it.
    """
    envelope = hashing.read_canonical(path)
    document, digest = envelope.get("record"), envelope.get("hash")
    if set(envelope) != {"record", "hash", "signature"} or not isinstance(document, dict):
        raise LedgerError(f"{path} was changed: it does not have the form of a record; {RESTORE}")
    if not isinstance(digest, str) or sha256(canonical(document)) != digest:
        raise LedgerError(f"{path} was changed: its content does not have the hash that it names; {RESTORE}")
    if not signing.signed_by(public, _PURPOSE, digest, envelope["signature"]):
        raise LedgerError(f"{path} was changed: its signature is not the ledger's; {RESTORE}")
    try:
        return from_document(Record, document), digest
    except ValueError as error:
        raise LedgerError(
            f"{path} was written by another version of scissorhands_jax: {error}; install that version"
        ) from error


def public_path(folder: Path) -> Path:
    """Returns the file with a ledger's public key, with which others can verify its records."""
    return folder / RECORDS_FOLDER / signing.PUBLIC_FILE


def write_public(folder: Path, keys: LedgerKeys) -> None:
    """Writes the public key to the file that can be given to others."""
    files.write_bytes(public_path(folder), signing.public_pem(keys.public))


def is_network_file(name: str) -> bool:
    """Says whether a file in the folder of a run belongs to its network and does not describe what was forgotten."""
    return name.startswith(_NETWORK_FILES)


def run_files(folder: Path, salt: str | None, *, erased: bool = False) -> RunFiles:
    """Hashes all files in the folder of a run, without its checkpoints and what another process removes meanwhile.

    Args:
      folder: The folder of the run.
      salt: The salt of the run (`Ledger.run_salt`); None if it is not known.
      erased: Whether an erasure has removed the salt, so that `other` holds plain SHA-256 hashes.
    """
    network: dict[str, str] = {}
    other: dict[str, str | None] = {}
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    for path in sorted(path for path in paths if path.is_file() and not path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        with contextlib.suppress(FileNotFoundError):
            if is_network_file(name):
                network[name] = hashing.file_sha256(path)
            elif not name.startswith(_CHECKPOINTS):
                plain = hashing.file_sha256(path) if erased else None
                other[name] = plain if salt is None or erased else file_digest(salt, path)
    return RunFiles(network, other)


def identity_digest(salt: str, identity: str) -> str:
    """Returns the digest of a run's identity as its record has it.

    Args:
      salt: The salt of the run (`Ledger.run_salt`).
      identity: The digest of the identity (`training.identity.Identity.digest`).
    """
    return signing.salted_digest(salt, "identity", identity.encode())


def file_digest(salt: str, path: Path) -> str:
    """Returns the digest of a file that describes what was forgotten, under the salt of its run.

    A file that is too large for one of a run has a digest that no file has."""
    try:
        return signing.salted_digest(salt, "file", reading.read_bytes(path, reading.MAX_JSON))
    except ValueError as error:
        return f"none: {error}"


def shown_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a run's configuration that a record may show: without paths, and with numbers as text."""
    shown = {name: value for name, value in config.items() if name not in _PATHS}
    kind, colon, _ = shown["dataset"].partition(":")
    return hashing.without_floats(shown | {"dataset": f"{kind}{colon}…" if colon else kind})


def _text(value: float) -> str:
    return repr(round(value, 6))
