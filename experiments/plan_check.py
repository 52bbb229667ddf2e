"""Compares plans with what is measured: `python -m experiments.plan_check --out experiments/results/plan_cpu.json`.

For each case one process plans a run and another one makes it, on images of noise with random weights. The results
are predicted and measured memory (the largest resident set of the process that ran) and time (its wall time, and that
of the run within it), with their ratios. Memory is only judged on a CPU, where it is the memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import files, models, reading, report, torch_weights
from scissorhands_jax.jobs.progress import status
from scissorhands_jax.terminal import Console, Table

MEMORY_AIM, TIME_AIM = 0.2, 0.3  # relative
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp", "train": 2_000, "arguments": ["--epochs", "20"]},
    "resnet20": {"model": "resnet20", "train": 1_400, "arguments": ["--epochs", "1"]},
    "resnet20, 4 microbatches": {
        "model": "resnet20",
        "train": 1_400,
        "arguments": ["--epochs", "1", "method.microbatches=4"],
    },
    "resnet18": {"model": "resnet18", "train": 500, "arguments": ["--epochs", "1", "--batch-size", "64"]},
}
CLASSES, SHAPE, TEST = 10, (32, 32, 3), 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the chosen cases and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plan_check", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the results as JSON; other cases in it are kept"
    )
    parser.add_argument("--only", choices=CASES, action="append", help="this case; may be repeated")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    rows = {}
    if options.out is not None and options.out.exists():
        rows = {row["case"]: row for row in reading.read_json(options.out)["results"]}
    for name in options.only or CASES:
        with status(console, name), tempfile.TemporaryDirectory() as folder:
            rows[name] = {"case": name, **check(Path(folder), **CASES[name])}
        document = {
            "results": [rows[case] for case in CASES if case in rows],
            "aims": {"memory": MEMORY_AIM, "time": TIME_AIM},
            **report.environment(),
        }
        if options.out is not None:
            files.write_text(options.out, json.dumps(document, indent=2) + "\n")
    Console().print(table(list(rows.values())))
    return 0


def check(folder: Path, *, model: str, train: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Plans a run on noise in one process, makes it in another, and compares the two."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("", train), ("test_", TEST)):
        arrays[f"{part}image"] = rng.integers(0, 256, (count, *SHAPE), np.uint8)
        arrays[f"{part}label"] = np.arange(count) % CLASSES
    np.savez(folder / "noise.npz", **arrays)
    network = models.build(model, num_classes=CLASSES, image_shape=SHAPE)
    weights = folder / "weights.safetensors"
    torch_weights.write_safetensors(weights, torch_weights.to_state_dict(*network.init(jax.random.key(0))))
    job = ["--model", model, "--dataset", f"npz:{folder / 'noise.npz'}", "--weights", str(weights)]
    job += ["--forget", "random:0.1", *arguments]

    planned = folder / "plan.json"
    _measured(["plan", *job, "--json"], planned)
    plan = reading.read_json(planned)
    seconds, memory = _measured(["unlearn", *job, "--out", str(folder / "run")], folder / "output.txt")
    cost = reading.read_json(folder / "run" / "results.json")["cost"]
    predicted = plan["seconds"]
    within = sum(predicted[part] for part in ("beginning", "epochs", "steps", "saving"))
    return {
        "steps": {"predicted": plan["steps"], "measured": cost["steps"]},
        "memory_bytes": _compared(plan["memory"]["total_bytes"], memory),
        "seconds": _compared(predicted["total"], seconds),
        "run_seconds": _compared(within, cost["seconds"]),
        "plan": {name: plan[name] for name in ("parameters", "kinds", "seconds")} | {"memory": plan["memory"]},
        "load": list(os.getloadavg()),
    }


def _measured(arguments: Sequence[str], output: Path) -> tuple[float, int]:
    """Returns the wall time of a command in a new process in seconds, and its largest resident set in bytes."""
    with output.open("w", encoding="utf-8") as file:
        start = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        command = [sys.executable, "-m", "scissorhands_jax", *arguments]
        _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=actions), 0)
        seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _compared(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns a table with predictions and measurements next to each other."""
    made = Table("case", "MB predicted", "measured", "ratio", "s predicted", "measured", "ratio", "run alone")
    for row in rows:
        memory, seconds = row["memory_bytes"], row["seconds"]
        made.add_row(
            row["case"],
            *(f"{memory[name] / 1e6:,.0f}" for name in ("predicted", "measured")),
            _judged(memory["ratio"], MEMORY_AIM),
            *(f"{seconds[name]:.1f}" for name in ("predicted", "measured")),
            _judged(seconds["ratio"], TIME_AIM),
            _judged(row["run_seconds"]["ratio"], TIME_AIM),
        )
    return made


def _judged(ratio: float, aim: float) -> str:
    return f"[{'green' if abs(ratio - 1) <= aim else 'red'}]{ratio:.2f}"


if __name__ == "__main__":
    sys.exit(main())
