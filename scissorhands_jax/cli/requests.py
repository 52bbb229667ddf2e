"""The commands about deletion requests: `scissorhands request add | list | run | verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.options import RARE, Command, Option, SettingsCommand
from scissorhands_jax.cli.shared import (
    DataFolderOptions,
    LongCommand,
    MethodOptions,
    ReadingOptions,
    default_settings,
    given_settings,
    network_changes,
    network_settings,
    print_json,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import Console, Table, literal, say, write_line

if TYPE_CHECKING:
    from scissorhands_jax.deletion import Subject
    from scissorhands_jax.deletion.audits import AuditPlan
    from scissorhands_jax.deletion.judging import RunOutcome

STATUS_CHANGED = 1
"""Exit status of `verify` that has found something."""
STATUS_RETRAIN = 3
"""Exit status of `run` with the answer "retrain now"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerOptions(Command):
    """A command about a ledger of deletion requests."""

    ledger: Annotated[Path, Option("Folder of the ledger.", metavar="DIR")]
    keys: Annotated[
        Path | None,
        Option(
            "Folder of the ledger's keys. Keep it elsewhere: whoever has the keys can change anything and sign it "
            "again. Default: keys in the ledger's folder.",
            metavar="DIR",
            group=RARE,
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectOptions(LedgerOptions, ReadingOptions, DataFolderOptions):
    """A command about a ledger and the network that the ledger is about."""

    weights: Annotated[
        str | None,
        Option(
            "File with the network's weights: needed once, and again if it has moved.",
            metavar="FILE",
            exclusive="network",
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        Option("The same for a network that an earlier run left: its folder.", metavar="RUN", exclusive="network"),
    ] = None
    dataset: Annotated[str | None, Option("Name of the network's data set: needed once.", metavar="NAME")] = None

    def subject(self) -> Subject:
        """The network that the options describe."""
        from scissorhands_jax.deletion import Subject

        return Subject(**{field.name: getattr(self, field.name, None) for field in dataclasses.fields(Subject)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribedSubjectOptions(SubjectOptions, SettingsCommand):
    """A command about a ledger and its network, which also takes the network's options as NAME=VALUE."""

    settings_of: ClassVar[str] = "MODEL"
    choices: ClassVar[Mapping[str, str]] = choices.NETWORK_LINES
    command: ClassVar[str]
    """The command as it is written."""

    model: Annotated[
        str | None, Option("Name of the network: resnet20, resnet18, vgg16_bn, ...; needed once.", metavar="NAME")
    ] = None

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The options of a network."""
        return {"model_options.": network_settings(method)}

    def subject(self) -> Subject:
        """The network that the options and settings describe."""
        if not self.settings:
            return super().subject()
        changes = network_changes(self.settings, self.command)
        blank = config_lib.NetworkConfig(model="", dataset="")
        return dataclasses.replace(super().subject(), model_options=config_lib.override(blank, changes).model_options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddCommand(DescribedSubjectOptions):
    """Add a deletion request; the first one creates the ledger.

    Options of the network follow as NAME=VALUE, e.g. model_options.normalize=fixed; `--help-settings MODEL` lists them.
    They are needed once, and so is what says how the network's file is read.
    """

    command: ClassVar[str] = "request add"
    example: ClassVar[str] = (
        'request add --ledger ledger --requester "A. Person" --forget indices:mine.txt --weights net.th '
        "--model resnet20 --dataset cifar10 --data-dir data"
    )

    forget: Annotated[str, Option("Which examples are to be forgotten, as for unlearn.", metavar="SPEC")]
    requester: Annotated[str, Option("Who asks. This stays in the ledger and out of the records.", metavar="WHO")]
    contact: Annotated[
        str | None,
        Option("How to reach them, e.g. a mail address. This stays in the ledger as well.", metavar="TEXT", group=RARE),
    ] = None
    due: Annotated[
        str | None,
        Option("The day by which it has to be done, e.g. 2026-12-31. Default: in 30 days.", metavar="DATE", group=RARE),
    ] = None
    seed: Annotated[int, Option("Seed of a random forget set.", metavar="N", group=RARE)] = 0
    trained_on: Annotated[
        str | None,
        Option(
            "File with the positions that the network was trained on. Default: the whole training set; a --checkpoint "
            "knows its own.",
            metavar="FILE",
            group=RARE,
        ),
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion
        from scissorhands_jax.deletion import lineage

        added = deletion.add(
            self.ledger,
            forget=self.forget,
            requester=self.requester,
            contact=self.contact or "",
            due=self.due,
            seed=self.seed,
            subject=self.subject(),
            keys=self.keys,
        )
        say(console, f"request {added.number}: {added.examples} examples to forget until {added.due}")
        if added.public is not None:
            say(console, f"a new ledger was created; give its public key to whoever is to verify it: {added.public}")
        for network in added.attention:
            line = f"note: the derived network {lineage.described(network)} knows these examples too"
            say(console, line)
        if added.twins:
            say(
                console,
                f"note: the training set holds {added.twins} more examples with the same content, which the request "
                "does not name and the network will keep",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListCommand(LedgerOptions):
    """Show all deletion requests and their states."""

    example: ClassVar[str] = "request list --ledger ledger"

    json: Annotated[bool, Option("Print JSON instead of a table.", group=RARE)] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.deletion import lineage
        from scissorhands_jax.deletion.entries import RequestAdded
        from scissorhands_jax.deletion.ledger import Ledger
        from scissorhands_jax.deletion.trusted_keys import trusted_keys

        with Ledger(self.ledger, self.keys) as book, book.unchanging():
            trusted = trusted_keys(book)
            counts = {entry.id: entry.count for entry in book.entries(RequestAdded)}
            rows = [(request, counts[request.id]) for request in book.requests()]
            attention = {request.id: lineage.needing_attention(book, request) for request, _ in rows}
            lines = [*lineage.attention_lines(book), *lineage.other_lines(book)]
        if self.json:
            print_json(
                [
                    {
                        **dataclasses.asdict(request),
                        "examples": count,
                        "derived_networks": [network.sha256 for network in attention[request.id]],
                    }
                    for request, count in rows
                ]
            )
            return
        table = Table("id", "requester", "received", "due", "examples", "state", "run")
        for request, count in rows:
            due = f"{request.due} OVERDUE" if request.overdue else request.due
            run = "" if request.run is None else str(request.run)
            who = request.requester or "(erased)"
            words = (str(request.id), who, request.received[:10], due, str(count), request.state, run)
            table.add_row(*map(literal, words))
        Console().print(table)
        for line in (*lines, *(f"audits count that are signed by the key {key}" for key in trusted)):
            write_line(line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeCommand(LongCommand, SubjectOptions, MethodOptions):
    """Make the network forget the examples of all open requests, and write a signed record.

    Settings of the method follow as method.NAME=VALUE, as for unlearn, and with --tier those of the audit's
    networks as training.NAME=VALUE, e.g. training.epochs=30; `--help-settings METHOD` lists both. The method `retrain`
    is exact. The exit status is 3 if the answer is "retrain now".
    """

    example: ClassVar[str] = "request run --ledger ledger --epochs 5"
    when_interrupted: ClassVar[str] = "`request run` continues from the last checkpoint"

    one_by_one: Annotated[bool, Option("One run for each request instead of one for all.", group=RARE)] = False
    again: Annotated[bool, Option('Also serve the requests that were answered "retrain now".', group=RARE)] = False
    budget: Annotated[
        float | None,
        Option(
            "Percentage points of retain or test accuracy that all runs together may cost. Default: 1.",
            metavar="POINTS",
            group=RARE,
        ),
    ] = None
    level: Annotated[
        float | None, Option("Level of the intervals in the evidence. Default: 0.95.", metavar="SHARE", group=RARE)
    ] = None
    tier: Annotated[
        str | None,
        Option(
            "Also audit the method on these very examples against retrained networks: smoke (2 networks), standard "
            "(16) or full (128), trained with the settings training.NAME=VALUE. Says first what it will cost.",
            metavar="NAME",
            exclusive="audit",
            group=RARE,
        ),
    ] = None
    audit: Annotated[
        str | None,
        Option(
            "The same with an audit that was made elsewhere and signed with a key that the ledger trusts: its folder, "
            "or the document that `scissorhands audit sign` has written.",
            metavar="DIR",
            exclusive="audit",
            group=RARE,
        ),
    ] = None
    networks: Annotated[int | None, Option("Of --tier: another even number of networks.", metavar="N", group=RARE)] = (
        None
    )

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings of the method, and those of the training of an audit's networks."""
        from scissorhands_jax.methods.retrain import RetrainSettings

        return {**super().listed_settings(method), "training.": RetrainSettings()}

    def run(self, console: Console) -> int:
        from scissorhands_jax import deletion
        from scissorhands_jax.deletion import verdicts
        from scissorhands_jax.deletion.entries import RETRAIN

        settings = default_settings(self.method_name)
        training = [word for word in self.settings if word.startswith("training.")]
        others = [word for word in self.settings if word not in training]
        for word in others:
            if not word.startswith("method."):
                raise InputError(f"request run takes settings of the method only, as method.NAME=VALUE; got {word!r}")
        plan = self._audit_plan(training)
        changes = [word.removeprefix("method.") for word in (*others, *given_settings(self, "method."))]
        outcomes = deletion.run(
            self.ledger,
            config_lib.override(settings, changes),
            method=self.method_name,
            seed=self.seed or 0,
            retain_limit=self.retain_limit,
            augment=self.augment,
            one_by_one=self.one_by_one,
            again=self.again,
            budget=verdicts.UTILITY_BUDGET if self.budget is None else self.budget,
            level=verdicts.EVIDENCE_LEVEL if self.level is None else self.level,
            subject=self.subject(),
            keys=self.keys,
            audit=plan,
            on_outcome=self._tell,
            console=console,
        )
        if not outcomes:
            write_line(f"no request is open (`--again` takes up those that were answered with `{RETRAIN}`)")
        return STATUS_RETRAIN if any(outcome.verdict.answer == RETRAIN for outcome in outcomes) else 0

    def _tell(self, outcome: RunOutcome) -> None:
        """Prints the outcome of a run, which stands whatever becomes of a later one."""
        from scissorhands_jax.deletion.entries import RETRAIN

        numbers = ", ".join(map(str, outcome.requests))
        noun = "request" if len(outcome.requests) == 1 else "requests"
        write_line(f"{noun} {numbers}: {outcome.verdict.answer}; record {outcome.record}")
        for reason in outcome.verdict.reasons:
            write_line(f"  {reason}")
        if outcome.verdict.answer == RETRAIN:
            advice = "longer training" if self.method_name == "retrain" else "--again with other settings"
            write_line(f"  what serves them: --method retrain, or {advice}")

    def _audit_plan(self, training: list[str]) -> AuditPlan | None:
        """How the method is audited on the examples of the requests; None if it is not."""
        from scissorhands_jax.deletion.audits import AuditPlan

        if self.tier is None and (training or self.networks is not None):
            raise InputError("training.NAME=VALUE and --networks say how an audit is made; name its --tier")
        if self.tier is None and self.audit is None:
            return None
        changes = tuple(word.removeprefix("training.") for word in training)
        file = None if self.audit is None else str(Path(self.audit).absolute())
        return AuditPlan(self.tier, self.networks, changes, file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscardCommand(LedgerOptions):
    """Remove the folder of a run whose network is no longer in use, and say so in the ledger.

    Such a network may know what later runs have made its successors forget. The record of the run stays. A run that was
    stopped and cannot be finished is given up, and its requests are in the state that they had before it.
    """

    example: ClassVar[str] = "request discard --ledger ledger --number 1"

    number: Annotated[int, Option("Number of the run.", metavar="N")]

    def run(self, console: Console) -> None:
        from scissorhands_jax import deletion

        deletion.discard(self.ledger, self.number, keys=self.keys)
        say(console, f"the folder of run {self.number} was removed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustCommand(LedgerOptions):
    """Let audits count as evidence that are signed with an auditor's key. This is noted in the ledger.

    `request run --audit` takes no others. `request list` shows the keys that are trusted.
    """

    example: ClassVar[str] = "request trust --ledger ledger auditor_public.pem"

    key: Annotated[Path, Option("File with the auditor's public key.", flag="key", metavar="PEM")]

    def run(self, console: Console) -> None:
        from scissorhands_jax.deletion.trusted_keys import trust_key

        say(console, f"audits count that are signed by the key {trust_key(self.ledger, self.key, keys=self.keys)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntrustCommand(LedgerOptions):
    """Let audits no longer count that are signed with an auditor's key. Records of earlier runs stay."""

    example: ClassVar[str] = "request untrust --ledger ledger auditor_public.pem"

    key: Annotated[
        str,
        Option(
            "File with the auditor's public key, or the key as `request list` shows it: 64 hexadecimal digits.",
            flag="key",
            metavar="KEY",
        ),
    ]

    def run(self, console: Console) -> None:
        from scissorhands_jax.deletion.trusted_keys import untrust_key

        say(console, f"no audit counts that is signed by the key {untrust_key(self.ledger, self.key, keys=self.keys)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyCommand(LongCommand, DescribedSubjectOptions):
    """Look for any change in the ledger, the records and the networks.

    The exit status is 1 if something was changed, or if the ledger was not signed with the key that you name. An
    auditor's copy does not say how the original is read: while that is in use, options of the network follow as
    NAME=VALUE, as for `request add`.
    """

    command: ClassVar[str] = "request verify"
    example: ClassVar[str] = "request verify --ledger ledger --public public_key.pem"

    head: Annotated[
        str | None,
        Option(
            "A head of the ledger that you kept. It reveals whether this is an older copy of the ledger.",
            metavar="HASH",
            group=RARE,
        ),
    ] = None
    public: Annotated[
        Path | None,
        Option(
            "Verify with the public key alone (records/public_key.pem, from someone you trust), without the keys.",
            metavar="PEM",
        ),
    ] = None
    quick: Annotated[bool, Option("Do not evaluate the network again.", group=RARE)] = False

    def run(self, console: Console) -> int:
        from scissorhands_jax import deletion

        if self.public is not None and self.keys is not None:
            raise InputError("--public verifies without the keys, so --keys has nothing to do; leave one of them out")
        for folder, what in ((self.ledger, "a ledger or of an auditor's copy"), (self.keys, "the ledger's keys")):
            if folder is not None and not folder.is_dir():
                raise InputError(f"there is no folder {folder}; name that of {what}")
        found, head = deletion.verify(
            self.ledger,
            head=self.head,
            evaluate=not self.quick,
            subject=self.subject(),
            keys=self.keys,
            public=self.public,
            console=console,
        )
        for problem in found:
            write_line(f"CHANGED: {problem}")
        if not found:
            write_line(f"nothing was changed; head {head}")
        return STATUS_CHANGED if found else 0
