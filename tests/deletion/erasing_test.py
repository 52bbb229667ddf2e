"""What identifies a requester is erased from every file, and the chain, the records and later runs stay whole."""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax import deletion, files, hashing
from scissorhands_jax.deletion import erasing, judging, records, signing, statements, tidying, verdicts
from scissorhands_jax.deletion.database import Database
from scissorhands_jax.deletion.entries import NamedExample, RequestErased, RequestsCovered, RunFailed
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS
from scissorhands_jax.terminal import Console
from tests.deletion import forking
from tests.deletion.commands import QUICK, command, verified
from tests.deletion.database_test import Died
from tests.deletion.samples import ABOUT
from tests.deletion.spoiling import by_hand, changes_of, holding, problems, request

NAME, CONTACT, POSITIONS = "Zoë Quaint-Elder", "zoe@quaint.example", (137, 142)
LISTS = ("forget_indices.txt", "trained_on.txt", "forgotten_before.txt")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A ledger whose requests, of three people, were served by a run each; the second names `POSITIONS`."""
    folder = tmp_path_factory.mktemp("erased")
    forking.prepare(folder)
    ask(folder, NAME, *POSITIONS, contact=CONTACT)
    ask(folder, "Third Person", 160)
    serve(folder / "ledger")
    return folder / "ledger"


def serve(folder, **options):
    """Serves requests with evidence that is always good, by steps so small that the networks hardly change."""
    settings = METHODS["finetune"](epochs=1, batch_size=64, learning_rate=1e-4)
    options = {"one_by_one": True, "budget": 100.0, **options}
    with open(os.devnull, "w") as sink, forking.good_evidence():
        outcomes = deletion.run(folder, settings, method="finetune", **options, console=Console(file=sink))
    assert all(outcome.verdict.answer == "forgotten" for outcome in outcomes)


def ask(folder, who, *positions, contact=""):
    (folder / "asked").write_text("".join(f"{position}\n" for position in positions))
    asked = {"forget": f"indices:{folder / 'asked'}", "requester": who, "contact": contact}
    deletion.add(folder / "ledger", **asked)


@pytest.fixture
def spoiled(three, tmp_path) -> Path:
    """A copy to erase from, next to its data."""
    for name in ("data.npz", "mlp.safetensors"):
        shutil.copy(three.parent / name, tmp_path / name)
    return shutil.copytree(three, tmp_path / "ledger")


def secrets_of(folder, number) -> list[str]:
    """Returns everything by which a request can be recognised: its private part, its salts, and its examples."""
    with Ledger(folder) as book:
        (asked,) = (one for one in book.requests() if one.id == number)
        salts = [book.salt(event.seq) for event in book.history() if getattr(event.entry, "id", None) == number]
        return [asked.requester, *filter(None, [asked.contact]), *salts, *(e.digest for e in book.examples(number))]


def listed(folder, run) -> dict[str, set[int]]:
    place = records.run_folder(folder, run)
    return {name: set(map(int, (place / name).read_text().split())) for name in LISTS if (place / name).exists()}


def test_nothing_that_identifies_is_left_in_any_file(spoiled, capsys):
    before = {path: path.read_bytes() for path in (spoiled / "records").iterdir()}
    private = secrets_of(spoiled, 2)
    assert len(private) == 5
    with Ledger(spoiled) as book:
        private += [book.run_salt(run) for run in (2, 3)]
        first = book.run_salt(1)
    assert all(holding(spoiled, text) for text in private)
    assert command("erase", "--ledger", spoiled, "2") == 0
    assert "and the files of runs that tell them (2, 3)" in capsys.readouterr().err
    assert holding(spoiled, *private) == []
    assert holding(spoiled, first) == ["ledger.sqlite3"], "what others asked for is still there"
    assert {path: path.read_bytes() for path in (spoiled / "records").iterdir()} == before
    assert verified(spoiled, capsys=capsys) == []
    assert not list(spoiled.glob("ledger.sqlite3-*"))


def test_what_killed_and_failed_runs_left_is_removed_too(spoiled, capsys):
    """No run has to be started first for their lists and half-written files to go."""
    remains = [tidying.positions_file(spoiled, 4), spoiled / ".pages.0a1b2c3d.partial"]
    for path in remains:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("137\n142\n")
    assert command("erase", "--ledger", spoiled, "2") == 0
    capsys.readouterr()
    assert [path for path in remains if path.exists()] == []
    assert verified(spoiled, capsys=capsys) == []


def test_whoever_has_the_keys_and_a_guess_cannot_check_it(spoiled):
    """Every digest that anyone could compute from the right positions is gone, those under the ledger's secret too."""
    with Ledger(spoiled) as book:
        keys, salts = book.keys, [book.run_salt(run) for run in (1, 2, 3)]
        rows = [dataclasses.asdict(example) for example in book.examples(2)]
    contents = [
        *(hashing.canonical(guess) for guess in ([*POSITIONS], [0, 1, *POSITIONS], rows)),
        *("".join(f"{position}\n" for position in guess).encode() for guess in (POSITIONS, (0, 1, *POSITIONS))),
    ]
    guesses = {hashing.positions_sha256(np.array(POSITIONS)), *map(hashing.sha256, contents)}
    purposes = ("positions", "file", "private", "example", "training set")
    guesses |= {keys.digest(purpose, content) for purpose in purposes for content in contents}
    known = {signing.salted_digest(salt, purpose, c) for salt in salts for purpose in purposes for c in contents}
    confirmed = {f"00000{run}.{kind}" for run in (2, 3) for kind in ("json", "intoto.jsonl")}
    assert confirmed <= set(holding(spoiled, *known)), "the right guess is confirmed as long as the salt is there"
    deletion.erase(spoiled, 2)
    assert holding(spoiled, *guesses) == []
    with Ledger(spoiled) as book:
        assert [book.run_salt(run) for run in (2, 3)] == [None, None]


def test_lists_of_later_runs_do_not_name_the_examples(spoiled):
    assert listed(spoiled, 3)["forgotten_before.txt"] == {0, 1, *POSITIONS}
    expected = {name: found - set(POSITIONS) for name, found in listed(spoiled, 3).items()}
    assert deletion.erase(spoiled, 2).runs == (2, 3)
    assert listed(spoiled, 2) == {}
    assert listed(spoiled, 3) == expected
    left = {path.name for path in records.run_folder(spoiled, 3).iterdir()}
    assert left == {*LISTS, "run.json", "network", "network.safetensors"}
    assert list(json.loads((records.run_folder(spoiled, 3) / "run.json").read_text())) == ["train_sha256"]


def test_what_was_forgotten_stays_forgotten(spoiled, capsys):
    deletion.erase(spoiled, 2)
    ask(spoiled.parent, "Fourth Person", 170)
    with pytest.raises(InputError, match="has not forgotten yet"):
        ask(spoiled.parent, "Fourth Person", POSITIONS[0])
    serve(spoiled)
    found = listed(spoiled, 4)
    assert not set(POSITIONS) & set.union(*found.values())
    assert found["forgotten_before.txt"] == {0, 1, 160}
    assert verified(spoiled, capsys=capsys) == []
    assert command("list", "--ledger", spoiled) == 0
    listed_people = capsys.readouterr().out
    assert "Quaint" not in listed_people
    assert "(erased)" in listed_people


def record_of(folder, run):
    return records.read_record(records.record_path(folder, run), signing.read_keys(folder / "keys").public)[0]


LIMIT = (
    "of the {} examples that earlier runs have made the network forget, {} could not be compared, because requests "
    "that named them were erased"
)


def test_records_count_what_erased_requests_named_and_say_that_it_was_not_compared(spoiled, tmp_path, capsys):
    """Runs 1, 2 and 3 forgot 2, 2 and 1 examples."""
    assert [record_of(spoiled, run).forgotten_before for run in (1, 2, 3)] == [0, 2, 4]
    assert not any("compared" in reason for run in (1, 2, 3) for reason in record_of(spoiled, run).verdict.reasons)
    for erased, run, position, count, not_compared in ((2, 4, 170, 5, 2), (1, 5, 171, 6, 4), (4, 6, 172, 7, 5)):
        deletion.erase(spoiled, erased)
        ask(spoiled.parent, "Another Person", position)
        serve(spoiled)
        record = record_of(spoiled, run)
        assert (record.forgotten_before, record.verdict.not_compared) == (count, (count, not_compared))
        assert record.verdict.reasons[-1] == LIMIT.format(count, not_compared)
        assert f"{not_compared} could not be compared" in records.record_page_path(spoiled, run).read_text()
    assert statements.statement(record, "")["predicate"]["forgottenBefore"] == 7
    assert verified(spoiled, capsys=capsys) == []
    assert command("export", "--ledger", spoiled, "--out", tmp_path / "copy") == 0
    assert verified(tmp_path / "copy", "--quick", capsys=capsys) == []


def test_what_is_still_listed_is_compared_after_an_erasure(spoiled, monkeypatch):
    """The comparison with what was forgotten before goes on without the erased examples."""
    deletion.erase(spoiled, 2)
    ask(spoiled.parent, "Fourth Person", 170)
    compared = []
    with forking.good_evidence():
        good = verdicts.held_out_comparison
    monkeypatch.setattr(forking, "good_evidence", contextlib.nullcontext)
    monkeypatch.setattr(verdicts, "held_out_comparison", lambda *given: compared.append(given[4]) or good(*given))
    serve(spoiled)
    (earlier,) = compared
    assert len(earlier.labels) == 3, "of runs 1 and 3"


def test_a_withdrawn_request_leaves_everything_to_be_compared(spoiled, capsys):
    ask(spoiled.parent, "Fourth Person", 170)
    deletion.erase(spoiled, 4)
    ask(spoiled.parent, "Fifth Person", 171)
    serve(spoiled)
    record = record_of(spoiled, 4)
    assert (record.forgotten_before, record.verdict.not_compared) == (5, None)
    assert verified(spoiled, "--quick", capsys=capsys) == []


def test_records_that_are_needed_to_count_are_missed_before_a_run_begins(spoiled):
    deletion.erase(spoiled, 2)
    ask(spoiled.parent, "Fourth Person", 170)
    path = records.record_path(spoiled, 2)
    whole = path.read_bytes()
    for change, words in (
        (path.unlink, r"000002\.json is missing"),
        (lambda: shutil.copy(records.record_path(spoiled, 1), path), r"000002\.json is not the record that the ledger"),
    ):
        change()
        with pytest.raises(InputError, match=words):
            serve(spoiled)
    assert not records.run_folder(spoiled, 4).exists()
    path.write_bytes(whole)
    serve(spoiled)
    assert record_of(spoiled, 4).forgotten_before == 5


def test_a_false_number_of_what_was_forgotten_before_is_found_although_it_was_signed(spoiled, monkeypatch, capsys):
    monkeypatch.setattr(judging, "forgotten_before", lambda book, listed: listed - 2)
    ask(spoiled.parent, "Fourth Person", 170)
    serve(spoiled)
    found = verified(spoiled, "--quick", capsys=capsys)
    assert len(found) == 2, found
    assert "000004.json says that 3 examples were forgotten before, and by the records before it" in found[0]
    assert "the list of its run names 5; put no trust in that record" in found[1]
    copy = spoiled.parent / "copy"
    assert command("export", "--ledger", spoiled, "--out", copy) == 0
    (line,) = verified(copy, "--quick", capsys=capsys)
    assert "000004.json says that 3 examples were forgotten before, and by the records before it" in line
    assert line.endswith("5 were; put no trust in that record")


def test_a_false_number_of_what_was_not_compared_is_found_although_it_was_signed(spoiled, monkeypatch, capsys):
    deletion.erase(spoiled, 2)
    judge = verdicts.judge
    monkeypatch.setattr(verdicts, "judge", lambda *given, **named: judge(*given, **named | {"not_compared": 1}))
    ask(spoiled.parent, "Fourth Person", 170)
    serve(spoiled)
    (line,) = verified(spoiled, "--quick", capsys=capsys)
    assert "000004.json says that 5 examples were forgotten before and that 1 of them were not compared, and" in line
    assert "the list of its run names 3; put no trust in that record" in line


def test_a_record_of_an_earlier_version_that_did_not_count_them_is_noted_and_is_no_change(
    spoiled, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("COLUMNS", "1000")
    deletion.erase(spoiled, 2)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "forgotten_before", lambda book, listed: listed)
        ask(spoiled.parent, "Fourth Person", 170)
        serve(spoiled)
    ask(spoiled.parent, "Fifth Person", 171)
    serve(spoiled)
    assert [record_of(spoiled, run).forgotten_before for run in (4, 5)] == [3, 6], "what comes after it is right"
    assert command("export", "--ledger", spoiled, "--out", tmp_path / "copy") == 0
    for folder in (spoiled, tmp_path / "copy"):
        capsys.readouterr()
        assert command("verify", "--ledger", folder, "--quick") == 0
        (note,) = [line for line in capsys.readouterr().err.splitlines() if "000004.json" in line]
        assert "it says that 3 examples were forgotten before, and 5 were, of which 2 were not compared" in note


def test_what_was_erased_does_not_count_as_never_seen(spoiled):
    """No list names it any more, and a loss on it would say nothing of examples that the network never saw."""
    deletion.erase(spoiled, 2)
    ask(spoiled.parent, "Fourth Person", 170)
    settings = METHODS["scissorhands"](epochs=1, batch_size=64, ceiling="held-out")
    told = "since a served request was erased no list says which these are; give method.ceiling=uniform or method.ceil"
    for subject in (None, deletion.Subject(dataset="npz:nowhere.npz")):  # Nothing is read first.
        with pytest.raises(InputError, match=told):
            deletion.run(spoiled, settings, method="scissorhands", subject=subject, console=Console(quiet=True))


def test_an_erasure_that_is_going_on_is_no_change(spoiled, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    seen, gone = [], []

    def watched(path, remove=files.remove):
        was_there = os.path.lexists(path)
        remove(path)
        if was_there and not gone:
            gone.append(path)
            seen.append(command("verify", "--ledger", spoiled, "--quick"))

    monkeypatch.setattr(erasing.files, "remove", watched)
    deletion.erase(spoiled, 2)
    assert [records.run_folder(spoiled, 2) in path.parents for path in gone] == [True], "a file of the run was missing"
    captured = capsys.readouterr()
    assert (seen, "CHANGED" in captured.out) == ([0], False)
    assert f"the erasure of request 2 has not ended and process {os.getpid()} on " in captured.err
    assert "is working on the ledger, so of the folders of runs only the networks were verified" in captured.err


def test_an_open_request_for_the_same_examples_is_covered(spoiled, capsys):
    with Ledger(spoiled) as book:
        rows = book.examples(2)[:1]
        book.add(requester="D", received="now", due="2026-12-31", network="0" * 64, examples=rows)
    deletion.erase(spoiled, 2)
    assert command("run", "--ledger", spoiled, *QUICK) == 0
    with Ledger(spoiled) as book:
        assert book.entries(RequestsCovered) == [RequestsCovered(run=3, requests=(4,))]
        assert book.requests()[3].requester == "D"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3)])
def test_everybody_can_be_erased_in_any_order(spoiled, order, capsys):
    for number in order:
        private = secrets_of(spoiled, number)
        deletion.erase(spoiled, number)
        assert holding(spoiled, *private) == []
        assert verified(spoiled, "--quick", capsys=capsys) == []
    with Ledger(spoiled) as book:
        assert [r.requester for r in book.requests() if r.id in order] == [""] * len(order)
        assert [r.state for r in book.requests()] == ["forgotten"] * 3
        salts = [book.salt(event.seq) for event in book.history() if isinstance(event.entry, RequestErased)]
        assert [salt is None for salt in salts] == [True] * (len(order) - 1) + [False], "of lists that named others too"
    ask(spoiled.parent, "Fourth Person", 170)
    serve(spoiled)
    assert verified(spoiled, capsys=capsys) == []


def test_a_run_that_served_two_requests_keeps_what_the_other_named(book_folder, capsys):
    """Run 3 serves requests 2 and 3 together, and its lists are then those of request 3."""
    serve(book_folder, one_by_one=False, again=True)
    deletion.erase(book_folder, 2)
    assert listed(book_folder, 3)["forget_indices.txt"] == {4, 5}
    assert verified(book_folder, "--quick", capsys=capsys) == []


def test_erasing_again_changes_nothing(spoiled, capsys):
    first = deletion.erase(spoiled, 2)
    assert deletion.erase(spoiled, 2) == first
    with Ledger(spoiled) as book:
        assert len(book.entries(RequestErased)) == 1


class TestBeforeItIsServed:
    def test_a_request_is_withdrawn(self, book_folder, capsys):
        """Request 2 was answered "retrain now" by run 2, and request 3 waits."""
        private = [text for number in (2, 3) for text in secrets_of(book_folder, number) if text != "C"]
        for number in ("2", "3"):
            assert command("erase", "--ledger", book_folder, number) == 0
            assert f"note: request {number} had not been served and is withdrawn" in capsys.readouterr().err
        assert holding(book_folder, *private) == []
        with Ledger(book_folder) as book:
            assert [one.state for one in book.requests()] == ["forgotten", "withdrawn", "withdrawn"]
            assert not any(one.overdue for one in book.requests()), "nobody waits for it any more"
        assert verified(book_folder, "--quick", capsys=capsys) == []
        assert command("run", "--ledger", book_folder, *QUICK, "--again") == 0
        assert "no request is open" in capsys.readouterr().out
        assert set(listed(book_folder, 1)["trained_on.txt"]) >= {4, 5}, "the network still knows them"

    def test_the_reason_of_a_failed_run_goes_too(self, folder):
        with Ledger(folder) as book:
            book.append(RunFailed(run=2, requests=(2,), why="position 137 is not what it was"))
        assert holding(folder, "position 137")
        deletion.erase(folder, 2)
        assert holding(folder, "position 137", "second") == []
        assert problems(folder) == []

    def test_the_original_has_forgotten_nothing(self, tmp_path):
        with Ledger.begin(tmp_path, ABOUT) as book:
            request(book, "first")
        deletion.erase(tmp_path, 1)
        with Ledger(tmp_path) as book:
            assert erasing.forgotten_for_erased(book, [4]) == {}

    def test_a_run_must_have_ended(self, folder):
        with pytest.raises(InputError, match="run 2 has not ended"):
            deletion.erase(folder, 3)
        with pytest.raises(InputError, match=r"there is no request 9 in .*; its requests are 1, 2, 3"):
            deletion.erase(folder, 9)
        assert problems(folder) == []


@pytest.mark.parametrize("mode", ["DELETE", "WAL", "PERSIST", "TRUNCATE"])
def test_pages_and_journals_of_the_database_hold_nothing(written, tmp_path, mode):
    """A database that holds much more, so that there are free pages, in every way to write it."""
    folder = shutil.copytree(written, tmp_path / "copy")
    with Ledger(folder) as book:
        book.append(RunFailed(run=2, requests=(2,), why="diverged"))
        many = [NamedExample(number, f"{number:064x}"[::-1]) for number in range(1000, 1400)]
        number = request(book, NAME, contact=CONTACT, examples=many)
    by_hand(folder, f"PRAGMA journal_mode = {mode}")
    private = secrets_of(folder, number)
    assert holding(folder, *private)
    deletion.erase(folder, number)
    assert holding(folder, *private) == []
    assert {path.name for path in folder.glob("ledger.sqlite3*")} == {"ledger.sqlite3"}
    with Ledger(folder) as book:
        assert book._database.execute("PRAGMA freelist_count") == [(0,)]
        assert book.problems() == []


def test_what_was_erased_and_put_back_is_found(spoiled, capsys):
    with Ledger(spoiled) as book:
        (seq,) = (event.seq for event in book.history() if getattr(event.entry, "id", None) == 2)
        part = book._private_parts()[seq]
    removed = (records.run_folder(spoiled, 2) / "forget_indices.txt").read_bytes()
    deletion.erase(spoiled, 2)
    (records.run_folder(spoiled, 2) / "forget_indices.txt").write_bytes(removed)
    assert any("forget_indices.txt is not a part" in line for line in verified(spoiled, "--quick", capsys=capsys))
    (records.run_folder(spoiled, 2) / "forget_indices.txt").unlink()
    by_hand(spoiled, f"INSERT INTO private VALUES ({seq}, '{part.salt}', '{part.document}')")
    (found,) = problems(spoiled)
    assert f"the private part of row {seq} of the history" in found
    assert "although it was erased" in found


def test_any_change_after_an_erasure_is_found(spoiled, capsys):
    deletion.erase(spoiled, 2)
    generator = random.Random(3)
    paths = [path for path in records.run_folder(spoiled, 3).iterdir() if path.is_file()]
    for path in sorted([*paths, *(spoiled / "records").glob("000002*")]):
        for what in changes_of(path, generator, bits=1):
            found = verified(spoiled, "--quick", capsys=capsys)
            assert any(path.name in line or path.parent.name in line for line in found), (what, found)
    assert verified(spoiled, "--quick", capsys=capsys) == []


STEPS = [
    *(
        ("remove", 1),
        ("remove", 4),
        ("write_text", 1),
        ("write_text", 3),
        ("BEGIN IMMEDIATE", 1),
        ("BEGIN IMMEDIATE", 2),
    ),
    *(("INSERT INTO history", 1), ("INSERT INTO history", 2), ("DELETE FROM private", 1), ("DELETE FROM private", 3)),
    *(("COMMIT", 2), ("COMMIT", 3), ("VACUUM", 1)),
]
"""What an erasure does, with the number of the time at which it dies. The first commit ends what was only read."""


def test_an_erasure_that_was_stopped_is_to_be_repeated_before_anything_else(spoiled, monkeypatch, capsys):
    """A backup of the files that it has changed would put back what is being erased."""
    left = [3]

    def dying(*words, write=files.write_text):
        left[0] -= 1
        if left[0] == 0:
            raise Died
        write(*words)

    with monkeypatch.context() as patch:
        patch.setattr(erasing.files, "write_text", dying)
        with pytest.raises(Died):
            deletion.erase(spoiled, 2)
    advice = "the erasure of request 2 was stopped before it ended; repeat "
    advice += f"`scissorhands request erase --ledger {spoiled} 2`"
    with pytest.raises(InputError, match=re.escape(advice)):
        ask(spoiled.parent, "Fourth Person", 170)
    with pytest.raises(InputError, match=re.escape(advice)):
        serve(spoiled)
    found = verified(spoiled, "--quick", capsys=capsys)
    assert found
    assert [line for line in found if not line.endswith(advice)] == []
    monkeypatch.setenv("COLUMNS", "1000")
    with files.sole_writer(spoiled):  # as another command does, such as `export`
        assert command("verify", "--ledger", spoiled, "--quick") == 0
    note = "the erasure of request 2 has not ended and process "
    (line,) = [line for line in capsys.readouterr().err.splitlines() if note in line]
    assert line.endswith(f"if it is no erasure, {advice.partition('; ')[2]}")
    deletion.erase(spoiled, 2)
    assert verified(spoiled, "--quick", capsys=capsys) == []
    ask(spoiled.parent, "Fourth Person", 170)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("step", "count"), STEPS)
def test_an_erasure_that_was_killed_is_finished_by_the_same_command(spoiled, step, count, after, monkeypatch, capsys):
    private = secrets_of(spoiled, 2)
    left = [count]

    def dying(work, counts):
        def step_of_work(*words):
            if counts(*words):
                left[0] -= 1
                if left[0] == 0 and not after:
                    raise Died
            result = work(*words)
            if counts(*words) and left[0] == 0:
                left[0] -= 1
                raise Died
            return result

        return step_of_work

    with monkeypatch.context() as patch:
        if hasattr(files, step):
            patch.setattr(erasing.files, step, dying(getattr(files, step), lambda *_: True))
        else:
            counts = lambda _, statement, *__: statement.startswith(step)  # noqa: E731
            patch.setattr(Database, "execute", dying(Database.execute, counts))
        with pytest.raises(Died):
            deletion.erase(spoiled, 2)
    deletion.erase(spoiled, 2)
    assert holding(spoiled, *private) == []
    assert verified(spoiled, "--quick", capsys=capsys) == []
