"""Attacks on many networks and distances between them, with intervals: offline statistics in NumPy and float64.

Scores are arrays of shape (networks, examples): one number per network and example, usually one of the `margins`.
Unlearned networks were trained on the forget set and then unlearned it; retrained networks never saw it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.metrics.intervals import Estimate, check_scores, from_replicates

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""The false positive rates at which true positive rates are reported.

An attack that is right on average no more often than a guess may still be certain about a few examples.
"""

_FEW_REFERENCES = 64
"""With fewer reference networks, variances are pooled over examples (Carlini et al., section VI-C)."""


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
      InputError: There is no positive or no negative, or a score is NaN.

    >>> tpr_at_fpr(np.array([0.5, 1.5, 2.5, 3.5]), np.array([0.0, 1.0, 2.0, 3.0]), 0.25)
    0.5
    """
    positives, negatives = _checked(positives, negatives)
    # In floating point 0.29 * 100 is a little less than 29; the small number makes up for it.
    allowed = int(fpr * len(negatives) + 1e-9)
    if allowed >= len(negatives):
        return 1.0
    return float(np.mean(positives > np.sort(negatives)[len(negatives) - 1 - allowed]))


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    checked = [np.asarray(array, np.float64).ravel() for array in arrays]
    if any(not len(array) or np.isnan(array).any() for array in checked):
        raise InputError("the scores are empty or hold NaN; give at least one positive and one negative score")
    return checked


class Attack(NamedTuple):
    """The scores that an attack gives to members and non-members. A higher score means a likelier member."""

    positives: np.ndarray  # shape=(networks, n): the scores of members
    negatives: np.ndarray  # shape=(networks, m): the scores of non-members


def log_ratio(scores: np.ndarray, references: np.ndarray, member: np.ndarray, *, pooled: bool | None = None):
    """Computes how much better membership explains scores than non-membership: the online LiRA attack with Gaussians.

    With the means and variances of each example's score over the reference networks that were trained on it ("in"), and
    over those that were not ("out"), it is

      log N(score; mean_in, var_in) - log N(score; mean_out, var_out).

    Args:
      scores: The scores of the attacked networks. shape=(..., examples)
      references: The scores of reference networks. shape=(networks, examples)
      member: Which reference networks were trained on which examples. shape=(networks, examples), dtype=bool
      pooled: Whether all examples share one variance for "in" and one for "out". By default they do so for "in", or for
        "out", if there are fewer than 64 such reference networks for some example.

    Returns:
      The log-ratio for each attacked network and example. shape=(..., examples), dtype=float64

    Raises:
      InputError: The shapes do not fit, or fewer than two reference networks were trained, or not trained, on an
        example.

    References:
      Carlini et al., Membership inference attacks from first principles, S&P 2022, algorithm 1 and section VI-C.
    """
    scores, references = np.asarray(scores, np.float64), np.asarray(references, np.float64)
    if references.ndim != 2 or member.shape != references.shape or scores.shape[-1:] != references.shape[1:]:
        raise InputError(
            f"the shapes of scores {scores.shape}, references {references.shape} and membership {member.shape} do not "
            "fit; give one column for each example"
        )
    gaussians: list[tuple[np.ndarray, np.ndarray]] = []
    for chosen in (member, ~member):
        count = chosen.sum(axis=0)
        if count.min(initial=2) < 2:
            raise InputError(
                f"{int(count.min())} reference networks were {'not ' if gaussians else ''}trained on example "
                f"{int(count.argmin())} and the attack needs two; train more networks"
            )
        mean = np.where(chosen, references, 0).sum(axis=0) / count
        square = np.where(chosen, (references - mean) ** 2, 0).sum(axis=0)
        # A variance of a few numbers is so uncertain that its error would outweigh the differences between examples.
        is_pooled = bool(count.min() < _FEW_REFERENCES) if pooled is None else pooled
        var = square.sum() / (count - 1).sum() if is_pooled else square / (count - 1)
        gaussians.append((mean, np.maximum(var, 1e-12)))  # Scores that are all equal would have the variance 0.
    (mean_in, var_in), (mean_out, var_out) = gaussians
    return 0.5 * (
        (scores - mean_out) ** 2 / var_out - (scores - mean_in) ** 2 / var_in + np.log(var_out) - np.log(var_in)
    )


def u_lira(
    unlearned: np.ndarray, retrained: np.ndarray, *others: tuple[np.ndarray, np.ndarray], pooled: bool | None = None
) -> tuple[Attack, ...]:
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
      pooled: Whether variances are pooled, as in `log_ratio`.

    Returns:
      One attack for each pair of scores, that of the forget set first. Each row is a pair of networks.

    Raises:
      InputError: There are fewer than three networks of a kind.

    References:
      Hayes et al., Inexact unlearning needs more careful evaluations to avoid a false sense of privacy, SaTML 2025: the
      attack with Gaussians per example. Leaving out pairs is ours.
    """
    pairs = min(len(unlearned), len(retrained))
    if pairs < 3:
        raise InputError(f"U-LiRA needs three unlearned and three retrained networks, got {pairs} pairs; train more")
    attacks = []
    for inside, outside in ((unlearned, retrained), *others):
        inside, outside = np.asarray(inside, np.float64)[:pairs], np.asarray(outside, np.float64)[:pairs]
        positives, negatives = np.empty_like(inside), np.empty_like(outside)
        member = np.repeat([True, False], pairs - 1)[:, None] & np.ones(inside.shape[1], bool)
        for pair in range(pairs):
            references = np.concatenate([np.delete(inside, pair, axis=0), np.delete(outside, pair, axis=0)])
            both = np.stack([inside[pair], outside[pair]])
            positives[pair], negatives[pair] = log_ratio(both, references, member, pooled=pooled)
        attacks.append(Attack(positives, negatives))
    return tuple(attacks)


def rmia(
    scores: np.ndarray,
    references: np.ndarray,
    population: np.ndarray,
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
      gamma: The factor by which the ratio of an example must be larger, at least 1.

    Returns:
      One score for each example, in [0, 1]. shape=(examples,)

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
    # log p = -log(1 + exp(-margin)). Logarithms keep small probabilities from becoming 0.
    log_p = -np.logaddexp(0, -np.asarray(scores, np.float64))
    log_reference = logsumexp(-np.logaddexp(0, -np.asarray(references, np.float64)), axis=0) - math.log(len(references))
    ratio = log_p - log_reference
    # The score counts the population examples whose ratio is at most that of the example divided by gamma.
    unseen = np.sort(ratio[population])
    return np.searchsorted(unseen, ratio - math.log(gamma), side="right") / len(unseen)


def klom(
    unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = 20, floor: float = 1e-5, clip: float = 100.0
) -> np.ndarray:
    """Computes KLoM: for each example, how far the margins of unlearned networks are from those of retrained ones.

    It is KL(unlearned || retrained) between two histograms with equal bins over the range of both, where a bin that the
    retrained networks leave empty has the probability `floor`. It is 0 for equal histograms, but not for two samples of
    one distribution. So compare it with that of retrained against retrained networks, with the same number of them.

    Args:
      unlearned: The margins of unlearned networks. shape=(networks, examples)
      retrained: The margins of retrained networks on the same examples. shape=(networks, examples)
      bins: The number of bins. With fewer than about 100 networks of a kind, use fewer than 20, or most are empty.
      floor: The probability of a bin that is empty; the default is the published value.
      clip: Margins are cut to plus and minus this value.

    Returns:
      The divergence for each example, in nats. shape=(examples,), dtype=float64

    Raises:
      InputError: There are no networks, the examples differ in number, or there are fewer than two bins.

    References:
      Georgiev et al., Attribute-to-delete: machine unlearning via datamodel matching, 2024, appendix E.1.

    >>> klom(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]), bins=2).tolist()
    [0.0]
    """
    inside, outside = check_scores(unlearned, retrained)
    if bins < 2:
        raise InputError(f"KLoM needs at least two bins, got {bins}")
    inside, outside = np.clip(inside, -clip, clip), np.clip(outside, -clip, clip)
    low = np.minimum(inside.min(axis=0), outside.min(axis=0))
    width = np.maximum(inside.max(axis=0), outside.max(axis=0)) - low
    width = np.where(width > 0, width, 1.0)  # If all margins are equal, they all fall into the first bin.

    def histogram(values: np.ndarray) -> np.ndarray:
        places = np.minimum((bins * (values - low) / width).astype(int), bins - 1)
        return (places[..., None] == np.arange(bins)).mean(axis=0)

    p, q = histogram(inside), histogram(outside)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.maximum(q, floor)), 0.0).sum(axis=1)


def example_epsilons(unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 0.01) -> np.ndarray:
    """Estimates the privacy degree of each example as in the NeurIPS 2023 unlearning challenge.

    It is the largest over all attacks that call a network unlearned if its score is above, or below, a threshold, of

      epsilon = max(0, log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR).

    As in the challenge, an attack with FPR = FNR = 0 gives infinity, and one with only one of them 0 is left out.
    Thresholds are halfway between neighbouring scores of all networks. The challenge's second attack, a logistic
    regression, is no stronger than a threshold in either direction.

    Args:
      unlearned: The scores of unlearned networks. shape=(networks, examples)
      retrained: The scores of retrained networks on the same examples. shape=(networks, examples)
      delta: The delta of differential privacy; the default is the challenge's.

    Returns:
      An epsilon for each example, from 0 to infinity. shape=(examples,), dtype=float64

    Raises:
      InputError: There are no networks, or the examples differ in number.

    References:
      Triantafillou et al., Are we making progress in unlearning? Findings from the first NeurIPS unlearning
      competition, 2024, section 3.
    """
    inside, outside = check_scores(unlearned, retrained)
    both = np.sort(np.concatenate([inside, outside]), axis=0)
    thresholds = (both[1:] + both[:-1]) / 2
    above = [(values[None] > thresholds[:, None]).mean(axis=1) for values in (inside, outside)]
    tpr, fpr = (np.concatenate([rate, 1 - rate]) for rate in above)
    fnr = 1 - tpr
    # Rates are multiples of 1 / networks, so a smaller number is a 0 that was rounded.
    fnr, fpr = (np.where(rate < 1e-9, 0.0, rate) for rate in (fnr, fpr))
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = [np.log(1 - delta - a) - np.log(b) for a, b in ((fpr, fnr), (fnr, fpr))]
    best = np.fmax(*bounds)  # A bound is NaN if its first logarithm is of a negative number; the other one counts.
    best = np.where((fpr == 0) != (fnr == 0), 0.0, np.where(np.isnan(best), 0.0, best))
    best = np.where((fpr == 0) & (fnr == 0), np.inf, best)
    return np.maximum(best.max(axis=0), 0.0)


def forgetting_score(unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 0.01) -> float:
    """Computes the forgetting quality of the NeurIPS 2023 challenge: 1 if no attack gains anything, less with leakage.

    It is the mean over examples of 2 / 2^n, where n is 1 for an epsilon in [0, 0.5), 2 in [0.5, 1), and so on up to 13.
    The challenge had 512 networks of each kind. With few, some threshold looks good by chance. So compare the score
    with that of retrained against retrained networks, with the same number of them.

    Args:
      unlearned: The scores of unlearned networks. shape=(networks, examples)
      retrained: The scores of retrained networks on the same examples. shape=(networks, examples)
      delta: The delta of differential privacy; see `example_epsilons`.
    """
    epsilons = example_epsilons(unlearned, retrained, delta=delta)
    return float(np.mean(2.0 / 2.0 ** np.digitize(epsilons, 0.5 * np.arange(13))))


def attack_estimates(
    attack: Attack,
    *,
    over_networks: bool = True,
    cross_validated: bool = False,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    level: float = 0.95,
    num_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimates the AUC and the true positive rates of an attack by a bootstrap over networks and examples.

    The AUC is the mean over rows of the AUC within a row. True positive rates are those of all rows together, because a
    single row has too few negatives. Rows (attacked networks) and columns (examples) are resampled independently, which
    makes intervals a little too wide (Owen, 2007). The reference networks of the attack are not resampled.

    Args:
      attack: The scores of the attack; rows are networks.
      over_networks: Whether rows are resampled. If not, or if there is a single row, the interval is about the attacked
        networks only, and not about other networks of their kind.
      cross_validated: Whether every row was attacked with the other rows as references, as in `u_lira`. Rows then share
        their errors, and with n rows the deviation is multiplied by sqrt(1 + n / (n - 1)), which is about 1.4.
      rates: The rates of false positives at which true positives are counted.
      level: The coverage that the intervals aim at, in (0, 1).
      num_resamples: How many bootstrap samples are drawn.
      seed: The seed of the resampling.

    Returns:
      The estimates `auc`, and `tpr_at_1`, `tpr_at_0.1` and so on, named by the rate in percent; all are in [0, 1].

    References:
      Owen, The pigeonhole bootstrap, Annals of Applied Statistics, 2007. Nadeau and Bengio, Inference for the
      generalization error, Machine Learning, 2003, for the correction of cross-validation.
    """
    positives, negatives = np.asarray(attack.positives, np.float64), np.asarray(attack.negatives, np.float64)
    rows, columns = len(positives), positives.shape[1]
    over_networks = over_networks and rows > 1
    generator = np.random.default_rng(seed)

    # A bootstrap sample is kept as the number of times that each row or column was drawn. The AUC of a sample is then a
    # product of these counts with the matrix of wins, which is computed only once.
    def counts(total: int, resampled: bool = True) -> np.ndarray:
        if not resampled:
            return np.ones((num_resamples, total))
        return generator.multinomial(total, np.full(total, 1 / total), size=num_resamples).astype(np.float64)

    row_counts, own, other = counts(rows, over_networks), counts(columns), counts(negatives.shape[1])
    resampled = np.empty((num_resamples, rows))
    values = np.empty(rows)
    for row in range(rows):
        ahead = np.sign(positives[row][:, None] - negatives[row][None])
        # Two infinite scores of one sign have the difference NaN and count as a tie.
        wins = np.where(np.isnan(ahead), 0.0, ahead) / 2 + 0.5
        values[row] = wins.mean()
        resampled[:, row] = np.einsum("bn,bn->b", own @ wins, other) / wins.size
    number = rows if over_networks else 1
    wider = math.sqrt(1 + rows / (rows - 1)) if cross_validated and rows > 1 else 1.0
    estimates = {
        "auc": from_replicates(
            float(values.mean()), wider * (resampled * row_counts).sum(axis=1) / rows, number, columns, level, (0, 1)
        )
    }
    for rate in rates:
        replicates = _resampled_rates(positives, negatives, row_counts, own, other, rate)
        value = tpr_at_fpr(positives, negatives, rate)
        found = from_replicates(value, wider * replicates, number, columns, level, (0, 1))
        estimates[f"tpr_at_{100 * rate:g}"] = found._replace(negatives=negatives.size)
    return estimates


def _resampled_rates(
    positives: np.ndarray, negatives: np.ndarray, rows: np.ndarray, own: np.ndarray, other: np.ndarray, rate: float
) -> np.ndarray:
    """Computes `tpr_at_fpr` of bootstrap samples. Row r and column c of a sample count rows[r] * columns[c] times.

    Scores are sorted once for all samples; cumulative sums of counts take the place of sorting each sample.

    Args:
      positives: The scores of positives. shape=(networks, n)
      negatives: The scores of negatives. shape=(networks, m)
      rows: How often each sample has each network. shape=(samples, networks)
      own: How often each sample has each column of the positives. shape=(samples, n)
      other: How often each sample has each column of the negatives. shape=(samples, m)
      rate: The false positive rate, in [0, 1].

    Returns:
      One rate for each sample. shape=(samples,)
    """
    answers = []
    order = {name: np.argsort(-values, axis=None) for name, values in (("in", positives), ("out", negatives))}
    highest_first = negatives.ravel()[order["out"]]
    falling = -positives.ravel()[order["in"]]
    for sample in range(len(rows)):
        weights = np.outer(rows[sample], other[sample]).ravel()[order["out"]]
        passed = np.cumsum(weights)
        # The threshold is the highest negative that may not exceed it.
        first = int(np.searchsorted(passed, int(rate * passed[-1] + 1e-9), side="right"))
        threshold = highest_first[min(first, len(passed) - 1)]
        gained = np.cumsum(np.outer(rows[sample], own[sample]).ravel()[order["in"]])
        above = np.searchsorted(falling, -threshold, side="left")
        answers.append(gained[above - 1] / gained[-1] if above else 0.0)
    return np.asarray(answers)
