"""Records name everything but the people and the examples."""

import pytest

from scissorhands_jax.deletion import records, signing
from scissorhands_jax.deletion.entries import CHAIN_START

pytest.importorskip("cryptography")


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
