"""Replays of the metrics: membership inference on recorded logits, and the average gap."""

from __future__ import annotations

import numpy as np

from scissorhands_jax.metrics import attacks, distances
from tests.parity.checks import LOSSES, Check, absolute, exact, holds, relative
from tests.parity.traces import Trace

SCORES = 1e-12  # sums of whole numbers divided once
FEATURES = {
    "correctness": ("correct", attacks.correctness),
    "confidence": ("confidence", attacks.confidence),
    "entropy": ("entropy", lambda logits, labels: attacks.entropy(attacks.probabilities(logits))),
    "m_entropy": (
        "m_entropy",
        lambda logits, labels: attacks.modified_entropy(attacks.probabilities(logits), labels, mode="authors"),
    ),
    "prob": ("prob", lambda logits, labels: attacks.probabilities(logits)),
}
NAMES = {"Acc_Df": "acc_forget", "Acc_Dr": "acc_retain", "Acc_test": "acc_test", "MIA": "mia"}


def replay_metric(trace: Trace) -> list[Check]:
    """Whichever metric the trace holds."""
    if "rows" in trace.meta:
        return _average_gap(trace)
    return _svc(trace) if "svc" in trace.meta else _loss_attack(trace)


def _average_gap(trace: Trace) -> list[Check]:
    retrained = {ours: trace.meta["retrain"][theirs] for theirs, ours in NAMES.items()}
    checks = [exact("synthetic_rows", trace.meta["synthetic_rows"], True)]
    for number, row in enumerate(trace.meta["rows"]):
        ours = {name: row[theirs] for theirs, name in NAMES.items()}
        gap = distances.average_gap(ours, retrained)
        parts = {theirs: abs(ours[name] - retrained[name]) for theirs, name in NAMES.items()}
        checks += [
            absolute(f"row {number}", gap, row["avg_gap"], SCORES),
            exact(f"row {number} to two digits", f"{gap:.2f}", row["avg_gap_2dec"]),
            exact(f"row {number} names", sorted(row["gaps"]), sorted(parts)),
            *[absolute(f"row {number} {name}", parts[name], gap_of, 0.005) for name, gap_of in row["gaps"].items()],
        ]
    return checks


def _svc(trace: Trace) -> list[Check]:
    meta, arrays = trace.meta, trace.arrays
    parts = sorted({key.split("/")[0] for key in arrays if key.endswith("/logits")})
    logits = {part: arrays[f"{part}/logits"] for part in parts}
    labels = {part: arrays[f"{part}/labels"] for part in parts}
    settings = attacks.CLASSIFIERS["svc"]().get_params()
    recorded = meta["svc"].plain()
    library = recorded.pop("library")
    checks = [
        exact("library", library.split()[0], "scikit-learn"),
        exact("kernel", settings["kernel"], recorded.pop("kernel")),
        exact("C", settings["C"], recorded.pop("C")),
        exact("gamma", settings["gamma"], recorded.pop("gamma").split()[0]),
        exact("labels", recorded, {"label_member": 1, "label_nonmember": 0}),
        exact("classes", logits[parts[0]].shape[1], meta["classes"]),
        exact("sizes", {name: len(labels.get(name, ())) for name in meta["sizes"]}, meta["sizes"].plain()),
        exact("style", "privacy" if "target_train" in parts else "forget", meta["style"]),
        exact(
            "columns_touched_by_m_entropy",
            {part: np.unique(labels[part]).tolist() for part in parts},
            meta["columns_touched_by_m_entropy"].plain(),
        ),
    ]
    targets = [part for part in ("target_train", "target_test") if part in parts]
    for name, (array, feature) in FEATURES.items():
        scores = {part: feature(logits[part], labels[part]) for part in parts}
        for part in parts:
            values = np.asarray(scores[part], np.float64).reshape(arrays[f"{part}/{array}"].shape)
            # Relative, because the authors' modified entropy adds up logarithms of 1e-30.
            checks.append(relative(f"{part}/{array}", values, arrays[f"{part}/{array}"], LOSSES))
        shares = []
        for position, part in enumerate(targets):
            result = attacks.membership_inference(scores["shadow_train"], scores["shadow_test"], scores[part])
            checks.append(exact(f"pred/{name}/{position}", result.predictions, arrays[f"pred/{name}/{position}"]))
            shares.append(result.mia / 100 if part == "target_test" else 1 - result.mia / 100)
        checks += [
            absolute(f"score {name}", np.mean(shares), meta["scores"][name], SCORES),
            *_fitted(name, arrays[f"shadow_train/{array}"], arrays[f"shadow_test/{array}"], trace),
        ]
    for part in parts:
        textbook = attacks.modified_entropy(arrays[f"{part}/prob"].astype(np.float64), labels[part])
        checks.append(absolute(f"{part} textbook", textbook, arrays[f"{part}/m_entropy_textbook"], LOSSES))
    return checks


def _fitted(name: str, members: np.ndarray, nonmembers: np.ndarray, trace: Trace) -> list[Check]:
    """The fitted classifier itself: its support vectors by class, and gamma."""
    examples = np.concatenate([members, nonmembers]).reshape(len(members) + len(nonmembers), -1)
    classifier = attacks.CLASSIFIERS["svc"]().fit(examples, np.repeat([1, 0], [len(members), len(nonmembers)]))
    return [
        exact(f"svc/{name}/n_support", classifier.n_support_, trace.arrays[f"svc/{name}/n_support"]),
        absolute(f"svc/{name}/gamma", 1 / examples.shape[1], trace.arrays[f"svc/{name}/gamma"], SCORES),
    ]


def _loss_attack(trace: Trace) -> list[Check]:
    meta, arrays = trace.meta, trace.arrays
    checks = [exact("library", meta["library"].split()[0], "scikit-learn")]
    for part in ("member", "nonmember"):
        losses = attacks.cross_entropy_per_example(arrays[f"{part}_logits"], arrays[f"{part}_labels"])
        checks.append(absolute(f"{part}_loss", losses, arrays[f"{part}_loss"], LOSSES))
    sample, members = arrays["x"], arrays["members"]
    known = {1: arrays["member_loss"], 0: arrays["nonmember_loss"]}
    checks.append(exact("balance", int(members.sum()) * 2, len(members)))
    for value, losses in known.items():
        checks.append(holds(f"sample of {value}", bool(np.isin(sample[members == value], losses).all())))
    scores = []
    for fit, judge in zip(arrays["split_train"], arrays["split_test"], strict=True):
        checks.append(exact("split", np.sort(np.concatenate([fit, judge])), np.arange(len(sample))))
        inside, outside = sample[fit][members[fit] == 1], sample[fit][members[fit] == 0]
        result = attacks.membership_inference(inside, outside, sample[judge], attack="logistic")
        scores.append(float(np.mean(result.predictions == members[judge])))
    return [
        *checks,
        absolute("scores", scores, arrays["scores"], SCORES),
        absolute("score", np.mean(scores), meta["score"], SCORES),
    ]
