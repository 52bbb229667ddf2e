"""The page that shows a signed record to people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from scissorhands_jax import report
from scissorhands_jax.deletion.records import Record

_HOW_TO_CHECK = (
    "`scissorhands request verify` recomputes every hash and signature, the chain of the records, and the network's "
    "numbers. With `--public public_key.pem` it does so for people who do not have the ledger's keys. What describes "
    "the forgotten examples is hashed under secrets of requests and runs, and none of their content is here."
)


def write_record_page(path: Path, record: Record, rows: Iterable[report.Row]) -> None:
    """Writes the page of a record.

    Args:
      path: The file.
      record: The record. Its `report`, the hash of this page, is not shown.
      rows: The rows of the run's results.
    """
    asked = [
        f"Request {request.id} of {request.received}, due {request.due}: {request.examples} examples."
        for request in record.requests
    ]
    if record.earlier_tries:
        asked.append(f"Earlier runs with examples of this one: {record.earlier_tries}.")
    evidence = record.evidence
    measured = tuple(
        tuple(report.Cell(text) for text in (finding.name, finding.value, finding.low, finding.high))
        for finding in evidence.findings
    )
    headers = ("What was measured", "Value", "Low", "High")
    note = "A network that never saw the examples lies between low and high."
    sheets = [report.Sheet(f"Evidence: {evidence.source}", report.Grid(headers, measured), [note])] if measured else []
    report.write_html(
        path,
        report.Page(
            title=f"Record {record.number}: {record.verdict.answer}",
            answer=" ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in record.verdict.reasons),
            byline=f"requests {', '.join(str(request.id) for request in record.requests)}; finished {record.finished}",
            gates=[{"name": gate.name, "passed": gate.passed, "explanation": gate.why} for gate in evidence.gates],
            sheets=sheets,
            rows=rows,
            remarks=[report.Section("What was asked", asked), report.Section("How to check it", [_HOW_TO_CHECK])],
            settings={**record.configuration, "utility": dataclasses.asdict(record.utility)},
            environment={
                "code": dataclasses.asdict(record.code),
                "versions": record.versions,
                "machine": record.machine,
            },
            hashes={
                "record before": record.previous,
                "network": {"before": record.network.before, "after": record.network.after},
                "run, under a salt": record.identity,
                "forget set, under a salt": record.forget.digest,
                "training set, under the secret": record.training_set.digest,
                "test set, under the secret": record.test_set.digest,
                "configuration": record.configuration_sha256,
            },
        ),
    )
