"""The simulation of audits, made small."""

import json
import re

import pytest

from experiments import calibration, findings
from scissorhands_jax.audit.analysis import MetricEstimate
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import METRICS, NULL


def test_results_have_every_number_and_say_what_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SIZES", {"tiny": {"audits": 2, "networks": 12, "examples": 40}})
    calibration.main(["--out", str(tmp_path / "calibration.json")])
    document = json.loads((tmp_path / "calibration.json").read_text())
    tiny = document["audits"]["tiny"]
    assert tiny["audits"] == 2
    labels = ("original", "perfect", "leaky", "overshot", NULL)
    assert {f"{method}: u_lira_auc" for method in labels} <= set(tiny["numbers"])
    of_few_networks = ("recovered", "probe", "distance")  # Student's interval of numbers of networks, and no more
    metrics = {metric for metric in METRICS if not metric.startswith(of_few_networks)}
    assert {name.partition(": ")[2] for name in tiny["numbers"]} == metrics, "an interval is printed and not simulated"
    for name in tiny["numbers"]:
        shown = [words for words, pattern in findings._INTERVALS.items() if re.fullmatch(pattern, name)]
        assert len(shown) == 1, f"{name} is in {shown} of the table"
    for row in tiny["numbers"].values():
        assert 0 <= row["coverage"] <= 1
    # Audits print no interval of KLoM of so few networks; that it would hold too little is what the simulation shows.
    assert max(row["reach"] for name, row in tiny["numbers"].items() if "klom" in name) > 0
    assert len(tiny["gates"]) == len(tiny["gates_without_memory"]) == 10
    assert {"versions", "machine", "made_by"} <= set(document)


def test_coverage_is_the_share_of_intervals_that_hold_the_mean():
    def one(value, low, high):
        return [MetricEstimate(None, "m", "lira_auc", Estimate(value, low, high, 0.95, 8, 9))]

    found = calibration.coverage([one(0.5, 0.4, 0.6), one(0.7, 0.65, 0.75), one(0.9, 0.6, 1.0)])["m: lira_auc"]
    assert found["mean"] == pytest.approx(0.7)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["reach"] == pytest.approx((0.1 + 0.05 + 0.2) / 3 / 0.2)
    assert found["found"] == pytest.approx(2 / 3)
