"""The auditor's copy names nobody and nothing, and is enough to verify the ledger on another machine without keys."""

import random
import shutil
from pathlib import Path

import jax
import pytest

from scissorhands_jax import deletion, hashing, models, torch_weights
from scissorhands_jax.deletion import exporting, ledger, records, signing
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.requests import config_in_use
from tests.deletion.commands import QUICK, command, error_of, verified
from tests.deletion.samples import started
from tests.deletion.spoiling import by_hand, changes_of, everything, flipped, holding, remove_journals, unguarded


@pytest.fixture(scope="module")
def exported(served, tmp_path_factory) -> Path:
    """A copy on what could be another machine: neither the keys nor any place that the ledger knows is there."""
    folder = tmp_path_factory.mktemp("auditor") / "copy"
    before = {path: path.read_bytes() for path in served.rglob("*") if path.is_file()}
    assert command("export", "--ledger", served, "--out", folder) == 0
    assert {path: path.read_bytes() for path in served.rglob("*") if path.is_file()} == before
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


def test_it_holds_no_name_no_position_no_place_and_no_salt(served, exported):
    with Ledger(served) as book:
        parts = [part for part in book._private_parts().values()]
        digests = [example.digest for request in book.requests() for example in book.examples(request.id)]
    assert len(digests) == 70
    private = ["request 1", "B. Person", str(served), str(served.parent), "indices:", "data.npz", "mlp.safetensors"]
    private += [*digests, *(part.salt for part in parts), *(part.document for part in parts)]
    assert all(holding(served, text) for text in private[:4])
    assert holding(exported, *private) == []
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    kinds = ("json", "html", "intoto.jsonl")
    expected = {f"records/{run:06d}.{kind}" for run in (1, 2) for kind in kinds}
    assert names == {*expected, "records/public_key.pem", "ledger.sqlite3", "runs/000001/network.safetensors"}


def test_it_is_verified_without_keys(served, exported, tmp_path, capsys):
    assert verified(exported, capsys=capsys) == []
    assert command("verify", "--ledger", exported) == 0
    captured = capsys.readouterr()
    digest = hashing.file_sha256(served / "records" / "public_key.pem")
    assert f"the public key is the one in the copy itself, a file with the SHA-256 {digest}" in captured.err
    assert "this is an auditor's copy" in captured.err
    assert "the network was not evaluated again" in captured.err
    with Ledger(served) as book:
        assert f"nothing was changed; head {book.head}" in captured.out
    shutil.copy(served / "records" / "public_key.pem", tmp_path / "key.pem")
    assert command("verify", "--ledger", exported, "--public", tmp_path / "key.pem") == 0
    assert "in the copy itself" not in capsys.readouterr().err


def test_its_network_is_evaluated_where_the_data_are_known(served, copy, tmp_path, capsys):
    dataset = ["--dataset", f"npz:{served.parent / 'data.npz'}"]
    assert verified(copy, *dataset, capsys=capsys) == []
    other = records.run_folder(served, 2) / "network.safetensors"
    with Ledger(served) as book:
        retrain_now = records.read_record(records.record_path(served, 2), book.public)[0]
    assert retrain_now.verdict.answer == "retrain now"
    shutil.copy(other, records.run_folder(copy, 1) / "network.safetensors")
    assert any("network.safetensors was changed" in line for line in verified(copy, *dataset, capsys=capsys))


def test_an_original_that_is_in_use_is_verified_where_it_is_named(served, tmp_path, capsys):
    weights = str(served.parent / "mlp.safetensors")
    dataset = f"npz:{served.parent / 'data.npz'}"
    subject = deletion.Subject("mlp", dataset, None, weights)
    (tmp_path / "nine").write_text("9\n")
    deletion.add(tmp_path / "new", forget=f"indices:{tmp_path / 'nine'}", requester="A", subject=subject)
    deletion.export(tmp_path / "new", tmp_path / "copy")
    assert verified(tmp_path / "copy", capsys=capsys) == []
    assert command("verify", "--ledger", tmp_path / "copy") == 0
    assert "the original network is in use; name it with --weights or --checkpoint" in capsys.readouterr().err
    known = ["--weights", weights, "--dataset", dataset]
    assert verified(tmp_path / "copy", *known, capsys=capsys) == []
    run = records.run_folder(served, 1)
    for other in (["--weights", run / "network.safetensors"], ["--checkpoint", run]):
        found = verified(tmp_path / "copy", *other, "--dataset", dataset, capsys=capsys)
        assert any("is not the network that the ledger was begun with" in line for line in found)


def test_a_network_that_was_read_in_order_is_evaluated_in_a_copy_and_after_an_erasure(served, tmp_path, capsys):
    """Only the file of the network is left there, with the names of the file that the ledger was begun with."""
    arrays = torch_weights.read_state_dict(served.parent / "mlp.safetensors")
    order = sorted(arrays, key=lambda name: (name.startswith("head"), name.split(".")[0], name.endswith("bias")))
    own = {f"p{number:02}": arrays[name] for number, name in enumerate(order)}
    torch_weights.write_safetensors(tmp_path / "own.safetensors", own)
    (tmp_path / "nine").write_text("9\n")
    dataset = ["--dataset", f"npz:{served.parent / 'data.npz'}"]
    about = ["--weights", tmp_path / "own.safetensors", "--model", "mlp", *dataset, "--layout", "in-order"]
    about += ["--forget", f"indices:{tmp_path / 'nine'}", "--requester", "A"]
    assert command("add", "--ledger", tmp_path / "new", *about) == 0
    again = ["--method", "retrain", *QUICK[2:]]
    assert command("run", "--ledger", tmp_path / "new", *again) == 0
    assert command("export", "--ledger", tmp_path / "new", "--out", tmp_path / "copy") == 0
    assert verified(tmp_path / "copy", *dataset, capsys=capsys) == []
    assert command("erase", "--ledger", tmp_path / "new", "1") == 0
    assert verified(tmp_path / "new", capsys=capsys) == []


def test_any_changed_byte_is_found_and_its_file_named(copy, capsys):
    generator = random.Random(4)
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != ledger.DATABASE_FILE):
        for what in changes_of(path, generator):
            found = verified(copy, capsys=capsys)
            # The public key may not be known any more.
            assert any(path.name in line or "keys" in line for line in found), (what, found)
    assert verified(copy, capsys=capsys) == []


def test_a_changed_byte_of_the_database_is_found_or_changes_nothing_that_is_read(copy, capsys):
    generator = random.Random(5)
    path = copy / ledger.DATABASE_FILE
    whole, expected = path.read_bytes(), everything(path)
    texts = sorted({value.encode() for table in expected for row in table for value in row if isinstance(value, str)})
    for text in texts:
        path.write_bytes(flipped(whole, whole.index(text) + generator.randrange(len(text)), generator))
        assert verified(copy, capsys=capsys), text
        remove_journals(copy)
    found_in = 0
    for position in generator.sample([position for position, byte in enumerate(whole) if byte], 60):
        path.write_bytes(flipped(whole, position, generator))
        found = verified(copy, capsys=capsys)
        found_in += bool(found)
        assert found or everything(path) == expected, position
        remove_journals(copy)
    assert found_in > 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: by_hand(f, "DELETE FROM requests WHERE id = 3"), "request 3 in .* is missing"),
        (lambda f: by_hand(f, "INSERT INTO private VALUES (1, 'a', '{}')"), "row 1 of the history .* was changed"),
        (lambda f: by_hand(f, *unguarded("history_is_kept", "DELETE FROM history WHERE seq > 4")), "was cut off"),
        (lambda f: (f / "runs/000001/forget_indices.txt").write_text("0\n"), "forget_indices.txt is not a part"),
        (lambda f: shutil.rmtree(f / "runs"), "the folder .* is missing"),
        (lambda f: (f / "records/000002.json").unlink(), "000002.json is missing"),
        (lambda f: (f / "names.txt").write_text("B. Person"), "names.txt is not a part"),
        (lambda f: (f / "trained_on.txt").write_text("0\n"), "trained_on.txt is not a part"),
        (lambda f: (f / "forgotten_before.txt").write_text("0\n"), "forgotten_before.txt is not a part"),
    ],
)
def test_other_changes_are_found_too(copy, change, words, capsys):
    import re

    change(copy)
    found = verified(copy, capsys=capsys)
    assert any(re.search(words, line) for line in found), found


def test_nothing_of_a_run_that_was_stopped_is_a_part_of_a_copy(book_folder, tmp_path, capsys):
    with Ledger(book_folder) as book:
        book.append(started(3, 3))
    deletion.export(book_folder, tmp_path / "copy")
    for folder, noted in ((book_folder, True), (tmp_path / "copy", False)):
        capsys.readouterr()
        assert command("verify", "--ledger", folder, "--quick") == 0
        assert ("run 3 has not ended" in capsys.readouterr().err) is noted
    for name in ("000003.txt", "000003/run.json", "000003.audit/one"):
        path = tmp_path / "copy" / "runs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("4\n5\n")
        assert any(f"{path} is not a part" in line for line in verified(tmp_path / "copy", capsys=capsys))


def test_what_appears_in_its_place_meanwhile_stays(served, tmp_path, monkeypatch, capsys):
    whole = exporting._copy_rows

    def overtaken(*arguments):
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "thesis.txt").write_text("mine")
        return whole(*arguments)

    monkeypatch.setattr(exporting, "_copy_rows", overtaken)
    assert command("export", "--ledger", served, "--out", tmp_path / "copy") == 2
    assert "exists already; name a folder that does not" in error_of(capsys)
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["thesis.txt"]


def test_an_original_is_verified_as_it_is_described(served, tmp_path, capsys):
    """The copy does not say how its file is read, and what is not said is no change."""
    model = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(5,))
    arrays = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    twice = {f"{prefix}.{name}": array for prefix in ("student", "teacher") for name, array in arrays.items()}
    torch_weights.write_safetensors(tmp_path / "twice.safetensors", twice)
    (tmp_path / "nine").write_text("9\n")
    known = ["--weights", tmp_path / "twice.safetensors", "--dataset", f"npz:{served.parent / 'data.npz'}"]
    described = ["--prefix", "teacher.", "model_options.hidden=[5]"]
    asked = ["--model", "mlp", "--forget", f"indices:{tmp_path / 'nine'}", "--requester", "A"]
    assert command("add", "--ledger", tmp_path / "new", *known, *described, *asked) == 0
    deletion.export(tmp_path / "new", tmp_path / "copy")
    assert verified(tmp_path / "copy", *known, *described, capsys=capsys) == []
    for words in (known[:2], known, [*known, *described[:2]]):
        assert command("verify", "--ledger", tmp_path / "copy", *words) == 2
        assert "CHANGED" not in capsys.readouterr().out
    other = [*known, "--prefix", "student.", "model_options.hidden=[5]"]
    assert verified(tmp_path / "copy", *other, capsys=capsys) == [], "the same numbers by other names"
    options = deletion.Subject(model_options={"hidden": (5,)}, dataset=known[-1], weights=str(known[1]))
    with Ledger(tmp_path / "copy", public=tmp_path / "copy/records/public_key.pem") as book:
        assert config_in_use(book, options).model_options == {"hidden": [5]}, "as JSON has them"


def test_a_copy_that_was_signed_by_another_key_is_found_with_the_right_one(served, copy, tmp_path, capsys):
    shutil.copy(served / "records" / "public_key.pem", tmp_path / "right.pem")
    other = signing.public_pem(signing.LedgerKeys(bytes(32), bytes(range(32))).public)
    (copy / "records" / "public_key.pem").write_bytes(other)
    assert "public key in" in verified(copy, capsys=capsys)[0]
    assert "public_key.pem was changed" in verified(copy, "--public", tmp_path / "right.pem", capsys=capsys)[0]


def test_what_others_have_next_to_the_copy_stays(served, tmp_path):
    theirs = [tmp_path / name for name in (".gitconfig.lock", ".movie.mp4.0a1b2c3d.partial")]
    ours = tmp_path / ".copy.0a1b2c3d.partial"
    for path in (*theirs, ours):
        path.touch()
    assert command("export", "--ledger", served, "--out", tmp_path / "copy") == 0
    assert [path.exists() for path in (*theirs, ours)] == [True, True, False]


def test_a_copy_within_the_ledger_is_refused(served, tmp_path, capsys):
    before = sorted(served.rglob("*"))
    (tmp_path / "link").symlink_to(served)
    for place in (served / "copy", served / "records/copy", served / "records/../copy", tmp_path / "link/copy"):
        assert command("export", "--ledger", served, "--out", place) == 2
        assert "lies in the ledger" in error_of(capsys)
    assert sorted(served.rglob("*")) == before


def test_it_cannot_be_worked_with(copy, capsys):
    (copy.parent / "four").write_text("4\n")
    for words in (["run", *QUICK], ["add", "--forget", f"indices:{copy.parent / 'four'}", "--requester", "A"]):
        assert command(words[0], "--ledger", copy, *words[1:]) == 2
        assert "an auditor's copy has none, and can be verified" in error_of(capsys)


def test_a_whole_ledger_without_its_keys_is_no_copy(book_folder, capsys):
    shutil.rmtree(book_folder / "keys")
    (found,) = verified(book_folder, capsys=capsys)
    assert "the key" in found
    assert "is missing" in found


def test_after_an_erasure_it_is_verified_as_well(book_folder, tmp_path, capsys):
    deletion.erase(book_folder, 1)
    deletion.export(book_folder, tmp_path / "copy")
    assert verified(tmp_path / "copy", capsys=capsys) == []


def test_bad_input_is_one_sentence_and_leaves_nothing(served, book_folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert command("export", "--ledger", served, "--out", tmp_path / "there") == 2
    assert "exists already; name a folder that does not" in error_of(capsys)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("notes.txt/copy", "notes.txt/deep/copy", "link/copy"):
        assert command("export", "--ledger", served, "--out", tmp_path / place) == 2
        assert f"{tmp_path / place.partition('/')[0]} is no folder, so no copy can be made in it" in error_of(capsys)
    by_hand(book_folder, "DELETE FROM requests WHERE id = 3")
    assert command("export", "--ledger", book_folder, "--out", tmp_path / "copy") == 2
    assert "request 3" in error_of(capsys)
    (book_folder / "records" / "000002.html").unlink()
    shutil.copy(served / ledger.DATABASE_FILE, book_folder / ledger.DATABASE_FILE)
    assert command("export", "--ledger", book_folder, "--out", tmp_path / "copy") == 2
    assert "000002.html" in error_of(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger", "link", "notes.txt", "there"]
