"""The newer format of logs: `TOFU_EVAL.json` and `MUSE_EVAL.json` of OpenUnlearning.

Reference:
  https://github.com/locuslab/open-unlearning, src/evals/metrics
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax.language.answer_scores import (
    WITH_OPTIONS,
    AnswerLosses,
    AnswerScores,
    AttackScores,
    EvaluationLog,
    Series,
)
from scissorhands_jax.language.log_parts import ANY, LOSS, SHARE, LogPart, NumberRange, in_order, texts_of
from scissorhands_jax.language.truth_ratios import PUBLISHED_EPSILON

PREFIXES = {"retain": "retain", "ra": "real authors", "wf": "world facts", "forget": "forget"}
"""How the names of metrics begin, each with the set of questions that they are about."""
_MUSE_ROUGE = ("forget_verbmem_rouge", "forget_knowmem_rouge", "retain_knowmem_rouge")
_SINGLE = ("forget_quality", "model_utility", "privleak")  # aggregates without a number for each example


def is_open_unlearning(document: Mapping[str, Any]) -> bool:
    """Whether a log is of the newer format."""
    return any(isinstance(part, dict) and "agg_value" in part for part in document.values())


def read_open_unlearning_log(path: Path, document: Mapping[str, Any]) -> EvaluationLog:
    """Reads a log of the newer format. Examples whose numbers are null are left out, as the published code does.

    Args:
      path: The file, for messages.
      document: What the file has.

    Raises:
      InputError: A metric is damaged.
    """
    return _Reader(path, document).read()


@dataclasses.dataclass
class _Reader:
    path: Path
    document: Mapping[str, Any]
    remarks: list[str] = dataclasses.field(default_factory=list)
    used: set[str] = dataclasses.field(default_factory=set)

    def read(self) -> EvaluationLog:
        self.metrics: dict[str, tuple[str, dict[str, Any]]] = {}
        for name, part in self.document.items():
            if isinstance(part, dict) and "value_by_index" in part and "agg_value" not in part:
                raise LogPart(self.path, name).error("it has value_by_index and no agg_value")
            if not isinstance(part, dict) or "agg_value" not in part:
                self.remarks.append(
                    f"{self.path} has the part {name[:60]!r}, which is not a metric, so it was left out"
                )
            elif name.lower() in self.metrics:
                other = self.metrics[name.lower()][0]
                self.remarks.append(f"{self.path} has {name} and {other}; the latter was used")
            else:
                self.metrics[name.lower()] = (name, part)
        recorded = self.recorded()
        sets = {name: self.scores(prefix, name) for prefix, name in PREFIXES.items()}
        log = EvaluationLog(
            path=self.path,
            format="open-unlearning",
            sets={name: scores for name, scores in sets.items() if scores != AnswerScores()},
            scores=self.other_scores(),
            attacks=self.attacks(),
            recorded=recorded,
        )
        unread = [name for key, (name, _) in self.metrics.items() if key not in self.used and key not in _SINGLE]
        if unread:
            shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
            self.remarks.append(f"{self.path} has metrics that were not computed again: {shown}")
        return dataclasses.replace(log, remarks=tuple(dict.fromkeys(self.remarks)))

    def recorded(self) -> dict[str, float]:
        """The aggregates that the log states."""
        found = {}
        for name, part in self.metrics.values():
            value = part["agg_value"]
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                self.remarks.append(f"{self.path} states {'no value' if value is None else value} for {name}")
            else:
                found[name] = LogPart(self.path, name).number(value, "agg_value", "", ANY)
        return found

    def entries(self, key: str, *fields: str) -> dict[str, dict[str, Any]]:
        """The entries of a metric's examples that have a number in all fields; {} if the log lacks the metric."""
        name, part = self.metrics.get(key, (key, {}))
        if "value_by_index" not in part:
            return {}
        self.used.add(key)
        place, kept = LogPart(self.path, name), {}
        table = place.table(part["value_by_index"], "value_by_index")
        for example, entry in table.items():
            if entry is None or (isinstance(entry, dict) and any(entry.get(field, 0) is None for field in fields)):
                continue
            if not isinstance(entry, dict) or any(field not in entry for field in fields):
                raise place.error(f"example {example[:40]!r} has no {' and '.join(fields)}")
            kept[example] = entry
        if not kept:
            raise place.error("it has no number for any example")
        if len(kept) < len(table):
            self.remarks.append(
                f"{self.path}: {len(table) - len(kept)} of {len(table)} examples of {name} have no number"
            )
        return kept

    def series(self, key: str, field: str, within: NumberRange) -> Series | None:
        """The number of each example of a metric; the mean, if an example has several."""
        entries = self.entries(key, field)
        if not entries:
            return None
        place = LogPart(self.path, self.metrics[key][0])
        examples, rows = place.rows({name: entry[field] for name, entry in entries.items()}, field, within)
        return Series(examples, rows.mean(axis=1))

    def scores(self, prefix: str, name: str) -> AnswerScores:
        """What the log has about one set of questions."""
        spoken = f"{prefix}_q_a_rouge"
        return AnswerScores(
            probability=self.series(f"{prefix}_q_a_prob", "prob", SHARE),
            option_probability=self.option_probability(prefix) if name in WITH_OPTIONS else None,
            rouge=self.series(spoken, "rougeL_recall", SHARE),
            losses=self.losses(prefix, name),
            stated_ratios=self.series(f"{prefix}_truth_ratio", "score", LOSS),
            texts=texts_of(self.entries(spoken), lambda entry: entry["ground_truth"]),
        )

    def right_and_wrong(self, prefix: str, right_key: str, field: str, within: NumberRange) -> AnswerLosses | None:
        """A number of the right answer and of each wrong one, of examples that have both."""
        wrong_key = f"{prefix}_q_a_pert_prob"
        right, wrong = self.entries(right_key, field), self.entries(wrong_key, field)
        if not right or not wrong:
            return None
        tables = []
        for key, entries in ((right_key, right), (wrong_key, wrong)):
            place = LogPart(self.path, self.metrics[key][0])
            tables.append(place.rows({name: entry[field] for name, entry in entries.items()}, field, within))
        every = {key: tuple(self.metrics[key][1]["value_by_index"]) for key in (right_key, wrong_key)}
        LogPart(self.path, prefix).check_same_examples({self.metrics[key][0]: names for key, names in every.items()})
        shared = tuple(example for example in tables[0][0] if example in wrong)
        if not shared:
            raise LogPart(self.path, prefix).error("no example has numbers of both right and wrong answers")
        mean, columns = Series(tables[0][0], tables[0][1].mean(axis=1)), tables[1][1].T
        wrongs = np.stack([in_order(shared, Series(tables[1][0], column)) for column in columns], axis=1)
        return AnswerLosses(shared, in_order(shared, mean), wrongs)

    def losses(self, prefix: str, name: str) -> AnswerLosses | None:
        right = f"{prefix}_q_a_prob" if name in WITH_OPTIONS else f"{prefix}_q_a_para_prob"
        return self.right_and_wrong(prefix, right, "avg_loss", LOSS)

    def option_probability(self, prefix: str) -> Series | None:
        """As the published code computes it from probabilities, or as the log states it."""
        key = f"{prefix}_q_a_prob_normalised"
        stated = self.series(key, "prob", SHARE)
        found = self.right_and_wrong(prefix, f"{prefix}_q_a_prob", "prob", SHARE)
        if found is None:
            return stated
        return Series(found.examples, found.right / (found.right + found.wrong.sum(axis=1) + PUBLISHED_EPSILON))

    def other_scores(self) -> dict[str, Series]:
        """Further metrics that are the mean of a number of each example."""
        found = {key: self.series(key, "rougeL_f1", SHARE) for key in _MUSE_ROUGE}
        for key in ("extraction_strength", "exact_memorization"):
            found[key] = self.series(key, "score", SHARE)
        return {self.metrics[key][0]: series for key, series in found.items() if series is not None}

    def attacks(self) -> dict[str, AttackScores]:
        """The scores of membership attacks."""
        found = {}
        for key, (name, part) in self.metrics.items():
            sides = [part[side] for side in ("forget", "holdout") if isinstance(part.get(side), dict)]
            if not key.startswith("mia_") or len(sides) < 2:
                continue
            values = []
            for side, content in zip(("forget", "holdout"), sides, strict=True):
                place = LogPart(self.path, f"{name}, {side}")
                table = place.table(content.get("value_by_index"), "value_by_index")
                scores = {
                    example: entry.get("score") if isinstance(entry, dict) else None
                    for example, entry in table.items()
                    if not (isinstance(entry, dict) and entry.get("score", 0) is None)
                }
                values.append(place.series(scores, "score", ANY).values)
            self.used.add(key)
            found[name] = AttackScores(*values)
        return found
