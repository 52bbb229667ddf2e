"""Audits as evidence of a deletion run, which are made within the run or read from a file.

An audit against retrained networks needs more than one network. It trains an ensemble on the same data, makes half of
it forget the examples of the run with the run's method and settings, and compares this half with the other one, which
never saw the examples. So an audit is about the procedure, and counts in addition to the evidence from the network
itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, reading, report
from scissorhands_jax.audit import TIERS, ensembles, run_audit
from scissorhands_jax.audit.analysis import AUDIT_ATTACKS
from scissorhands_jax.audit.scores import SCORES_FILE
from scissorhands_jax.deletion import records, signed_audits, signing, verdicts
from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.deletion.signed_audits import SignedAudit
from scissorhands_jax.deletion.verdicts import Evidence, EvidenceGate
from scissorhands_jax.errors import InputError
from scissorhands_jax.hashing import sha256
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.earlier_runs import FORGET_FILE, read_run_config
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.jobs.job import Job, prepare_job, saved_identity
from scissorhands_jax.jobs.loading import load_run
from scissorhands_jax.methods import describe
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.metrics import intervals
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.metrics.rank_tests import Finding
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training.identity import check_same


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
    """An audit that was made elsewhere and signed: its folder, or the signed document (`signed_audits`)."""
    sha256: str | None = None
    """The SHA-256 of the signed document, once it has been checked."""

    def as_text(self) -> str:
        """Writes the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> AuditPlan:
        """Reads the plan that `as_text` has written."""
        return from_document(cls, reading.parse_json(text))


def checked_plan(plan: AuditPlan, job: Job, level: float, trusted: Collection[str]) -> AuditPlan:
    """Refuses, before anything is unlearned, an audit that could not become evidence of a run.

    Args:
      plan: The source of the audit.
      job: The job of the run.
      level: The level of the evidence; see `verdicts`.
      trusted: The public keys whose audits are taken, in hexadecimal.

    Returns:
      The plan, with the hash of the signed document if it names one.

    Raises:
      InputError: The tier, the number of networks or a setting cannot be used, or the audit is about something else or
        cannot be trusted.
    """
    if job.config.method_name == report.REFERENCE:
        raise InputError("a network that is trained from scratch needs no audit; leave --tier and --audit out")
    if job.config.retain_limit is not None:
        raise InputError("an audit repairs on all retained examples; leave --retain-limit out, or --tier and --audit")
    if plan.file is None:
        if plan.tier not in TIERS:
            raise InputError(f"there is no tier {plan.tier!r}; choose one of {', '.join(TIERS)}")
        if plan.networks is not None:
            ensembles.check_networks(plan.networks)
        config_lib.override(RetrainSettings(), plan.training)
        return plan
    audit, _ = _signed(plan, None, trusted)
    signed_audits.check_subject(audit, job, None, _path(plan))
    findings_about(audit.results, job, level, must_be_trusted=True)
    return dataclasses.replace(plan, sha256=audit.sha256)


def keep_signed(plan: AuditPlan, folder: Path) -> None:
    """Copies the signed document of a plan, so that a run which was stopped can be finished without the original.

    Args:
      plan: The plan, as `checked_plan` returned it.
      folder: The folder of the work on the run's audit.
    """
    if plan.file is not None:
        files.write_bytes(folder / signed_audits.SIGNED_FILE, _content(plan))


def audit_evidence(
    plan: AuditPlan,
    own: Evidence,
    job: Job,
    out: Path,
    network: str,
    level: float,
    trusted: Collection[str],
    console: Console,
) -> tuple[Evidence, tuple[str, ...]]:
    """Returns the evidence of a run together with that of its audit, which is made now unless it exists already.

    An audit only adds findings and gates. If the evidence from the network itself speaks against forgetting, no audit
    is made, because it could not change the verdict. The networks of an audit know the examples, so they are kept in a
    folder next to the run's, which `tidying.remove_remains` removes.

    Args:
      plan: The source of the audit, as `checked_plan` returned it.
      own: The evidence that `verdicts.held_out_comparison` found in the run's network.
      job: The job of the run.
      out: The folder of the run. The results of the audit are written to `audit/` in it.
      network: The SHA-256 of the network that the run has made.
      level: The chance that all findings of the audit hold if the networks never saw the examples.
      trusted: The public keys whose audits are taken, in hexadecimal.
      console: Where to show the audit's cost and progress.

    Returns:
      The evidence, and the names of the files that were written to the folder of the run.

    Raises:
      InputError: The audit cannot become evidence of the run (see `checked_plan`), or could not be made.
    """
    folder = out.with_suffix(".audit")
    files.remove(out / records.AUDIT_FOLDER)  # what was there before is no part of this audit
    if plan.file is not None:
        audit, content = _signed(plan, folder, trusted)
        signed_audits.check_subject(audit, job, network, _path(plan))
        findings, gates = findings_about(audit.results, job, level, must_be_trusted=True)
        names: tuple[str, ...] = (signed_audits.SIGNED_FILE,)
        files.write_bytes(out / records.AUDIT_FOLDER / signed_audits.SIGNED_FILE, content)
        source = f"{_described(audit.results)}, signed by the key {audit.key}, document with SHA-256 {audit.sha256}"
    else:
        if not all(finding.holds for finding in own.findings) or not all(gate.passed for gate in own.gates):
            say(console, "the network itself does not show that it has forgotten, so no audit is made")
            return own, ()
        document = _made(plan, job, folder, console)
        names = (runs.RESULTS_FILE, SCORES_FILE, "report.html")
        for name in names:
            files.copy_file(folder / name, out / records.AUDIT_FOLDER / name)
        findings, gates = findings_about(document, job, level, must_be_trusted=False)
        source = _described(document)
    evidence = own.with_more(Evidence(f"an audit of the procedure ({source})", findings, gates))
    return evidence, tuple(f"{records.AUDIT_FOLDER}/{name}" for name in names)


def _made(plan: AuditPlan, job: Job, folder: Path, console: Console) -> dict[str, Any]:
    config = job.config
    file = folder.with_suffix(".audit.txt")
    files.write_text(file, "".join(f"{position}\n" for position in job.positions))
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
                        methods={config.method_name: job.measured_settings},
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


def sign_audit(folder: Path, run: Path, key: Path, *, data_dir: str | None = None) -> Path:
    """Signs an audit as evidence about one run, after a check that it is about that run.

    Args:
      folder: The folder of the audit.
      run: The folder of the run: of `scissorhands unlearn`, or `runs/000001` and so on of a ledger.
      key: The file with the auditor's private key.
      data_dir: The folder of the data set's files, if it has moved since the run.

    Returns:
      The signed document.

    Raises:
      InputError: The audit is about something else than the run, its gates do not hold, or a file cannot be used.
    """
    files.check_inputs(folder / signed_audits.SIGNED_FILE, [key])
    private = signing.read_private(key)
    results = signed_audits.finished_results(folder)
    config = read_run_config(run / runs.RESULTS_FILE)
    kind, _, file = config.forget.partition(":")
    # A ledger removes the file with the positions of a run that has ended; the run's own copy has the same.
    gone = kind == "indices" and not Path(file).exists()
    forget = f"indices:{run / FORGET_FILE}" if gone else config.forget
    job = prepare_job(dataclasses.replace(config, forget=forget, data_dir=data_dir or config.data_dir))
    after = hashing.network_sha256(*load_run(job.model, str(run)))
    where = str(run / runs.RESULTS_FILE)
    advice = "name the folder as its run has left it"
    check_same(saved_identity(run).document(), job.identity(), where, advice, warn=False)
    findings_about(results, job, verdicts.EVIDENCE_LEVEL, must_be_trusted=True)
    return signed_audits.sign_results(folder, signed_audits.subject_of(job, after), private)


def _path(plan: AuditPlan) -> Path:
    return signed_audits.signed_path(Path(str(plan.file)))


def _content(plan: AuditPlan, copy: Path | None = None) -> bytes:
    """Reads the signed document of a plan, or the copy of it that the run has kept."""
    path = _path(plan)
    try:
        return reading.read_bytes(copy if copy is not None and copy.is_file() else path, reading.MAX_JSON)
    except (OSError, ValueError) as error:
        raise InputError(f"the audit {path} cannot be read ({error}); name its folder or signed document") from error


def _signed(plan: AuditPlan, folder: Path | None, trusted: Collection[str]) -> tuple[SignedAudit, bytes]:
    content = _content(plan, None if folder is None else folder / signed_audits.SIGNED_FILE)
    if plan.sha256 is not None and sha256(content) != plan.sha256:
        raise InputError(f"the audit {_path(plan)} has changed since the run was begun; put it back")
    return signed_audits.read_signed(content, trusted, _path(plan)), content


def _described(document: Mapping[str, Any]) -> str:
    ensemble, training = document["ensemble"], document["config"]["training"]
    return (
        f"tier {document['config']['tier']}: {ensemble['networks']} networks, each trained for {training['epochs']} "
        "epochs on half of the other examples, half of them with the examples of this run"
    )


def findings_about(
    document: Mapping[str, Any], job: Job, level: float, *, must_be_trusted: bool
) -> tuple[tuple[Finding, ...], tuple[EvidenceGate, ...]]:
    """Reads the findings of an audit about the run's method on the run's examples, and its gates.

    Args:
      document: The content of the audit's `results.json`.
      job: The job of the run.
      level: The chance that all findings of the audit hold if the networks never saw the examples.
      must_be_trusted: Whether failed gates are an error instead of a part of the evidence.

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
        if lost := [failure for failure in document.get("failures", ()) if _is_of(failure, name, label)]:
            on = f"on {len(lost)} of {document['ensemble']['networks_per_side']} networks"
            left_out = any(failure.get("failure") == signed_audits.NO_SCORES for failure in lost)
            what = f"has no scores {on}: {signed_audits.NO_SCORES}" if left_out else f"diverged {on}"
            why = f"{label} {what}, and the others say nothing of these"
            gates += (EvidenceGate("audit: networks of the method", False, why),)
        entries = {entry["metric"]: entry for entry in document["evidence"] if _is_of(entry, name, label)}
        if any("error" not in entry for entry in entries.values()):
            raise InputError("the audit was made before its numbers had standard errors; make it again")
        estimates = {
            report.METRICS[metric][0]: Estimate(**{field: entries[metric][field] for field in Estimate._fields})
            for metric in (f"{attack}_auc" for attack in AUDIT_ATTACKS)
            if metric in entries
        }
        if not all(math.isfinite(number) for estimate in estimates.values() for number in estimate[:4]):
            raise InputError("the audit has a number that is not finite, so nothing follows from it")
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
    if augmented != ours.augment or document["data"]["training_data_sha256"] != hashing.tree_sha256(trained_on):
        raise InputError(
            "the audit's networks were trained on other examples than the network before the run was (all of the "
            "training split that it has not forgotten, with validation_share=0); `--tier` makes a fitting audit"
        )
    wanted = hashing.positions_sha256(_within(job))
    digests = document["ensemble"]["forget_sha256"]
    scenarios = [one for one, digest in zip(theirs["scenarios"], digests, strict=True) if digest == wanted]
    if not scenarios:
        raise InputError("none of the audit's forget sets is that of the run; `--tier` makes a fitting audit")
    settings = json.loads(json.dumps([describe(ours.method), describe(job.measured_settings)]))
    labels = [label for label, known in scenarios[0]["methods"].items() if known in settings]
    if not labels:
        raise InputError(
            f"the audit has no {ours.method_name} with the settings of the run; it has "
            f"{', '.join(scenarios[0]['methods'])}, perhaps with other settings; `--tier` makes a fitting audit"
        )
    return scenarios[0]["name"], labels[0]
