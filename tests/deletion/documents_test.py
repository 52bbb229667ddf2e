"""Entries and records survive JSON, and JSON that is not theirs is refused."""

import dataclasses
import json

import pytest

from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.deletion.entries import (
    AnswersKept,
    NamedExample,
    RequestAdded,
    RequestsCovered,
    RunFailed,
    read_entry,
)
from scissorhands_jax.deletion.records import Record
from tests.deletion.samples import ABOUT, record, recorded, started

ADDED = RequestAdded(
    id=1,
    received="now",
    due="2026-12-31",
    network="b",
    count=1,
    requester="A",
    contact="a@b",
    examples=(NamedExample(3, "c"),),
)


def as_json(value):
    return json.loads(json.dumps(dataclasses.asdict(value)))


@pytest.mark.parametrize(
    "entry",
    [
        *(ABOUT, ADDED, started(1, 1, 2), recorded(1, 1), RequestsCovered(run=1, requests=(3,))),
        *(RunFailed(run=1, requests=(), why="diverged"), AnswersKept(run=1, requests=(3,))),
    ],
    ids=lambda entry: entry.kind,
)
def test_what_was_written_is_read(entry):
    whole = as_json(entry)
    private = {name: whole.pop(name) for name in entry.private} or None
    assert read_entry(entry.kind, whole, private) == entry
    with pytest.raises(ValueError, match="kind"):
        read_entry("another", whole, private)
    with pytest.raises(ValueError, match="fields"):
        read_entry(entry.kind, whole, {"more": 1})
    known = read_entry(entry.kind, whole, None)
    assert (known == entry) == (private is None)
    assert all(value not in str(known) for value in ("a@b", "diverged"))


def test_a_record_that_was_written_is_read():
    assert from_document(Record, as_json(record())) == record()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"number": True}, r"Record\.number"),
        ({"number": "1"}, r"Record\.number"),
        ({"number": 1.0}, r"Record\.number"),
        ({"test": [[1, 2, 3]]}, r"Record\.test\[0\]"),
        ({"test": {"0": [1, 2]}}, r"Record\.test"),
        ({"files": {"network": {"a": 1}, "other": {}}}, r"Record\.files\.network\.a"),
        ({"verdict": None}, r"Record\.verdict"),
        ({"verdict": {"answer": "forgotten"}}, r"Record\.verdict must be an object with the fields answer, reasons"),
        ({"more": 1}, "Record must be an object"),
    ],
)
def test_other_json_is_refused_and_the_place_is_named(change, where):
    with pytest.raises(ValueError, match=where):
        from_document(Record, as_json(record()) | change)
