"""Audits as evidence of a deletion run, which are made within the run or read from a file.

An audit against retrained networks needs more than one network. It trains an ensemble on the same data, makes half of
it forget the examples of the run with the run's method and settings, and compares this half with the other one, which
never saw the examples. So an audit is about the procedure, and counts in addition to the evidence from the network
itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, reading, report
from scissorhands_jax.audit import TIERS, run_audit
from scissorhands_jax.audit.analysis import AUDIT_ATTACKS
from scissorhands_jax.deletion import verdicts
from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.deletion.verdicts import Evidence, EvidenceGate
from scissorhands_jax.errors import InputError
from scissorhands_jax.hashing import sha256
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.jobs.job import Job
from scissorhands_jax.methods import describe
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.metrics import intervals
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.metrics.rank_tests import Finding
from scissorhands_jax.terminal import Console, say

AUDIT_FOLDER = "audit"
"""The name of the folder, within that of a run, that keeps the results of its audit."""


@dataclasses.dataclass(frozen=True)
class AuditPlan:
    """The source of the audit of a run: exactly one of `tier` and `file` is given."""

    tier: str | None = None
    """A key of `audit.TIERS`, for an audit that the run makes."""
    networks: int | None = None
    """The number of networks, or None for that of the tier."""
    training: tuple[str, ...] = ()
    """Overrides of `RetrainSettings` for the training of the networks, such as `epochs=30`."""
    file: str | None = None
    """An audit that was made elsewhere: its folder, its `results.json`, or JSON as `verdicts.from_audit` reads it."""

    def as_text(self) -> str:
        """Writes the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> AuditPlan:
        """Reads the plan that `as_text` has written."""
        return from_document(cls, reading.parse_json(text))


def check_plan(plan: AuditPlan, job: Job, level: float) -> None:
    """Refuses, before anything is unlearned, an audit that could not become evidence of a run.

    Args:
      plan: The source of the audit.
      job: The job of the run.
      level: The level of the evidence; see `verdicts`.

    Raises:
      InputError: The tier or a setting is unknown, or the audit is about something else or cannot be trusted.
    """
    if job.config.method_name == report.REFERENCE:
        raise InputError("a network that is trained from scratch needs no audit; leave --tier and --audit out")
    if job.config.retain_limit is not None:
        raise InputError("an audit repairs on all retained examples; leave --retain-limit out, or --tier and --audit")
    if plan.tier is not None:
        if plan.tier not in TIERS:
            raise InputError(f"there is no tier {plan.tier!r}; choose one of {', '.join(TIERS)}")
        config_lib.override(RetrainSettings(), plan.training)
    else:
        document, _ = _read(plan)
        if _is_result(document):
            _found(document, job, level, must_be_trusted=True)


def audit_evidence(
    plan: AuditPlan, own: Evidence, job: Job, out: Path, network: str, level: float, console: Console
) -> Evidence:
    """Returns the evidence of a run together with that of its audit, which is made now unless it exists already.

    If the evidence from the network itself speaks against forgetting, no audit is made, because it could not change the
    verdict. The networks of an audit know the examples, so they are kept in a folder next to the run's, which
    `tidying.remove_remains` removes.

    Args:
      plan: The source of the audit.
      own: The evidence that `verdicts.held_out_comparison` found in the run's network.
      job: The job of the run.
      out: The folder of the run. The results of the audit are written to `audit/` in it.
      network: The SHA-256 of the network that the run has made.
      level: The chance that all findings of the audit hold if the networks never saw the examples.
      console: Where to show the audit's cost and progress.

    Raises:
      InputError: The audit cannot become evidence of the run (see `check_plan`), or could not be made.
    """
    if plan.file is not None:
        document, digest = _read(plan)
        if not _is_result(document):
            found = verdicts.from_audit(document, network)
            return dataclasses.replace(found, source=f"{found.source} (audit file with SHA-256 {digest})")
        findings, gates = _found(document, job, level, must_be_trusted=True)
        report.write_results(out / AUDIT_FOLDER / runs.RESULTS_FILE, document)
        source = f"{_described(document)}, results with SHA-256 {digest}"
    else:
        if not all(finding.holds for finding in own.findings):
            say(console, "the network itself has not forgotten, so no audit is made")
            return own
        folder = out.with_suffix(".audit")
        document = _made(plan, job, folder, console)
        for name in (runs.RESULTS_FILE, "report.html"):
            files.write_bytes(out / AUDIT_FOLDER / name, (folder / name).read_bytes())
        findings, gates = _found(document, job, level, must_be_trusted=False)
        source = _described(document)
    kept = tuple(gate for gate in own.gates if gate.name == verdicts.HELD_OUT_GATE)
    return Evidence(f"{own.source}, and an audit of the procedure ({source})", own.findings + findings, kept + gates)


def _made(plan: AuditPlan, job: Job, folder: Path, console: Console) -> dict[str, Any]:
    config = job.config
    file = folder.with_suffix(".audit.txt")
    files.write_text(file, "".join(f"{position}\n" for position in _within(job)))
    try:
        return run_audit(
            Experiment(
                name="deletion request",
                dataset=config.dataset,
                model=config.model,
                model_options=config.model_options,
                validation_share=0.0,
                augment=config.augment,
                training=config_lib.override(RetrainSettings(), plan.training),
                scenarios=(
                    Scenario(
                        name="forget set of the run",
                        forget=(f"indices:{file.absolute()}",),
                        methods={config.method_name: config.method},
                    ),
                ),
            ),
            folder,
            tier=str(plan.tier),
            num_networks=plan.networks,
            seed=config.seed,
            data_dir=config.data_dir,
            trained_on=job.past.trained_on,
            console=console,
        )
    finally:
        file.unlink(missing_ok=True)


def _within(job: Job) -> np.ndarray:
    """Returns the forget set as positions among the examples that the network was trained on, as in the audit."""
    return np.searchsorted(job.past.trained_on, job.positions)


def _read(plan: AuditPlan) -> tuple[Any, str]:
    """Reads a document. Also returns the SHA-256 of its file."""
    path = Path(str(plan.file))
    path = path / runs.RESULTS_FILE if path.is_dir() else path
    try:
        content = reading.read_bytes(path, reading.MAX_JSON)
        return reading.parse_json(content), sha256(content)
    except (OSError, ValueError) as error:
        raise InputError(f"the audit {path} cannot be read ({error}); name its folder or results.json") from error


def _is_result(document: Any) -> bool:
    """Says whether `scissorhands audit` wrote a document."""
    return isinstance(document, dict) and {"evidence", "ensemble"} <= set(document)


def _described(document: Mapping[str, Any]) -> str:
    ensemble, training = document["ensemble"], document["config"]["training"]
    return (
        f"tier {document['config']['tier']}: {ensemble['networks']} networks, each trained for {training['epochs']} "
        "epochs on half of the other examples, half of them with the examples of this run"
    )


def _found(
    document: Mapping[str, Any], job: Job, level: float, *, must_be_trusted: bool
) -> tuple[tuple[Finding, ...], tuple[EvidenceGate, ...]]:
    """Reads the findings of an audit about the run's method on the run's examples, and its gates.

    Raises:
      InputError: The audit is about something else, cannot be read, or has failed gates although it must be trusted.
    """
    try:
        name, label = _place(document, job)
        gates = tuple(
            EvidenceGate(f"audit: {gate['name']}", gate["passed"] is True, str(gate["explanation"]))
            for gate in document["gates"]
            if gate["decides"] and (gate["passed"] is not None or gate["reported"])
        )
        entries = {entry["metric"]: entry for entry in document["evidence"] if _is_of(entry, name, label)}
        if any("error" not in entry for entry in entries.values()):
            raise InputError("the audit was made before its numbers had standard errors; make it again")
        estimates = {
            report.METRICS[metric][0]: Estimate(**{field: entries[metric][field] for field in Estimate._fields})
            for metric in (f"{attack}_auc" for attack in AUDIT_ATTACKS)
            if metric in entries
        }
        failed = [str(gate.why) for gate in gates if not gate.passed]
        if must_be_trusted and (failed or not gates):
            raise InputError(f"the audit cannot be trusted: {'; '.join(failed) or 'no gate could be run'}")
        each = 1 - (1 - level) / max(1, len(estimates))
        findings = tuple(
            _finding(f"{title} of the audit", intervals.at_level(estimate, each))
            for title, estimate in estimates.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the audit cannot be read: {type(error).__name__} {error}") from error
    if not findings or not gates:
        why = f"it has no numbers of {label}" if gates else "none of its gates could be run"
        gates += (EvidenceGate("audit", False, f"the audit is no evidence, {why}"),)
    return findings, gates


def _is_of(entry: Mapping[str, Any], name: str, label: str) -> bool:
    return entry["scenario"] == name and entry["method"] == label


def _finding(name: str, found: Estimate) -> Finding:
    """Makes a finding of an AUC. If the examples were never seen, it lies around 0.5, within reach of its interval."""
    return Finding(name, found.value, 0.5 - (found.high - found.value), 0.5 + (found.value - found.low))


def _place(document: Mapping[str, Any], job: Job) -> tuple[str, str]:
    """Finds the scenario and the label of an audit that have the run's forget set and method.

    Raises:
      InputError: The audit has no such scenario or method, or is about other data or another network.
    """
    ours, theirs = job.config, document["config"]
    if (theirs["model"], dict(theirs["model_options"])) != (ours.model, dict(ours.model_options)):
        raise InputError(
            f"the audit is about a {theirs['model']} and the run's network is a {ours.model} or has other options; "
            "`--tier` makes a fitting audit"
        )
    augmented = job.splits.augmented if theirs["augment"] is None else theirs["augment"]
    trained_on = data_lib.take(job.splits.train, job.past.trained_on)
    if augmented != ours.augment or document["data"]["training_data_checksum"] != hashing.tree_checksum(trained_on):
        raise InputError(
            "the audit's networks were trained on other examples than the network before the run was (all of the "
            "training split that it has not forgotten, with validation_share=0); `--tier` makes a fitting audit"
        )
    wanted = hashing.positions_sha256(_within(job))
    digests = document["ensemble"]["forget_sha256"]
    scenarios = [one for one, digest in zip(theirs["scenarios"], digests, strict=True) if digest == wanted]
    if not scenarios:
        raise InputError("none of the audit's forget sets is that of the run; `--tier` makes a fitting audit")
    settings = json.loads(json.dumps(describe(ours.method)))
    labels = [label for label, known in scenarios[0]["methods"].items() if known == settings]
    if not labels:
        raise InputError(
            f"the audit has no {ours.method_name} with the settings of the run; it has "
            f"{', '.join(scenarios[0]['methods'])}, perhaps with other settings; `--tier` makes a fitting audit"
        )
    return scenarios[0]["name"], labels[0]
