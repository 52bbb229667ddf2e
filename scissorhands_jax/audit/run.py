"""Runs an audit of unlearning methods: one ensemble, all strong metrics, and gates that check the numbers.

For every forget set, half of the networks were trained on it and are made to unlearn it. The others never saw it and
are the reference (`ensembles.design`). All attacks and distances are computed from the answers of the networks to the
same watched examples (`audit.analysis`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, report
from scissorhands_jax.audit import ensembles
from scissorhands_jax.audit.analysis import Measurement, MetricEstimate, klom_bins
from scissorhands_jax.audit.networks import TIERS, Audit, AuditCell, AuditTarget
from scissorhands_jax.audit.scores import SCORES_FILE, AuditScores, numbers_document
from scissorhands_jax.base import Data, ModelState, Params
from scissorhands_jax.errors import DivergedError, InputError, check_seed
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.cells import CellFolder, Diverged
from scissorhands_jax.jobs.experiment import Experiment, OwnNetwork
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.metrics import answers
from scissorhands_jax.plain_terminal import duration_text
from scissorhands_jax.report.gates import Gate, trusted
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training.identity import identify
from scissorhands_jax.training.loop import run

Results = Mapping[AuditTarget, AuditCell | Diverged]


def run_audit(
    experiment: Experiment,
    out: Path,
    *,
    tier: str = "standard",
    num_networks: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    networks: Path | None = None,
    trained_on: np.ndarray | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    own: OwnNetwork | None = None,
) -> dict[str, Any]:
    """Audits the methods of an experiment and writes `results.json`, `scores.json` and `report.html`.

    Every scenario of the experiment has one forget set. Shares of `random:` refer to the whole training set, and later
    forget sets are drawn from what earlier ones left. An audit that was stopped continues when it is called again, and
    one with fewer networks can be made larger.

    Args:
      experiment: Data, network, training, and scenarios with their methods.
      out: The folder of the audit. An audit of the same experiment in it is continued.
      tier: The effort, a key of `TIERS`.
      num_networks: The number of networks in the ensemble, which is even. The default is that of the tier.
      seed: The seed of the forget sets, the inclusion masks and all networks.
      data_dir: The folder of the data set's files, or None for data sets that need none.
      networks: The folder that keeps the networks of the ensemble, which several audits can share. The default is
        `out/networks`.
      trained_on: The positions in the training split of the only examples that networks may be trained on. By default
        all may be used. The positions of a forget set `indices:FILE` count the whole training split all the same.
      overwrite: Whether to replace an audit that exists.
      console: Where to show the expected cost, the progress and the verdict. The default is stderr.
      own: A network of your own with its data and its task, in place of what the experiment names. Its outputs must be
        one array. The features of a classifier are probed if it takes one array and calls a linen `Dense` layer.

    Returns:
      The document in `results.json`: `rows` (one per network), `evidence`, `gates`, `trusted` and more.

    Raises:
      InputError: The experiment cannot be audited, or the folder holds something else.
      DivergedError: An original or retrained network diverged. A method that diverges is listed under `failures`
        instead.
    """
    console = console or Console(stderr=True)
    started = time.perf_counter()
    if tier not in TIERS:
        raise InputError(f"there is no tier {tier!r}; choose one of {', '.join(TIERS)}")
    check_seed(seed)
    audit = Audit(experiment, TIERS[tier], num_networks, seed, data_dir, networks or out / "networks", trained_on, own)
    settings = {"tier": tier, "seed": seed, **audit.loaded.settings}
    identity = identify({"command": "audit", **settings, **audit.data_hashes()})
    with CellFolder.open(
        out, identity, AuditCell, inputs=audit.loaded.inputs, store=networks, overwrite=overwrite
    ) as folder:
        document = _carried_out(audit, folder, out, {"experiment": experiment.name, **settings}, started, console)
        report.write_audit(out / "report.html", document)
    report.print_audit(document, console)
    return document


def _carried_out(
    audit: Audit, folder: CellFolder[AuditCell], out: Path, config: dict[str, Any], started: float, console: Console
) -> dict[str, Any]:
    """Trains the networks that are missing, computes the missing cells, and returns the document."""
    targets = audit.targets()

    def write_results(*, finished: bool) -> dict[str, Any]:
        found = {target: folder.read(audit.cell(target)) for target in targets}
        results = {target: result for target, result in found.items() if result is not None}
        document = _document(audit, results, finished=finished)
        document["config"] = config
        document |= {"seconds": time.perf_counter() - started, **report.environment()}
        document = report.by_first_maker(out / runs.RESULTS_FILE, document)
        if finished:
            files.write_text(out / SCORES_FILE, json.dumps(_scores(audit, results).as_document()))
        report.write_results(out / runs.RESULTS_FILE, document)
        return document

    _announce(audit, [target for target in targets if not folder.is_done(audit.cell(target))], console)
    with progress_bar(console) as progress:
        groups, total = audit.training_groups(), len(audit.ensemble)
        task = progress.add_task("networks", total=total, completed=total - sum(map(len, groups)), note="")
        for group in groups:
            audit.ensemble.make(group, how="auto" if len(group) > 1 else "turns")
            progress.advance(task, len(group))
        cells = [audit.cell(target) for target in targets]
        folder.fill(cells, progress, lambda: write_results(finished=False))
    return write_results(finished=True)


def _document(audit: Audit, results: Results, *, finished: bool) -> dict[str, Any]:
    """Returns the content of `results.json`. An audit that is not finished has no evidence and no gates."""
    estimates: Sequence[MetricEstimate] = ()
    gates: Sequence[Gate] = ()
    ensemble: dict[str, Any] = {
        "networks": len(audit.ensemble),
        "networks_per_side": len(audit.ensemble) // 2,
        "examples": data_lib.size(audit.train),
        "always": len(audit.design.always),
        "halved": len(audit.design.halved),
        "forget": [len(positions) for positions in audit.design.forget],
        "forget_sha256": [hashing.positions_sha256(positions) for positions in audit.design.forget],
        "masks_sha256": hashing.sha256(np.packbits(audit.design.included).tobytes()),
    }
    if finished:
        estimates, gates = _scores(audit, results).numbers()
        ensemble["klom_bins"] = klom_bins(len(audit.ensemble) // 2)
    rows, failures = _rows(audit, results)
    return {
        "rows": report.with_lost_runs(report.with_gaps(rows), failures),
        **numbers_document(estimates, gates),
        "trusted": trusted(gates),
        "failures": failures,
        "data": audit.data_hashes(),
        "ensemble": ensemble,
    }


def _scores(audit: Audit, results: Results) -> AuditScores:
    measurements = (
        Measurement(*target, answers.certainties(audit.loaded.task, cell.logits, audit.watched_examples), cell.inside)
        for target, cell in results.items()
        if isinstance(cell, AuditCell)
    )
    return AuditScores(audit.watched, tuple(measurements))


def _rows(audit: Audit, results: Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns a row for every network that was measured, and the methods that diverged."""
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    failures: list[dict[str, Any]] = []
    for target, cell in results.items():
        forget_set, pair = audit.watched.forget_sets[target.number], target.network // 2
        place = {"scenario": forget_set.name, "method": target.label, "seed": pair}
        if isinstance(cell, Diverged):
            failures.append({**place, "failure": cell.reason})
            continue
        numbers = {**cell.quality, "mia": cell.mia}
        more: dict[str, Any] = {"avg_gap": None, "seconds": cell.seconds, "rte": None, "network": cell.network}
        if not audit.loaded.task.classifies:
            more["task"] = audit.loaded.task.document()
        rows[target.number, forget_set.labels.index(target.label), pair] = {**place, **numbers, **more}
    return [row for _, row in sorted(rows.items(), key=lambda item: item[0])], failures


def _announce(audit: Audit, waiting: Sequence[AuditTarget], console: Console) -> None:
    """Prints the expected cost of the rest of the audit, estimated from one epoch of everything that is left."""
    missing = audit.ensemble.missing()
    if not missing and not waiting:
        return
    data = audit.data(AuditTarget(0, "", int(audit.design.originals(0)[0])))
    everything = Data(None, jax.tree.map(lambda *parts: np.concatenate(parts), *data))
    training = audit.experiment.training
    training_one, network = _seconds_of(audit, training, (None, None), everything)
    answering = 0.0
    for _ in range(2):  # The first pass compiles, and only the second counts.
        started = time.perf_counter()
        audit.answers(network)
        answering = time.perf_counter() - started
    seconds = len(missing) * training_one + len(waiting) * answering
    known: dict[str, float] = {}
    for target in waiting:
        settings = audit.scenarios[target.number].methods.get(target.label)
        if settings is not None:
            if repr(settings) not in known:
                known[repr(settings)], _ = _seconds_of(audit, settings, network, data)
            seconds += known[repr(settings)]
    examined = sum(map(audit.is_examined, waiting))
    seconds += examined * audit.tier.recovery_epochs * training_one / max(1, training.epochs)
    size = ensembles.disk_bytes(audit.loaded.model, len(missing))
    size += 4 * len(waiting) * len(audit.watched.labels) * audit.loaded.num_classes
    say(
        console,
        f"{len(missing)} networks to train and {len(waiting)} to unlearn or measure: about {duration_text(seconds)} on "
        f"this machine and {size / 1e6:,.0f} MB of disk, estimated from one epoch of each",
    )


def _seconds_of(
    audit: Audit, settings: MethodSettings, network: tuple[Params, ModelState], data: Data
) -> tuple[float, tuple[Params, ModelState]]:
    """Estimates the seconds of a method from its start and one epoch, after a first run that compiles."""
    method, key = audit.loaded.method_of(settings, network, audit.held_out), jax.random.key(0)
    epochs = min(1, settings.epochs)
    try:
        first = run(method, key, *network, data, num_epochs=epochs)
        beginning = run(method, key, *network, data, num_epochs=0).seconds
        once = run(method, key, *network, data, num_epochs=epochs).seconds
    except DivergedError:  # The network has hardly been trained, so a method may diverge on it.
        return 0.0, network
    return beginning + settings.epochs * max(0.0, once - beginning), (first.params, first.model_state)
