"""`request verify` finds every change to what runs left, and confirms what was not changed."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from scissorhands_jax import deletion, hashing, torch_weights
from scissorhands_jax.deletion import ledger, records, signing, verifying
from scissorhands_jax.deletion.entries import RequestsCovered
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.requests import config_in_use, past_files
from tests.deletion.commands import command, error_of, moved_data, verified
from tests.deletion.samples import recorded, started


def test_what_is_as_written_is_said_to_be(served, capsys):
    assert verified(served, capsys=capsys) == []
    with Ledger(served) as book:
        heads = [event.hash for event in book.history()]
    for head in (heads[0], heads[-1]):
        assert verified(served, "--quick", "--head", head, capsys=capsys) == []


def test_any_changed_byte_is_found_and_its_file_named(book_folder, capsys):
    generator = random.Random(1)
    # What a changed byte of the ledger itself must change to be found is for database_test.py.
    paths = [path for path in sorted(book_folder.rglob("*")) if path.is_file() and path.name != ledger.DATABASE_FILE]
    assert len(paths) > 28
    for path in paths:
        whole = path.read_bytes()
        for position in [generator.randrange(len(whole)) for _ in range(1)] if whole else []:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            found = verified(book_folder, "--quick", capsys=capsys)
            # A byte of the keys may show in all that depends on it.
            assert any(path.name in line or path.parent.name in line for line in found), (path, position, found)
        path.write_bytes(whole + b"\n")
        assert any(path.name in line for line in verified(book_folder, "--quick", capsys=capsys)), path
        path.unlink()
        assert any(path.name in line for line in verified(book_folder, "--quick", capsys=capsys)), path
        path.write_bytes(whole)
        if path.parent.name == "keys":
            path.chmod(0o600)
    assert verified(book_folder, "--quick", capsys=capsys) == []


def swap(folder, name, other):
    first, second = folder / name, folder / other
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: swap(f, "records/000001.json", "records/000002.json"), "000001.json is not the record"),
        (lambda f: shutil.copy(f / "records/000001.json", f / "records/000002.json"), "000002.json is not the record"),
        (lambda f: (f / "records/000002.json").unlink(), "000002.json is missing"),
        (lambda f: shutil.copy(f / "records/000001.json", f / "records/000003.json"), "000003.json is not a part"),
        (lambda f: (f / "records/public_key.pem").unlink(), "public_key.pem is missing"),
        (lambda f: (f / "runs/000001/network/extra").write_text(""), "extra is not a part"),
        (lambda f: shutil.rmtree(f / "runs/000001"), "the folder {f}/runs/000001 is missing"),
        (lambda f: (f / "records/000001.json").write_text("[" * 100_000), "000001.json was changed or damaged"),
    ],
)  # fmt: skip
def test_records_that_were_moved_or_removed_are_found(book_folder, change, words, capsys):
    change(book_folder)
    found = verified(book_folder, "--quick", capsys=capsys)
    assert any(words.format(f=book_folder) in line for line in found)
    assert all(re.search("; (put|move) ", line) for line in found), found


def test_an_older_copy_is_told_by_a_head_that_was_kept(book_folder, tmp_path, capsys):
    old = shutil.copytree(book_folder, tmp_path / "old")
    with Ledger(book_folder) as book:
        book.append(RequestsCovered(run=1, requests=(3,)))
        head = book.head
    assert verified(old, "--quick", capsys=capsys) == []
    (found,) = verified(old, "--quick", "--head", head, capsys=capsys)
    assert "older copy" in found


class TestPublicKey:
    """An auditor has a copy without the keys, and the public key from elsewhere."""

    @pytest.fixture
    def pem(self, book_folder, tmp_path) -> Path:
        shutil.copy(book_folder / "records" / "public_key.pem", tmp_path / "public_key.pem")
        shutil.rmtree(book_folder / "keys")
        return tmp_path / "public_key.pem"

    def test_it_verifies_what_is_signed_and_says_what_is_not(self, book_folder, pem, capsys):
        assert verified(book_folder, "--public", pem, capsys=capsys) == []
        assert command("verify", "--ledger", book_folder, "--public", pem, "--quick") == 0
        assert capsys.readouterr().err.count("note") == 1

    def test_what_takes_the_secret_is_named(self, begun, capsys):
        """The data are not compared with their digests, with or without it."""
        public = ["--public", begun / "records" / "public_key.pem", "--quick"]
        assert command("verify", "--ledger", begun, *public) == 0
        note = "without the ledger's secret, it cannot be verified that the lists of what the first network was trained"
        assert note in capsys.readouterr().err
        assert command("verify", "--ledger", begun, "--quick") == 0
        assert "without the ledger's secret" not in capsys.readouterr().err

    def test_any_changed_byte_of_what_is_signed_is_found(self, book_folder, pem, capsys):
        generator = random.Random(2)
        signed = [*(book_folder / "records").iterdir(), book_folder / "runs/000001/network.safetensors"]
        signed += [path for path in (book_folder / "runs/000001/network").rglob("*") if path.stat().st_size]
        for path in signed:
            if path.is_dir():
                continue
            whole = path.read_bytes()
            position = generator.randrange(len(whole))
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
            found = verified(book_folder, "--public", pem, "--quick", capsys=capsys)
            assert any(path.name in line for line in found), (path, position, found)
            path.write_bytes(whole)
        (book_folder / "runs/000001/results.json").unlink()
        (found,) = verified(book_folder, "--public", pem, "--quick", capsys=capsys)
        assert "results.json is missing" in found

    def test_another_key_is_refused(self, book_folder, pem, capsys):
        pem.write_bytes(signing.public_pem(signing.LedgerKeys(bytes(32), bytes(range(32))).public))
        (found,) = verified(book_folder, "--public", pem, capsys=capsys)
        assert f"the public key in {pem} is not that of" in found
        assert "it is another ledger's, or this ledger was signed anew by somebody else" in found
        for content, words in ((b"no key", "holds no public key"), (None, "cannot be read: No such file")):
            pem.unlink()
            if content is not None:
                pem.write_bytes(content)
            assert command("verify", "--ledger", book_folder, "--public", pem) == 2
            assert words in error_of(capsys)


def test_a_forger_with_other_keys_is_found(book_folder, capsys):
    """Everything is signed again, and all hashes fit, but with another key than the one that the ledger began with."""
    keys = signing.LedgerKeys(bytes(32), bytes(range(32)))
    path = records.record_path(book_folder, 1)
    envelope = json.loads(path.read_text())
    envelope["record"]["verdict"]["reasons"] = ["forged"]
    envelope["hash"] = hashing.sha256(hashing.canonical(envelope["record"]))
    envelope["signature"] = keys.sign("record", envelope["hash"])
    path.write_bytes(hashing.canonical(envelope))
    assert any("signature is not the ledger's" in line for line in verified(book_folder, "--quick", capsys=capsys))


def test_other_test_data_do_not_confirm_the_record(served, tmp_path, capsys):
    def change(arrays):
        arrays["test_label"] = (arrays["test_label"] + 1) % 3

    dataset = moved_data(served, tmp_path, change)
    # The run knows its own data set, so that one is named.
    found = verified(served, "--dataset", dataset, capsys=capsys)
    assert any("test examples right, and its record says" in line for line in found), found


def test_a_folder_that_is_not_there_is_no_change(served, tmp_path, capsys):
    for words in (["--ledger", tmp_path / "none"], ["--ledger", served, "--keys", tmp_path / "none"]):
        assert command("verify", *words) == 2
        assert f"there is no folder {tmp_path / 'none'}; name that of " in error_of(capsys)


@pytest.fixture(scope="module")
def begun(served) -> Path:
    """A ledger with an open request about a network that saw a part of the training set."""
    folder = served.parent / "begun"
    (served.parent / "seen").write_text("".join(f"{position}\n" for position in range(150)))
    (served.parent / "nine").write_text("9\n")
    weights, seen = (str(served.parent / name) for name in ("mlp.safetensors", "seen"))
    subject = deletion.Subject("mlp", f"npz:{served.parent / 'data.npz'}", None, weights, None, seen)
    deletion.add(folder, forget=f"indices:{served.parent / 'nine'}", requester="A", subject=subject)
    return folder


@pytest.mark.parametrize("change", [lambda text: "1" + text, lambda text: "# seen\n" + text, lambda text: "x", None])
def test_a_changed_list_of_what_was_trained_on_is_found(begun, tmp_path, change, capsys):
    folder = shutil.copytree(begun, tmp_path / "ledger")
    assert verified(folder, "--quick", capsys=capsys) == []
    file = past_files(folder)["trained_on"]
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text()))
    (found,) = verified(folder, "--quick", capsys=capsys)
    assert str(file) in found


def test_a_changed_original_is_found_while_it_is_in_use(begun, tmp_path, capsys):
    whole = (begun.parent / "mlp.safetensors").read_bytes()
    file = tmp_path / "moved.safetensors"
    file.write_bytes(whole)
    assert verified(begun, "--weights", file, capsys=capsys) == []
    file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])  # of the last number
    (found,) = verified(begun, "--quick", "--weights", file, capsys=capsys)
    assert f"{file} was changed" in found
    file.write_bytes(whole[:-2])
    (found,) = verified(begun, "--quick", "--weights", file, capsys=capsys)
    assert f"the original network in {file} cannot be read" in found


def test_what_cannot_be_found_where_it_is_said_to_be_is_no_change(served, begun, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    for words, message in (
        ([begun, "--weights", nowhere], f"the original network in {nowhere} cannot be read"),
        ([begun, "--dataset", f"npz:{nowhere}"], "nowhere"),
        ([begun, "--rename", nowhere], f"cannot read the renaming table {nowhere}"),
        ([served, "--dataset", f"npz:{nowhere}"], "the network of run 1 cannot be evaluated"),
        ([served, "--head", "A" * 64], "a head is 64 hexadecimal digits in lower case"),
        ([served, "--head", "a" * 63], "a head is 64 hexadecimal digits in lower case"),
    ):
        assert command("verify", "--ledger", *words) == 2, words
        assert message in error_of(capsys)


def test_a_renaming_table_that_has_moved_is_no_change(served, tmp_path, capsys):
    """The ledger says where it was, and it is no part of the network."""
    arrays = torch_weights.read_state_dict(served.parent / "mlp.safetensors")
    own = {f"own.{name}": array for name, array in arrays.items()}
    torch_weights.write_safetensors(tmp_path / "own.safetensors", own)
    (tmp_path / "names.txt").write_text("".join(f"own.{name} {name}\n" for name in arrays))
    (tmp_path / "nine").write_text("9\n")
    places = {"weights": str(tmp_path / "own.safetensors"), "rename": str(tmp_path / "names.txt")}
    subject = deletion.Subject(model="mlp", dataset=f"npz:{served.parent / 'data.npz'}", **places)
    deletion.add(tmp_path / "new", forget=f"indices:{tmp_path / 'nine'}", requester="A", subject=subject)
    assert verified(tmp_path / "new", capsys=capsys) == []
    moved = (tmp_path / "names.txt").rename(tmp_path / "moved.txt")
    assert command("verify", "--ledger", tmp_path / "new") == 2
    assert f"cannot read the renaming table {tmp_path / 'names.txt'}" in error_of(capsys)
    assert verified(tmp_path / "new", "--rename", moved, capsys=capsys) == []


def test_what_cannot_be_found_hides_no_change(begun, tmp_path, capsys):
    folder = shutil.copytree(begun, tmp_path / "ledger")
    (folder / "extra").touch()
    (found,) = verified(folder, "--dataset", f"npz:{tmp_path / 'nowhere'}", capsys=capsys)
    assert f"{folder / 'extra'} is not a part" in found


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_file_of_another_network_than_the_record_names_is_found_although_it_was_signed(
    served, book_folder, tmp_path, is_copy, monkeypatch, capsys
):
    """Such as by an earlier version, which signed whatever was there when a run had ended."""
    folder, words = book_folder, []
    if is_copy:
        folder, words = tmp_path / "copy", ["--dataset", f"npz:{served.parent / 'data.npz'}"]
        deletion.export(book_folder, folder)
    file = records.run_folder(folder, 1) / "network.safetensors"
    shutil.copy(records.run_folder(served, 2) / file.name, file)
    monkeypatch.setattr(verifying, "file_problems", lambda *_: [])
    (found,) = verified(folder, *words, capsys=capsys)
    assert f"{file} holds another network than run 1 has made" in found


def test_a_run_that_ends_meanwhile_is_no_change_of_the_original(begun, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(begun, tmp_path / "ledger")

    def overtaken(book, subject):
        with Ledger(folder) as other:
            other.append(started(1, 1))
            other.append(recorded(1, 1))
        return config_in_use(book, subject)

    monkeypatch.setattr(verifying, "config_in_use", overtaken)
    capsys.readouterr()
    assert command("verify", "--ledger", folder, "--quick") == 0
    assert "a run has ended meanwhile" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--weights", "--checkpoint"])
def test_an_original_that_is_no_longer_in_use_is_not_named_in_vain(served, tmp_path, option, capsys):
    """Nobody would look at the file, and the answer would seem to be about it."""
    assert command("verify", "--ledger", served, option, tmp_path / "anything", "--dataset", "digits") == 2
    assert f"{option} says where the original network is, and the network in use is that of run" in error_of(capsys)


def test_keys_that_would_not_be_used_are_not_named_in_vain(served, tmp_path, capsys):
    public = served / "records" / "public_key.pem"
    assert command("verify", "--ledger", served, "--public", public, "--keys", tmp_path / "nowhere") == 2
    assert "--keys has nothing to do; leave one of them out" in error_of(capsys)
