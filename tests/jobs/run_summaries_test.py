"""What is said after a run: its cost, what its steps saw, and what to do next."""

import dataclasses

import pytest

from scissorhands_jax.base import Data
from scissorhands_jax.jobs import run_summaries
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.methods import METHODS
from tests import tiny

CONFIG = RunConfig(model="mlp", dataset="digits", forget="random:0.1", method=METHODS["scissorhands"]())
BEFORE = {"acc_forget": 99.0, "acc_retain": 99.0, "acc_test": 90.0, "num_forget": 50}
NO_GATES = [{"passed": None}]


def told(config=CONFIG, gates=NO_GATES, seen=50, steps=20, max_loss=10.0, **after):
    return run_summaries.run_summary(config, BEFORE, BEFORE | after, gates, seen=seen, steps=steps, max_loss=max_loss)


def test_a_good_run_is_told_what_is_missing():
    lines = told(acc_forget=90.0, acc_test=88.5)
    assert (
        lines[0]
        == "accuracy: forget 99.0 to 90.0 %, retain 99.0 to 99.0 %, test 90.0 to 88.5 %; scissorhands cost 1.5 points"
    )
    assert lines[1] == "its 20 steps saw all 50 forget examples"
    assert "no gate was run, so nothing shows yet that this can be trusted; run the same command" in lines[2]


def test_a_collapse_is_a_warning_unless_it_is_allowed():
    lines = told(acc_forget=10.0, acc_retain=40.0, acc_test=31.1)
    assert lines[0].startswith("warning: accuracy has collapsed (forget 99.0 to 10.0 %, ")
    assert "scissorhands cost 59.0 points, more than the 10 that --max-loss allows" in lines[0]
    assert lines[2].startswith("next: lower method.learning_rate or method.forget_weight, or let `scissorhands tune`")
    ssd = dataclasses.replace(CONFIG, method_name="ssd", method=METHODS["ssd"]())
    assert told(ssd, acc_forget=10.0, acc_retain=40.0)[2].startswith("next: let `scissorhands tune` choose")
    assert told(ssd)[2].endswith("so it has not forgotten all; let `scissorhands tune` choose")
    assert not told(acc_retain=40.0, max_loss=60.0)[0].startswith("warning")


def test_what_was_not_forgotten_or_not_seen_is_said():
    assert "still answers 99.0 % of the forgotten examples, and 90.0 % of unseen ones" in told()[2]
    whole = dataclasses.replace(CONFIG, forget="class:3")
    assert "still answers 80.0 % of the forgotten classes" in told(whole, acc_forget=80.0)[2]
    assert "no gate was run" in told(whole, acc_forget=0.0)[2]
    assert "see the gates" in told(acc_forget=90.0, gates=[{"passed": False}])[2]
    assert "saw 20 of the 50 forget examples, because they are too few or too small" in told(seen=20)[1]
    assert told(seen=0)[1] == "no step of scissorhands sees forget examples"
    assert told(steps=0)[1] == "scissorhands takes no steps"


@pytest.mark.parametrize("name", ["scissorhands", "neggrad_plus", "munba", "orthograd"])
@pytest.mark.parametrize(("forget", "retain"), [(50, 7), (9, 6), (7, 50)])
def test_steps_see_every_forget_example_however_many_there_are(name, forget, retain):
    method, data = tiny.method(name), Data(tiny.examples(forget, 1), tiny.examples(retain, 2))
    assert run_summaries.seen_by_steps(method, 0, data, epochs=1) == forget


def test_steps_that_see_one_set_alone_are_told_apart():
    data = tiny.data()
    assert run_summaries.seen_by_steps(tiny.method("finetune"), 0, data, epochs=2) == 0
    assert run_summaries.seen_by_steps(tiny.method("gradient_ascent"), 0, data, epochs=0) == 0
