"""The scores of all networks of an audit as JSON, from which every number of the audit can be computed again."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scissorhands_jax.audit.analysis import Analysis, AuditedSet, InsideNumbers, Measurement, MetricEstimate, Watched
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import ORIGINAL, REFERENCE
from scissorhands_jax.report.gates import Gate

SCORES_FILE = "scores.json"
"""The name of the file, in the folder of an audit, that holds the scores."""

_FORMAT = 2
_LARGEST_NUMBER = 1e100  # of a score, so that squares and their sums are finite


@dataclasses.dataclass(frozen=True)
class AuditScores:
    """What all networks of an audit answered to the watched examples."""

    watched: Watched
    measurements: tuple[Measurement, ...]

    def as_document(self) -> dict[str, Any]:
        """Returns the scores as JSON values: masks and margins are base64, margins float64 in little-endian
        order, and labels and columns are lists."""
        watched = self.watched
        return {
            "format": _FORMAT,
            "networks": len(watched.included),
            "labels": watched.labels.tolist(),
            "of_margins": watched.of_margins,
            "included": [_bits(row) for row in watched.included],
            "forget_sets": [
                {
                    "name": one.name,
                    "labels": list(one.labels),
                    "columns": one.columns.tolist(),
                    "of_classes": bool(one.of_classes),
                }
                for one in watched.forget_sets
            ],
            **{name: getattr(watched, name).tolist() for name in ("always", "halved", "held_out")},
            "measurements": [
                {
                    "set": one.number,
                    "label": one.label,
                    "network": one.network,
                    "margins": base64.b64encode(np.asarray(one.margins, "<f8").tobytes()).decode(),
                    "inside": None if one.inside is None else dataclasses.asdict(one.inside),
                }
                for one in self.measurements
            ],
        }

    @classmethod
    def from_document(cls, document: Any) -> AuditScores:
        """Reads what `as_document` has written, which need not be trusted.

        Raises:
          InputError: The document has another form, a number in it is not finite, or it contradicts the design of an
            audit: which networks were trained on which examples, and which of them are measured.
        """
        try:
            if document["format"] != _FORMAT:
                raise ValueError(f"its format is {document['format']!r}; expected {_FORMAT}")
            labels = _whole_numbers(document["labels"])
            networks, columns = document["networks"], len(labels)
            held_out = _columns(document["held_out"], columns)
            forget_sets = tuple(
                AuditedSet(
                    str(one["name"]),
                    tuple(map(str, one["labels"])),
                    _columns(one["columns"], columns),
                    one["of_classes"] is True,
                )
                for one in document["forget_sets"]
            )
            watched = Watched(
                labels=labels,
                included=np.stack([_flags(row, columns - len(held_out)) for row in document["included"]]),
                forget_sets=forget_sets,
                always=_columns(document["always"], columns),
                halved=_columns(document["halved"], columns),
                held_out=held_out,
                of_margins=document["of_margins"] is True,
            )
            measurements = tuple(_measurement(one, columns) for one in document["measurements"])
            _check_design(watched, networks)
            _check_measurements(watched, measurements)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise InputError(f"its scores cannot be read: {type(error).__name__} {error}") from error
        return cls(watched, measurements)

    def check_settings(self, results: Mapping[str, Any]) -> None:
        """Checks that the settings of an audit are about the forget sets, methods and networks of the scores.

        Args:
          results: What the audit has in `results.json`, which need not be trusted.

        Raises:
          ValueError: They are about others.
          KeyError, TypeError, AttributeError: They have another form.
        """
        scenarios = {one["name"]: set(one["methods"]) for one in results["config"]["scenarios"]}
        audited = {one.name: set(one.labels[2:]) for one in self.watched.forget_sets}
        ensemble = results["ensemble"]
        digests = ensemble["forget_sha256"]
        if scenarios != audited or not isinstance(digests, list) or len(digests) != len(audited):
            raise ValueError("its scores are about other forget sets or methods than its settings")
        if ensemble["networks"] != len(self.watched.included):
            raise ValueError("its scores are about another number of networks than its settings")

    def numbers(self) -> tuple[list[MetricEstimate], list[Gate]]:
        """Computes all estimates and gates of the audit from the scores."""
        analysis = Analysis(self.watched, self.measurements)
        estimates = analysis.estimates()
        reported = {one.metric for one in estimates}
        return estimates, [*analysis.attack_gates(reported), *analysis.distance_gates(reported)]


def numbers_document(estimates: Sequence[MetricEstimate], gates: Sequence[Gate]) -> dict[str, Any]:
    """Returns the estimates and gates of an audit as they are in `results.json`, under `evidence` and `gates`."""
    return {
        "evidence": [one.as_dict() for one in estimates],
        "gates": [
            gate._asdict() | {"estimate": None if gate.estimate is None else gate.estimate._asdict()} for gate in gates
        ],
    }


def _bits(row: np.ndarray) -> str:
    return base64.b64encode(np.packbits(row).tobytes()).decode()


def _flags(text: str, count: int) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError("a network does not say for each training example whether it was trained on it")
    return np.unpackbits(packed, count=count).astype(bool)


def _whole_numbers(values: Any) -> np.ndarray:
    if not isinstance(values, list) or any(type(value) is not int or not 0 <= value < 2**31 for value in values):
        raise ValueError("whole numbers are missing")
    return np.asarray(values, np.int32)


def _columns(values: Any, total: int) -> np.ndarray:
    found = _whole_numbers(values)
    if len(np.unique(found)) < len(found) or (found >= total).any():
        raise ValueError("an example is named twice, or does not exist")
    return found


def _measurement(one: Mapping[str, Any], columns: int) -> Measurement:
    margins = np.frombuffer(base64.b64decode(one["margins"], validate=True), "<f8").astype(np.float64)
    if len(margins) != columns or not (np.abs(margins) < _LARGEST_NUMBER).all():  # NaN is not smaller either
        raise ValueError(f"network {one['network']!r} has not one number below {_LARGEST_NUMBER:g} for each example")
    inside = None if one["inside"] is None else InsideNumbers(**one["inside"])
    if inside is not None:
        optional = (inside.probe_forget, inside.probe_held_out, inside.distance_retrained)
        values = [*inside.recovery, inside.distance_original, *(value for value in optional if value is not None)]
        if not inside.recovery or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise ValueError(f"network {one['network']!r} has numbers that are not finite")
    place = _whole_numbers([one["set"], one["network"]]).tolist()
    return Measurement(place[0], str(one["label"]), place[1], margins, inside)


def _check_design(watched: Watched, networks: Any) -> None:
    """Checks that the masks are those of `ensembles.design`: halves, and sets that a network has as a whole or not."""
    included = watched.included
    parts = [*(one.columns for one in watched.forget_sets), watched.always, watched.halved, watched.held_out]
    if len(included) != networks or networks < 2 or networks % 2:
        raise ValueError(f"it has masks of {len(included)} networks; expected {networks!r}, an even number")
    if len(np.unique(np.concatenate(parts))) != sum(map(len, parts)) or sum(map(len, parts)) != len(watched.labels):
        raise ValueError("not every example belongs to exactly one part of the audit")
    if len(watched.held_out) and watched.held_out.min() < included.shape[1]:
        raise ValueError("held-out examples do not come last")
    if not watched.forget_sets or not included[:, watched.always].all():
        raise ValueError("it has no forget set, or not every network was trained on the examples that all have")
    halves = [*(one.columns for one in watched.forget_sets), watched.halved]
    if any((included[::2, columns] == included[1::2, columns]).any() for columns in halves):
        raise ValueError("the two networks of a pair were trained on the same example of a half")
    if any(len(np.unique(included[:, one.columns], axis=1).T) != 1 for one in watched.forget_sets):
        raise ValueError("a network was trained on a part of a forget set, or a forget set is empty")


def _check_measurements(watched: Watched, measurements: Sequence[Measurement]) -> None:
    """Checks that each network is measured once under the label that it has by the design."""
    found = {(one.number, one.label, one.network) for one in measurements}
    if len(found) != len(measurements):
        raise ValueError("a network is measured twice")
    for one in measurements:
        forget_set = watched.forget_sets[one.number]
        has_seen = bool(watched.included[one.network, forget_set.columns[0]])
        if one.label not in forget_set.labels or has_seen is (one.label == REFERENCE):
            raise ValueError(f"network {one.network} cannot be {one.label!r} of {forget_set.name!r}")
    for number in range(len(watched.forget_sets)):
        both = sum((number, label, network) in found for label in (ORIGINAL, REFERENCE) for network in _all(watched))
        if both != len(watched.included):
            raise ValueError("not every network of the ensemble was measured")


def _all(watched: Watched) -> range:
    return range(len(watched.included))
