"""Signed records of unlearning runs, each chained to the one before.

A record is a file of canonical JSON with three parts: `record`, its SHA-256 `hash`, and the `signature` of that hash
by the ledger's Ed25519 key. The record has the hash of the record before it; the ledger's history has the hash of every
record. So no record can be changed, left out, put in or moved without notice, not even the last one.

No example's content is in a record, nor anything that it could be guessed from: what describes forgotten examples
(their contents, their positions, the files of a run that list them) is there only as a digest under the ledger's
secret; see `signing`. Who asked is in the ledger alone. Networks, code and the report have plain SHA-256 hashes.

All numbers but counts are text, as Python's `repr` writes them, so that the bytes are the same everywhere.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import scissorhands_jax
from scissorhands_jax import files, hashing, report
from scissorhands_jax.deletion import ledger, signing
from scissorhands_jax.deletion.signing import Keys
from scissorhands_jax.errors import LedgerError
from scissorhands_jax.hashing import canonical, sha256
from scissorhands_jax.metrics import intervals

FOLDER = "records"
FORMAT = 1
# Of a run's folder, by how their names begin; the other files describe what was forgotten.
_OPEN_FILES = ("network/", "network.safetensors")
_LEFT_OUT = "checkpoints/"
_PATHS = ("weights", "checkpoint", "data_dir", "forget", "trained_on", "validation")  # fields of a configuration


def path_of(folder: Path, number: int) -> Path:
    """The file of a ledger's n-th record."""
    return folder / FOLDER / f"{number:06d}.json"


def report_path(folder: Path, number: int) -> Path:
    """The page that shows a ledger's n-th record."""
    return path_of(folder, number).with_suffix(".html")


def write(folder: Path, record: Mapping[str, Any], rows: Iterable[report.Row], keys: Keys) -> str:
    """Signs a record and writes it, after its page; whole, or not at all.

    Args:
      folder: of the ledger.
      record: JSON without floats, with at least what `_show` shows; its `report` is filled in here.
      rows: the results, for the page.
      keys: of the ledger.

    Returns:
      The hash of the record.
    """
    number = record["number"]
    _show(report_path(folder, number), record, rows)
    record = {**record, "report": hashing.file_sha256(report_path(folder, number))}
    digest = sha256(canonical(record))
    envelope = {"record": record, "hash": digest, "signature": keys.sign("record", digest)}
    files.write_bytes(path_of(folder, number), canonical(envelope))
    if not public_path(folder).exists():
        write_public(folder, keys)
    return digest


def public_path(folder: Path) -> Path:
    """The file with a ledger's public key, for whoever is to verify its records."""
    return folder / FOLDER / signing.PUBLIC_FILE


def write_public(folder: Path, keys: Keys) -> None:
    """Writes the public key where it can be handed over."""
    files.write_bytes(public_path(folder), signing.public_pem(keys.public))


def read(path: Path, public: str) -> tuple[dict[str, Any], str]:
    """A record and its hash, of a file that nobody has changed.

    Args:
      path: the file.
      public: the ledger's public key, in hexadecimal.

    Raises:
      LedgerError: the file is missing, or a byte in it was changed.
    """
    envelope = hashing.read_canonical(path)
    record, digest = envelope.get("record"), envelope.get("hash")
    if set(envelope) != {"record", "hash", "signature"} or not isinstance(record, dict):
        raise LedgerError(f"{path} was changed: it has not the form of a record")
    if sha256(canonical(record)) != digest:
        raise LedgerError(f"{path} was changed: its hash is another")
    if not signing.signed_by(public, "record", digest, envelope["signature"]):
        raise LedgerError(f"{path} was changed: its signature is not the ledger's")
    return record, digest


def problems(
    folder: Path, hashes: Mapping[int, str], current: int | None, unfinished: int | None, public: str, keys: Keys | None
) -> list[str]:
    """Everything about a ledger's records and networks that is not as it was written, one sentence each.

    Args:
      folder: of the ledger.
      hashes: of the records, by their numbers in the order of the history, as the ledger has them.
      current: number of the record whose network is in use. Folders of others may be gone altogether, since a network
        that still knows what was forgotten later should not be kept; what is left of them must be unchanged.
      unfinished: number of a run that was stopped, whose record may be there before the ledger has it.
      public: the ledger's public key, in hexadecimal.
      keys: of the ledger; None: what has a digest under the secret is only looked for, by name.
    """
    found = []
    previous = ledger.START
    for number, expected in hashes.items():
        path = path_of(folder, number)
        try:
            record, digest = read(path, public)
        except LedgerError as error:
            found.append(str(error))
            previous = expected
            continue
        if digest != expected:
            found.append(f"{path} is not the record that the ledger has for run {number}")
        elif record.get("previous") != previous or record.get("number") != number:
            found.append(f"{path} does not follow the record before it")
        else:
            found += _report_problems(report_path(folder, number), record)
            if number == current or run_folder(folder, number).exists():
                found += _file_problems(run_folder(folder, number), record, keys)
        previous = expected
    numbers = [*hashes, *([] if unfinished is None else [unfinished])]
    known = {path for number in numbers for path in (path_of(folder, number), report_path(folder, number))}
    for path in sorted((folder / FOLDER).glob("*")):
        if path == public_path(folder):
            if path.read_bytes() != signing.public_pem(public):
                found.append(f"{path} was changed: it is not the key of the ledger")
        elif path not in known and path.suffix != ".tmp":  # what a killed process was writing
            found.append(f"{path} is no record that the ledger knows")
    if hashes and not public_path(folder).exists():
        found.append(f"{public_path(folder)} is missing")
    return found


def run_folder(folder: Path, number: int) -> Path:
    """The folder of a ledger's n-th run."""
    return folder / "runs" / f"{number:06d}"


def file_hashes(folder: Path, keys: Keys | None) -> dict[str, dict[str, str | None]]:
    """Hashes of all files that a run has left: `{"network": {name: SHA-256}, "other": {name: digest}}`.

    The other files list what was forgotten, so theirs are under the secret; without it they are None.
    """
    hashes: dict[str, dict[str, str | None]] = {"network": {}, "other": {}}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(_OPEN_FILES):
            hashes["network"][name] = hashing.file_sha256(path)
        elif not name.startswith(_LEFT_OUT):
            hashes["other"][name] = None if keys is None else keys.digest("file", path.read_bytes())
    return hashes


def configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as a record may show it: without paths, and with numbers as text."""
    shown = {name: value for name, value in config.items() if name not in _PATHS}
    kind, colon, _ = shown["dataset"].partition(":")
    return hashing.without_floats(shown | {"dataset": f"{kind}{colon}…" if colon else kind})


def code() -> dict[str, Any]:
    """What ran: version and SHA-256 of the package's source, and the commit if Git tracks it."""
    package = Path(scissorhands_jax.__file__).parent
    sources = sorted(package.rglob("*.py"))
    listed = [[path.relative_to(package).as_posix(), hashing.file_sha256(path)] for path in sources]
    try:
        version = importlib.metadata.version("scissorhands-jax")
    except importlib.metadata.PackageNotFoundError:  # run from its source
        version = None
    return {
        "version": version,
        "source_sha256": sha256(canonical(listed)),
        "git_commit": _git(package, "rev-parse", "HEAD"),
        "git_changed": bool(_git(package, "status", "--porcelain", "--", ".")),
    }


def counted(counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Shares by name as counts, percent and 95 % Clopper-Pearson interval."""
    numbers = {}
    for name, (correct, total) in counts.items():
        share = intervals.share_estimate(correct, total)
        numbers[name] = {
            "count": correct,
            "of": total,
            "percent": _percent(100 * correct / total),
            "low": _percent(100 * share.low),
            "high": _percent(100 * share.high),
        }
    return numbers


def _percent(value: float) -> str:
    return f"{value:.4f}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What Git says, if it tracks the package; a virtual environment may lie in someone else's repository."""
    try:
        for command in (("ls-files", "--error-unmatch", "__init__.py"), arguments):
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _report_problems(path: Path, record: Mapping[str, Any]) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing"]
    return [] if hashing.file_sha256(path) == record["report"] else [f"{path} was changed"]


def _file_problems(folder: Path, record: Mapping[str, Any], keys: Keys | None) -> list[str]:
    found = []
    now = file_hashes(folder, keys)
    for kind, expected in record["files"].items():
        for name in sorted({*expected, *now[kind]}):
            if name not in now[kind]:
                found.append(f"{folder / name} is missing")
            elif name not in expected:
                found.append(f"{folder / name} was not there when the record was written")
            elif now[kind][name] not in (expected[name], None):
                found.append(f"{folder / name} was changed")
    return found


def _show(path: Path, record: Mapping[str, Any], rows: Iterable[report.Row]) -> None:
    """Writes the page of a record."""
    verdict, evidence = record["verdict"], record["evidence"]
    asked = [
        f"Request {request['id']} of {request['received']}, due {request['due']}: {request['examples']} examples."
        for request in record["requests"]
    ]
    if record["earlier_tries"]:
        asked.append(f"Earlier runs with requests of this one: {record['earlier_tries']}.")
    measured = tuple(
        (report.Cell(finding["name"]), *(report.Cell(str(finding[name])) for name in ("value", "low", "high")))
        for finding in evidence["findings"]
    )
    sheets = []
    if measured:
        headers = ("What was measured", "Value", "Low", "High")
        note = "A network that never saw the examples lies between low and high."
        sheets.append(report.Sheet(f"Evidence: {evidence['source']}", report.Grid(headers, measured), [note]))
    report.write_html(
        path,
        report.Page(
            title=f"Record {record['number']}: {verdict['answer']}",
            answer=" ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in verdict["reasons"]),
            byline=", ".join(record["requests"] and [f"request {request['id']}" for request in record["requests"]]),
            gates=[{**gate, "explanation": gate["why"]} for gate in evidence["gates"]],
            sheets=sheets,
            rows=rows,
            remarks=[report.Section("What was asked", asked), report.Section("How to check it", [_HOW_TO_CHECK])],
            settings={**record["configuration"], "utility": record["utility"]},
            environment={"code": record["code"], "versions": record["versions"], "machine": record["machine"]},
            hashes={
                "record before": record["previous"],
                "network": {name: record["network"][name] for name in ("before", "after")},
                "forget set, under the secret": record["forget"]["digest"],
                "training set, under the secret": record["training_set"]["digest"],
                "configuration": record["configuration_sha256"],
            },
        ),
    )


_HOW_TO_CHECK = (
    "`scissorhands request verify` recomputes every hash and signature, the chain of the records, and the network's "
    "numbers. With `--public public_key.pem` it also works for someone who does not have the ledger's keys. What "
    "describes the forgotten examples is hashed under the ledger's secret, and none of their content is here."
)
