"""Runs that serve requests: what they begin with and leave, and kills at any moment."""

import re
import shutil

import pytest

from scissorhands_jax.deletion import records, running, signing
from scissorhands_jax.deletion.entries import NamedExample, RequestsCovered, RunFailed, RunRecorded
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from tests.deletion.commands import QUICK, command, error_of, states, verified
from tests.deletion.samples import started
from tests.deletion.spoiling import request

pytest.importorskip("cryptography")


def test_the_network_in_use_is_the_one_that_has_forgotten(served):
    with Ledger(served) as book:
        first, second = book.entries(RunRecorded)
        requests = book.requests()
    assert (first.verdict, second.verdict) == ("forgotten", "retrain now")
    assert requests[2].network == first.network != second.network
    record, _ = records.read_record(records.record_path(served, 2), signing.read_keys(served / "keys").public)
    assert record.network.before == first.network, "a later run goes on from the network in use"
    assert record.forgotten_before == 2
    assert not record.evidence.gates[0].passed, "a network without training knows nothing by heart"


def test_a_request_that_a_run_has_covered_needs_none(book_folder, tmp_path, capsys):
    with Ledger(book_folder) as book:
        examples = book.examples(1)
        number = book.add(requester="late", received="now", due="2030-01-01", network="0" * 64, examples=examples)
        book.append(RequestsCovered(run=1, requests=(3,)))
    assert command("run", "--ledger", book_folder, *QUICK) == 0
    assert "no request is open" in capsys.readouterr().out
    with Ledger(book_folder) as book:
        served = book.requests()[number - 1]
        assert (served.state, served.run) == ("forgotten", 1)


def test_a_record_counts_earlier_tries(book_folder):
    """Whoever tries again until the evidence is good by chance leaves a trace."""
    assert command("run", "--ledger", book_folder, *QUICK, "--again", "--seed", "1") == 3
    record, _ = records.read_record(records.record_path(book_folder, 3), signing.read_keys(book_folder / "keys").public)
    assert record.earlier_tries == 1, "the examples of request 2 were tried in run 2"
    first, _ = records.read_record(records.record_path(book_folder, 1), signing.read_keys(book_folder / "keys").public)
    assert first.earlier_tries == 0
    page = records.record_page_path(book_folder, 3).read_text()
    assert "Earlier runs with examples of this one: 1." in page


def test_tries_are_counted_by_example_whatever_request_names_them(book_folder):
    """The same example in a new request, a part of it, or a copy elsewhere in the training set is the same example."""
    with Ledger(book_folder) as book:
        third = book.examples(3)
        (spare,) = [entry for entry in book.examples(2) if entry.position == 7]
        asked = {
            "the same": third,
            "a part, and more": [third[0], spare],
            "a copy": [NamedExample(190, third[1].digest)],
            "another": [spare],
        }
        numbers = {name: request(book, name, examples=examples) for name, examples in asked.items()}
        book.append(started(3, 3))
        book.append(RunFailed(run=3, requests=(3,), why="for the test"))
        tries = {name: running._earlier_tries(book, started(4, number)) for name, number in numbers.items()}
    assert tries == {"the same": 2, "a part, and more": 2, "a copy": 1, "another": 1}, "run 2 worked on 4 and 7"


def test_a_run_that_diverges_opens_its_requests_again(book_folder, capsys):
    assert command("run", "--ledger", book_folder, *QUICK, "method.learning_rate=1e30") == 2
    assert "at step" in error_of(capsys)
    assert states(book_folder) == ["forgotten", "retrain now", "open"]
    with Ledger(book_folder) as book:
        (failed,) = book.entries(RunFailed)
        assert "at step" in failed.why
    left = [path.relative_to(book_folder).as_posix() for path in book_folder.rglob("*") if "000003" in path.as_posix()]
    assert left == [], "nothing that says what was to be forgotten"
    assert verified(book_folder, "--quick", capsys=capsys) == []


@pytest.mark.parametrize("spoil", ["moved", "weights", "positions", "audit"])
def test_a_run_that_fails_when_it_is_resumed_leaves_no_position(book_folder, spoil, monkeypatch, capsys):
    """Whatever fails, and also if its message or its folders name positions."""

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running.unlearning, "unlearn", stopped)
        assert command("run", "--ledger", book_folder, *QUICK) == 130
    out = records.run_folder(book_folder, 3)
    assert out.with_suffix(".txt").read_text() == "4\n5\n"
    out.with_suffix(".audit.txt").write_text("0\n1\n")
    out.with_suffix(".audit").mkdir()
    if spoil == "moved":
        monkeypatch.setattr(running, "check_content", failing("the first is at position 4; its content is now at 5"))
    elif spoil == "weights":
        shutil.rmtree(book_folder / "runs" / "000001" / "network")
    elif spoil == "positions":
        out.with_suffix(".txt").write_text("4\n5000\n")
    else:
        monkeypatch.setattr(running, "_judged", failing("the examples 4, 5 and 17 are odd"))
    assert command("run", "--ledger", book_folder) == 2
    with Ledger(book_folder) as book:
        (failed,) = book.entries(RunFailed)
    assert not set(re.findall(r"\d+", failed.why)) & {"4", "5"}
    assert [path for path in (book_folder / "runs").iterdir() if "000003" in path.name] == []


def failing(message):
    def fails(*arguments, **options):
        raise InputError(message)

    return fails


def test_retraining_serves_what_was_refused_and_begins_a_new_budget(book_folder, capsys):
    quick = ["--method", "retrain", "--epochs", "2", "--batch-size", "64", "--budget", "100"]
    assert command("run", "--ledger", book_folder, *quick, "method.milestones=none") == 0
    assert "trained from scratch without the examples" in capsys.readouterr().out
    assert states(book_folder) == ["forgotten"] * 3
    with Ledger(book_folder) as book:
        first, _, last = book.entries(RunRecorded)
    assert set(first.lost.values()) != {"0.0"}
    assert last.lost == {"retain": "0.0", "test": "0.0"}, "later losses are measured from the retrained network"
    assert verified(book_folder, capsys=capsys) == []
    assert command("add", "--ledger", book_folder, "--forget", "class:1", "--requester", "B") == 2
    assert "there is no class '1'" in error_of(capsys)
