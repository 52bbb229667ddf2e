"""Records name everything but the people and the examples."""

import json

import pytest

from scissorhands_jax import files, hashing, reading
from scissorhands_jax.deletion import records, signing, statements
from scissorhands_jax.deletion.entries import CHAIN_START
from scissorhands_jax.errors import InputError, LedgerError


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


def test_a_record_that_could_not_be_read_again_is_not_written(served, tmp_path, monkeypatch):
    keys = signing.read_keys(served / "keys")
    record, _ = records.read_record(records.record_path(served, 1), keys.public)
    files.copy_file(records.record_page_path(served, 1), records.record_page_path(tmp_path, 1))
    size = records.record_path(served, 1).stat().st_size
    message = "the record of run 1, with 1 requests, could not be read again: it is larger than .* --one-by-one"
    with monkeypatch.context() as patch:
        patch.setattr(reading, "MAX_JSON", size - 1)
        with pytest.raises(InputError, match=message):
            records.write_record(tmp_path, record, keys)
    assert not records.record_path(tmp_path, 1).exists()
    records.write_record(tmp_path, record, keys)
    monkeypatch.setattr(reading, "MAX_JSON", size)
    with pytest.raises(InputError, match=message):
        statements.write_envelope(tmp_path, 1, keys)
    assert not statements.envelope_path(tmp_path, 1).exists()


def test_a_file_that_is_removed_meanwhile_is_not_among_those_of_a_run(tmp_path, monkeypatch):
    for name in ("network.safetensors", "run.json", "report.html"):
        (tmp_path / name).write_text(name)
    whole = hashing.file_sha256

    def overtaken(path):
        (tmp_path / "report.html").unlink(missing_ok=True)
        return whole(path)

    monkeypatch.setattr(hashing, "file_sha256", overtaken)
    (tmp_path / "network.safetensors").rename(tmp_path / "about.safetensors")  # comes first
    found = records.run_files(tmp_path, "0" * 64, erased=True)
    assert set(found.other) == {"about.safetensors", "run.json"}


def test_a_record_is_read_only_as_it_was_signed(served, tmp_path):
    keys, path = signing.read_keys(served / "keys"), tmp_path / "record.json"
    envelope = json.loads(records.record_path(served, 1).read_text())
    other = envelope["record"] | {"number": 7}
    digest = hashing.sha256(hashing.canonical(other))
    signed = {"record": other, "hash": digest, "signature": keys.sign("record", digest)}
    for changed, message in (
        (envelope | {"record": other}, "does not have the hash that it names"),
        (envelope | {"hash": digest}, "does not have the hash that it names"),
        (envelope | {"hash": 7}, "does not have the hash that it names"),
        (envelope | {"record": other, "hash": digest}, "its signature is not the ledger's"),
        (signed | {"signature": keys.sign("history", digest)}, "its signature is not the ledger's"),
        (signed | {"signature": 7}, "its signature is not the ledger's"),
        (signed | {"more": 7}, "does not have the form of a record"),
        (signed | {"record": 7}, "does not have the form of a record"),
    ):
        path.write_bytes(hashing.canonical(changed))
        with pytest.raises(LedgerError, match=message):
            records.read_record(path, keys.public)
    path.write_bytes(hashing.canonical(signed))
    assert records.read_record(path, keys.public)[0].number == 7
