"""Membership inference: can someone who sees only a network's outputs find out what it was trained on?

These are offline statistics of scores, in NumPy and scikit-learn. An attack is fitted on examples that are known to be
members (the retain set) and examples that are known not to be (the test set). Then it judges the forget set.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import log_softmax

from scissorhands_jax import data as data_lib
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.metrics import accuracies

_TINY = 1e-30  # replaces smaller numbers in a logarithm, as in the authors' code


class Classifier(Protocol):
    """The part of a scikit-learn classifier that an attack uses."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Classifier: ...

    def predict(self, X: np.ndarray) -> np.ndarray: ...


class AttackResult(NamedTuple):
    """The verdict of an attack on the target examples."""

    mia: float  # the percentage (0..100) that is judged non-members: the paper's MIA, P(y = 0 | x_f)
    predictions: np.ndarray  # shape=(N,), dtype=int8: 1 = judged a member, 0 = judged a non-member


def _support_vectors() -> Classifier:
    from sklearn.svm import SVC

    return SVC(C=3, gamma="auto", kernel="rbf")  # "auto" is 1 / number of features


def _logistic_regression() -> Classifier:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


CLASSIFIERS: MappingProxyType[str, Callable[[], Classifier]] = MappingProxyType(
    {"svc": _support_vectors, "logistic": _logistic_regression}
)
"""The classifiers of attacks by name. Each value is a function that makes an unfitted one."""


def membership_inference(
    member_scores: np.ndarray, nonmember_scores: np.ndarray, target_scores: np.ndarray, *, attack: str = "svc"
) -> AttackResult:
    """Fits a classifier to separate members (label 1) from non-members (label 0), and lets it judge the targets.

    Guarantees:
      * The same scores in the same order give the same predictions.
      * `"svc"` is the paper's attack (RBF kernel, C = 3, gamma = 1 / number of features), and `"logistic"` is an
        L2-regularised logistic regression with C = 1. Both agree with the authors' traces prediction by prediction.

    Two things to know about the result:
      * If members and non-members have similar scores, the SVC has little to go on. The result can then be any number
        between 0 and 100, and varies a lot with the seed. Compare it with that of the retrained network, never with 50.
      * The time of the SVC grows faster than linearly, up to quadratically, with the number of examples that it is
        fitted on: for one feature it takes about 0.1 s for 2,000, 2 s for 10,000, and 5 to 8 s for 20,000. Subsample
        larger sets, as `paper_mia` does.

    Args:
      member_scores: Features of examples that the network was trained on. shape=(M,) or (M, F)
      nonmember_scores: Features of examples that it was not trained on. shape=(K,) or (K, F)
      target_scores: Features of the examples to judge, usually the forget set. shape=(N,) or (N, F)
      attack: The classifier, a key of `CLASSIFIERS`.

    Raises:
      InputError: The attack is unknown, or scores are empty, not finite or of different widths.

    >>> result = membership_inference(np.array([0.9, 1.0]), np.array([0.1, 0.2]), np.array([0.0, 0.15, 0.3, 0.95]))
    >>> result.mia, result.predictions.tolist()
    (75.0, [0, 0, 0, 1])
    """
    if attack not in CLASSIFIERS:
        raise InputError(f"there is no attack {attack!r}; choose one of {', '.join(CLASSIFIERS)}")
    members = _columns(member_scores, "member_scores")
    nonmembers = _columns(nonmember_scores, "nonmember_scores")
    targets = _columns(target_scores, "target_scores")
    if len({members.shape[1], nonmembers.shape[1], targets.shape[1]}) > 1:
        raise InputError(
            "member, non-member and target scores must have the same number of features, "
            f"got {members.shape[1]}, {nonmembers.shape[1]} and {targets.shape[1]}"
        )
    labels = np.concatenate([np.ones(len(members), np.int8), np.zeros(len(nonmembers), np.int8)])
    classifier = CLASSIFIERS[attack]().fit(np.concatenate([members, nonmembers]), labels)
    predictions = classifier.predict(targets).astype(np.int8)
    return AttackResult(100.0 * int(np.count_nonzero(predictions == 0)) / len(predictions), predictions)


def _columns(scores: np.ndarray, name: str) -> np.ndarray:
    """Returns scores as float64 of shape (N, F)."""
    data_lib.check_not_masked(scores, name)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.size == 0:
        raise InputError(f"{name} must have shape (N,) or (N, F) and not be empty, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise DivergedError(f"{name} hold NaN or infinity; the network has diverged, try a smaller learning rate")
    return scores


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax of logits of shape (N, C), rounded to float32, as in the authors' attack.

    >>> probabilities(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    logits = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the probability of the true class. The result is float32 of shape (N,).

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.

    >>> confidence(np.array([[0.0, 0.0], [1000.0, 0.0]]), np.array([0, 1])).tolist()
    [0.5, 0.0]
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return np.take_along_axis(probabilities(logits), labels[:, None], axis=1)[:, 0]


def correctness(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns 1 where the true class has the largest logit, else 0. The result is int8 of shape (N,).

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return (logits.argmax(axis=1) == labels).astype(np.int8)


def cross_entropy_per_example(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the cross-entropy of each example, in nats. The result is float64 of shape (N,).

    It is computed from the logits, because a probability rounds to 0 or 1 long before its logarithm loses digits.

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.

    >>> cross_entropy_per_example(np.array([[0.0, 0.0], [1000.0, 0.0]]), np.array([0, 1])).round(4).tolist()
    [0.6931, 1000.0]
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return -np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), labels[:, None], axis=1)[:, 0]


def _floating(probs: np.ndarray) -> np.ndarray:
    """Widens probabilities to at least float32, because `_TINY` would be 0 in half precision."""
    probs = np.asarray(probs)
    return probs.astype(np.result_type(probs, np.float32), copy=False)


def _log(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs, probs.dtype.type(_TINY)))


def entropy(probs: np.ndarray) -> np.ndarray:
    """Computes the entropy of each row of probabilities (N, C), in nats. The result has shape (N,), at least float32.

    >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
    [0.0, 0.6931]
    """
    probs = _floating(probs)
    return np.abs((probs * _log(probs)).sum(axis=1))  # No term is positive, and abs, unlike minus, never gives -0.0.


def modified_entropy(probs: np.ndarray, labels: np.ndarray, mode: str = "paper") -> np.ndarray:
    """Computes an entropy that is small only where the network is sure *and* right.

    With p the probabilities of an example and y its label, `"paper"` is

        -(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j).

    `"authors"` is what the Scissorhands code computes instead: with S the set of *all* labels in the call,

        -sum over j in S of (1 - p_j) log p_j - sum over j not in S of p_j log p_j,

    which ignores each example's own label and changes scale with the classes that happen to be present.

    Args:
      probs: Probabilities, whose rows sum to 1. shape=(N, C)
      labels: The true classes, integers in 0..C-1. shape=(N,)
      mode: Which of the two formulas to use, `"paper"` or `"authors"`.

    Returns:
      One entropy for each example, in nats. shape=(N,), at least float32

    Raises:
      InputError: The mode is unknown, or the arrays do not fit each other.

    References:
      Song and Mittal, Systematic Evaluation of Privacy Risks of Machine Learning Models, USENIX Security 2021.

    >>> modified_entropy(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])).round(2).tolist()
    [0.0, 138.16]
    """
    probs, labels = accuracies.check_logits(_floating(probs), labels, what="probabilities")
    if mode == "paper":
        own = np.zeros(probs.shape, dtype=bool)
        np.put_along_axis(own, labels[:, None], True, axis=1)
        terms = np.where(own, (1 - probs) * _log(probs), probs * _log(1 - probs))
    elif mode == "authors":
        terms = np.where(np.isin(np.arange(probs.shape[1]), labels), 1 - probs, probs) * _log(probs)
    else:
        raise InputError(f"mode must be 'paper' or 'authors', got {mode!r}")
    return np.abs(terms.sum(axis=1))


FEATURES: MappingProxyType[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "correctness": correctness,
        "confidence": confidence,
        "entropy": lambda logits, labels: entropy(probabilities(logits)),
        "modified_entropy": lambda logits, labels: modified_entropy(probabilities(logits), labels),
        "probabilities": lambda logits, labels: probabilities(logits),
        "loss": lambda logits, labels: cross_entropy_per_example(logits, labels),
    }
)
"""The features that an attack may use, by name. Each function maps `(logits, labels)` to scores."""


def paper_mia(
    member_logits: np.ndarray,
    member_labels: np.ndarray,
    nonmember_logits: np.ndarray,
    nonmember_labels: np.ndarray,
    target_logits: np.ndarray,
    target_labels: np.ndarray,
    *,
    feature: str = "confidence",
    attack: str = "svc",
    max_size: int = 10_000,
    seed: int,
) -> float:
    """Computes the MIA of the paper: the percentage of the forget set that an SVC judges not to be trained on.

    The attack is fitted on equal numbers of members and non-members: the size of the smaller set, but at most
    `max_size`. Larger sets are subsampled at random, whereas the authors take the first retain examples. The size is
    part of the measure, because with C fixed, more examples mean a less regularised attack: on synthetic logits that
    leak membership the result is 52 with 1,000 of each, and 65 with 10,000. So compare only numbers of the same sizes.
    For class-wise forgetting the caller decides whether the forgotten class stays in the test set.

    Args:
      member_logits: The logits of the retain set. shape=(M, C)
      member_labels: The labels of the retain set. shape=(M,)
      nonmember_logits: The logits of the test set. shape=(K, C)
      nonmember_labels: The labels of the test set. shape=(K,)
      target_logits: The logits of the forget set. shape=(N, C)
      target_labels: The labels of the forget set. shape=(N,)
      feature: The feature that the attack uses, a key of `FEATURES`; the paper's tables use `"confidence"`.
      attack: The classifier, a key of `CLASSIFIERS`; `"logistic"` with the feature `"loss"` is the loss attack.
      max_size: The largest number of members, and of non-members, to fit on. The default keeps all test images of
        CIFAR, which takes up to 8 s for one feature, and limits the time for larger test sets.
      seed: The seed of the subsampling.

    Returns:
      The percentage, from 0 to 100.

    Raises:
      InputError: The feature is unknown, `max_size` is below 1, or the arrays cannot be used.

    References:
      Wu and Harandi, Scissorhands, ECCV 2024, section 4, "Metrics" (ii).
    """
    if feature not in FEATURES:
        raise InputError(f"there is no feature {feature!r}; choose one of {', '.join(FEATURES)}")
    if max_size < 1:
        raise InputError(f"max_size must be at least 1, got {max_size}")
    score = FEATURES[feature]
    for name, logits in (("member", member_logits), ("nonmember", nonmember_logits), ("target", target_logits)):
        if not len(logits):
            raise InputError(f"{name}_logits are empty; give the logits of at least one example")
    members = score(member_logits, member_labels)
    nonmembers = score(nonmember_logits, nonmember_labels)
    fitted = fitted_positions(len(members), len(nonmembers), max_size=max_size, seed=seed)
    members, nonmembers = members[fitted[0]], nonmembers[fitted[1]]
    return membership_inference(members, nonmembers, score(target_logits, target_labels), attack=attack).mia


def loss_mia(
    member_losses: np.ndarray,
    nonmember_losses: np.ndarray,
    target_losses: np.ndarray,
    *,
    attack: str = "svc",
    max_size: int = 10_000,
    seed: int,
) -> float:
    """Computes the MIA of `paper_mia` for any task: the attack sees the loss of each example alone.

    The attack is fitted on as many members and non-members as there, on the rank of each loss among these: the share of
    them with a smaller loss, where equal ones count half. So the unit of the loss changes nothing, and neither does any
    function that keeps their order.

    Args:
      member_losses: The losses of the retain set. shape=(M,)
      nonmember_losses: The losses of the test set. shape=(K,)
      target_losses: The losses of the forget set. shape=(N,)
      attack, max_size, seed: As for `paper_mia`.

    Returns:
      The percentage of the targets, from 0 to 100, that is judged not to have been trained on.

    Raises:
      InputError: `max_size` is below 1, or losses are empty, of another shape or not finite.
    """
    if max_size < 1:
        raise InputError(f"max_size must be at least 1, got {max_size}")
    named = {"member_losses": member_losses, "nonmember_losses": nonmember_losses, "target_losses": target_losses}
    for name, losses in named.items():
        if np.ndim(losses) != 1:
            raise InputError(f"{name} must have shape (N,), got {np.shape(losses)}; give one loss for each example")
    members, nonmembers, targets = (_columns(losses, name)[:, 0] for name, losses in named.items())
    fitted = fitted_positions(len(members), len(nonmembers), max_size=max_size, seed=seed)
    members, nonmembers = members[fitted[0]], nonmembers[fitted[1]]
    known = np.sort(np.concatenate([members, nonmembers]))
    ranks = [
        (np.searchsorted(known, losses, "left") + np.searchsorted(known, losses, "right")) / (2 * len(known))
        for losses in (members, nonmembers, targets)
    ]
    return membership_inference(*ranks, attack=attack).mia


def fitted_positions(
    num_members: int, num_nonmembers: int, *, max_size: int = 10_000, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted positions of the members and of the non-members that `paper_mia` fits its attack on.

    On these examples alone it would fit the attack on all of them, with the same result.

    Args:
      num_members: The number of members.
      num_nonmembers: The number of non-members.
      max_size: The largest number of each, as in `paper_mia`.
      seed: The seed of the subsampling.
    """
    generator, size = np.random.default_rng(seed), min(num_members, num_nonmembers, max_size)
    drawn = (np.sort(generator.choice(count, size, replace=False)) for count in (num_members, num_nonmembers))
    members, nonmembers = drawn
    return members, nonmembers
