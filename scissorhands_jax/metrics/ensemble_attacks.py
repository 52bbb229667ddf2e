"""Attacks on many networks and distances between them, with intervals: offline statistics in float64 NumPy.

Scores are arrays of shape (networks, examples): one number per network and example, usually the `margins`. "Unlearned"
are networks that were trained on the forget set and then unlearned it, "retrained" those that never saw it.
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
"""The rates at which the true positive rate is reported: an attack that is right about few may know about which."""

_FEW_REFERENCES = 64
"""With fewer networks on a side, variances are pooled over examples (Carlini et al., section VI-C)."""


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How sure networks are of the true labels: `log p_y - log (1 - p_y)`, p the softmax of the logits.

    This logit of the confidence is nearly Gaussian over training runs (Carlini et al., 2022, section IV-A), and the
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
        raise InputError(f"a margin needs two classes or more, got logits of shape {logits.shape}")
    is_true = labels[:, None] == np.arange(logits.shape[-1])
    chosen = np.take_along_axis(logits, np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1)), axis=-1)[..., 0]
    return chosen - logsumexp(np.where(is_true, -np.inf, logits), axis=-1)


def tpr_at_fpr(positives: np.ndarray, negatives: np.ndarray, fpr: float) -> float:
    """The share of positives above a threshold that at most a share `fpr` of the negatives exceeds.

    With fewer than 1 / fpr negatives no negative may exceed the threshold.

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
    # The small number keeps 0.29 * 100 at 29.
    allowed = int(fpr * len(negatives) + 1e-9)
    if allowed >= len(negatives):
        return 1.0
    return float(np.mean(positives > np.sort(negatives)[len(negatives) - 1 - allowed]))


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    checked = [np.asarray(array, np.float64).ravel() for array in arrays]
    if any(not len(array) or np.isnan(array).any() for array in checked):
        raise InputError("an attack needs at least one positive and one negative score, and none of them NaN")
    return checked


class Attack(NamedTuple):
    """What an attack says of members and non-members; a higher score means a likelier member. Rows are networks."""

    positives: np.ndarray  # shape=(rows, n)
    negatives: np.ndarray  # shape=(rows, m)


def log_ratio(scores: np.ndarray, references: np.ndarray, member: np.ndarray, *, pooled: bool | None = None):
    """How much better "the example was in" explains scores than "it was out": LiRA with Gaussians, online.

    With the means and variances of each example's score over the reference networks that were trained on it, and over
    those that were not,

      log N(score; mean_in, var_in) - log N(score; mean_out, var_out).

    Args:
      scores: The scores of the attacked networks. shape=(..., examples)
      references: The scores of reference networks. shape=(networks, examples)
      member: Which reference networks were trained on which examples. shape=(networks, examples), dtype=bool
      pooled: Whether each side has one variance for all examples. The default pools a side if an example has fewer than
        64 references on it.

    Returns:
      The log-ratio for each attacked network and example. shape=(..., examples), dtype=float64

    Raises:
      InputError: The shapes do not fit, or an example has fewer than two references on a side.

    References:
      Carlini et al., Membership inference attacks from first principles, S&P 2022, algorithm 1 and section VI-C.
    """
    scores, references = np.asarray(scores, np.float64), np.asarray(references, np.float64)
    if references.ndim != 2 or member.shape != references.shape or scores.shape[-1:] != references.shape[1:]:
        raise InputError(
            f"scores {scores.shape}, references {references.shape} and membership {member.shape} do not fit"
        )
    sides = []
    for side in (member, ~member):
        count = side.sum(axis=0)
        if count.min(initial=2) < 2:
            raise InputError(
                f"example {int(count.argmin())} has {int(count.min())} reference networks on one side; the attack "
                "needs two, so train more networks"
            )
        mean = np.where(side, references, 0).sum(axis=0) / count
        square = np.where(side, (references - mean) ** 2, 0).sum(axis=0)
        is_pooled = bool(count.min() < _FEW_REFERENCES) if pooled is None else pooled
        var = square.sum() / (count - 1).sum() if is_pooled else square / (count - 1)
        sides.append((mean, np.maximum(var, 1e-12)))
    (mean_in, var_in), (mean_out, var_out) = sides
    return 0.5 * (
        (scores - mean_out) ** 2 / var_out - (scores - mean_in) ** 2 / var_in + np.log(var_out) - np.log(var_in)
    )


def u_lira(
    unlearned: np.ndarray, retrained: np.ndarray, *others: tuple[np.ndarray, np.ndarray], pooled: bool | None = None
) -> tuple[Attack, ...]:
    """Per-example U-LiRA: was this network trained on the example and made to forget it, or never trained on it?

    The attacker knows the method: each example has a Gaussian of its scores over unlearned networks and one over
    retrained networks, and `log_ratio` of the attacked network decides. Networks are attacked in pairs, one of each
    kind, by references that leave both out; so nothing tells the two apart if the method is perfect, and the AUC within
    a pair is then 0.5 on average, however few networks there are.

    What is told apart is all that unlearning leaves behind: a remaining trace of the example, an answer that is wronger
    than that of a network which never saw it, or a general change that every image shows. `others` show the latter.

    Args:
      unlearned: The scores of unlearned networks on the forget set. shape=(networks, examples)
      retrained: The scores of retrained networks. If there are more of one kind than of the other, the surplus is left
        out. shape=(networks, examples)
      *others: Pairs of such scores on other examples, such as held-out ones, which are attacked in the same way.
      pooled: Whether variances are pooled, as in `log_ratio`.

    Returns:
      One attack for each pair of scores, the forget set's first; a row is a pair of networks.

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
    """RMIA: how often an example is likelier under the attacked network than one it never saw, both against references.

    With p the probability of the true label, and p(x) its mean over reference networks,

      score(x) = share of population examples z with  (p(x | network) / p(x)) / (p(z | network) / p(z)) >= gamma.

    References are networks of which half were trained on x and half were not, so that p(x) needs no correction (the
    online attack); the same for z.

    Args:
      scores: The margins of the attacked network. shape=(examples,)
      references: The margins of reference networks. shape=(networks, examples)
      population: The positions of the examples to compare with, which the attacked network never saw. shape=(m,)
      gamma: By which factor an example must be likelier, at least 1.

    Returns:
      One score for each example, in [0, 1]. shape=(examples,)

    Raises:
      InputError: There is no reference network or no population, or gamma is below 1.

    References:
      Zarifzadeh, Liu and Shokri, Low-cost high-power membership inference attacks, ICML 2024, equations 2 to 4.
    """
    if gamma < 1 or not len(population) or not len(references):
        raise InputError(
            f"RMIA needs gamma of at least 1, references and a population, got {gamma}, {len(references)} and "
            f"{len(population)}"
        )
    # log p = -log(1 + exp(-margin)), in logarithms so that no small probability becomes 0.
    log_p = -np.logaddexp(0, -np.asarray(scores, np.float64))
    log_reference = logsumexp(-np.logaddexp(0, -np.asarray(references, np.float64)), axis=0) - math.log(len(references))
    ratio = log_p - log_reference
    unseen = np.sort(ratio[population])
    return np.searchsorted(unseen, ratio - math.log(gamma), side="right") / len(unseen)


def klom(
    unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = 20, floor: float = 1e-5, clip: float = 100.0
) -> np.ndarray:
    """KLoM: per example, how far the margins of unlearned networks are from those of retrained ones.

    KL(unlearned || retrained) between two histograms of equal bins over the range of both, where a bin that the
    retrained networks leave empty has the probability `floor`. It is 0 for equal distributions, but not for two samples
    of one distribution: compare it with retrained against retrained at the same number of networks.

    Args:
      unlearned: The margins of unlearned networks. shape=(networks, examples)
      retrained: The margins of retrained networks on the same examples. shape=(networks, examples)
      bins: The number of bins. With fewer than about 100 networks on a side take fewer than 20, or most are empty.
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
    width = np.where(width > 0, width, 1.0)

    def histogram(values: np.ndarray) -> np.ndarray:
        places = np.minimum((bins * (values - low) / width).astype(int), bins - 1)
        return (places[..., None] == np.arange(bins)).mean(axis=0)

    p, q = histogram(inside), histogram(outside)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.maximum(q, floor)), 0.0).sum(axis=1)


def example_epsilons(unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 0.01) -> np.ndarray:
    """The privacy degree of each example in the NeurIPS 2023 unlearning challenge.

    Over attacks that call a network unlearned where its score lies above, or below, a threshold,

      epsilon = max(0, log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR),

    an attack with FPR = FNR = 0 gives infinity, and one with a single 0 is left out, as in the challenge. Thresholds
    are halfway between neighbouring scores of both kinds. The challenge's second attack, a logistic regression, is
    covered by the second direction.

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
    # Rates are multiples of 1 / networks; rounding must not make a zero a small number.
    fnr, fpr = (np.where(rate < 1e-9, 0.0, rate) for rate in (fnr, fpr))
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = [np.log(1 - delta - a) - np.log(b) for a, b in ((fpr, fnr), (fnr, fpr))]
    best = np.fmax(*bounds)
    best = np.where((fpr == 0) != (fnr == 0), 0.0, np.where(np.isnan(best), 0.0, best))
    best = np.where((fpr == 0) & (fnr == 0), np.inf, best)
    return np.maximum(best.max(axis=0), 0.0)


def forgetting_score(unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 0.01) -> float:
    """The forgetting quality of the NeurIPS 2023 challenge: 1 where no attack gains anything, towards 0 with leakage.

    The mean over examples of 2 / 2^n, where n is 1 for an epsilon in [0, 0.5), 2 in [0.5, 1), and so on up to 13. The
    challenge had 512 networks of each kind. With few, chance alone makes some threshold look good: compare it
    with retrained against retrained at the same number of networks.

    Args:
      unlearned: The scores of unlearned networks. shape=(networks, examples)
      retrained: The scores of retrained networks on the same examples. shape=(networks, examples)
      delta: As in `example_epsilons`.
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
    """AUC and true positive rates of an attack, with intervals by bootstrap over networks and examples.

    The AUC is the mean over rows of the AUC within a row; true positive rates are those of all rows together, because a
    single row has too few negatives. Rows (attacked networks) and columns (examples) are resampled independently, which
    errs on the wide side (Owen, 2007). References of the attack stay as they are.

    Args:
      attack: The scores that the attack gave; rows are networks.
      over_networks: Whether rows are resampled. If not, or if there is a single row, the interval holds for these very
        networks.
      cross_validated: Whether every row was attacked with the other rows as references, as `u_lira` does. Rows then
        share their errors, and with n of them the deviation is multiplied by sqrt(1 + n / (n - 1)), about 1.4.
      rates: The rates of false positives at which true positives are counted.
      level: The coverage that the intervals aim at, in (0, 1).
      num_resamples: How many bootstrap samples are drawn.
      seed: Seeds the resampling.

    Returns:
      `auc`, and `tpr_at_1`, `tpr_at_0.1` and so on by rate in percent; all in [0, 1].

    References:
      Owen, The pigeonhole bootstrap, Annals of Applied Statistics, 2007. Nadeau and Bengio, Inference for the
      generalization error, Machine Learning, 2003, for the correction of cross-validation.
    """
    positives, negatives = np.asarray(attack.positives, np.float64), np.asarray(attack.negatives, np.float64)
    rows, columns = len(positives), positives.shape[1]
    over_networks = over_networks and rows > 1
    generator = np.random.default_rng(seed)

    def counts(total: int, resampled: bool = True) -> np.ndarray:
        if not resampled:
            return np.ones((num_resamples, total))
        return generator.multinomial(total, np.full(total, 1 / total), size=num_resamples).astype(np.float64)

    row_counts, own, other = counts(rows, over_networks), counts(columns), counts(negatives.shape[1])
    resampled = np.empty((num_resamples, rows))
    values = np.empty(rows)
    for row in range(rows):
        ahead = np.sign(positives[row][:, None] - negatives[row][None])
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
    """`tpr_at_fpr` where row r and column c of a sample count `rows[sample, r] * columns[sample, c]` times."""
    answers = []
    order = {name: np.argsort(-values, axis=None) for name, values in (("in", positives), ("out", negatives))}
    highest_first = negatives.ravel()[order["out"]]
    falling = -positives.ravel()[order["in"]]
    for sample in range(len(rows)):
        weights = np.outer(rows[sample], other[sample]).ravel()[order["out"]]
        passed = np.cumsum(weights)
        # The first negative that may not exceed the threshold is the threshold.
        first = int(np.searchsorted(passed, int(rate * passed[-1] + 1e-9), side="right"))
        threshold = highest_first[min(first, len(passed) - 1)]
        gained = np.cumsum(np.outer(rows[sample], own[sample]).ravel()[order["in"]])
        above = np.searchsorted(falling, -threshold, side="left")
        answers.append(gained[above - 1] / gained[-1] if above else 0.0)
    return np.asarray(answers)
