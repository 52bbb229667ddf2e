"""Records as in-toto statements in DSSE envelopes, read and verified by another library."""

import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from securesystemslib import dsse, exceptions, signer

from scissorhands_jax import hashing
from scissorhands_jax.deletion import records, signing, statements
from scissorhands_jax.deletion.records import Record
from tests.deletion import samples
from tests.deletion.commands import verified

FORMAT_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "record-format.md"


def read(path):
    return dsse.Envelope.from_dict(json.loads(path.read_text()))


def key_of(folder):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return signer.SSlibKey.from_crypto(load_pem_public_key((folder / "records" / "public_key.pem").read_bytes()))


@pytest.mark.parametrize("number", [1, 2])
def test_another_library_verifies_what_the_ledger_signed(served, number):
    envelope = read(statements.envelope_path(served, number))
    key = key_of(served)
    assert envelope.verify([key], 1) == {key.keyid: key}
    assert envelope.payload_type == "application/vnd.in-toto+json"
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == statements.PREDICATE_TYPE
    assert hashing.canonical(statement) == envelope.payload
    names = {subject["name"] for subject in statement["subject"]}
    assert f"runs/{number:06d}/network.safetensors" in names
    for subject in statement["subject"]:
        assert subject["digest"] == {"sha256": hashing.file_sha256(served / subject["name"])}


def test_the_example_of_the_page_reads_it(served, monkeypatch):
    (code,) = re.findall("```py\n(.*?)```", FORMAT_PAGE.read_text(), re.DOTALL)
    shutil.copy(served / "records" / "public_key.pem", served.parent)
    monkeypatch.chdir(served.parent)
    names: dict = {}
    exec(compile(code.replace("records/", "ledger/records/"), FORMAT_PAGE.name, "exec"), names)
    assert names["statement"]["predicate"]["record"]["number"] == 1


def test_a_statement_says_what_the_record_says(served):
    public = signing.read_keys(served / "keys").public
    first, second = (records.read_record(records.record_path(served, number), public) for number in (1, 2))
    found = [json.loads(read(statements.envelope_path(served, number)).payload)["predicate"] for number in (1, 2)]
    assert found[0]["previousRecord"] is None
    assert found[1]["previousRecord"] == {"sha256": first[1]}
    assert found[1]["record"] == {"number": 2, "format": records.RECORD_FORMAT, "sha256": second[1]}
    assert (found[1]["method"], found[1]["settings"]["method"]["epochs"]) == ("finetune", 1)
    assert found[1]["verdict"] == {"answer": "retrain now", "reasons": list(second[0].verdict.reasons)}
    assert [gate["name"] for gate in found[1]["evidence"]["gates"]] == [g.name for g in second[0].evidence.gates]
    assert found[1]["requests"][0]["digest"] == second[0].requests[0].digest
    for shares in found[1]["metrics"]["after"].values():
        assert float(shares["low"]) <= float(shares["percent"]) <= float(shares["high"])


def test_an_envelope_that_another_key_signed_is_not_verified_by_the_other_library_either(served, tmp_path):
    keys = signing.LedgerKeys(bytes(32), bytes(range(32)))
    payload = read(statements.envelope_path(served, 1)).payload
    message = dsse.Envelope(payload, statements.PAYLOAD_TYPE, {}).pae()
    signature = signer.Signature(statements.key_id(keys.public), keys.sign_message(message).hex())
    forged = dsse.Envelope(payload, statements.PAYLOAD_TYPE, {signature.keyid: signature})
    with pytest.raises(exceptions.VerificationError):
        forged.verify([key_of(served)], 1)


def changed_payload(document):
    payload = base64.b64decode(document["payload"]).replace(b"retrain now", b"forgotten")
    return {**document, "payload": base64.b64encode(payload).decode()}


def signed_by_another(document):
    keys = signing.LedgerKeys(bytes(32), bytes(range(32)))
    message = dsse.Envelope(base64.b64decode(document["payload"]), statements.PAYLOAD_TYPE, {}).pae()
    signature = {**document["signatures"][0], "sig": base64.b64encode(keys.sign_message(message)).decode()}
    return {**document, "signatures": [signature]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_payload, "does not hold the statement that follows from the record"),
        (signed_by_another, "its signature is not the ledger's"),
        (lambda document: {**document, "payloadType": "text/plain"}, "does not hold the statement"),
        (lambda document: {**document, "more": 1}, "does not hold the statement"),
        (lambda document: {**document, "signatures": document["signatures"] * 2}, "the form of an envelope"),
        (lambda document: {**document, "signatures": [{**document["signatures"][0], "keyid": ""}]}, "does not hold"),
        (lambda document: {"payload": document["payload"]}, "the form of an envelope"),
    ],
)
def test_every_change_of_an_envelope_is_found(book_folder, change, words, capsys):
    path = statements.envelope_path(book_folder, 2)
    document = json.loads(path.read_text())
    for content in (hashing.canonical(change(document)) + b"\n", json.dumps(change(document)).encode()):
        path.write_bytes(content)
        found = verified(book_folder, "--quick", capsys=capsys)
        assert len(found) == 1
        assert path.name in found[0]
    path.write_bytes(hashing.canonical(change(document)) + b"\n")
    assert words in verified(book_folder, "--quick", capsys=capsys)[0]


def test_an_envelope_of_another_record_is_found(book_folder, capsys):
    path = statements.envelope_path(book_folder, 2)
    path.write_bytes(statements.envelope_path(book_folder, 1).read_bytes())
    (found,) = verified(book_folder, "--quick", capsys=capsys)
    assert f"{path} was changed" in found
    path.unlink()
    (found,) = verified(book_folder, "--quick", capsys=capsys)
    assert f"{path} is missing" in found


def paths(value, hidden, name=""):
    """Yields the names of all fields, with dots; `*` stands for the keys of dictionaries whose keys are data."""
    if isinstance(value, dict) and name not in hidden:
        for key, entry in value.items():
            yield from paths(entry, hidden, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            yield from paths(entry, hidden, f"{name}[]")
    else:
        yield name


def test_every_field_of_a_predicate_is_documented_and_no_other(served):
    """`docs/reference/record-format.md` has one row for each field."""
    documented = set(re.findall(r"^\| `([^`]+)` \|", FORMAT_PAGE.read_text(), re.MULTILINE))
    open_ended = {name.removesuffix(".*") for name in documented if name.endswith(".*")}
    found = set()
    for number in (1, 2):
        predicate = json.loads(read(statements.envelope_path(served, number)).payload)["predicate"]
        for shares in ("metrics.before", "metrics.after", "utility.before", "utility.after"):
            group, when = shares.split(".")
            predicate[group][when] = {"*": next(iter(predicate[group][when].values()))}
        found |= set(paths(predicate, open_ended))
    found = {f"{name}.*" if name in open_ended else name for name in found}
    assert found - {"previousRecord"} == documented - {"previousRecord"}


def altered(value):
    """Returns another value of the same kind."""
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        return dataclasses.replace(value, **{first: altered(getattr(value, first))})
    if isinstance(value, dict):
        return {**value, next(iter(value)): altered(next(iter(value.values())))}
    if isinstance(value, tuple):
        return (altered(value[0]), *value[1:])
    return f"{value}x" if isinstance(value, str) or value is None else value + 1


@pytest.mark.parametrize("field", dataclasses.fields(Record), ids=lambda field: field.name)
def test_every_field_of_a_record_shows_in_its_statement(field):
    """What a later version adds to records cannot be left out of statements by oversight."""
    whole = samples.record()
    other = dataclasses.replace(whole, **{field.name: altered(getattr(whole, field.name))})
    assert statements.statement(other, "8" * 64) != statements.statement(whole, "8" * 64)
