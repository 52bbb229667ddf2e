"""What a run costs, measured for every method on the same data; and networks that have become useless."""

import numpy as np
import pytest

from scissorhands_jax.deletion import records, signing, utility
from scissorhands_jax.deletion.entries import RunRecorded
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.utility import MeasuredSet, RunUtility
from scissorhands_jax.deletion.verdicts import Scored
from scissorhands_jax.errors import InputError
from tests.deletion import trained
from tests.deletion.commands import command, states


def measured(right, of=100, guessed=10, loss=0.5):
    return MeasuredSet(right, of, guessed, loss)


def test_a_set_is_measured_by_accuracy_loss_and_what_a_guess_would_get():
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    found = utility.measure(Scored(logits, np.array([0, 1, 1])))
    assert (found.right, found.of, found.guessed) == (1, 3, 2)
    expected = np.mean([np.log(1 + np.exp(-2)), np.log(1 + np.exp(2)), np.log(2)])
    assert found.loss == pytest.approx(expected)
    assert found.percent == pytest.approx(100 / 3)
    with pytest.raises(InputError, match="no retained or test example"):
        utility.measure(Scored(np.zeros((0, 2)), np.zeros(0, int)))


def test_only_examples_of_the_given_classes_count():
    chosen = utility.of_classes(Scored(np.eye(3), np.array([0, 1, 2])), np.array([0, 2]))
    np.testing.assert_array_equal(chosen.labels, [0, 2])
    np.testing.assert_array_equal(chosen.logits, np.eye(3)[[0, 2]])


def test_losses_add_up_over_runs():
    found = RunUtility({"retain": measured(95), "test": measured(90)}, {"retain": measured(93), "test": measured(91)})
    assert found.lost({}) == pytest.approx({"retain": 2.0, "test": -1.0})
    assert found.lost({"retain": 0.5, "test": 0.25}) == pytest.approx({"retain": 2.5, "test": -0.75})


@pytest.mark.parametrize(
    ("before", "after", "collapses"),
    [
        (measured(90), measured(80), False),
        (measured(90), measured(10), True),
        (measured(90), measured(12), True),  # no better than a guess, as far as 100 examples show
        (measured(12), measured(10), False),  # there was nothing to lose
        (measured(90), measured(90, loss=float("nan")), True),
        (measured(90), measured(90, loss=float("inf")), True),
        (measured(100, guessed=100), measured(100, guessed=100), False),
    ],
)
def test_a_network_collapses_if_it_is_no_better_than_a_guess(before, after, collapses):
    for name in ("retain", "test"):
        fine = measured(90)
        other = "test" if name == "retain" else "retain"
        found = RunUtility({name: before, other: fine}, {name: after, other: fine}).collapses()
        assert len(found) == collapses
        assert all(name in sentence for sentence in found)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return trained.ledger_of_trained_network(tmp_path_factory.mktemp("utility"))


def test_an_untrained_network_is_never_the_answer_however_much_may_be_lost(ledger, capsys):
    for number, budget in enumerate(("1", "100"), start=1):
        assert command("run", "--ledger", ledger, "--method", "retrain", "--epochs", "0", "--budget", budget) == 3
        told = capsys.readouterr()
        assert "the network has collapsed" in told.out
        assert not {"--max-loss", "next:"} & set(told.err.split()), "which is advice for `unlearn`"
        record, _ = records.read_record(records.record_path(ledger, number), signing.read_keys(ledger / "keys").public)
        assert record.utility.before["retain"].right == record.utility.before["retain"].of == 160
        assert record.utility.after["retain"].of == 160, "both are measured on the same data"
        assert float(record.utility.after["retain"].loss) > float(record.utility.before["retain"].loss)
        assert float(record.utility.retain) > 50
    assert states(ledger) == ["retrain now"]


def test_retraining_that_learns_serves_the_request(ledger, capsys):
    words = ["--epochs", "60", "--batch-size", "40", "method.learning_rate=0.3", "method.milestones=none"]
    assert command("run", "--ledger", ledger, "--method", "retrain", *words, "--budget", "40") == 0
    assert states(ledger) == ["forgotten"]
    with Ledger(ledger) as book:
        assert book.entries(RunRecorded)[-1].lost == {"retain": "0.0", "test": "0.0"}
