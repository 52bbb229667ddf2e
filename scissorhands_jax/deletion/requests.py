"""Adds deletion requests to a ledger, begins ledgers, and checks that their data have not changed.

The folder of a ledger holds the ledger (`ledger.sqlite3`), its keys (`keys/`, unless they are kept elsewhere), lists of
what its first network was trained on and had forgotten (`trained_on.txt`, `forgotten_before.txt`), a folder for each
run (`runs/`) and the signed records (`records/`).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, files, hashing, reading
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.deletion import records, signing
from scissorhands_jax.deletion.entries import LedgerBegun, NamedExample, Request, utc_now
from scissorhands_jax.deletion.ledger import (
    DATABASE_FILE,
    KEYS_FOLDER,
    Ledger,
    check_count,
    check_request,
    ledger_exists,
    make_ledger_folder,
)
from scissorhands_jax.deletion.lineage import DerivedNetwork, needing_attention
from scissorhands_jax.deletion.recorded_runs import (
    check_erasures,
    check_run_in_use,
    missing_in_use,
    network_in_use,
    run_in_use,
)
from scissorhands_jax.deletion.signing import LedgerKeys
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.earlier_runs import FORGOTTEN_BEFORE_FILE, NETWORK_FOLDER, TRAINED_ON_FILE, network_config
from scissorhands_jax.jobs.job import OriginalNetwork, prepare_data, prepare_network

_DESCRIBED = ("model_options", "layout", "prefix", "ema")

DAYS_TO_SERVE = 30
"""The number of days after which a request is due, unless it names a date."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The network that a ledger is about, and the places of the network and its data.

    The first request must name the model, the data set and one of `weights` and `checkpoint`. Later calls name
    what has moved since then; what they say again must be the same.
    """

    model: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    trained_on: str | None = None
    """A file with the positions that the network was trained on; None for what the run in `checkpoint` has saved, and
    otherwise the whole training split."""
    model_options: dict[str, Any] | None = None
    layout: str | None = None
    prefix: str | None = None
    rename: str | None = None
    ema: bool | None = None
    check: str | None = None
    """This and those before it: as in `jobs.config.NetworkConfig`. They are said when the ledger is begun, and only
    the places of `rename` and `check` later."""


@dataclasses.dataclass(frozen=True)
class AddedRequest:
    """A request that was added to a ledger."""

    number: int
    """The id of the request."""
    examples: int
    """The number of examples that it names."""
    due: str
    twins: int
    """The number of training examples that it does not name although their content equals that of one that it names."""
    public: Path | None
    """The file with the public key, if the request began the ledger."""
    attention: tuple[DerivedNetwork, ...]
    """The registered networks that know the examples too and that no run on the ledger's network changes."""


def add_request(
    folder: Path,
    *,
    forget: str,
    requester: str,
    due: str | None = None,
    seed: int = 0,
    subject: Subject | None = None,
    keys: Path | None = None,
    contact: str = "",
) -> AddedRequest:
    """Adds a request to the ledger in a folder, which is begun if it does not exist.

    A ledger that exists needs its data for that, and what the network in use has seen and forgotten. The network itself
    may be damaged or lost, which keeps runs from beginning, and no request from being entered in time.

    Args:
      folder: The folder of the ledger, in which nothing else may be when it is begun.
      forget: The specification of the examples, as for `datasets.forget_sets.forget_positions`. All must be in the
        training set of the network, and not forgotten yet.
      requester: The person who asks.
      due: The date until which the request must be served, such as 2026-12-31. The default is in 30 days.
      seed: The seed of the draw, if the examples are drawn.
      subject: For a new ledger the model, the data set, and the network's file or run; later only what has moved.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.
      contact: How to reach the requester. By default nothing is noted.

    Raises:
      InputError: An argument cannot be used, the data or what the run in use has listed was changed, or an erasure has
        not ended.
      LedgerError: The ledger cannot be used or written.
    """
    subject = subject or Subject()
    today = datetime.datetime.now(datetime.UTC).date()
    if due is None:
        due = (today + datetime.timedelta(days=DAYS_TO_SERVE)).isoformat()
    check_request(requester, due, contact)
    begins = not ledger_exists(folder)
    if begins:
        # Nothing is written before it is known that the request can be served.
        _check_new_folder(folder)
        _check_keys_folder(folder, keys)
        network = prepare_network(_first_config(subject))
        if not network.splits.task.classifies:
            raise InputError(
                f"a ledger keeps the accuracies of classifiers, and the task of {network.config.dataset} is "
                f"{network.splits.task.name}; `scissorhands unlearn` forgets its examples without a ledger"
            )
        positions, _ = network.forget_set(forget, seed)
        check_count(len(positions))
        _begin(folder, keys, network)
    with Ledger(folder, keys) as book:
        check_erasures(book)
        remove_ledger_leftovers(book, keys)
        config = config_in_use(book, dataclasses.replace(subject, trained_on=None))
        digests = check_content(book, config, [], network=False)
        # A network that nobody names is not read: a request must be taken while it is damaged or lost, too.
        read = any((subject.weights, subject.checkpoint, subject.rename, subject.check))
        known = prepare_network(config) if read else prepare_data(config)
        if subject.trained_on is not None:
            _check_trained_on(book, Path(subject.trained_on), known.splits)
        positions, _ = known.forget_set(forget, seed)
        examples = [NamedExample(int(position), digests[position]) for position in positions]
        named = {example.digest for example in examples}
        twins = sum(digest in named for digest in digests) - len(examples)
        number = book.add(
            requester=requester,
            received=utc_now(),
            due=due,
            network=network_in_use(book),
            examples=examples,
            contact=contact,
        )
        (added,) = (request for request in book.requests() if request.id == number)
        attention = tuple(needing_attention(book, added))
    public = records.public_path(folder) if begins else None
    return AddedRequest(number, len(examples), due, twins, public, attention)


def remove_ledger_leftovers(book: Ledger, keys: Path | None) -> None:
    """Removes what processes that were killed left in a ledger's folder, and writes its public key if that is missing.

    Args:
      book: The ledger.
      keys: The folder of its keys. None is the folder `keys` in the ledger's folder, which is looked at in any case.
    """
    files.remove_leftovers(book.folder)
    if keys is not None:
        for name in (signing.SECRET_FILE, signing.SIGNING_FILE):
            files.remove_leftovers_of(keys / name)
    if not records.public_path(book.folder).exists():
        records.write_public(book.folder, book.keys)


def config_in_use(book: Ledger, subject: Subject) -> NetworkConfig:
    """Returns the configuration of the network in use, with the current places of the network and its data.

    Args:
      book: The ledger.
      subject: What has moved since the ledger was begun; for an auditor's copy, also how the original is read.

    Raises:
      InputError: The subject names something that cannot move and that the ledger knows already.
    """
    about, current = book.about, run_in_use(book)
    check_place(subject, current)
    if subject.trained_on is not None:
        raise InputError(f"the ledger in {book.folder} knows what its network was trained on; leave --trained-on out")
    if subject.model_options is not None:  # Lists, as in what was written as JSON.
        subject = dataclasses.replace(subject, model_options=json.loads(json.dumps(subject.model_options)))
    described = reading.parse_json(about.described) if about.described else {}
    if book.is_copy:  # It does not say how the file of its network is read.
        described = {name: given for name in _DESCRIBED if (given := getattr(subject, name)) is not None}
    for name in ("model", *_DESCRIBED):
        given = getattr(subject, name)
        known = about.model if name == "model" else described.get(name)
        if name == "model_options" and given is not None:
            given = {**described.get(name, {}), **given}  # One that is not named is as it was.
        if given not in (None, known):
            option = name if name == "model_options" else "--" + name.replace("_", "-")
            raise InputError(
                f"the ledger in {book.folder} knows its {name} already, as another one; leave {option} out"
            )
    if subject.rename is not None:
        described["rename"] = subject.rename
    weights, checkpoint = about.weights, about.checkpoint
    if subject.weights or subject.checkpoint:
        weights, checkpoint = subject.weights, subject.checkpoint
    # What the network knows is what the ledger has signed, wherever its file comes from.
    past: dict[str, Any] = {name: str(path.absolute()) for name, path in past_files(book.folder).items()}
    if current is not None:
        place = records.run_folder(book.folder, current)
        if not (place / NETWORK_FOLDER).is_dir():
            raise InputError(missing_in_use(place / NETWORK_FOLDER if place.is_dir() else place))
        weights, checkpoint, past = None, str(place.absolute()), {}
        described = {}  # Its run has saved the options, and what it knows and has forgotten.
    # The ledger has signed all that the run of the original says, which may be gone by now or say something else.
    signed = current is None and not book.is_copy
    config = network_config(
        model=about.model,
        weights=weights,
        checkpoint=None if signed else checkpoint,
        dataset=subject.dataset or about.dataset,
        data_dir=subject.data_dir or about.data_dir,
        check=subject.check,
        **past,
        **described,
    )
    return dataclasses.replace(config, checkpoint=checkpoint) if signed else config


def _check_trained_on(book: Ledger, file: Path, splits: datasets.Splits) -> None:
    """Refuses a list of what the original network was trained on that is not the one with which the ledger was begun.

    Args:
      book: The ledger.
      file: The list.
      splits: The data set.

    Raises:
      InputError: It is another list, or cannot be read.
    """
    total = data_lib.size(splits.train)
    positions = data_lib.check_training_set(forget_sets.read_positions(file, total), total)
    if positions_digest(book.keys, positions) != book.about.trained_on:
        raise InputError(
            f"the ledger in {book.folder} knows what its network was trained on, and {file} says something else; leave "
            "--trained-on out"
        )


def check_place(subject: Subject, current: int | None) -> None:
    """Refuses a place of the original network where that is no longer in use, so nobody would look at the file.

    Args:
      subject: What has moved since the ledger was begun.
      current: The run whose network is in use; None for the original.

    Raises:
      InputError: A place is named, and a run's network is in use.
    """
    for name in ("weights", "checkpoint"):
        if current is not None and getattr(subject, name) is not None:
            raise InputError(
                f"--{name} says where the original network is, and the network in use is that of run {current}; leave "
                "it out"
            )


def check_content(book: Ledger, config: NetworkConfig, asked: Sequence[Request], *, network: bool = True) -> list[str]:
    """Checks that the data are those with which the ledger was begun, and that the files of the run in use are its own.

    Args:
      book: The ledger.
      config: The configuration that names the data set and its place.
      asked: Requests whose examples are compared one by one, so that the message can name them.
      network: Whether the network of that run is compared as well, and not only its description and its lists.

    Returns:
      The digests of all training examples.

    Raises:
      InputError: An example, a list or the network in use has changed, or the training set or the test set is another.
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
    if _set_digest(book.keys, "training set", digests) != about.training_set:
        raise InputError(
            f"the training set of {config.dataset} is not the one that the ledger in {book.folder} was begun with; "
            "put it back, or begin a new ledger with --trained-on FILE for the positions in the new one"
        )
    if _set_digest(book.keys, "test set", signing.example_digests(book.keys, splits.test)) != about.test_set:
        raise InputError(
            f"the test set of {config.dataset} is not the one that the ledger in {book.folder} was begun with, and "
            "with another one nothing shows what the network has forgotten; put it back, or begin a new ledger"
        )
    check_run_in_use(book, network=network)
    for name, file in past_files(book.folder).items():
        if positions_digest(book.keys, forget_sets.read_positions(file)) != getattr(about, name):
            raise InputError(f"{file} has changed since the ledger was begun; put it back from your backup")
    return digests


def past_files(folder: Path) -> dict[str, Path]:
    """Returns the lists in a ledger's folder of what its original network was trained on and had forgotten.

    Their names are those of the fields of `LedgerBegun` with their digests, and of `NetworkConfig` with their places.
    """
    return {"trained_on": folder / TRAINED_ON_FILE, "forgotten_before": folder / FORGOTTEN_BEFORE_FILE}


def positions_text(positions: np.ndarray) -> str:
    """Writes positions as the text of a file, one per line."""
    return "".join(f"{position}\n" for position in positions)


def positions_digest(keys: LedgerKeys, positions: np.ndarray) -> str:
    """Computes a digest of positions under the ledger's secret."""
    return keys.digest("positions", canonical(np.asarray(positions).tolist()))


def _check_new_folder(folder: Path) -> None:
    """Refuses to begin a ledger in a folder that holds anything else, which its commands would write over or remove.

    A process that was killed while it began one may have left keys and an empty database, and in that case the lists.

    Raises:
      InputError: There is something else in it, or it is no folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the ledger")
    found = {path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *(folder / KEYS_FOLDER).glob("*"))}
    own = {f"{KEYS_FOLDER}/{name}" for name in (signing.SECRET_FILE, signing.SIGNING_FILE)}
    if (folder / KEYS_FOLDER).is_dir():
        own.add(KEYS_FOLDER)
    if DATABASE_FILE in found and (folder / DATABASE_FILE).stat().st_size == 0:
        own |= {DATABASE_FILE, f"{DATABASE_FILE}-journal", *(path.name for path in past_files(folder).values())}
    others = sorted(name for name in found - own if not files.is_leftover(name) or name.endswith(files.LOCK_FILE))
    if others and not ledger_exists(folder):  # Another process may have begun it in the meantime.
        raise InputError(
            f"{folder} holds no ledger and is not empty: {others[0]} is there, which the ledger could remove; name "
            f"another folder, or put {DATABASE_FILE} back from your backup if it was lost"
        )


def _check_keys_folder(folder: Path, keys: Path | None) -> None:
    """Refuses to begin a ledger with keys in its folder in another place than their own, which `verify` would name.

    Raises:
      InputError: They would lie there.
    """
    if keys is None:
        return
    place, ledger = files.resolved(keys), files.resolved(folder)
    if place == ledger or (ledger in place.parents and place != files.resolved(folder / KEYS_FOLDER)):
        raise InputError(
            f"{keys} lies in the folder of the ledger, which holds keys in {KEYS_FOLDER} alone; name a folder elsewhere"
        )


def _first_config(subject: Subject) -> NetworkConfig:
    if not subject.model or not subject.dataset or not (subject.weights or subject.checkpoint):
        raise InputError(
            "there is no ledger yet; say which network it is about with --model, --dataset, and --weights FILE or "
            "--checkpoint RUN"
        )
    return network_config(**dataclasses.asdict(subject))


def _begin(folder: Path, keys: Path | None, network: OriginalNetwork) -> None:
    config = network.config
    past = {"trained_on": network.past.trained_on, "forgotten_before": network.past.forgotten}
    for name, what in (("trained_on", "was trained on"), ("forgotten_before", "has forgotten")):
        if len(past[name]) > reading.MAX_LINES:
            raise InputError(
                f"the network {what} {len(past[name])} examples, and a ledger can list at most {reading.MAX_LINES}; "
                "`scissorhands unlearn` forgets examples without a ledger"
            )
    make_ledger_folder(folder)
    drawn = signing.make_keys(keys or folder / KEYS_FOLDER)
    kind, colon, path = config.dataset.partition(":")
    described = {name: getattr(config, name) for name in _DESCRIBED} | {"rename": _absolute(config.rename)}
    described = {name: value for name, value in described.items() if value not in (None, {})}
    about = LedgerBegun(
        model=config.model,
        dataset=f"{kind}:{Path(path).absolute()}" if colon else kind,
        data_dir=_absolute(config.data_dir),
        weights=_absolute(config.weights),
        checkpoint=_absolute(config.checkpoint),
        described=json.dumps(described) if described else "",
        network=hashing.network_sha256(network.params, network.model_state),
        **{name: positions_digest(drawn, positions) for name, positions in past.items()},
        training_set=_set_digest(drawn, "training set", signing.example_digests(drawn, network.splits.train)),
        test_set=_set_digest(drawn, "test set", signing.example_digests(drawn, network.splits.test)),
    )

    def write_lists() -> None:
        for name, file in past_files(folder).items():
            files.write_text(file, positions_text(past[name]))

    with Ledger.begin(folder, about, keys, prepare=write_lists) as book:
        for name in ("network", *past, "training_set", "test_set"):
            if getattr(book.about, name) != getattr(about, name):
                raise LedgerError(
                    f"another process has just begun a ledger in {folder}, with another {name.replace('_', ' ')}; name "
                    "another folder"
                )
        records.write_public(folder, book.keys)


def _set_digest(keys: LedgerKeys, purpose: str, digests: Sequence[str]) -> str:
    return keys.digest(purpose, canonical(list(digests)))


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
