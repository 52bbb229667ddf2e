"""The older format of logs: `eval_log_aggregated.json` of TOFU's own code.

Reference:
  https://github.com/locuslab/tofu, evaluate_util.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from scissorhands_jax.language.answer_scores import WITH_OPTIONS, AnswerLosses, AnswerScores, EvaluationLog, Series
from scissorhands_jax.language.log_parts import LOSS, SHARE, LogPart, in_order, texts_of
from scissorhands_jax.language.measuring import Knowledge

TOFU_SETS = {
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real authors",
    "eval_real_world_wo_options.json": "world facts",
    "eval_log_forget.json": "forget",
}
"""The names of the parts of such a log, each with the set of questions that it is about."""
TOFU_MEASURES = ("avg_gt_loss", "rougeL_recall", "avg_paraphrased_loss", "average_perturb_loss")
"""The measures of such a part that aggregates are made of."""


def read_tofu_log(path: Path, document: Mapping[str, Any]) -> EvaluationLog:
    """Reads a log of the older format.

    Args:
      path: The file, for messages.
      document: What the file has; at least one of its keys is in `TOFU_SETS`.

    Raises:
      InputError: A set has none of `TOFU_MEASURES`, or is damaged.
    """
    sets, remarks = {}, []
    for key, part in document.items():
        if key not in TOFU_SETS:
            remarks.append(f"{path} has the part {key[:60]!r}, which is no set of TOFU, so it was left out")
            continue
        place = LogPart(path, key)
        if not isinstance(part, dict) or not set(part) & set(TOFU_MEASURES):
            raise place.error(f"it has none of {', '.join(TOFU_MEASURES)}")
        scores = _scores(place, part, TOFU_SETS[key])
        if scores.num_examples:
            sets[TOFU_SETS[key]] = scores
        else:
            (only,) = (measure for measure in TOFU_MEASURES if measure in part)
            remarks.append(f"{path} has nothing but {only} in {key}, which makes no measure, so it was left out")
    return EvaluationLog(path=path, format="tofu", sets=sets, remarks=tuple(remarks))


def _scores(place: LogPart, part: Mapping[str, Any], name: str) -> AnswerScores:
    ranges = {"avg_gt_loss": LOSS, "rougeL_recall": SHARE, "avg_paraphrased_loss": LOSS}
    found = {key: place.series(part[key], key, within) for key, within in ranges.items() if key in part}
    examples = {key: series.examples for key, series in found.items()}
    answer, right = found.get("avg_gt_loss"), found.get("avg_paraphrased_loss")
    losses = options = None
    if "average_perturb_loss" in part:
        those, wrong = place.rows(part["average_perturb_loss"], "average_perturb_loss", LOSS)
        examples["average_perturb_loss"] = those
    place.check_same_examples(examples)
    if "average_perturb_loss" in part:
        if right is not None:
            losses = AnswerLosses(those, in_order(those, right), wrong)
        if answer is not None and name in WITH_OPTIONS:
            odds = -in_order(those, answer) - special.logsumexp(-wrong, axis=1)
            options = Series(those, special.expit(odds))
    return AnswerScores(
        probability=None if answer is None else Series(answer.examples, np.exp(-answer.values)),
        option_probability=options,
        rouge=found.get("rougeL_recall"),
        losses=losses,
        texts=texts_of(part.get("generated_text"), _right_answer),
    )


def _right_answer(entry: Any) -> Any:
    """The last of question, generated answer and right answer; None of an entry that is not these three texts."""
    three = isinstance(entry, list) and len(entry) == 3 and all(isinstance(text, str) for text in entry)
    return entry[-1] if three else None


def tofu_log_part(known: Knowledge, texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What a network knows of the questions of a set, as a part of such a log.

    Args:
      known: What was measured; a measure that was not is left out.
      texts: The questions, as the network was asked them, with the right answers.
    """
    columns: dict[str, Sequence[Any] | np.ndarray | None] = {
        "avg_gt_loss": known.answers.loss,
        "rougeL_recall": known.rouge,
        "avg_paraphrased_loss": known.right_loss,
        "average_perturb_loss": known.wrong_losses,
    }
    if known.said is not None:
        columns["generated_text"] = [
            [question, said, answer] for (question, answer), said in zip(texts, known.said, strict=True)
        ]
    return {
        name: {str(place): value for place, value in enumerate(np.asarray(values).tolist())}
        for name, values in columns.items()
        if values is not None
    }
