"""What `scissorhands lm evaluate` does: every aggregate that published evaluation logs allow."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.aggregates import (
    TestResult,
    attack_auc,
    disagreements,
    forget_quality,
    forget_ratios,
    paired_test,
    privacy_leakage,
    utility_by_definition,
)
from scissorhands_jax.language.answer_scores import SETS, EvaluationLog, Series
from scissorhands_jax.language.calibration import LEAST_RETRAINED, CalibratedTest, calibrated_test
from scissorhands_jax.language.evaluation_logs import read_evaluation_log
from scissorhands_jax.language.truth_ratios import DEFINITIONS

_Question = tuple[str, int]  # the right answer, and how many with the same answer came before it
PAIRED = ("arithmetic", "geometric")
"""The definitions whose logarithms paired tests compare; that of the third is the second's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainedComparison:
    """A network compared with one that never saw the forget set."""

    log: str
    """The log of the latter."""
    forget_quality: dict[str, TestResult]
    """TOFU's Kolmogorov-Smirnov test by definition of the truth ratio."""
    paired_test: dict[str, TestResult]
    """Wilcoxon's signed-rank test of the questions that both answered, by definition."""
    privleak: dict[str, float]
    """By the name of the attack; only what both logs have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """All aggregates of a network that its log and those of others allow."""

    log: str
    format: str
    sets: dict[str, dict[str, Any]]
    """The number of examples and the mean of each measure, by set."""
    model_utility: dict[str, float]
    """By definition of the truth ratio; empty if the log does not allow it."""
    attacks: dict[str, float]
    """The areas under the curves of membership attacks."""
    scores: dict[str, float]
    """The means of further metrics."""
    against: list[RetrainedComparison]
    """The comparison with each retrained network."""
    calibrated_test: dict[str, CalibratedTest]
    """By definition; with at least three retrained networks."""
    recorded: dict[str, float]
    """The aggregates that the log itself states."""
    remarks: list[str]
    """What is not computed and why, and where a log contradicts itself."""

    def document(self) -> dict[str, Any]:
        """The judgement as JSON; infinite ends of ranges are None."""
        return _plain(self)


def read_references(
    log: str | os.PathLike, retain_logs: Sequence[str | os.PathLike] = (), original_log: str | os.PathLike | None = None
) -> tuple[list[EvaluationLog], EvaluationLog | None]:
    """Reads the logs that the log of a network is compared with, which need not be there yet.

    Args:
      log: The log of the network in question.
      retain_logs, original_log: As for `judge_logs`.

    Returns:
      The retain logs, and the original's.

    Raises:
      InputError: As `judge_logs` does for these logs.
    """
    paths = [os.path.realpath(path) for path in (*retain_logs, log, *([original_log] if original_log else []))]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"the log {twice[0]} is given twice; give the log of another network")
    if original_log is not None and len(retain_logs) < LEAST_RETRAINED:
        raise InputError(
            f"--original-log is for the calibrated test, which needs {LEAST_RETRAINED} retain logs and has "
            f"{len(retain_logs)}; give more, or leave it out"
        )
    references = [read_evaluation_log(path) for path in retain_logs]
    return references, None if original_log is None else read_evaluation_log(original_log)


def judge_logs(
    log: str | os.PathLike,
    retain_logs: Sequence[str | os.PathLike] = (),
    original_log: str | os.PathLike | None = None,
) -> Judgement:
    """Computes every aggregate that published evaluation logs allow.

    Args:
      log: The log of the network in question, see `read_evaluation_log`.
      retain_logs: Logs of networks that never saw the forget set. Forget quality and the paired test need one, the
        calibrated test at least `LEAST_RETRAINED`.
      original_log: The log of the network before it forgot, which the calibrated test uses. It needs retain logs.

    Raises:
      InputError: A log cannot be read or is damaged; a file is given twice; or the original is given without enough
        retain logs.
    """
    references, original = read_references(log, retain_logs, original_log)
    own = read_evaluation_log(log)
    remarks = [remark for part in (own, *references, *([original] if original else [])) for remark in part.remarks]
    remarks += [
        f"{own.path} states {stated:.6g} for {name}, but its examples give {computed:.6g}"
        for name, (stated, computed) in disagreements(own).items()
    ]
    utility = utility_by_definition(own)
    remarks += [f"no model utility ({kind}): {found}" for kind, found in utility.items() if isinstance(found, str)]
    if not retain_logs:
        remarks.append(
            "no forget quality and no paired test: they need the log of a network that never saw the forget set"
        )
    against = [_compare(own, reference, remarks) for reference in references]
    return Judgement(
        log=str(own.path),
        format=own.format,
        sets={
            name: {"examples": own.sets[name].num_examples} | own.sets[name].means(name, own.epsilon)
            for name in SETS
            if name in own.sets
        },
        model_utility={kind: found for kind, found in utility.items() if isinstance(found, float)},
        attacks={name: attack_auc(attack) for name, attack in own.attacks.items()},
        scores={name: float(series.values.mean()) for name, series in own.scores.items()},
        against=against,
        calibrated_test=_calibrate(own, references, original, remarks),
        recorded=dict(own.recorded),
        remarks=remarks,
    )


def _compare(own: EvaluationLog, reference: EvaluationLog, remarks: list[str]) -> RetrainedComparison:
    quality = {kind: forget_quality(own, reference, kind) for kind in DEFINITIONS}
    known = {kind: found for kind, found in quality.items() if found is not None}
    paired = {}
    for definition in PAIRED if known else ():
        aligned = _aligned([own, reference], definition)
        if isinstance(aligned, str):
            remarks.append(f"no paired test ({definition}) against {reference.path}: {aligned}")
        elif aligned.shape[1]:
            paired[definition] = paired_test(*aligned)
    if not known:
        lacking = own if forget_ratios(own, "geometric") is None else reference
        remarks.append(
            f"no forget quality against {reference.path}: {lacking.path} has no truth ratios of the forget set"
        )
    else:
        sizes = known["geometric"].examples, known["geometric"].reference_examples
        shared = _num_shared(own, reference)
        if not shared:
            remarks.append(f"no paired test against {reference.path}: the logs share no question of the forget set")
        if shared < max(sizes):
            remarks.append(
                f"forget quality against {reference.path} compares {sizes[0]} questions with {sizes[1]}, of which "
                f"{shared} are the same; it is meant for logs of one forget set"
            )
    leaks = {
        name: privacy_leakage(attack_auc(attack), attack_auc(reference.attacks[name]))
        for name, attack in own.attacks.items()
        if name in reference.attacks
    }
    return RetrainedComparison(log=str(reference.path), forget_quality=known, paired_test=paired, privleak=leaks)


def _num_shared(own: EvaluationLog, reference: EvaluationLog) -> int:
    """The number of questions of the forget set that both logs have truth ratios of."""
    tables = []
    for log in (own, reference):
        series = forget_ratios(log, "geometric")
        assert series is not None
        tables.append((series, log.sets["forget"].texts))
    return len(_shared(tables)[1])


def _calibrate(
    own: EvaluationLog, references: list[EvaluationLog], original: EvaluationLog | None, remarks: list[str]
) -> dict[str, CalibratedTest]:
    if len(references) < LEAST_RETRAINED:
        if references:
            remarks.append(
                f"no calibrated test: it needs logs of {LEAST_RETRAINED} retrained networks or more, and without it a "
                "small p-value of the paired test can be the difference between two honest training runs"
            )
        return {}
    found = {}
    for definition in PAIRED:
        aligned = _aligned([own, *references, *([original] if original else [])], definition)
        if not isinstance(aligned, str) and aligned.shape[1] < 2:
            aligned = "the logs share fewer than two questions of the forget set"
        if isinstance(aligned, str):
            remarks.append(f"no calibrated test ({definition}): {aligned}")
            continue
        last = len(references) + 1
        found[definition] = calibrated_test(aligned[0], aligned[1:last], aligned[last] if original else None)
    return found


def _aligned(logs: list[EvaluationLog], definition: str) -> np.ndarray | str:
    """Log truth ratios of all logs on the questions that they share, as rows; or why a log has none, in words."""
    tables = []
    for log in logs:
        series = log.sets["forget"].log_ratios(definition) if "forget" in log.sets else None
        if series is None:
            if forget_ratios(log, "geometric") is None:
                return f"{log.path} has no truth ratios of the forget set"
            if definition == "arithmetic":
                return f"{log.path} states truth ratios of the forget set, but no losses of right and wrong answers"
            return f"{log.path} states a truth ratio of 0 in the forget set, which has no logarithm"
        tables.append((series, log.sets["forget"].texts))
    rows, shared = _shared(tables)
    return np.array([[row[key] for key in shared] for row in rows])


def _shared(tables: Sequence[tuple[Series, Mapping[str, str]]]) -> tuple[list[dict[_Question, float]], list[_Question]]:
    """The numbers of each table by question, and the questions that all tables have, in the order of the first."""
    with_texts = all(set(series.examples) <= set(texts) for series, texts in tables)
    rows = [_keyed(series, texts if with_texts else {}) for series, texts in tables]
    return rows, [key for key in rows[0] if all(key in row for row in rows[1:])]


def _keyed(series: Series, texts: Mapping[str, str]) -> dict[_Question, float]:
    """Numbers by the right answer, or by the example where answers are not known; equal answers are counted."""
    seen: Counter[str] = Counter()
    found = {}
    for example, value in zip(series.examples, series.values, strict=True):
        key = texts.get(example, example)
        found[key, seen[key]] = float(value)
        seen[key] += 1
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
