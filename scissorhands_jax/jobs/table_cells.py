"""What a table keeps of one network: how it was made, what was measured, and the row of results that follows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from scissorhands_jax import reading, report
from scissorhands_jax.jobs.experiment import Sweep
from scissorhands_jax.metrics import distances


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run took: seconds without compilation, seconds of compilation, and steps."""

    seconds: float
    compile_seconds: float
    steps: int


@dataclasses.dataclass(frozen=True)
class ForgetSummary:
    """Which examples were forgotten: the specifications, their number, and the SHA-256 of their positions."""

    requests: list[str]
    count: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class RelearnSummary:
    """How fast a network learned the forget set again (`metrics.relearning.relearn_time`)."""

    epochs: int | None
    cap: int
    target: float
    curve: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCell:
    """One network of a table: how it was made, and what was measured."""

    SUFFIX: ClassVar[str] = ".json"

    scenario: str
    method: str
    seed: int
    sweep: Sweep | None
    settings: dict[str, Any]
    metrics: dict[str, Any]
    """Numbers, and `task` if it is no classification; see `metrics.row.measure_row`."""
    cost: Cost | None
    process: str
    """Names the process that made it. Times of different processes are not compared."""
    network: str
    """The SHA-256 of the network; eight digits of another checksum in tables of earlier versions."""
    code: str | None = None
    """The code that measured it, and made its network unless `trained_by` names other code; see
    `provenance.Code.name`. None in cells from before it was recorded."""
    original: str | None = None
    """The SHA-256 of the original that it was unlearned from. None for references, and in cells from before it was
    recorded."""
    trained_by: str | None = None
    """The code that trained its network, if the network was there already and was made by other code."""
    experiment_sha256: str | None = None
    """A hash of all settings of its table except the scenarios. None in cells from before it was recorded."""
    data_sha256: dict[str, str] | None = None
    """Hashes of the data of its table. None in cells from before they were recorded."""
    flipped_labels: float | None = None
    """The share of the training examples that carried a wrong label. None in cells from before it was recorded."""
    forget: ForgetSummary
    relearn: RelearnSummary | None

    @property
    def place(self) -> dict[str, str | int]:
        """Its coordinates (`cells.ResultCell.place`)."""
        return {"scenario": self.scenario, "seed": self.seed, "method": self.method}

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.scenario}, seed {self.seed}, {self.method}"

    def as_dict(self) -> dict[str, Any]:
        """The cell as JSON, without what is optional where there is none."""
        optional = ("sweep", "relearn", "original", "trained_by", "data_sha256")
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None or name not in optional}

    def encode(self) -> bytes:
        """The content of its file."""
        return (json.dumps(self.as_dict(), indent=2) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Reads what `encode` wrote."""
        return cls.from_dict(reading.parse_json(content, nan=True))

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The cell of which `as_dict` gave this.

        Raises:
          KeyError, TypeError: It is no cell.
        """
        fields = dict(found)
        parts: dict[str, Callable[..., Any]] = {
            "sweep": Sweep,
            "cost": Cost,
            "forget": ForgetSummary,
            "relearn": RelearnSummary,
        }
        for name, kind in parts.items():
            fields[name] = None if fields.get(name) is None else kind(**fields[name])
        return cls(**fields)

    def row(self, reference: TableCell | None) -> dict[str, Any]:
        """The row of results, compared with the retrained network of the same scenario and seed."""
        row: dict[str, Any] = {"scenario": self.scenario, "method": self.method, "seed": self.seed}
        if self.sweep is not None:
            row["sweep"] = dataclasses.asdict(self.sweep)
        row |= {"mia": None, **self.metrics}  # missing where the attacks come later
        row["seconds"] = None if self.cost is None else self.cost.seconds
        row["compile_seconds"] = None if self.cost is None else self.cost.compile_seconds
        row |= {"avg_gap": None, "rte": None}
        if reference is not None:
            if "mia" in self.metrics and "mia" in reference.metrics:
                row["avg_gap"] = distances.average_gap(self.metrics, reference.metrics)
            if self.cost is not None and reference.cost is not None and self.process == reference.process:
                row["rte"] = self.cost.seconds / reference.cost.seconds
        if self.relearn is not None:
            row |= {"relearn_epochs": self.relearn.epochs, "relearn_cap": self.relearn.cap}
        return {name: row[name] for name in dict.fromkeys((*report.row_fields(row), *row))}
