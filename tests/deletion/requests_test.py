"""Requests from the command line to the signed record; every change to what is left is found; kills at any moment."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax import deletion, hashing
from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion import ledger, records, signing, verdicts
from scissorhands_jax.deletion.entries import CHAIN_START, RequestsCovered, RunFailed, RunRecorded
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.requests import trained_on_file
from tests.deletion import forking

pytest.importorskip("cryptography")

QUICK = ["--method", "finetune", "--epochs", "1", "--batch-size", "64", "--budget", "100"]


def command(*words) -> int:
    return cli.main(["request", *map(str, words)])


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """A ledger with a request that was served, one that the evidence was not good enough for, and one that is open."""
    folder = tmp_path_factory.mktemp("requests")
    forking.prepare(folder)
    forking.serve(folder / "ledger")
    (folder / "third").write_text("4\n5\n")
    assert command("add", "--ledger", folder / "ledger", "--forget", "class:1", "--requester", "B. Person") == 0
    assert command("run", "--ledger", folder / "ledger", *QUICK) == 3
    third = ["--forget", f"indices:{folder / 'third'}", "--requester", "C", "--due", "2020-02-02"]
    assert command("add", "--ledger", folder / "ledger", *third) == 0
    return folder / "ledger"


@pytest.fixture
def book_folder(served, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(served, tmp_path / "ledger")


def verified(folder, *words, capsys) -> list[str]:
    """What `verify` says is changed."""
    capsys.readouterr()
    status = command("verify", "--ledger", folder, *words)
    lines = capsys.readouterr().out.splitlines()
    assert status == (1 if lines[0].startswith("CHANGED: ") else 0)
    return [line.removeprefix("CHANGED: ") for line in lines] if status else []


def error_of(capsys) -> str:
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return line


def states(folder) -> list[str]:
    with Ledger(folder) as book:
        return [request.state for request in book.requests()]


def test_requests_and_their_states_are_listed(served, capsys):
    assert command("list", "--ledger", served, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["requester"], r["state"], r["run"], r["examples"]) for r in found] == [
        ("request 1", "forgotten", 1, 2),
        ("B. Person", "retrain now", 2, len(range(1, forking.EXAMPLES, 3)) - 1),  # example 1 was forgotten before
        ("C", "open", None, 2),
    ]
    assert command("list", "--ledger", served) == 0
    assert "OVERDUE" in capsys.readouterr().out


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


def test_a_record_says_all_but_what_was_forgotten(served):
    keys = signing.read_keys(served / "keys")
    previous = CHAIN_START
    for number in (1, 2):
        record, digest = records.read_record(records.record_path(served, number), keys.public)
        assert (record.number, record.previous) == (number, previous)
        previous = digest
        assert set(record.metrics["after"]) == {"forget", "retain", "test", "forget judged never seen"}
        for shares in (*record.metrics["before"].values(), *record.metrics["after"].values()):
            assert float(shares.low) <= float(shares.percent) <= float(shares.high)
        page = records.record_page_path(served, number).read_text()
        assert record.verdict.answer in page
        for text in (records.record_path(served, number).read_text(), page):
            for private in ("request 1", "B. Person", str(served), "forget_indices", "indices:"):
                named = private == "forget_indices" and text.startswith("{")  # among the files with digests
                assert named or private not in text
    assert not list(served.glob("runs/*.txt"))
    assert not list(served.glob("runs/*/checkpoints"))


def test_digests_tell_nobody_without_the_secret(served):
    """Whoever has the training set cannot find out which examples were named."""
    keys = signing.read_keys(served / "keys")
    dataset = {"image": np.zeros((2, 4, 4, 1), np.float32), "label": np.arange(2)}
    own, other = (signing.example_digests(k, dataset) for k in (keys, dataclasses.replace(keys, secret=bytes(32))))
    assert own[0] != own[1]
    assert not set(own) & set(other)
    again = {"label": np.arange(2), "image": np.zeros((2, 4, 4, 1), np.float32)}
    assert signing.example_digests(keys, again) == own
    for change in ({"image": dataset["image"].astype(np.float64)}, {"image": dataset["image"].reshape(2, 2, 8, 1)}):
        assert not set(signing.example_digests(keys, dataset | change)) & set(own)


def test_what_is_as_written_is_said_to_be(served, capsys):
    assert verified(served, capsys=capsys) == []
    with Ledger(served) as book:
        heads = [event.hash for event in book.history()]
    for head in (heads[0], heads[-1]):
        assert verified(served, "--quick", "--head", head, capsys=capsys) == []


def test_any_changed_byte_is_found_and_its_file_named(book_folder, capsys):
    generator = random.Random(1)
    # What a changed byte of the ledger itself must change to be found is for ledger_test.py.
    apart = (ledger.LOCK_FILE, ledger.DATABASE_FILE)
    paths = [path for path in sorted(book_folder.rglob("*")) if path.is_file() and path.name not in apart]
    assert len(paths) > 28
    for path in paths:
        whole = path.read_bytes()
        for position in [generator.randrange(len(whole)) for _ in range(3)] if whole else []:
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
        (lambda f: shutil.copy(f / "records/000001.json", f / "records/000003.json"), "000003.json is no record"),
        (lambda f: (f / "records/public_key.pem").unlink(), "public_key.pem is missing"),
        (lambda f: (f / "runs/000001/network/extra").write_text(""), "extra was not there"),
        (lambda f: shutil.rmtree(f / "runs/000001"), "network.safetensors is missing"),
        (lambda f: (f / "records/000001.json").write_text("[" * 100_000), "000001.json was changed or damaged"),
    ],
)  # fmt: skip
def test_records_that_were_moved_or_removed_are_found(book_folder, change, words, capsys):
    change(book_folder)
    assert any(words in line for line in verified(book_folder, "--quick", capsys=capsys))


def test_the_folder_of_a_network_that_is_no_longer_in_use_may_go(book_folder, capsys):
    shutil.rmtree(book_folder / "runs" / "000002")
    assert verified(book_folder, "--quick", capsys=capsys) == []


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
        assert "without the ledger's secret nobody can tell" in capsys.readouterr().err

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
        assert "the public key in" in found


def test_a_forger_with_other_keys_is_found(book_folder, capsys):
    """Everything is signed anew, and all hashes fit; but the key is another than the one that was begun with."""
    keys = signing.LedgerKeys(bytes(32), bytes(range(32)))
    path = records.record_path(book_folder, 1)
    envelope = json.loads(path.read_text())
    envelope["record"]["verdict"]["reasons"] = ["forged"]
    envelope["hash"] = hashing.sha256(hashing.canonical(envelope["record"]))
    envelope["signature"] = keys.sign("record", envelope["hash"])
    path.write_bytes(hashing.canonical(envelope))
    assert any("signature is not the ledger's" in line for line in verified(book_folder, "--quick", capsys=capsys))


def moved_data(folder, tmp_path, change) -> str:
    """A copy of the data set with something else in it, as an argument."""
    with np.load(folder.parent / "data.npz") as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


def test_other_test_data_do_not_confirm_the_record(served, tmp_path, capsys):
    def change(arrays):
        arrays["test_label"] = (arrays["test_label"] + 1) % 3

    dataset = moved_data(served, tmp_path, change)
    # The run knows its own data set, so that one is named.
    found = verified(served, "--dataset", dataset, capsys=capsys)
    assert any("test examples right, and its record says" in line for line in found), found


def test_examples_that_have_changed_or_moved_are_not_forgotten_by_position(served, book_folder, tmp_path, capsys):
    def change(arrays):
        arrays["image"][[4, 5]] = arrays["image"][[5, 4]]
        arrays["label"][[4, 5]] = arrays["label"][[5, 4]]

    dataset = moved_data(served, tmp_path, change)
    assert command("run", "--ledger", book_folder, *QUICK, "--dataset", dataset) == 2
    message = error_of(capsys)
    assert "2 of the 2 examples of request 3 are not what they were" in message
    assert "the first is at position 4; its content is now at 5" in message
    assert states(book_folder)[2] == "open"


def test_a_changed_training_set_is_refused(served, book_folder, tmp_path, capsys):
    def change(arrays):
        arrays["image"][100] += 0.001

    dataset = moved_data(served, tmp_path, change)
    assert command("run", "--ledger", book_folder, *QUICK, "--dataset", dataset) == 2
    assert "the training set" in error_of(capsys)
    assert states(book_folder)[2] == "open"


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


def test_a_record_names_its_audit_and_earlier_tries(book_folder, tmp_path, monkeypatch, capsys):
    """Whoever tries again until the evidence is good by chance leaves a trace."""
    audit = {"network": "ab", "source": "U-LiRA", "findings": [{"name": "AUC", "value": 0.5, "low": 0, "high": 1}]}
    audit["gates"] = [{"name": "original caught", "passed": True, "why": "AUC 0.9"}]
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    from_audit = verdicts.from_audit  # about whichever network the run makes
    monkeypatch.setattr(verdicts, "from_audit", lambda document, network: from_audit(document, "ab"))
    words = ["--ledger", book_folder, *QUICK, "--again", "--seed", "1", "--audit", tmp_path / "audit.json"]
    assert command("run", *words) == 0
    record, _ = records.read_record(records.record_path(book_folder, 3), signing.read_keys(book_folder / "keys").public)
    digest = hashing.file_sha256(tmp_path / "audit.json")
    assert record.evidence.source == f"U-LiRA (audit file with SHA-256 {digest})"
    assert record.earlier_tries == 1, "request 2 was tried in run 2, request 3 never"
    first, _ = records.read_record(records.record_path(book_folder, 1), signing.read_keys(book_folder / "keys").public)
    assert first.earlier_tries == 0
    page = records.record_page_path(book_folder, 3).read_text()
    assert digest in page
    assert "Earlier runs with requests of this one: 1." in page


def test_a_run_that_diverges_opens_its_requests_again(book_folder, capsys):
    assert command("run", "--ledger", book_folder, *QUICK, "method.learning_rate=1e30") == 2
    assert "at step" in error_of(capsys)
    assert states(book_folder) == ["forgotten", "retrain now", "open"]
    with Ledger(book_folder) as book:
        (failed,) = book.entries(RunFailed)
        assert "at step" in failed.why
    assert verified(book_folder, "--quick", capsys=capsys) == []


def test_retraining_serves_what_was_refused_and_begins_a_new_budget(book_folder, capsys):
    quick = ["--method", "retrain", "--epochs", "2", "--batch-size", "64", "--budget", "0"]
    assert command("run", "--ledger", book_folder, *quick, "method.milestones=none") == 0
    assert "trained from scratch without the examples" in capsys.readouterr().out
    assert states(book_folder) == ["forgotten"] * 3
    with Ledger(book_folder) as book:
        before, after = (entry.reference for entry in book.entries(RunRecorded)[-2:])
        assert after.retain != before.retain
    assert verified(book_folder, capsys=capsys) == []
    assert command("add", "--ledger", book_folder, "--forget", "class:1", "--requester", "B") == 2
    assert "there is no class '1'" in error_of(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "--forget", "indices:{first}", "--requester", "A"], "has not forgotten yet"),
        (["add", "--forget", "indices:{first}", "--requester", "A", "--model", "vgg16_bn"], "knows its model already"),
        (["add", "--forget", "class:2", "--requester", "A", "--due", "soon"], "due date"),
        (["add", "--forget", "class:2", "--requester", ""], "say who asks"),
        (["add", "--forget", "class:2", "--requester", "A", "method.epochs=3"], "does not know 'method.epochs=3'"),
        (["run", "seed=3"], "settings of the method only"),
        (["run", "method.fractoin=1"], "fraction"),
        (["run", "--budget", "-1"], "must not be negative, got -1.0"),
        (["run", "--level", "1"], "between 0 and 1, got 1.0"),
        (["run", "--audit", "nowhere.json"], "cannot be read"),
        (["run", "--weights", "nowhere", "--method", "magic"], "there is no method 'magic'"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(served, tmp_path, words, message, capsys):
    (tmp_path / "first").write_text("0\n")
    with Ledger(served) as book:
        head = book.head
    words = [word.format(first=tmp_path / "first") for word in words]
    assert command(words[0], "--ledger", served, *words[1:]) == 2
    assert message in error_of(capsys)
    with Ledger(served) as book:
        assert book.head == head


def test_a_ledger_that_cannot_be_begun_leaves_nothing(tmp_path, capsys):
    assert command("add", "--ledger", tmp_path / "new", "--forget", "class:1", "--requester", "A") == 2
    assert "say which network it is about" in error_of(capsys)
    subject = ["--model", "mlp", "--dataset", "digits", "--weights", tmp_path / "nowhere"]
    assert command("add", "--ledger", tmp_path / "new", "--forget", "class:1", "--requester", "A", *subject) == 2
    assert "nowhere" in error_of(capsys)
    assert command("list", "--ledger", tmp_path / "new") == 2
    assert "holds no ledger" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


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
    file = trained_on_file(folder)
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
    file.unlink()
    (found,) = verified(begun, "--quick", "--weights", file, capsys=capsys)
    assert f"the original network in {file} cannot be read" in found


def test_twins_of_named_examples_are_counted(served, tmp_path):
    def change(arrays):
        arrays["image"][50], arrays["label"][50] = arrays["image"][9], arrays["label"][9]

    (tmp_path / "nine").write_text("9\n")
    weights = str(served.parent / "mlp.safetensors")
    subject = deletion.Subject("mlp", moved_data(served, tmp_path, change), None, weights)
    added = deletion.add(tmp_path / "new", forget=f"indices:{tmp_path / 'nine'}", requester="A", subject=subject)
    assert (added.examples, added.twins) == (1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_fifty_random_moments_goes_on(tmp_path):
    process = [sys.executable, "-m", "tests.deletion.forking", str(tmp_path), "kills"]
    done = subprocess.run(process, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["kills"]
    assert [answer[name] for name in ("prepared", "whole", "finished", "checked")] == [0] * 4, done.stderr
    assert answer["killed"] == forking.KILLS
    assert answer["problems"] == [], "the ledger was whole after every kill, and no request was lost"
    assert answer["found"] == [], "and records and networks in the end"
    assert answer["states"] == ["forgotten"] * answer["asked"]
    assert answer["same"], "runs that were killed end in the same networks as runs that were not"
    assert answer["cut"]["running"] > 10, "kills did hit runs"
