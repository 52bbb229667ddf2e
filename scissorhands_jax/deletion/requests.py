"""Deletion requests, from the ledger to the signed record: what `scissorhands request` does.

The folder of a ledger holds the ledger (`ledger.sqlite3`, `ledger.seal`), its keys (`keys/`, unless they are kept
elsewhere), a folder per run (`runs/`) and the records (`records/`). A run moves through the history of the ledger, from
`started` to `recorded`; whoever calls `run` after a process was killed in between finishes it first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, files, hashing, report
from scissorhands_jax.base import Dataset, ModelState, Params
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.deletion import audits as deletion_audits
from scissorhands_jax.deletion import ledger, records, signing, verdicts
from scissorhands_jax.deletion.ledger import Event, Example, Ledger, Request
from scissorhands_jax.deletion.signing import Keys
from scissorhands_jax.deletion.verdicts import Evidence, Scored, Verdict
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical, sha256
from scissorhands_jax.jobs import evaluating, runs, unlearning
from scissorhands_jax.jobs.config import NetworkConfig, RunConfig
from scissorhands_jax.jobs.earlier_runs import TRAINED_ON_FILE, network_config, parse_run_config
from scissorhands_jax.jobs.job import OriginalNetwork, load_weights, prepare_job, prepare_network, read_network
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.metrics import accuracies

DAYS = 30
"""After so many days a request is due, unless it says otherwise."""
_RETRAIN = "retrain"  # the one method whose network never saw the examples

Auditor = Callable[[Path, str], Evidence]
"""From the folder of a run and the SHA-256 of its network to the evidence that is to count."""


class Subject(NamedTuple):
    """The network that a ledger is about, and where it and its data are; a later call may say where they are now."""

    model: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    trained_on: str | None = None


_KNOWN = Subject()


class Outcome(NamedTuple):
    """What became of one run."""

    number: int
    requests: tuple[int, ...]
    verdict: Verdict
    record: Path


class Added(NamedTuple):
    """A request that was taken in."""

    number: int
    examples: int
    due: str
    twins: int  # examples of the training set that are not named, but the same as one that is
    public: Path | None  # file of the public key, where the request began the ledger


def add(
    folder: Path,
    *,
    forget: str,
    requester: str,
    due: str | None = None,
    seed: int = 0,
    subject: Subject = _KNOWN,
    keys: Path | None = None,
) -> Added:
    """Takes a request into the ledger of a folder, and begins the ledger if there is none.

    Args:
      folder: of the ledger.
      forget: which examples, as `data.forget_positions` takes it; all must be in the training set of the network, and
        not forgotten yet.
      requester: who asks.
      due: a date; None: in 30 days.
      seed: of random draws.
      subject: for a new ledger model, data set, and the network's file or run; later only what has moved.
      keys: folder of the ledger's keys; None: `keys` in the folder.

    Raises:
      InputError: something cannot be used, or the training set is not what it was.
      LedgerError: the ledger cannot be used or written.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    due = due or (today + datetime.timedelta(days=DAYS)).isoformat()
    ledger.check_request(requester, due)
    begins = not ledger.exists(folder)
    if begins:
        # Nothing is written before the request is known to be good.
        network = prepare_network(_first_config(subject))
        network.forget_set(forget, seed)
        _begin(folder, keys, network)
        subject = _KNOWN  # to the ledger, from now on
    with Ledger(folder, keys) as book:
        config = _config(book, subject)
        digests = _checked_content(book, config, [])
        positions, _ = prepare_network(config).forget_set(forget, seed)
        examples = [Example(int(position), digests[position]) for position in positions]
        named = {example.digest for example in examples}
        twins = sum(digest in named for digest in digests) - len(examples)
        in_use = _network_in_use(book)
        number = book.add(requester=requester, received=ledger.now(), due=due, network=in_use, examples=examples)
    return Added(number, len(examples), due, twins, records.public_path(folder) if begins else None)


def run(
    folder: Path,
    settings: MethodSettings,
    *,
    method: str,
    seed: int = 0,
    retain_limit: int | None = None,
    augment: bool | None = None,
    one_by_one: bool = False,
    again: bool = False,
    budget: float = verdicts.BUDGET,
    level: float = verdicts.LEVEL,
    subject: Subject = _KNOWN,
    keys: Path | None = None,
    audit: deletion_audits.Plan | None = None,
    auditor: Auditor | None = None,
    console: Console,
) -> list[Outcome]:
    """Makes the network in use forget what all open requests name, and leaves a record of every run.

    A run that was stopped is finished first, with the settings that it was begun with. A network takes the place of
    the one before only if the verdict on it is `forgotten`.

    Args:
      folder: of the ledger.
      settings, method, seed, retain_limit, augment: as in `RunConfig`.
      one_by_one: a run for each request, instead of one for all.
      again: take those in that were answered "retrain now" as well; `method="retrain"` always does.
      budget: percentage points of retain or test accuracy that all runs together may cost.
      level: of the evidence, as in `verdicts`.
      subject: what has moved since the ledger was begun.
      keys: folder of the ledger's keys; None: `keys` in the folder.
      audit: of the run's procedure, to count beside `verdicts.held_out_comparison`.
      auditor: what gives the evidence in place of both.

    Returns:
      The outcomes in order; empty if there was nothing to do.

    Raises:
      InputError: something cannot be used, or an example is no longer what it was; the requests stay open.
      LedgerError: the ledger cannot be used or written, or another process runs.
    """
    if budget < 0:
        raise InputError(f"the utility budget must not be negative, got {budget}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    outcomes = []
    with Ledger(folder, keys) as book, book.sole_run():
        _tidy(book)
        event = _unfinished(book)
        if event is not None:
            console.print(f"finishing run {event.body['run']}, which was stopped", highlight=False)
            outcomes.append(_carry_out(book, event, subject, auditor, console))
        states = (ledger.OPEN, ledger.RETRAIN) if again or method == _RETRAIN else (ledger.OPEN,)
        waiting = [request for request in book.requests() if request.state in states]
        for group in [[request] for request in waiting] if one_by_one else [waiting]:
            group, positions = _still_to_forget(book, group)
            if not group:
                continue
            number = len(book.history("started")) + 1
            file = _positions_file(book, number)
            files.write_text(file, _lines(positions))
            config = RunConfig(
                **vars(_config(book, subject)),
                forget=f"indices:{file.absolute()}",
                seed=seed,
                retain_limit=retain_limit,
                augment=augment,
                method_name=method,
                method=settings,
            )
            _checked_content(book, config, group)
            job = prepare_job(config)
            if audit is not None:
                deletion_audits.check(audit, job, level)
            book.append(
                "started",
                {
                    "run": number,
                    "requests": [request.id for request in group],
                    "config": json.dumps(dataclasses.asdict(config)),
                    "budget": repr(float(budget)),
                    "level": repr(float(level)),
                    "audit": None if audit is None else audit.as_text(),
                    "network": hashing.network_sha256(job.params, job.model_state),
                },
            )
            event = book.history("started")[-1]
            outcomes.append(_carry_out(book, event, subject, auditor, console))
        _tidy(book)
    return outcomes


def verify(
    folder: Path,
    *,
    head: str | None = None,
    evaluate: bool = True,
    subject: Subject = _KNOWN,
    keys: Path | None = None,
    public: Path | None = None,
    reseal: bool = False,
    console: Console,
) -> tuple[list[str], str | None]:
    """Looks for everything in a ledger, its records and its networks that is not as it was written.

    Args:
      folder: of the ledger.
      head: a head that was kept elsewhere, which the history must contain; it tells an old copy from the ledger.
      evaluate: also evaluate the network in use anew and compare with its record. The original, which is in use until
        a run has forgotten, has no record; its numbers are compared with the hash that the ledger has, always.
      subject: what has moved since the ledger was begun.
      keys: folder of the ledger's keys; None: `keys` in the folder.
      public: file with the public key, for an auditor who has no other. All that a signature covers is verified, the
        network included; files that describe forgotten examples have digests under the secret, and a note says so.
      reseal: where every row is as it was signed and the seal alone does not fit, seal the ledger anew.
      console: for progress and notes.

    Returns:
      What was found, one sentence each, empty if all is well; and the head, if the ledger can be read.
    """
    if reseal and public is not None:
        raise InputError("the public key cannot seal; leave --public out, or --reseal")
    try:
        book = Ledger(folder, keys, public=public, check=False)
    except LedgerError as error:
        return [str(error)], None
    with book:
        found = (book.reseal() if reseal else []) or book.problems()
        if found:
            return found, None
        events = book.history()
        for event in book.history("resealed"):
            _note(console, f"the ledger was sealed anew on {event.time}: {'; '.join(event.body['why'])}")
        if head is not None and head not in (event.hash for event in events):
            found.append(f"the history in {book.path} has no row {head}; this is an older copy, or another ledger")
        hashes = {event.body["run"]: event.body["record"] for event in events if event.kind == "recorded"}
        current, stopped = _current(book), _unfinished(book)
        unfinished = None if stopped is None else stopped.body["run"]
        found += records.problems(folder, hashes, current, unfinished, book.public, book.secrets)
        if book.secrets is None:
            _note(
                console,
                "without the ledger's secret nobody can tell whether the files that describe forgotten examples are as "
                "they were: in runs/ all but the networks, and the list of what the first network was trained on",
            )
        else:
            found += _trained_on_problems(book)
        if current is None:
            found += _original_problems(book, subject)
        if evaluate and current is not None and not found:
            found += _evaluated(book, current, subject, console)
        return found, events[-1].hash


def _note(console: Console, text: str) -> None:
    console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


def _first_config(subject: Subject) -> NetworkConfig:
    if not subject.model or not subject.dataset or not (subject.weights or subject.checkpoint):
        raise InputError(
            "there is no ledger yet; say which network it is about with --model, --dataset, and --weights FILE or "
            "--checkpoint RUN"
        )
    return network_config(**subject._asdict())


def _begin(folder: Path, keys: Path | None, network: OriginalNetwork) -> None:
    config = network.config
    drawn = signing.make_keys(keys or folder / ledger.KEYS_FOLDER)
    if config.trained_on is not None:
        files.write_text(folder / TRAINED_ON_FILE, _lines(network.past.trained_on))
    kind, colon, path = config.dataset.partition(":")
    about = {
        "model": config.model,
        "dataset": f"{kind}:{Path(path).absolute()}" if colon else kind,
        **{name: _absolute(getattr(config, name)) for name in ("data_dir", "weights", "checkpoint")},
        "network": hashing.network_sha256(network.params, network.model_state),
        "trained_on": None if config.trained_on is None else _positions_digest(drawn, network.past.trained_on),
        "training_set": _training_digest(drawn, signing.example_digests(drawn, network.splits.train)),
    }
    with Ledger.begin(folder, about, keys) as book:
        if book.about["network"] != about["network"]:
            raise LedgerError(f"another process has just begun a ledger for another network in {folder}")
        records.write_public(folder, book.keys)


def _config(book: Ledger, subject: Subject) -> NetworkConfig:
    """The network in use, and where it and its data are now."""
    about, current = book.about, _current(book)
    for name in ("model", "trained_on"):
        if getattr(subject, name) is not None and (name == "trained_on" or subject.model != about["model"]):
            raise InputError(f"the ledger in {book.folder} knows its {name} already; leave --{_option(name)} out")
    weights, checkpoint, trained_on = about["weights"], about["checkpoint"], None
    if subject.weights or subject.checkpoint:
        weights, checkpoint = subject.weights, subject.checkpoint
    if about["trained_on"] is not None:
        trained_on = str((book.folder / TRAINED_ON_FILE).absolute())
    if current is not None:
        weights, checkpoint, trained_on = None, str(records.run_folder(book.folder, current).absolute()), None
    return network_config(
        model=about["model"],
        weights=weights,
        checkpoint=checkpoint,
        dataset=subject.dataset or about["dataset"],
        data_dir=subject.data_dir or about["data_dir"],
        trained_on=trained_on,
    )


def _carry_out(book: Ledger, started: Event, subject: Subject, auditor: Auditor | None, console: Console) -> Outcome:
    """Does what is left of a run. A run that cannot end well opens its requests again."""
    body = started.body
    try:
        return _unlearned_and_judged(book, body, subject, auditor, console)
    except LedgerError:
        raise
    except InputError as error:
        why = str(error)[:1000]
        book.append("failed", {"run": body["run"], "requests": body["requests"], "why": why})
        raise


def _unlearned_and_judged(
    book: Ledger, body: Mapping[str, Any], subject: Subject, auditor: Auditor | None, console: Console
) -> Outcome:
    number = body["run"]
    config = parse_run_config(json.loads(body["config"]), f"run {number} in the ledger")
    config = dataclasses.replace(config, data_dir=subject.data_dir or config.data_dir)
    out = records.run_folder(book.folder, number)
    asked = [request for request in book.requests() if request.id in body["requests"]]
    _checked_content(book, config, asked)
    job = prepare_job(config)
    if hashing.network_sha256(job.params, job.model_state) != body["network"]:
        raise InputError(f"the network that run {number} was begun with is not there any more")
    if not (out / runs.RESULTS_FILE).is_file() or not (out / "report.html").is_file():
        if out.exists() and not (out / runs.RUN_FILE).is_file():
            shutil.rmtree(out)  # stopped before it had begun
        unlearning.unlearn(config, out, resume=True, console=console)
    document = report.read_results(out / runs.RESULTS_FILE)
    after = load_weights(job.model, weights=None, checkpoint=str(out))
    network = hashing.network_sha256(*after)

    def seen(network: tuple[Params, ModelState], examples: Dataset) -> Scored:
        params, model_state = network
        logits = accuracies.predict(job.model, params, model_state, examples["image"], batch_size=500)
        return Scored(logits, np.asarray(examples["label"]))

    before = (job.params, job.model_state)
    held_before, held_after = seen(before, job.splits.test), seen(after, job.splits.test)
    if auditor is None:
        earlier = data_lib.take(job.splits.train, job.past.forgotten) if job.past.forgotten.size else None
        # An audit and the comparison share what the findings may err.
        level = float(body["level"]) if body.get("audit") is None else 1 - (1 - float(body["level"])) / 2
        evidence = verdicts.held_out_comparison(
            seen(before, job.data.forget),
            seen(after, job.data.forget),
            held_before,
            held_after,
            None if earlier is None else seen(after, earlier),
            level,
        )
        if body.get("audit") is not None:
            plan = deletion_audits.from_text(body["audit"])
            evidence = deletion_audits.gather(plan, evidence, job, out, network, level, console)
    else:
        evidence = auditor(out, network)
    reference = _reference(book) or _counts(held_before, document["before"], len(job.splits.class_names))
    counts = _counts(held_after, document["after"], len(job.splits.class_names))
    exact = config.method_name == _RETRAIN
    # A network trained anew is a first network again: what it cannot do, no unlearning has cost.
    lost = dict.fromkeys(("retain", "test"), 0.0) if exact else _lost(reference, counts, job.data.retain["label"])
    verdict = verdicts.judge(evidence, lost, float(body["budget"]), exact=exact)
    recorded = book.history("recorded")
    shown = records.configuration(dataclasses.asdict(job.config))
    record = {
        "format": records.FORMAT,
        "ledger": book.about["ledger"],
        "number": number,
        "previous": recorded[-1].body["record"] if recorded else ledger.START,
        "finished": ledger.now(),
        "requests": [_shown_request(book, request) for request in asked],
        "earlier_tries": _earlier_tries(book, number, body["requests"]),
        "network": {"model": config.model, "before": body["network"], "after": network},
        "files": records.file_hashes(out, book.keys),
        "forget": {"count": len(job.positions), "digest": _positions_digest(book.keys, job.positions)},
        "forgotten_before": len(job.past.forgotten),
        "training_set": {"count": data_lib.size(job.splits.train), "digest": book.about["training_set"]},
        "configuration": shown,
        "configuration_sha256": sha256(canonical(shown)),
        "code": records.code(),
        "versions": document["versions"],
        "machine": document["machine"],
        "metrics": {name: _measured(document[name]) for name in ("before", "after")},
        "test": counts["test"],
        "evidence": hashing.without_floats(_shown_evidence(evidence)),
        "utility": {"budget": body["budget"], **{name: f"{points:.4f}" for name, points in lost.items()}},
        "verdict": {"answer": verdict.answer, "reasons": list(verdict.reasons)},
    }
    rows = [{**row, "scenario": f"run {number}"} for row in document["rows"]]
    digest = records.write(book.folder, record, rows, book.keys)
    book.append(
        "recorded",
        {
            "run": number,
            "requests": body["requests"],
            "record": digest,
            "verdict": verdict.answer,
            "network": network,
            "reference": counts if exact and verdict.answer == ledger.FORGOTTEN else reference,
        },
    )
    return Outcome(number, tuple(body["requests"]), verdict, records.path_of(book.folder, number))


def _still_to_forget(book: Ledger, group: Sequence[Request]) -> tuple[list[Request], np.ndarray]:
    """Requests with something left to forget, and all that is left; closes those that earlier runs have covered."""
    done: dict[int, int] = {}
    for request in book.requests():
        if request.state == ledger.FORGOTTEN and request.run is not None:
            done |= {example.position: request.run for example in book.examples(request.id)}
    left, positions = [], set()
    for request in group:
        own = {example.position for example in book.examples(request.id)}
        if own <= set(done):
            latest = max(done[position] for position in own)
            book.append("covered", {"run": latest, "requests": [request.id]})
        else:
            left.append(request)
            positions |= own - set(done)
    return left, np.asarray(sorted(positions), np.int64)


def _checked_content(book: Ledger, config: NetworkConfig, asked: Sequence[Request]) -> list[str]:
    """Proves that the training set is the one that the ledger was begun with; returns the digests of its examples.

    Raises:
      InputError: an example that was named is another now, or anything else is.
    """
    about, splits = book.about, datasets.load(config.dataset, config.data_dir)
    digests = signing.example_digests(book.keys, splits.train)
    for request in asked:
        examples = book.examples(request.id)
        other = [e for e in examples if e.position >= len(digests) or digests[e.position] != e.digest]
        if other:
            moved = f"; its content is now at {digests.index(other[0].digest)}" if other[0].digest in digests else ""
            raise InputError(
                f"{len(other)} of the {len(examples)} examples of request {request.id} are not what they were when it "
                f"was made, the first is at position {other[0].position}{moved}; put the training set back"
            )
    if _training_digest(book.keys, digests) != about["training_set"]:
        raise InputError(
            f"the training set of {config.dataset} is not the one that the ledger in {book.folder} was begun with; "
            "put it back, or begin a new ledger with --trained-on FILE for the positions in the new one"
        )
    if about["trained_on"] is not None:
        file = book.folder / TRAINED_ON_FILE
        if _positions_digest(book.keys, forget_sets.read_positions(file)) != about["trained_on"]:
            raise InputError(f"{file} is not what it was when the ledger was begun; put it back")
    return digests


def _trained_on_problems(book: Ledger) -> list[str]:
    """Compares the list of what the network was trained on with its digest, and its bytes with how it is written."""
    file, expected = book.folder / TRAINED_ON_FILE, book.about["trained_on"]
    if expected is None:
        return []
    if not file.is_file():
        return [f"{file} is missing"]
    try:
        positions = forget_sets.read_positions(file)
        same = file.read_bytes() == _lines(positions).encode()
    except (InputError, OSError) as error:
        return [f"{file} was changed: {error}"]
    return [] if same and _positions_digest(book.keys, positions) == expected else [f"{file} was changed"]


def _original_problems(book: Ledger, subject: Subject) -> list[str]:
    """Compares the numbers of the original network with their hash."""
    about = book.about
    place = subject.weights or subject.checkpoint or about["weights"] or about["checkpoint"]
    try:
        network = read_network(_config(book, subject))
    except InputError as error:
        return [f"the original network in {place} cannot be read: {error}"]
    if hashing.network_sha256(*network) != about["network"]:
        return [f"{place} was changed: it is not the network that the ledger was begun with"]
    return []


def _current(book: Ledger) -> int | None:
    """The run whose network is in use; None: the original."""
    done = [event.body["run"] for event in book.history("recorded") if event.body["verdict"] == ledger.FORGOTTEN]
    return done[-1] if done else None


def _network_in_use(book: Ledger) -> str:
    done = [event.body for event in book.history("recorded") if event.body["verdict"] == ledger.FORGOTTEN]
    return done[-1]["network"] if done else book.about["network"]


def _unfinished(book: Ledger) -> Event | None:
    ended = {event.body["run"] for kind in ("recorded", "failed") for event in book.history(kind)}
    left = [event for event in book.history("started") if event.body["run"] not in ended]
    return left[0] if left else None


def _earlier_tries(book: Ledger, number: int, requests: Sequence[int]) -> int:
    """How many runs before, also ones that failed, were about any of these requests."""
    before = [event.body for event in book.history("started") if event.body["run"] < number]
    return sum(not set(requests).isdisjoint(body["requests"]) for body in before)


def _reference(book: Ledger) -> dict[str, Any] | None:
    """What the first network, or the last that was trained anew, gets right."""
    recorded = book.history("recorded")
    return recorded[-1].body["reference"] if recorded else None


def _counts(held: Scored, measured: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Right answers and examples: in the test set by class, in the retain set together."""
    right = held.logits.argmax(axis=1) == held.labels
    by_class = [
        [int(np.count_nonzero(right & (held.labels == label))), int(np.count_nonzero(held.labels == label))]
        for label in range(num_classes)
    ]
    return {"test": by_class, "retain": [measured["correct_retain"], measured["num_retain"]]}


def _lost(reference: Mapping[str, Any], counts: Mapping[str, Any], retained: np.ndarray) -> dict[str, float]:
    """Percentage points lost since the reference; in the test set only of the classes that stay."""

    def percent(pairs: Sequence[Sequence[int]]) -> float:
        return 100 * sum(pair[0] for pair in pairs) / max(1, sum(pair[1] for pair in pairs))

    stay = np.unique(retained).tolist()
    return {
        "retain": percent([reference["retain"]]) - percent([counts["retain"]]),
        "test": percent([reference["test"][label] for label in stay])
        - percent([counts["test"][label] for label in stay]),
    }


def _measured(numbers: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: (numbers[f"correct_{name}"], numbers[f"num_{name}"]) for name in ("forget", "retain", "test")}
    judged = (round(numbers["mia"] * numbers["num_forget"] / 100), numbers["num_forget"])
    return records.counted({**counts, "forget judged never seen": judged})


def _shown_request(book: Ledger, request: Request) -> dict[str, Any]:
    examples = book.examples(request.id)
    return {
        "id": request.id,
        "received": request.received,
        "due": request.due,
        "examples": len(examples),
        "digest": ledger.examples_sha256(examples),
    }


def _shown_evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "source": evidence.source,
        "findings": [
            {
                **finding._asdict(),
                "value": round(finding.value, 6),
                "low": round(finding.low, 6),
                "high": round(finding.high, 6),
                "holds": finding.holds,
            }
            for finding in evidence.findings
        ],
        "gates": [gate._asdict() for gate in evidence.gates],
    }


def _evaluated(book: Ledger, current: int, subject: Subject, console: Console) -> list[str]:
    """Evaluates the network in use anew; the counts may differ where another machine rounds differently."""
    record, _ = records.read(records.path_of(book.folder, current), book.public)
    config = _config(book, subject)
    try:
        answer = evaluating.evaluate_network(config, console=console)
    except InputError as error:
        return [f"the network of run {current} cannot be evaluated anew: {error}"]
    measured = record["metrics"]["after"]
    expected = {name: [measured[name]["count"], measured[name]["of"]] for name in ("forget", "retain", "test")}
    if "correct_forget" not in answer:
        # The run knows its data set by another path, and positions in it mean nothing elsewhere.
        expected = {"test": [sum(column) for column in zip(*record["test"], strict=True)]}
    found = []
    for name, (correct, total) in expected.items():
        if name == "retain" and record["configuration"]["retain_limit"] is not None:
            continue  # the record has a random part of it
        now = answer[f"correct_{name}"], answer[f"num_{name}"]
        if now[1] != total or abs(now[0] - correct) > 1 + total // 1000:
            found.append(
                f"the network of run {current} now gets {now[0]} of {now[1]} {name} examples right, and its record "
                f"says {correct} of {total}; it, the data or the code is another"
            )
    return found


def _tidy(book: Ledger) -> None:
    """Removes what runs no longer need and may still know what was forgotten: checkpoints, networks of audits."""
    for event in book.history("failed"):
        deletion_audits.forget(records.run_folder(book.folder, event.body["run"]))
    for event in book.history("recorded"):
        deletion_audits.forget(records.run_folder(book.folder, event.body["run"]))
        shutil.rmtree(records.run_folder(book.folder, event.body["run"]) / "checkpoints", ignore_errors=True)
        with contextlib.suppress(OSError):
            _positions_file(book, event.body["run"]).unlink(missing_ok=True)


def _positions_file(book: Ledger, number: int) -> Path:
    return records.run_folder(book.folder, number).with_suffix(".txt")


def _lines(positions: np.ndarray) -> str:
    return "".join(f"{position}\n" for position in positions)


def _positions_digest(keys: Keys, positions: np.ndarray) -> str:
    return keys.digest("positions", canonical(np.asarray(positions).tolist()))


def _training_digest(keys: Keys, digests: Sequence[str]) -> str:
    return keys.digest("training set", canonical(list(digests)))


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _option(name: str) -> str:
    return name.replace("_", "-")
