"""Membership attacks on the networks of a table, after it was filled, from the predictions that it kept.

A table with `Experiment.attack_later` needs no scikit-learn and no time for attacks on the machine that fills it, which
may be borrowed. What it keeps of a network is small and travels without the network.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import array_files, files, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.cells import CellFolder, slug
from scissorhands_jax.jobs.table_cells import TableCell
from scissorhands_jax.metrics.row import Predictions, SetPredictions, attack_numbers, attacked_examples
from scissorhands_jax.report import REFERENCE, table_gates
from scissorhands_jax.tasks import CLASSIFICATION, Task

_SETS = ("forget", "retain", "test")


def predictions_name(scenario: str, seed: int, method: str) -> str:
    """The file of the predictions of one network in the folder of its table."""
    return f"predictions/{slug(scenario)}-seed{seed}-{slug(method)}.npz"


def save_predictions(path: Path, found: Predictions, *, seed: int, network: str, task: Task = CLASSIFICATION) -> None:
    """Writes what the attacks need of a network, without loss: about 1 MB for a random tenth of CIFAR-10.

    Args:
      path: The file.
      found: What the network answers, as `predict_sets` returns it.
      seed: The seed of the attack's subsample.
      network: The hash of the network, as its cell has it, which `read_predictions` compares.
      task: What the network is for.
    """
    arrays: dict[str, Any] = {"network": np.array(network)}
    for name, part in attacked_examples(found, seed=seed, task=task).items():
        arrays |= {f"{name}_logits": part.outputs, f"{name}_labels": part.examples["label"].astype(np.int16)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())


def read_predictions(content: bytes, name: str, *, network: str) -> Predictions:
    """Reads what `save_predictions` wrote.

    Args:
      content: The content of the file.
      name: What the error calls it.
      network: The hash of the network that the predictions must be of, as its cell has it.

    Raises:
      InputError: The file is damaged, or of another network.
    """
    try:
        arrays = array_files.read_arrays(content)
        found = {part: SetPredictions(arrays[f"{part}_logits"], {"label": arrays[f"{part}_labels"]}) for part in _SETS}
        other = str(arrays["network"])
    except (ValueError, KeyError) as error:
        raise InputError(f"{name} holds no predictions ({error}); copy it again") from error
    if other != network:
        raise InputError(f"{name} is of the network {other}, and the table has {network}; use files of one run")
    return found


def with_attacks(
    document: Mapping[str, Any], read: Callable[[str], bytes | None], tell: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Adds the membership attacks to the document of a table, and what follows from them: gaps and gates.

    Args:
      document: The content of `results.json`, as `grid.run_grid` returns it. Networks that have been attacked stay.
      read: Gives the content of a file of `predictions_name`, or None if it is not there.
      tell: Is called with the name of each network before it is attacked.

    Returns:
      The document with them. Networks without predictions stay as they are.

    Raises:
      InputError: Predictions are damaged, or of another network.
    """
    every_attack, found = document["config"]["every_attack"], {}
    for entry in document["cells"]:
        cell = TableCell.decode(json.dumps(entry).encode())
        name = predictions_name(cell.scenario, cell.seed, cell.method)
        content = None if "mia" in cell.metrics else read(name)
        if content is not None:
            tell(f"{cell.scenario}, seed {cell.seed}, {cell.method}")
            predictions = read_predictions(content, name, network=cell.network)
            cell.metrics.update(attack_numbers(predictions, seed=cell.seed, every_attack=every_attack))
        found[cell.scenario, cell.method, cell.seed] = cell
    places = [(row["scenario"], row["method"], row["seed"]) for row in document["rows"]]
    rows = report.with_gaps(found[place].row(found.get((place[0], REFERENCE, place[2]))) for place in places)
    rows = report.with_lost_runs(rows, document["failures"])
    return {
        **document,
        "rows": rows,
        "cells": [cell.as_dict() for cell in found.values()],
        "gates": [gate._asdict() for gate in table_gates.of_rows(rows)],
    }


def keep_in_cells(folder: Path, document: Mapping[str, Any]) -> None:
    """Writes the measurements in the document of a table into its cells, from which a table that goes on is written.

    Args:
      folder: The folder of the table, which nobody else may write to meanwhile. Without cells nothing is written.
      document: What `with_attacks` returned. Cells of other networks than the document's stay as they are.

    Raises:
      CheckpointError: A cell is damaged.
    """
    cells = CellFolder(folder / "cells", TableCell)
    attacked = {(cell.network, cell.title): cell for cell in map(TableCell.from_dict, document["cells"])}
    for found in cells.read_all():
        if not isinstance(found, TableCell):
            continue
        known = attacked.get((found.network, found.title))
        if known is not None and known.metrics != found.metrics:
            cells.replace(found.place, dataclasses.replace(found, metrics=found.metrics | known.metrics))
