"""Scores of an audit as JSON: the same numbers follow from them, and what contradicts the design is refused."""

import base64
import copy
import dataclasses
import json

import numpy as np
import pytest

from scissorhands_jax.audit.analysis import AuditedSet, InsideNumbers, Measurement, Watched
from scissorhands_jax.audit.scores import AuditScores, numbers_document
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import ORIGINAL, REFERENCE


def made_up(networks: int = 8) -> AuditScores:
    """Returns scores of an audit of one forget set of six examples, in which the original is caught."""
    generator = np.random.default_rng(0)
    parts = np.split(np.arange(40), [6, 10, 30])
    included = np.zeros((networks, 30), bool)
    included[:, parts[1]] = True
    for pair in range(networks // 2):
        half = generator.permutation(parts[2])[:10]
        included[2 * pair, half] = included[2 * pair + 1, np.setdiff1d(parts[2], half)] = True
        included[2 * pair + pair % 2, parts[0]] = True
    watched = Watched(
        labels=(np.arange(40) % 2).astype(np.int32),
        included=included,
        forget_sets=(AuditedSet("set", (ORIGINAL, REFERENCE, "method"), parts[0].astype(np.int32), False),),
        always=parts[1].astype(np.int32),
        halved=parts[2].astype(np.int32),
        held_out=parts[3].astype(np.int32),
    )
    measurements = []
    for network in range(networks):
        seen = np.concatenate([included[network], np.zeros(10, bool)])
        margins = generator.normal(size=40) + 4 * seen
        is_original = bool(seen[0])
        inside = InsideNumbers([50.0, 60.0], 70.0, 65.0, 0.1, None if network == 0 else 0.2) if network < 2 else None
        measurements.append(Measurement(0, ORIGINAL if is_original else REFERENCE, network, margins, inside))
        if is_original:
            measurements.append(Measurement(0, "method", network, generator.normal(size=40) + 4 * (seen > 1), None))
    return AuditScores(watched, tuple(measurements))


def test_the_same_numbers_follow_after_a_round_trip():
    scores = made_up()
    document = json.loads(json.dumps(scores.as_document()))
    read = AuditScores.from_document(document)
    assert numbers_document(*read.numbers()) == numbers_document(*scores.numbers())
    assert read.as_document() == document
    metrics = {entry["metric"] for entry in numbers_document(*read.numbers())["evidence"]}
    assert {"population_auc", "u_lira_auc", "lira_auc", "recovered"} <= metrics


def test_scores_of_other_tasks_may_be_large():
    """A squared error in the unit of its target, or the logits of a network that gradient ascent drove up."""
    scores = made_up()
    large = tuple(dataclasses.replace(one, margins=1e12 * one.margins) for one in scores.measurements)
    scores = AuditScores(dataclasses.replace(scores.watched, of_margins=False), large)
    read = AuditScores.from_document(json.loads(json.dumps(scores.as_document())))
    assert numbers_document(*read.numbers()) == numbers_document(*scores.numbers())
    assert not read.watched.of_margins


def change_margins(document, change):
    margins = np.frombuffer(base64.b64decode(document["measurements"][0]["margins"]), "<f8").copy()
    document["measurements"][0]["margins"] = base64.b64encode(change(margins).tobytes()).decode()


def flip(document, network, column):
    flags = np.unpackbits(np.frombuffer(base64.b64decode(document["included"][network]), np.uint8))
    flags[column] ^= 1
    document["included"][network] = base64.b64encode(np.packbits(flags).tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=1), "its format is 1"),
        (lambda d: d.pop("labels"), "KeyError"),
        (lambda d: d["labels"].append(-1), "whole numbers"),
        (lambda d: d["labels"].append(1.5), "whole numbers"),
        (lambda d: d["labels"].append(1), "does not say for each training example|exactly one part|one number below"),
        (lambda d: d.update(networks=6), "masks of 8 networks"),
        (lambda d: d["included"].pop(), "masks of 7 networks"),
        (lambda d: d["included"].__setitem__(0, "!"), "scores cannot be read"),
        (lambda d: d["included"].__setitem__(0, ""), "does not say for each training example"),
        (lambda d: d["always"].append(0), "exactly one part"),
        (lambda d: d["always"].append(4_000), "does not exist"),
        (lambda d: d["halved"].append(d["halved"][0]), "named twice"),
        (lambda d: d["halved"].pop(), "exactly one part"),
        (lambda d: flip(d, 0, 6), "examples that all have"),
        (lambda d: flip(d, 0, 12), "same example of a half"),
        (lambda d: (flip(d, 0, 0), flip(d, 1, 0)), "a part of a forget set"),
        (lambda d: d["forget_sets"].clear(), "exactly one part|no forget set"),
        (lambda d: d["measurements"].append(d["measurements"][0]), "measured twice"),
        (lambda d: d["measurements"].pop(0), "not every network"),
        (lambda d: d["measurements"][0].update(label="other"), "cannot be 'other'"),
        (lambda d: d["measurements"][0].update(label=REFERENCE), "cannot be 'retrain'"),
        (lambda d: d["measurements"][0].update(network=100), "scores cannot be read"),
        (lambda d: d["measurements"][0].update(set=3), "scores cannot be read"),
        (lambda d: d["measurements"][0].update(network=True), "whole numbers"),
        (lambda d: change_margins(d, lambda m: m[1:]), "one number below"),
        (lambda d: change_margins(d, lambda m: m * np.nan), "one number below"),
        (lambda d: change_margins(d, lambda m: m - np.inf), "one number below"),
        (lambda d: change_margins(d, lambda m: m + 1e300), "one number below"),
        (lambda d: d["measurements"][0]["inside"].update(probe_forget=float("nan")), "not finite"),
        (lambda d: d["measurements"][0]["inside"].update(recovery=[]), "not finite"),
        (lambda d: d["measurements"][0]["inside"].update(distance_original=10**400), "scores cannot be read"),
        (lambda d: d["measurements"][0]["inside"].pop("recovery"), "scores cannot be read"),
    ],
)
def test_what_contradicts_the_design_of_an_audit_is_refused(change, message):
    document = copy.deepcopy(made_up().as_document())
    change(document)
    with pytest.raises(InputError, match=message):
        AuditScores.from_document(document)


@pytest.mark.parametrize("document", [None, [], {}, 1, "x", {"format": 2}, {"format": 2, "labels": 3}])
def test_other_documents_are_refused(document):
    with pytest.raises(InputError, match="scores cannot be read"):
        AuditScores.from_document(document)
