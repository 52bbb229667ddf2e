"""The command line of deletion requests: `scissorhands request add | list | run | verify`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config as config_lib

STATUS_CHANGED = 1
"""Exit status of `verify` that has found something."""
STATUS_RETRAIN = 3
"""Exit status of `run` with the answer "retrain now"."""


def add_parser(commands: Any) -> None:
    """Adds the command `request` to a parser's commands."""
    request = commands.add_parser("request", help="keep a ledger of deletion requests, serve them, and prove it")
    actions = request.add_subparsers(dest="request_command", required=True, metavar="COMMAND")

    add = actions.add_parser("add", help="take a request in; the first one begins the ledger")
    _add_ledger(add)
    add.add_argument("--forget", required=True, metavar="SPEC", help="which examples, as for unlearn")
    add.add_argument("--requester", required=True, metavar="WHO", help="who asks; stays in the ledger, not in records")
    add.add_argument("--due", metavar="DATE", help="until when, e.g. 2026-12-31 (default: in 30 days)")
    add.add_argument("--seed", type=int, default=0, help="of a random choice (default 0)")
    _add_subject(add, "the network that the ledger is about; needed once")
    add.add_argument("--model", metavar="NAME", help="resnet20, resnet18, vgg16_bn, ...; needed once")
    add.add_argument("--trained-on", metavar="FILE", help="positions that the network was trained on; default: all")
    add.set_defaults(run=_run_add)

    show = actions.add_parser("list", help="show all requests and what became of them")
    _add_ledger(show)
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_run_list)

    run = actions.add_parser(
        "run",
        help="make the network forget what all open requests name, and leave a signed record",
        epilog="Settings of the method follow as method.NAME=VALUE, as for unlearn, and with --tier those of the "
        "audit's networks as training.NAME=VALUE, e.g. training.epochs=30. Exit status 3: retrain now.",
    )
    _add_ledger(run)
    run.add_argument("--method", default="scissorhands", metavar="NAME", help="default scissorhands; retrain is exact")
    run.add_argument("--epochs", type=int, metavar="N", help="the same as method.epochs=N")
    run.add_argument("--batch-size", type=int, metavar="N", help="the same as method.batch_size=N")
    run.add_argument("--seed", type=int, default=0, help="of the run (default 0)")
    run.add_argument("--retain-limit", type=int, metavar="N", help="repair on N random retained examples only")
    run.add_argument("--augment", action=argparse.BooleanOptionalAction, help="random crops and flips while repairing")
    run.add_argument("--one-by-one", action="store_true", help="a run for each request instead of one for all")
    run.add_argument("--again", action="store_true", help='also the requests that were answered "retrain now"')
    run.add_argument(
        "--budget",
        type=float,
        metavar="POINTS",
        help="percentage points of retain or test accuracy that all runs together may cost (default 1)",
    )
    run.add_argument("--level", type=float, metavar="SHARE", help="level of the evidence's intervals (default 0.95)")
    audited = run.add_mutually_exclusive_group()
    audited.add_argument(
        "--tier",
        metavar="NAME",
        help="also audit the method on these very examples against retrained networks: smoke (2 networks), standard "
        "(16) or full (128), trained with the settings training.NAME=VALUE; says first what it will cost",
    )
    audited.add_argument(
        "--audit",
        metavar="DIR",
        help="the same with an audit that was made elsewhere: the folder or results.json of `scissorhands audit`",
    )
    run.add_argument("--networks", type=int, metavar="N", help="of --tier: another even number of networks")
    _add_subject(run, "the original network, if it has moved")
    run.set_defaults(run=_run_run)

    verify = actions.add_parser("verify", help="look for any change in the ledger, the records and the networks")
    _add_ledger(verify)
    verify.add_argument("--head", metavar="HASH", help="a head that you kept: tells an old copy from the ledger")
    verify.add_argument(
        "--public",
        type=Path,
        metavar="PEM",
        help="verify with the public key alone (records/public_key.pem, from someone you trust), without the keys",
    )
    verify.add_argument(
        "--reseal",
        action="store_true",
        help="seal a ledger anew whose seal was lost or whose bytes another program has moved, if every row is as it "
        "was signed; a row in the history says so from then on",
    )
    verify.add_argument("--quick", action="store_true", help="do not evaluate the network anew")
    _add_subject(verify, "the original network, if it has moved")
    verify.set_defaults(run=_run_verify)


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", required=True, type=Path, metavar="DIR", help="folder of the ledger")
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="folder of its keys (default: keys in the ledger's); keep it elsewhere: whoever has the keys can change "
        "anything and sign it anew",
    )


def _add_subject(parser: argparse.ArgumentParser, what: str) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="FILE", help=what)
    source.add_argument("--checkpoint", metavar="RUN", help=f"{what}; folder of an earlier run")
    parser.add_argument("--dataset", metavar="NAME", help="its data set")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")


def _subject(options: argparse.Namespace) -> Any:
    from scissorhands_jax.deletion.requests import Subject

    return Subject(**{name: getattr(options, name, None) for name in Subject._fields})


def _no_settings(options: argparse.Namespace) -> None:
    if options.overrides:
        raise InputError(f"request {options.request_command} does not know {options.overrides[0]!r}; see --help")


def _run_add(options: argparse.Namespace, console: Console) -> int:
    from scissorhands_jax.deletion import requests as deletion

    _no_settings(options)
    added = deletion.add(
        options.ledger,
        forget=options.forget,
        requester=options.requester,
        due=options.due,
        seed=options.seed,
        subject=_subject(options),
        keys=options.keys,
    )
    console.print(f"request {added.number}: {added.examples} examples to forget until {added.due}", highlight=False)
    if added.public is not None:
        console.print(
            f"the ledger is begun; hand its public key to whoever is to verify it: {added.public}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if added.twins:
        console.print(
            f"note: the training set holds {added.twins} more examples with the same content, which the request does "
            "not name and the network will keep",
            highlight=False,
        )
    return 0


def _run_list(options: argparse.Namespace, console: Console) -> int:
    from scissorhands_jax.deletion.ledger import Ledger, overdue

    del console
    _no_settings(options)
    with Ledger(options.ledger, options.keys) as book:
        rows = [(request, len(book.examples(request.id))) for request in book.requests()]
    if options.json:
        document = [{**request._asdict(), "examples": count} for request, count in rows]
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return 0
    table = Table("id", "requester", "received", "due", "examples", "state", "run")
    for request, count in rows:
        due = f"{request.due} OVERDUE" if overdue(request) else request.due
        run = "" if request.run is None else str(request.run)
        words = (str(request.id), request.requester, request.received[:10], due, str(count), request.state, run)
        table.add_row(*(word.replace("[", "\\[") for word in words))
    Console().print(table)
    return 0


def _run_run(options: argparse.Namespace, console: Console) -> int:
    from scissorhands_jax.deletion import audits as deletion_audits
    from scissorhands_jax.deletion import requests as deletion
    from scissorhands_jax.deletion import verdicts
    from scissorhands_jax.deletion.ledger import RETRAIN
    from scissorhands_jax.methods import METHODS

    if options.method not in METHODS:
        raise InputError(f"there is no method {options.method!r}; choose one of {', '.join(METHODS)}")
    training = [word for word in options.overrides if word.startswith("training.")]
    for word in options.overrides:
        if not word.startswith("method.") and word not in training:
            raise InputError(f"request run takes settings of the method only, as method.NAME=VALUE; got {word!r}")
    if options.tier is None and (training or options.networks is not None):
        raise InputError("training.NAME=VALUE and --networks say how an audit is made; name its --tier")
    plan = None
    if options.tier is not None or options.audit is not None:
        file = None if options.audit is None else str(Path(options.audit).absolute())
        changes = tuple(word.removeprefix("training.") for word in training)
        plan = deletion_audits.Plan(options.tier, options.networks, changes, file)
    given = {"epochs": options.epochs, "batch_size": options.batch_size}
    short = [f"{name}={value}" for name, value in given.items() if value is not None]
    words = [word.removeprefix("method.") for word in options.overrides if word not in training]
    settings = config_lib.override(METHODS[options.method](), [*words, *short])
    outcomes = deletion.run(
        options.ledger,
        settings,
        method=options.method,
        seed=options.seed,
        retain_limit=options.retain_limit,
        augment=options.augment,
        one_by_one=options.one_by_one,
        again=options.again,
        budget=verdicts.BUDGET if options.budget is None else options.budget,
        level=verdicts.LEVEL if options.level is None else options.level,
        subject=_subject(options),
        keys=options.keys,
        audit=plan,
        console=console,
    )
    for outcome in outcomes:
        numbers = ", ".join(map(str, outcome.requests))
        noun = "request" if len(outcome.requests) == 1 else "requests"
        sys.stdout.write(f"{noun} {numbers}: {outcome.verdict.answer}; record {outcome.record}\n")
        sys.stdout.writelines(f"  {reason}\n" for reason in outcome.verdict.reasons)
        if outcome.verdict.answer == RETRAIN:
            sys.stdout.write("  what serves them: --method retrain, or --again with other settings\n")
    if not outcomes:
        sys.stdout.write("no request is open\n")
    return STATUS_RETRAIN if any(outcome.verdict.answer == RETRAIN for outcome in outcomes) else 0


def _run_verify(options: argparse.Namespace, console: Console) -> int:
    from scissorhands_jax.deletion import requests as deletion

    _no_settings(options)
    found, head = deletion.verify(
        options.ledger,
        head=options.head,
        evaluate=not options.quick,
        subject=_subject(options),
        keys=options.keys,
        public=options.public,
        reseal=options.reseal,
        console=console,
    )
    sys.stdout.writelines(f"CHANGED: {problem}\n" for problem in found)
    if not found:
        sys.stdout.write(f"all is as it was written; head {head}\n")
    return STATUS_CHANGED if found else 0
