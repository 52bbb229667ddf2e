"""The published aggregates of an evaluation: model utility, forget quality, privacy leakage, each definition named.

References:
  Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024.
  Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, ICLR 2025.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from scissorhands_jax.language.answer_scores import SETS, WITH_OPTIONS, AttackScores, EvaluationLog, Series
from scissorhands_jax.language.truth_ratios import DEFINITIONS, PUBLISHED_EPSILON, mean_truth_ratio

UTILITY_SETS = SETS[:-1]
"""The sets that model utility is about."""


class TestResult(NamedTuple):
    """A test between two networks on the same or on other questions."""

    statistic: float
    p: float
    examples: int
    """The number of questions of the first network, or of pairs."""
    reference_examples: int
    """The number of questions of the second network, or of pairs."""


def model_utility(log: EvaluationLog, definition: str) -> float | str:
    """Computes the harmonic mean of nine numbers: probability, ROUGE-L recall and truth ratio on three sets.

    The probability is that with options on the sets that have options. The published code takes the geometric truth
    ratio; the paper describes the arithmetic one. With "right_share" the mean share takes the place of the mean of
    max(0, 1 - R), which neither does.

    Args:
      log: The log of an evaluation.
      definition: The definition of the truth ratio, one of `DEFINITIONS`.

    Returns:
      The mean; or what the log lacks for it, in words.
    """
    values = []
    for name in UTILITY_SETS:
        if name not in log.sets:
            return f"the log has nothing about {name}"
        scores = log.sets[name]
        ratios = scores.ratios(definition, log.epsilon)
        probability = scores.option_probability if name in WITH_OPTIONS else scores.probability
        if probability is None or scores.rouge is None:
            return f"the log has no {'probabilities' if probability is None else 'ROUGE'} of {name}"
        if ratios is None:
            return f"the log has no losses of right and wrong answers of {name}"
        ratio = mean_truth_ratio(ratios.values, definition, forget=False, epsilon=log.epsilon)
        values += [float(probability.values.mean()), float(scores.rouge.values.mean()), ratio]
    return float(stats.hmean(values))


def retain_utility(probability: float, rouge: float, truth_ratio: float) -> float:
    """Computes the harmonic mean of three numbers of the retain set, all that a network without a world allows.

    A network that was trained on nothing but its questions knows no real authors and no world facts, so this is not the
    model utility of a published evaluation (`model_utility`), which is a mean of nine numbers, and is not comparable
    with it.

    Args:
      probability: The mean probability of the retained answers.
      rouge: The mean ROUGE-L recall of what the network says.
      truth_ratio: The mean of max(0, 1 - R) over retained questions, R in either definition.
    """
    return float(stats.hmean([probability, rouge, truth_ratio]))


def forget_ratios(log: EvaluationLog, definition: str) -> Series | None:
    """The truth ratios of the forget set, or None if the log does not allow them."""
    return log.sets["forget"].ratios(definition, log.epsilon) if "forget" in log.sets else None


def forget_quality(log: EvaluationLog, reference: EvaluationLog, definition: str) -> TestResult | None:
    """Compares the distributions of truth ratios on the forget set with those of a network that never saw it.

    This is the two-sample Kolmogorov-Smirnov test that TOFU calls forget quality. It takes the two samples as
    independent, which they are not if both networks answer the same questions.

    Args:
      log: The log of the network in question.
      reference: The log of the network that never saw the forget set.
      definition: The definition of the truth ratio, one of `DEFINITIONS`.

    Returns:
      The largest distance of the distribution functions and its p-value; None if one of the logs has no truth ratios.
    """
    own, other = forget_ratios(log, definition), forget_ratios(reference, definition)
    if own is None or other is None:
        return None
    found = stats.ks_2samp(own.values, other.values)
    return TestResult(float(found.statistic), float(found.pvalue), len(own.values), len(other.values))


def paired_test(own: np.ndarray, other: np.ndarray) -> TestResult:
    """Compares two networks question by question: Wilcoxon's signed-rank test of the differences of log truth ratios.

    Its null is that differences are symmetric around 0 and independent between questions. Two honest training runs
    can differ by more, so that a small p-value alone does not show that something was remembered; `calibrated_test`
    takes its null from retrained networks.

    Args:
      own: Log truth ratios of the network in question. shape=(N,)
      other: Those of the other network on the same questions, in the same order. shape=(N,)
    """
    differences = np.asarray(own, np.float64) - np.asarray(other, np.float64)
    if not differences.any():
        return TestResult(0.0, 1.0, len(differences), len(differences))
    found = stats.wilcoxon(differences)
    return TestResult(float(found.statistic), float(found.pvalue), len(differences), len(differences))


def attack_auc(attack: AttackScores) -> float:
    """The chance that a held-out example has a larger score than a forget example; a tie counts half.

    It is 1 if the network clearly knows the forget set, as in the published code.
    """
    labels = np.repeat([0, 1], [len(attack.forget), len(attack.holdout)])
    return float(roc_auc_score(labels, np.concatenate([attack.forget, attack.holdout])))


def privacy_leakage(auc: float, reference: float = 0.5) -> float:
    """Computes PrivLeak: how far an attack's error is from that on a network that never saw the forget set, in percent.

    With the areas A and A_ref it is 100 ((1 - A) - (1 - A_ref)) / (1 - A_ref): negative if the network still knows the
    forget set, positive if it is conspicuously ignorant of it.

    Args:
      auc: The area of the network in question, as `attack_auc` computes it.
      reference: That of the other network; the published code takes 0.5 without one.
    """
    return ((1 - auc) - (1 - reference)) / ((1 - reference) + PUBLISHED_EPSILON) * 100


def published_aggregates(log: EvaluationLog) -> dict[str, float]:
    """Computes again what a log of the newer format states, from its examples, by the names of its metrics.

    Forget quality and PrivLeak are left out, because they depend on another log.
    """
    found = {name: float(series.values.mean()) for name, series in log.scores.items()}
    found |= {name: attack_auc(attack) for name, attack in log.attacks.items()}
    for prefix, name in (("retain", "retain"), ("ra", "real authors"), ("wf", "world facts"), ("forget", "forget")):
        if name not in log.sets:
            continue
        means = log.sets[name].means(name, log.epsilon)
        found |= {
            f"{prefix}_{metric}": means[part]
            for part, metric in (
                ("probability", "Q_A_Prob"),
                ("probability_with_options", "Q_A_Prob_normalised"),
                ("rouge_l_recall", "Q_A_ROUGE"),
            )
            if part in means
        }
        if "truth_ratio" in means:
            found[f"{prefix}_Truth_Ratio"] = means["truth_ratio"]["geometric"]
    utility = model_utility(log, "geometric")
    if isinstance(utility, float):
        found["model_utility"] = utility
    return found


def disagreements(log: EvaluationLog, *, tolerance: float = 1e-6) -> dict[str, tuple[float, float]]:
    """What a log states that its own examples do not give, each as (stated, computed).

    Args:
      log: The log of an evaluation.
      tolerance: The relative difference that is rounding.
    """
    computed = {name.lower(): value for name, value in published_aggregates(log).items()}
    return {
        name: (stated, computed[name.lower()])
        for name, stated in log.recorded.items()
        if name.lower() in computed
        and not math.isclose(stated, computed[name.lower()], rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    }


def utility_by_definition(log: EvaluationLog) -> dict[str, float | str]:
    """Model utility in every definition of the truth ratio, see `model_utility`."""
    return {definition: model_utility(log, definition) for definition in DEFINITIONS}
