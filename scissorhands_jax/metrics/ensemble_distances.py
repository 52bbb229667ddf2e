"""Distances between unlearned and retrained networks, from their scores on the same examples: NumPy and float64.

Scores are arrays of shape (networks, examples), as for `ensemble_attacks`.
"""

from __future__ import annotations

import numpy as np

from scissorhands_jax.errors import DivergedError, InputError

KLOM_FLOOR = 1e-5
"""The published probability of a bin that retrained networks leave empty. KLoM is at most minus its logarithm, 11.5."""


def check_scores(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks the scores of two sets of networks on the same examples, and returns both as float64.

    Args:
      unlearned: The scores of the first networks. shape=(networks, examples)
      retrained: The scores of the other networks. shape=(networks, examples)

    Raises:
      InputError: There are no scores, the examples differ in number, or a score is not finite.
    """
    inside, outside = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    if inside.ndim != 2 or outside.ndim != 2 or inside.shape[1] != outside.shape[1] or not inside.size * outside.size:
        raise InputError(
            f"the scores have shapes {inside.shape} and {outside.shape}; give scores of shape (networks, examples) on "
            "the same examples"
        )
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise DivergedError("scores hold NaN or infinity; a network has diverged, try a smaller learning rate")
    return inside, outside


def klom(
    unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = 20, floor: float = KLOM_FLOOR, clip: float = 100.0
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


def example_scores(unlearned: np.ndarray, retrained: np.ndarray, *, delta: float = 0.01) -> np.ndarray:
    """Computes the forgetting quality of each example in the NeurIPS 2023 challenge: 1 if no attack gains anything.

    It is 2 / 2^n, where n is 1 for an epsilon in [0, 0.5), 2 in [0.5, 1), and so on up to 13. Its mean over examples is
    the forgetting score. The challenge had 512 networks of each kind. With few, some threshold looks good by chance. So
    compare the score with that of retrained against retrained networks, with the same number of them.

    Args:
      unlearned: The scores of unlearned networks. shape=(networks, examples)
      retrained: The scores of retrained networks on the same examples. shape=(networks, examples)
      delta: The delta of differential privacy; see `example_epsilons`.

    Returns:
      One number for each example, from 2^-12 to 1. shape=(examples,), dtype=float64
    """
    epsilons = example_epsilons(unlearned, retrained, delta=delta)
    return 2.0 / 2.0 ** np.digitize(epsilons, 0.5 * np.arange(13))
