"""Networks that were derived from the ledger's, and which of them know what a request asks to forget."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from scissorhands_jax import deletion, hashing
from scissorhands_jax.deletion import lineage
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.recorded_runs import network_in_use
from scissorhands_jax.errors import InputError
from tests.deletion.commands import command, error_of, verified
from tests.deletion.samples import recorded
from tests.deletion.spoiling import by_hand, problems, unguarded

A, B, C, D = (letter * 64 for letter in "abef")


def attention(folder) -> dict[int, list[str]]:
    with Ledger(folder) as book:
        return {one.id: [net.sha256[0] for net in lineage.needing_attention(book, one)] for one in book.requests()}


def test_a_request_names_what_descends_from_networks_that_know_its_examples(folder):
    """Request 1 was served by run 1, whose network is d...d; requests 2 and 3 wait."""
    deletion.derive(folder, parent="original", child=A)
    deletion.derive(folder, parent="1", child=B)
    deletion.derive(folder, parent=A, child=C)
    assert attention(folder) == {1: ["a", "e"], 2: ["a", "b", "e"], 3: ["a", "b", "e"]}
    deletion.derive(folder, parent=A, child=B)  # merged from both
    assert attention(folder)[1] == ["a", "b", "e"]
    with Ledger(folder) as book:
        book.append(recorded(2, 2))
        assert lineage.derived_networks(book)[1].parents == ("d" * 64, A)
    assert attention(folder)[2] == ["a", "b", "e"], "a run that changed nothing has not made a network that forgot"


def test_a_retired_network_needs_none_but_what_was_made_from_it_does(folder):
    deletion.derive(folder, parent="original", child=A)
    deletion.derive(folder, parent=A, child=C)
    deletion.retire(folder, A)
    assert attention(folder) == {1: ["e"], 2: ["e"], 3: ["e"]}
    with pytest.raises(InputError, match="no longer in use already"):
        deletion.retire(folder, A)
    with pytest.raises(InputError, match="is not registered"):
        deletion.retire(folder, D)


@pytest.mark.parametrize("parent", ["original", "1"])
def test_a_retired_network_that_is_registered_again_is_in_use_again(folder, parent):
    """With the parent that it had, and with another one."""
    deletion.derive(folder, parent="original", child=A, note="small")
    for _ in range(2):
        deletion.retire(folder, A)
        assert attention(folder)[2] == []
        deletion.derive(folder, parent=parent, child=A, note="small")
        assert attention(folder)[2] == ["a"]
    with Ledger(folder) as book:
        (network,) = lineage.derived_networks(book)
    assert network.parents == ("0" * 64, "d" * 64)[: 1 if parent == "original" else 2]
    assert network.note == "small"
    with pytest.raises(InputError, match="already"):
        deletion.derive(folder, parent=parent, child=A)


def test_a_list_also_has_the_networks_in_use_that_need_none(folder, capsys):
    """Advice after `request retire` of an unknown network is to look there."""
    with Ledger(folder) as book:
        book.append(dataclasses.replace(recorded(2, 2, 3), network="9" * 64))
    deletion.derive(folder, parent="original", child=A)
    deletion.derive(folder, parent="2", child=B, note="small")
    assert command("list", "--ledger", folder) == 0
    shown = capsys.readouterr().out
    assert f"the derived network {A} knows what requests 1, 2, 3 ask to forget" in shown
    assert f"the derived network {B} (small) is in use\n" in shown
    deletion.retire(folder, B)
    assert command("list", "--ledger", folder) == 0
    assert B not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parent", "child", "words"),
    [
        ("2", B, "there is no parent '2'; name `original`, the number of a run \\(1\\)"),
        ("nowhere", B, "there is no parent 'nowhere'"),
        (D, B, "the ledger knows no network ffff"),
        ("original", "0" * 64, "is a network of the ledger itself"),
        ("original", "d" * 64, "is a network of the ledger itself"),
        ("original", "nowhere", "there is no file 'nowhere'"),
        ("original", "A" * 64, "there is no file 'AAAA"),
        (A, A, "is an ancestor of"),
        (C, A, "is an ancestor of"),
        (A, C, "is registered as derived from .* already"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(folder, parent, child, words):
    deletion.derive(folder, parent="original", child=A)
    deletion.derive(folder, parent=A, child=C)
    with Ledger(folder) as book:
        head = book.head
    with pytest.raises(InputError, match=words):
        deletion.derive(folder, parent=parent, child=child)
    with pytest.raises(InputError, match="the note is"):
        deletion.derive(folder, parent="original", child=B, note="a\x1b[2J")
    with Ledger(folder) as book:
        assert book.head == head


@pytest.mark.parametrize("moved", [False, True])
def test_files_of_the_ledgers_own_networks_are_known(book_folder, tmp_path, moved):
    """A file has another hash than the numbers in it, and is known wherever it lies."""
    with Ledger(book_folder) as book:
        numbers = [book.about.network, network_in_use(book)]
        original = Path(book.about.weights)
    for number, file in enumerate((original, book_folder / "runs/000001/network.safetensors")):
        if moved:
            file = shutil.copy(file, tmp_path / "moved")
        for child in (str(file), hashing.file_sha256(file)):
            with pytest.raises(InputError, match="is a network of the ledger itself"):
                deletion.derive(book_folder, parent="original", child=child)
        deletion.derive(book_folder, parent=str(file), child=(A, B)[number])
        with Ledger(book_folder) as book:
            assert lineage.derived_networks(book)[-1].parents == (numbers[number],)
    assert attention(book_folder)[1] == ["a"]


def test_an_original_that_an_earlier_run_has_made_is_known(served, tmp_path):
    run = served / "runs/000001"
    dataset = f"npz:{served.parent / 'data.npz'}"
    (tmp_path / "nine").write_text("9\n")
    for place in (run, run / "network"):
        folder = tmp_path / place.name
        subject = deletion.Subject("mlp", dataset, None, None, str(place))
        deletion.add(folder, forget=f"indices:{tmp_path / 'nine'}", requester="A", subject=subject)
        with pytest.raises(InputError, match="is a network of the ledger itself"):
            deletion.derive(folder, parent="original", child=str(run / "network.safetensors"))


def test_an_empty_file_is_no_network(folder, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="empty is empty, so it holds no network; name the file of a network"):
        deletion.derive(folder, parent="original", child=str(tmp_path / "empty"))
    assert not problems(folder)
    with Ledger(folder) as book:
        assert lineage.derived_networks(book) == []


def test_a_changed_note_or_row_is_found(folder):
    deletion.derive(folder, parent="original", child=A, note="on the phone")
    assert problems(folder) == []
    whole = (folder / "ledger.sqlite3").read_bytes()
    change = "UPDATE private SET document = replace(document, 'phone', 'watch') WHERE seq = 8"
    by_hand(folder, *unguarded("private_stays", change))
    assert "the private part of row 8" in problems(folder)[0]
    (folder / "ledger.sqlite3").write_bytes(whole)
    change = f"UPDATE history SET body = replace(body, '{A}', '{B}') WHERE seq = 8"
    by_hand(folder, *unguarded("history_stays", change))
    assert "row 8 of the history" in problems(folder)[0]


def test_the_commands_say_which_networks_need_attention(book_folder, tmp_path, capsys):
    (tmp_path / "small").write_bytes(b"int8")
    digest = hashing.file_sha256(tmp_path / "small")
    words = ["--ledger", book_folder, "--parent", "original", "--child", tmp_path / "small", "--note", "[bold]int8[/x]"]
    assert command("derive", *words) == 0
    assert digest in capsys.readouterr().err
    (tmp_path / "more").write_text("7\n")
    add = ["--ledger", book_folder, "--forget", f"indices:{tmp_path / 'more'}", "--requester", "D"]
    assert command("add", *add) == 0
    assert f"the derived network {digest} ([bold]int8[/x]) knows these examples too" in capsys.readouterr().err
    assert command("list", "--ledger", book_folder, "--json") == 0
    assert [one["derived_networks"] for one in json.loads(capsys.readouterr().out)] == [[digest]] * 4
    line = f"the derived network {digest} ([bold]int8[/x]) knows what requests 1, 2, 3, 4 ask to forget"
    assert command("list", "--ledger", book_folder) == 0
    assert line in capsys.readouterr().out
    assert command("verify", "--ledger", book_folder, "--quick") == 0
    assert line in capsys.readouterr().err
    assert command("derive", *words) == 2
    assert "already" in error_of(capsys)
    assert command("retire", "--ledger", book_folder, "--network", tmp_path / "small") == 0
    assert command("list", "--ledger", book_folder, "--json") == 0
    assert [one["derived_networks"] for one in json.loads(capsys.readouterr().out)[:1]] == [[]]
    assert verified(book_folder, "--quick", capsys=capsys) == []
