"""Entries and records for tests, whole but made up."""

from scissorhands_jax.deletion.entries import FORGOTTEN, LedgerBegun, RunRecorded, RunStarted
from scissorhands_jax.deletion.records import (
    Code,
    DigestedSet,
    Record,
    RecordedEvidence,
    RecordedFinding,
    RecordedNetwork,
    RecordedRequest,
    RecordedSet,
    RecordedUtility,
    RunFiles,
    Share,
)
from scissorhands_jax.deletion.verdicts import EvidenceGate, Verdict

ABOUT = LedgerBegun(model="mlp", dataset="digits", network="0" * 64)


def started(run: int, *requests: int, config: str = "{}") -> RunStarted:
    """Returns the entry of a run that works on requests."""
    return RunStarted(
        run=run, requests=requests, config=config, budget="1.0", level="0.95", audit=None, network="0" * 64
    )


def recorded(run: int, *requests: int) -> RunRecorded:
    """Returns the entry that ends that run."""
    lost = {"retain": "0.0", "test": "0.5"}
    return RunRecorded(run=run, requests=requests, record="c" * 64, verdict=FORGOTTEN, network="d" * 64, lost=lost)


def record(**changes) -> Record:
    """Returns a record in which every field has a value."""
    fields = dict(
        ledger="ab",
        number=1,
        previous="0" * 64,
        finished="2026-11-21T18:20:00Z",
        requests=(RecordedRequest(1, "2026-11-21T18:20:00Z", "2026-12-21", 2, "a" * 64),),
        earlier_tries=0,
        network=RecordedNetwork("mlp", "b" * 64, "c" * 64),
        files=RunFiles({"network.safetensors": "d" * 64}, {"run.json": "e" * 64, "forget_indices.txt": None}),
        forget=DigestedSet(2, "f" * 64),
        forgotten_before=0,
        training_set=DigestedSet(200, "0" * 64),
        test_set=DigestedSet(50, "9" * 64),
        configuration={
            "model": "mlp",
            "method_name": "finetune",
            "method": {"learning_rate": "0.1", "milestones": [1, 2]},
            "augment": None,
        },
        configuration_sha256="1" * 64,
        identity="8" * 64,
        code=Code(None, "2" * 64, "3" * 40, False),
        versions={"python": "3.11.0", "scikit-learn": None},
        machine={"backend": "cpu", "devices": 1},
        metrics={when: {"forget": Share.of_counts(1, 2)} for when in ("before", "after")},
        test=((3, 4), (5, 6)),
        evidence=RecordedEvidence(
            "test",
            "0.95",
            (RecordedFinding("AUC", "0.5", "0.4", "0.6", True),),
            (EvidenceGate("gate", True, "because"),),
        ),
        utility=RecordedUtility(
            "1.0",
            "0.0000",
            "0.1000",
            {"retain": RecordedSet(4, 5, "0.25"), "test": RecordedSet(1, 2, "0.5")},
            {"retain": RecordedSet(3, 5, "0.5"), "test": RecordedSet(1, 2, "0.75")},
        ),
        verdict=Verdict(FORGOTTEN, ("nothing is left",)),
        report="4" * 64,
    )
    return Record(**{**fields, **changes})
