"""Audits that were made elsewhere, as signed documents about exactly one run.

A document says what the audit is about: the network before and after the run, the forget set, the method with its
settings, and the data, all by hash. It holds the settings of the audit, its numbers, and the scores of all its
networks, from which the numbers are computed again when it is read. It is signed with Ed25519, and a ledger takes it
only if it was told to trust the key (`trust`).

The file is canonical JSON with four parts: `audit`, its SHA-256 `hash`, the public `key`, and the `signature` of that
hash.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files, hashing, reading
from scissorhands_jax.audit.networks import TIERS
from scissorhands_jax.audit.scores import SCORES_FILE, AuditScores, numbers_document
from scissorhands_jax.base import Dataset
from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.errors import InputError
from scissorhands_jax.hashing import canonical, sha256, without_floats
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.job import Job
from scissorhands_jax.methods import describe

SIGNED_FILE = "signed.json"
"""The name of the signed document in the folder of an audit."""

NO_SCORES = "it diverged there, or they were left out"
"""Why a method in a signed document has no scores on a network: the document does not tell one from the other."""

_PURPOSE = "audit"
_FORMAT = 3  # which changes with the statistics too: by others, other numbers follow from the same scores
_RESULTS = ("config", "data", "ensemble")  # what a document takes over from results.json
_STATISTICS = "the statistics of this version"
_TOLERANCE = 1e-6  # relative; another machine may round differently


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSubject:
    """What an audit is about. All hashes are SHA-256 in hexadecimal."""

    before: str
    """The network before the run (`hashing.network_sha256`)."""
    after: str
    """The network that the run has made."""
    forget: str
    """The positions of the forget set in the training split."""
    trained_on: str
    """The positions that the network before the run was trained on and had not forgotten."""
    training_set: str
    """The whole training split."""
    test_set: str
    """The whole test split."""
    model: str
    model_options: str
    """The options of the model, as canonical JSON."""
    method: str
    settings: str
    """The settings of the method, as canonical JSON."""
    augment: str
    """Whether images were augmented: `true` or `false`."""


@dataclasses.dataclass(frozen=True)
class SignedAudit:
    """A signed document that was read and checked, except for what it is about."""

    subject: AuditSubject
    results: dict[str, Any]
    """The `config`, `data`, `ensemble`, `evidence`, `gates` and `failures` of the audit, as in its `results.json`. The
    numbers are those that follow from the scores, and a network without scores counts as failed."""
    scores: AuditScores
    key: str
    """The public key that signed it, in hexadecimal."""
    sha256: str
    """The SHA-256 of the file."""


def subject_of(job: Job, after: str) -> AuditSubject:
    """Describes a run as the subject of an audit.

    Args:
      job: The job of the run.
      after: The SHA-256 of the network that the run has made.
    """
    config = job.config
    return AuditSubject(
        before=hashing.network_sha256(job.params, job.model_state),
        after=after,
        forget=hashing.positions_sha256(job.positions),
        trained_on=hashing.positions_sha256(job.past.trained_on),
        training_set=_dataset_sha256(job.splits.train),
        test_set=_dataset_sha256(job.splits.test),
        model=config.model,
        model_options=canonical(dict(config.model_options)).decode(),
        method=config.method_name,
        settings=canonical(describe(config.method)).decode(),
        augment=str(bool(config.augment)).lower(),
    )


def sign_results(folder: Path, subject: AuditSubject, private: bytes) -> Path:
    """Signs the results of an audit as evidence about one run.

    Args:
      folder: The folder of the audit, with its results and scores.
      subject: What the audit is about. The caller has checked that it is (`audits.findings_about`).
      private: The private key, as `signing.read_private` returns it.

    Returns:
      The signed document, `signed.json` in the folder.

    Raises:
      InputError: A file is missing or damaged, its numbers do not follow from the scores, or the document would be too
        large to be read.
    """
    results, scores = (_read_json(folder / name) for name in (runs.RESULTS_FILE, SCORES_FILE))
    try:
        stated = {name: results[name] for name in ("evidence", "gates")}
        document = {
            "format": _FORMAT,
            "subject": dataclasses.asdict(subject),
            "results": {name: results[name] for name in _RESULTS},
            "numbers": without_floats(stated),
            "scores": scores,
        }
        content = canonical(document)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the audit in {folder} cannot be signed: {type(error).__name__} {error}") from error
    _check_numbers(document["numbers"], AuditScores.from_document(scores), folder)
    digest = sha256(content)
    signature = signing.sign_digest(private, _PURPOSE, digest)
    envelope = {"audit": document, "hash": digest, "key": signing.public_of(private), "signature": signature}
    written = canonical(envelope)
    try:
        hashing.parse_canonical(written)  # What nobody could read is not written.
    except ValueError as error:
        raise InputError(
            f"the audit in {folder} cannot be signed, because nobody could read the document: {error}; make one with a "
            "smaller --tier or fewer --networks"
        ) from error
    files.write_bytes(folder / SIGNED_FILE, written)
    return folder / SIGNED_FILE


def finished_results(folder: Path) -> dict[str, Any]:
    """Reads the results of a finished audit.

    Raises:
      InputError: The file is missing or damaged, or the audit is not finished.
    """
    found = _read_json(folder / runs.RESULTS_FILE)
    if not isinstance(found, dict) or not found.get("evidence") or not (folder / SCORES_FILE).is_file():
        raise InputError(f"{folder} holds no finished audit; name the folder of one that `scissorhands audit` has made")
    return found


def signed_path(path: Path) -> Path:
    """Returns the signed document that a user has named: the file itself, or that in the folder of an audit."""
    return path / SIGNED_FILE if path.is_dir() else path


def read_signed(content: bytes, trusted: Collection[str], path: Path) -> SignedAudit:
    """Reads a signed document, and computes its numbers from its scores.

    Args:
      content: The content of the file.
      trusted: The public keys that are trusted, in hexadecimal.
      path: The file, for messages.

    Raises:
      InputError: It is not a signed audit, no trusted key has signed it, it was changed, or a number that it states
        does not follow from its scores or is not finite.
    """
    try:
        envelope = hashing.parse_canonical(content)
    except ValueError as error:
        raise InputError(f"{path} is no signed audit ({error}); `scissorhands audit sign` makes one") from error
    document, digest, key = (envelope.get(name) for name in ("audit", "hash", "key"))
    if set(envelope) != {"audit", "hash", "key", "signature"} or not isinstance(document, dict):
        raise InputError(f"{path} is no signed audit: it has another form; `scissorhands audit sign` makes one")
    if not isinstance(key, str) or key not in trusted:
        raise InputError(
            f"{path} is signed by the key {str(key)[:64]!r}, which the ledger does not trust; if you do, say so with "
            "`scissorhands request trust`"
        )
    if sha256(canonical(document)) != digest or not signing.signed_by(key, _PURPOSE, digest, envelope["signature"]):
        raise InputError(f"{path} was changed after it was signed; ask whoever made it for another copy")
    try:
        if set(document) != {"format", "subject", "results", "numbers", "scores"} or document["format"] != _FORMAT:
            raise ValueError("it was written by another version of scissorhands_jax")
        subject = from_document(AuditSubject, document["subject"])
        results = {name: document["results"][name] for name in _RESULTS}
        scores = AuditScores.from_document(document["scores"])
        computed = _check_numbers(document["numbers"], scores, path)
        _check_training(results["config"])
        scores.check_settings(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read: {type(error).__name__} {error}; ask whoever signed it for another one"
        ) from error
    found = {**results, **computed, "failures": _failures(scores)}
    return SignedAudit(subject, found, scores, key, sha256(content))


def check_subject(audit: SignedAudit, job: Job, after: str | None, path: Path) -> None:
    """Checks that a signed audit is about a run.

    Args:
      audit: The audit.
      job: The job of the run.
      after: The SHA-256 of the network that the run has made; None if there is none yet.
      path: The file of the audit, for messages.

    Raises:
      InputError: It is about something else, which the message names.
    """
    ours = dataclasses.asdict(subject_of(job, audit.subject.after if after is None else after))
    theirs = dataclasses.asdict(audit.subject)
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        named = "; ".join(f"its {_words(name)} is {theirs[name]}, and the run's {ours[name]}" for name in different[:3])
        raise InputError(f"the audit {path} is about something else: {named}; `--tier` makes a fitting audit")
    number = _set_of(audit.results, job)
    columns = audit.scores.watched.forget_sets[number].columns
    labels = audit.scores.watched.labels[columns]
    named_labels = np.asarray(job.data.forget["label"])
    enough = min(len(job.positions), TIERS[audit.results["config"]["tier"]].watched)
    counts = [np.bincount(found, minlength=len(job.splits.class_names)) for found in (labels, named_labels)]
    if len(labels) != enough or len(counts[0]) > len(counts[1]) or (counts[0] > counts[1]).any():
        raise InputError(
            f"the audit {path} is about something else: the examples that its networks answered are not those of the "
            "run; `--tier` makes a fitting audit"
        )


def _set_of(results: Mapping[str, Any], job: Job) -> int:
    """Returns the number of the audit's forget set that is that of the run."""
    within = hashing.positions_sha256(np.searchsorted(job.past.trained_on, job.positions))
    digests = results["ensemble"]["forget_sha256"]
    if within not in digests:
        raise InputError("none of the audit's forget sets is that of the run; `--tier` makes a fitting audit")
    return digests.index(within)


def _check_training(config: Mapping[str, Any]) -> None:
    """Checks what the description of an audit as evidence says of the training of its networks."""
    if config["tier"] not in TIERS:
        raise ValueError(f"its tier is {config['tier']!r} and none of {', '.join(TIERS)}")
    if not isinstance(config["training"]["epochs"], int):
        raise ValueError(f"its networks were trained for {config['training']['epochs']!r} epochs, which is no number")


def _failures(scores: AuditScores) -> list[dict[str, str]]:
    """Names, once for each network, the methods without scores on a network that was trained on the forget set."""
    watched = scores.watched
    found = {(one.number, one.label, one.network) for one in scores.measurements}
    return [
        {"scenario": one.name, "method": label, "failure": NO_SCORES}
        for number, one in enumerate(watched.forget_sets)
        for label in one.labels[2:]
        for network in np.flatnonzero(watched.included[:, one.columns[0]]).tolist()
        if (number, label, network) not in found
    ]


def _check_numbers(stated: Any, scores: AuditScores, path: Path) -> dict[str, Any]:
    """Computes the numbers of an audit from its scores, and compares them with those that it states.

    Returns:
      The computed numbers, as in `results.json`.

    Raises:
      InputError: A number differs.
    """
    computed = numbers_document(*scores.numbers())
    for name, expected in without_floats(computed).items():
        found = stated.get(name) if isinstance(stated, dict) else None
        if not isinstance(found, list) or len(found) != len(expected):
            raise InputError(
                f"the {name} of the audit {path} does not follow from its scores by {_STATISTICS}; make the audit again"
            )
        for one, other in zip(found, expected, strict=True):
            different = [key for key in other if key != "explanation" and not _alike(one.get(key), other[key])]
            if different or set(one) != set(other):
                where = " ".join(str(other[key]) for key in ("method", "metric", "name") if other.get(key))
                raise InputError(
                    f"a number that the audit {path} states does not follow from its scores by {_STATISTICS}: {where}, "
                    f"{', '.join(different) or 'its form'}; make the audit again"
                )
    return computed


def _alike(stated: Any, computed: Any) -> bool:
    """Says whether two parts of documents without floats are the same, except for rounding."""
    if isinstance(computed, dict):
        return (
            isinstance(stated, dict)
            and set(stated) == set(computed)
            and all(_alike(stated[name], computed[name]) for name in computed)
        )
    if stated == computed and type(stated) is type(computed):
        return True
    try:
        pair = (float(stated), float(computed)) if isinstance(stated, str) and isinstance(computed, str) else None
    except ValueError:
        return False
    return pair is not None and math.isclose(*pair, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _dataset_sha256(dataset: Dataset) -> str:
    return hashing.network_sha256(dict(dataset), {})


def _read_json(path: Path) -> Any:
    try:
        return reading.read_json(path, nan=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); name the folder of a finished audit") from error


def _words(name: str) -> str:
    return {"before": "network before", "after": "network after"}.get(name, name.replace("_", " "))
