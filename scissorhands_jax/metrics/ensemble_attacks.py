"""Membership attacks with many networks as references: offline statistics in NumPy and float64.

Scores are arrays of shape (networks, examples): one number per network and example, usually one of the `margins`.
Unlearned networks were trained on the forget set and then unlearned it; retrained networks never saw it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, logsumexp, polygamma

from scissorhands_jax import data as data_lib
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""The false positive rates at which true positive rates are reported.

An attack that is right on average no more often than a guess may still be certain about a few examples.
"""


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes how sure networks are of the true labels: `log p_y - log (1 - p_y)`, with p the softmax of the logits.

    Over training runs, this logit of the confidence is nearly Gaussian (Carlini et al., 2022, section IV-A). It is the
    correct-class margin of Georgiev et al., 2024.

    Args:
      logits: The logits of one network or of several. shape=(..., examples, classes)
      labels: The true classes, integers. shape=(examples,)

    Returns:
      One margin for each network and example. shape=(..., examples), dtype=float64

    Raises:
      InputError: The shapes do not fit, a label is out of range, or a logit is not finite.

    >>> margins(np.array([[0.0, 0.0], [2.0, -1.0]]), np.array([0, 0])).tolist()
    [0.0, 3.0]
    """
    logits, labels = accuracies.check_logits(np.asarray(logits, np.float64), labels, stacked=True)
    if logits.shape[-1] < 2:
        raise InputError(f"the logits have shape {logits.shape}; a margin needs at least two classes")
    # log p_y - log (1 - p_y) is the logit of the true class minus the log-sum-exp of all others. In this form no
    # probability rounds to 0 or 1.
    is_true = labels[:, None] == np.arange(logits.shape[-1])
    chosen = np.take_along_axis(logits, np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1)), axis=-1)[..., 0]
    return chosen - logsumexp(np.where(is_true, -np.inf, logits), axis=-1)


def tpr_at_fpr(positives: np.ndarray, negatives: np.ndarray, fpr: float) -> float:
    """Computes the share of positives above the lowest threshold that at most a share `fpr` of the negatives exceeds.

    With fewer than 1 / fpr negatives, none may exceed the threshold.

    Args:
      positives: The scores of positives, of any shape; at least one.
      negatives: The scores of negatives, of any shape; at least one.
      fpr: The false positive rate, in [0, 1].

    Raises:
      InputError: There is no positive or no negative, a score is NaN, or the rate is not in [0, 1].

    >>> tpr_at_fpr(np.array([0.5, 1.5, 2.5, 3.5]), np.array([0.0, 1.0, 2.0, 3.0]), 0.25)
    0.5
    """
    positives, negatives = _checked(positives, negatives)
    if not 0 <= fpr <= 1:
        raise InputError(f"the false positive rate must lie in [0, 1], got {fpr}")
    # In floating point 0.29 * 100 is a little less than 29; the small number makes up for it.
    allowed = int(fpr * len(negatives) + 1e-9)
    if allowed >= len(negatives):
        return 1.0
    return float(np.mean(positives > np.sort(negatives)[len(negatives) - 1 - allowed]))


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    for array in arrays:
        data_lib.check_not_masked(array, "the scores")
    checked = [np.asarray(array, np.float64).ravel() for array in arrays]
    if any(not len(array) or np.isnan(array).any() for array in checked):
        raise InputError("the scores are empty or hold NaN; give at least one positive and one negative score")
    return checked


class Attack(NamedTuple):
    """The scores that an attack gives to members and non-members. A higher score means a likelier member.

    Networks come in pairs, and attacked networks are in turn references of each other. To say how sure the attack is
    (`two_way`), its scores are also given as they would be without one pair among the references.
    """

    positives: np.ndarray  # shape=(networks, n): the scores of members
    negatives: np.ndarray  # shape=(networks, m): the scores of non-members
    without_positives: np.ndarray | None = None  # shape=(networks, pairs, n): without each pair; None: no references
    without_negatives: np.ndarray | None = None  # shape=(networks, pairs, m)


def leave_out(pairs: np.ndarray, own: int) -> np.ndarray:
    """Chooses references for an attack on a network: without its pair, and without its pair and one other.

    Args:
      pairs: The number of the pair of each reference network, from 0. shape=(references,)
      own: The number of the pair of the attacked network.

    Returns:
      Which references are kept. The first line leaves out only the pair `own`, and line 1 + q also the pair q.
      shape=(1 + pairs, references), dtype=bool

    >>> leave_out(np.array([0, 0, 1, 2]), 1).astype(int).tolist()
    [[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 1, 0, 0]]
    """
    number = int(pairs.max()) + 1
    kept = np.broadcast_to(pairs != own, (1 + number, len(pairs))).copy()
    kept[1:] &= pairs != np.arange(number)[:, None]
    return kept


def moderated_variances(variances: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Draws the sample variances of many examples towards their common value, by as much as they are uncertain.

    The true variances are taken for draws from a scaled inverse chi-square distribution with d0 degrees of freedom
    around s0, both of which are estimated from the mean and the variance of the logarithms. With d degrees of freedom
    of its own, the variance s of an example becomes (d0 s0 + d s) / (d0 + d). With few networks, or where all examples
    have one variance, this is nearly the pooled variance, and with many networks it is nearly the example's own.

    Args:
      variances: The sample variances. shape=(..., examples)
      freedom: Their degrees of freedom, at least one. shape=(..., examples)

    Returns:
      The moderated variances, at least 1e-12 of their mean, or 1e-12 where all are 0. shape=(..., examples),
      dtype=float64

    References:
      Smyth, Linear models and empirical Bayes methods for assessing differential expression in microarray experiments,
      Statistical Applications in Genetics and Molecular Biology, 2004, sections 4 and 6.2.
    """
    # Scores that are all equal have the variance 0. Their unit may be any.
    least = 1e-12 * variances.mean(axis=-1, keepdims=True)
    variances = np.where(least > 0, np.maximum(variances, least), 1e-12)
    pooled = (freedom * variances).sum(axis=-1, keepdims=True) / freedom.sum(axis=-1, keepdims=True)
    if variances.shape[-1] < 2:
        return np.broadcast_to(pooled, variances.shape)
    # There are few different degrees of freedom, and the special functions are slow.
    distinct, place = np.unique(freedom, return_inverse=True)
    place = place.reshape(np.shape(freedom))
    logs = np.log(variances) + (np.log(distinct / 2) - digamma(distinct / 2))[place]
    chance = polygamma(1, distinct / 2)[place].mean(axis=-1, keepdims=True)
    spread = logs.var(axis=-1, ddof=1, keepdims=True) - chance
    prior = 2 * _inverse_trigamma(np.maximum(spread, 1e-3))
    common = np.exp(logs.mean(axis=-1, keepdims=True) + digamma(prior / 2) - np.log(prior / 2))
    return np.where(spread > 1e-3, (prior * common + freedom * variances) / (prior + freedom), pooled)


def _inverse_trigamma(value: np.ndarray) -> np.ndarray:
    """Returns x with trigamma(x) = value, by Newton's method for 1 / trigamma, which converges from below."""
    x = 0.5 + 1 / value
    for _ in range(6):
        found = polygamma(1, x)
        x = x + found * (1 - found / value) / polygamma(2, x)
    return x


def log_ratio(
    scores: np.ndarray, references: np.ndarray, member: np.ndarray, kept: np.ndarray | None = None
) -> np.ndarray:
    """Computes how much better membership explains scores than non-membership: the online LiRA attack with Gaussians.

    With the means and variances of each example's score over the reference networks that were trained on it ("in"), and
    over those that were not ("out"), it is

      log N(score; mean_in, var_in) - log N(score; mean_out, var_out).

    Variances are `moderated_variances`: with few networks all examples nearly share one, with many each has its own.

    Args:
      scores: The scores of the attacked networks. shape=(..., examples)
      references: The scores of reference networks. shape=(networks, examples)
      member: Which reference networks were trained on which examples. shape=(networks, examples), dtype=bool
      kept: Choices of references, one per line, as from `leave_out`. By default all are used. Where a choice other than
        the first keeps a single network of a kind, it has a mean but no variance, and that of the first choice counts.
        shape=(choices, networks), dtype=bool

    Returns:
      The log-ratio for each attacked network and example. shape=(..., examples), or (choices, ..., examples) if `kept`
      is given, dtype=float64

    Raises:
      InputError: The shapes do not fit, or fewer than two reference networks were trained, or not trained, on an
        example.

    References:
      Carlini et al., Membership inference attacks from first principles, S&P 2022, algorithm 1. They pool variances
      with fewer than 64 networks (section VI-C); drawing them together without a threshold is ours.
    """
    scores, references = np.asarray(scores, np.float64), np.asarray(references, np.float64)
    if references.ndim != 2 or member.shape != references.shape or scores.shape[-1:] != references.shape[1:]:
        raise InputError(
            f"the shapes of scores {scores.shape}, references {references.shape} and membership {member.shape} do not "
            "fit; give one column for each example"
        )
    chosen = np.ones((1, len(references))) if kept is None else np.asarray(kept, np.float64)
    centre = references.mean(axis=0)  # Small numbers keep the digits of a variance that is a difference of sums.
    references, shifted = references - centre, scores - centre
    likelihoods = []
    for side, name in ((member, ""), (~member, "not ")):
        count = chosen @ side.astype(np.float64)  # Booleans would not be multiplied by BLAS.
        if count[0].min(initial=2) < 2 or count.min(initial=1) < 1:
            raise InputError(
                f"{int(count.min())} reference networks were {name}trained on example "
                f"{int(count.min(axis=0).argmin())} and the attack needs two; train more networks"
            )
        mean = chosen @ np.where(side, references, 0) / count
        squares = chosen @ np.where(side, references**2, 0) - count * mean**2
        variances = np.maximum(squares, 0) / np.maximum(count - 1, 1)
        freedom = np.where(count > 1, count, count[0]) - 1
        var = moderated_variances(np.where(count > 1, variances, variances[0]), freedom)
        mean, var = (part.reshape(len(chosen), *(1,) * (scores.ndim - 1), -1) for part in (mean, var))
        likelihoods.append(-0.5 * ((shifted - mean) ** 2 / var + np.log(var)))
    found = likelihoods[0] - likelihoods[1]
    return found[0] if kept is None else found


def u_lira(unlearned: np.ndarray, retrained: np.ndarray, *others: tuple[np.ndarray, np.ndarray]) -> tuple[Attack, ...]:
    """Runs U-LiRA for each example: was a network trained on it and made to forget it, or never trained on it?

    The attacker knows the method. For each example there is a Gaussian of its scores over unlearned networks and one
    over retrained networks, and the score of the attack is their `log_ratio`. Networks are attacked in pairs, one of
    each kind, and the references leave out both. So if the method is perfect, the two cannot be distinguished, and the
    AUC within a pair is 0.5 on average, however few networks there are.

    The attack detects everything that unlearning leaves behind: a remaining trace of the example, an answer that is
    further from the truth than that of a network that never saw it, or a general change that shows on every image. The
    attack on `others` measures the last of these.

    Args:
      unlearned: The scores of unlearned networks on the forget set. shape=(networks, examples)
      retrained: The scores of retrained networks. If there are more of one kind than of the other, the surplus is left
        out. shape=(networks, examples)
      *others: Pairs of such scores on other examples, such as held-out ones, which are attacked in the same way.

    Returns:
      One attack for each pair of scores, that of the forget set first. Each row is a pair of networks.

    Raises:
      InputError: There are fewer than three networks of a kind.

    References:
      Hayes et al., Inexact unlearning needs more careful evaluations to avoid a false sense of privacy, SaTML 2025: the
      attack with Gaussians per example. Leaving out pairs is ours.
    """
    number = min(len(unlearned), len(retrained))
    if number < 3:
        raise InputError(f"U-LiRA needs three unlearned and three retrained networks, got {number} pairs; train more")
    attacks = []
    pairs = np.tile(np.arange(number), 2)
    for inside, outside in ((unlearned, retrained), *others):
        inside, outside = np.asarray(inside, np.float64)[:number], np.asarray(outside, np.float64)[:number]
        references = np.concatenate([inside, outside])
        member = np.repeat([True, False], number)[:, None] & np.ones(inside.shape[1], bool)
        found = np.stack(
            [
                log_ratio(np.stack([inside[pair], outside[pair]]), references, member, leave_out(pairs, pair))
                for pair in range(number)
            ]
        )
        attacks.append(Attack(found[:, 0, 0], found[:, 0, 1], found[:, 1:, 0], found[:, 1:, 1]))
    return tuple(attacks)


def rmia(
    scores: np.ndarray,
    references: np.ndarray,
    population: np.ndarray,
    kept: np.ndarray | None = None,
    *,
    gamma: float = 2.0,
) -> np.ndarray:
    """Runs RMIA: how often an example has a larger likelihood ratio to references than one that was never seen.

    With p the probability of the true label, and p(x) its mean over reference networks,

      score(x) = share of population examples z with  (p(x | network) / p(x)) / (p(z | network) / p(z)) >= gamma.

    Half of the reference networks were trained on x and half were not, and likewise for z, so that p(x) and p(z) need
    no correction (the online attack).

    Args:
      scores: The margins of the attacked network. shape=(examples,)
      references: The margins of reference networks. shape=(networks, examples)
      population: The positions of the examples to compare with, which the attacked network never saw. shape=(m,)
      kept: Choices of references, one per line, as from `leave_out`. By default all are used.
        shape=(choices, networks), dtype=bool
      gamma: The factor by which the ratio of an example must be larger, at least 1.

    Returns:
      One score for each example, in [0, 1]. shape=(examples,), or (choices, examples) if `kept` is given

    Raises:
      InputError: There is no reference network or no population, or gamma is below 1.

    References:
      Zarifzadeh, Liu and Shokri, Low-cost high-power membership inference attacks, ICML 2024, equations 2 to 4.
    """
    if gamma < 1 or not len(population) or not len(references):
        raise InputError(
            f"RMIA was given gamma {gamma}, {len(references)} reference networks and a population of "
            f"{len(population)}; it needs a gamma of at least 1 and at least one of each"
        )
    chosen = np.ones((1, len(references))) if kept is None else np.asarray(kept, np.float64)
    # log p = -log(1 + exp(-margin)). Logarithms keep small probabilities from becoming 0.
    log_p = -np.logaddexp(0, -np.asarray(scores, np.float64))
    log_references = -np.logaddexp(0, -np.asarray(references, np.float64))
    largest = log_references.max(axis=0)
    total = np.maximum(chosen @ np.exp(log_references - largest), 1e-300)
    ratios = log_p - largest - np.log(total / chosen.sum(axis=1, keepdims=True))
    # The score counts the population examples whose ratio is at most that of the example divided by gamma.
    found = np.stack(
        [np.searchsorted(np.sort(ratio[population]), ratio - math.log(gamma), side="right") for ratio in ratios]
    ) / len(population)
    return found[0] if kept is None else found
