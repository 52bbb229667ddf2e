"""Membership inference: could someone who only sees the network's outputs tell what it was trained on?

Offline statistics on scores, in NumPy and scikit-learn. An attack is fitted on examples known to be members (retain
set) and known not to be (test set), then judges the forget set.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import log_softmax

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies

_TINY = 1e-30  # stands in for 0 under a logarithm, as in the authors' code


class Classifier(Protocol):
    """What an attack needs of a scikit-learn classifier."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Classifier: ...

    def predict(self, X: np.ndarray) -> np.ndarray: ...


class AttackResult(NamedTuple):
    """What an attack says of the target examples."""

    mia: float  # percent (0..100) of them judged non-members: the paper's MIA, P(y = 0 | x_f)
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
"""The classifiers of attacks by name, each a function that makes an unfitted one."""


def membership_inference(
    member_scores: np.ndarray, nonmember_scores: np.ndarray, target_scores: np.ndarray, *, attack: str = "svc"
) -> AttackResult:
    """Fits a classifier on members (label 1) against non-members (label 0) and lets it judge the targets.

    Guarantees:
      * Deterministic: the same scores in the same order give the same predictions.
      * `"svc"` is the paper's attack (RBF kernel, C = 3, gamma = 1 / number of features) and `"logistic"` an
        L2-regularised logistic regression with C = 1; both agree with the authors' traces prediction by prediction.

    Two things to know before reading the number:
      * Where members and non-members look alike the SVC has nothing to go by. Its answer is then any number between 0
        and 100, not 50, and moves a lot from seed to seed: compare with the retrained network's, never with 50.
      * The SVC solver takes time between linear and quadratic in the number of members and non-members: for one
        feature about 0.1 s for 2,000, 2 s for 10,000, 5 to 8 s for 20,000. Subsample before (`paper_mia` does).

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
            f"member, non-member and target scores must have the same number of features, "
            f"got {members.shape[1]}, {nonmembers.shape[1]} and {targets.shape[1]}"
        )
    labels = np.concatenate([np.ones(len(members), np.int8), np.zeros(len(nonmembers), np.int8)])
    classifier = CLASSIFIERS[attack]().fit(np.concatenate([members, nonmembers]), labels)
    predictions = classifier.predict(targets).astype(np.int8)
    return AttackResult(100.0 * int(np.count_nonzero(predictions == 0)) / len(predictions), predictions)


def _columns(scores: np.ndarray, name: str) -> np.ndarray:
    """Scores as float64 of shape (N, F)."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.size == 0:
        raise InputError(f"{name} must have shape (N,) or (N, F) and not be empty, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise InputError(f"{name} hold NaN or infinity; the network has diverged, try a smaller learning rate")
    return scores


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits of shape (N, C), rounded to float32 as the authors' attack sees it.

    >>> probabilities(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    logits = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of the true class. shape=(N,), dtype=float32

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.

    >>> confidence(np.array([[0.0, 0.0], [1000.0, 0.0]]), np.array([0, 1])).tolist()
    [0.5, 0.0]
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return np.take_along_axis(probabilities(logits), labels[:, None], axis=1)[:, 0]


def correctness(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the true class has the largest logit, else 0. shape=(N,), dtype=int8

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return (logits.argmax(axis=1) == labels).astype(np.int8)


def cross_entropy_per_example(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy, minus the log-probability of the true class, in nats. shape=(N,), dtype=float64

    Raises:
      InputError: `logits` (N, C) and integer `labels` (N,) do not fit each other, or a logit is not finite.

    >>> cross_entropy_per_example(np.array([[0.0, 0.0], [1000.0, 0.0]]), np.array([0, 1])).round(4).tolist()
    [0.6931, 1000.0]
    """
    logits, labels = accuracies.check_logits(logits, labels)
    return -np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), labels[:, None], axis=1)[:, 0]


def _floating(probs: np.ndarray) -> np.ndarray:
    """At least float32: `_TINY` would be 0 in half precision."""
    probs = np.asarray(probs)
    return probs.astype(np.result_type(probs, np.float32), copy=False)


def _log(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs, probs.dtype.type(_TINY)))


def entropy(probs: np.ndarray) -> np.ndarray:
    """The entropy of each row of probabilities (N, C), in nats. shape=(N,), dtype at least float32

    >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
    [0.0, 0.6931]
    """
    probs = _floating(probs)
    return np.abs((probs * _log(probs)).sum(axis=1))  # no term is positive; abs, unlike minus, makes no -0.0


def modified_entropy(probs: np.ndarray, labels: np.ndarray, mode: str = "paper") -> np.ndarray:
    """An entropy that is small only where the network is sure *and* right. shape=(N,), dtype at least float32

    With p the probabilities of an example and y its label, `"paper"` is

        -(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j).

    `"authors"` is what the Scissorhands code computes instead: with S the set of *all* labels in the call,

        -sum over j in S of (1 - p_j) log p_j - sum over j not in S of p_j log p_j,

    which ignores each example's own label and changes scale with the classes that happen to be present.

    Args:
      probs: Probabilities, whose rows sum to 1. shape=(N, C)
      labels: The true classes, integers in 0..C-1. shape=(N,)
      mode: Which of the two formulas is used, `"paper"` or `"authors"`.

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
"""What an attack may look at, by name: each function maps `(logits, labels)` to scores."""


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
    """The MIA column of the paper: percent (0..100) of the forget set that an SVC judges never to have been trained on.

    The attack is fitted on equally many members and non-members: as many as the smaller set has, but no more than
    `max_size`. Larger sets are subsampled at random (the authors take the first retain examples instead), by `seed`.
    The size is part of the measure: with C fixed, more examples mean a less regularised attack (on synthetic leaking
    logits 52 with 1,000 of each, 65 with 10,000), so compare only numbers that were made with the same sizes.
    For class-wise forgetting the caller decides whether the forgotten class stays in the test set.

    Args:
      member_logits: The logits of the retain set. shape=(M, C)
      member_labels: The labels of the retain set. shape=(M,)
      nonmember_logits: The logits of the test set. shape=(K, C)
      nonmember_labels: The labels of the test set. shape=(K,)
      target_logits: The logits of the forget set. shape=(N, C)
      target_labels: The labels of the forget set. shape=(N,)
      feature: What the attack looks at, a key of `FEATURES`; the paper's tables use `"confidence"`.
      attack: The classifier, a key of `CLASSIFIERS`; `"logistic"` with the feature `"loss"` is the loss attack.
      max_size: The largest number of members, and of non-members, to fit on. The default keeps all test images of CIFAR
        (up to 8 s for one feature) and bounds the time of larger test sets.
      seed: Seeds the subsampling.

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
    members = score(member_logits, member_labels)
    nonmembers = score(nonmember_logits, nonmember_labels)
    size = min(len(members), len(nonmembers), max_size)
    rng = np.random.default_rng(seed)
    members, nonmembers = (scores[_subset(rng, len(scores), size)] for scores in (members, nonmembers))
    return membership_inference(members, nonmembers, score(target_logits, target_labels), attack=attack).mia


def _subset(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """`size` of `count` positions, in ascending order."""
    return np.sort(rng.choice(count, size, replace=False))
