"""Keys, signatures, public keys, and digests that need the ledger's secret."""

import dataclasses
import random
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError, LedgerError
from tests.deletion.spoiling import by_hand, flipped, problems, request, unguarded


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


def test_equal_bytes_of_other_types_are_other_examples(served):
    keys = signing.read_keys(served / "keys")
    raw = np.arange(8, dtype=np.uint8).reshape(2, 4)
    kinds = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.int4, ml_dtypes.uint4)
    arrays = [raw, *(raw.view(kind) for kind in kinds)]
    assert len({tuple(signing.example_digests(keys, {"features": array})) for array in arrays}) == len(arrays)


def test_private_keys_are_shown_to_nobody(folder, tmp_path, monkeypatch):
    keys = signing.read_keys(folder / "keys")
    assert repr(keys) == "LedgerKeys()"
    path, public = tmp_path / "auditor.pem", tmp_path / "auditor_public.pem"
    signing.make_private(path, public)
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing.read_public(public) == signing.public_of(signing.read_private(path))
    monkeypatch.setattr(signing.os.path, "lexists", lambda file: False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        signing.make_private(path, public)
    assert path.read_bytes() == before, "another process was faster"


def test_any_changed_byte_of_the_keys_is_found(folder):
    generator = random.Random(0)
    for name in ("keys/secret", "keys/signing"):
        path = folder / name
        whole = path.read_bytes()
        for position in [generator.randrange(len(whole)) for _ in range(15)]:
            path.write_bytes(flipped(whole, position, generator))
            found = problems(folder)
            assert any(path.name in line or path.parent.name in line for line in found), (name, position)
        for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
            path.write_bytes(content)
            assert problems(folder), name
        path.unlink()
        assert problems(folder), name
        path.write_bytes(whole)
        path.chmod(0o600)
    assert problems(folder) == []


class TestKeys:
    def test_they_are_for_their_owner_alone(self, folder):
        for name in ("secret", "signing"):
            assert (folder / "keys" / name).stat().st_mode & 0o777 == 0o600
        (folder / "keys" / "secret").chmod(0o640)
        with pytest.raises(LedgerError, match="chmod 600"):
            Ledger(folder)

    @pytest.mark.parametrize("name", ["a b", "$HOME `x`", "it's"])
    def test_the_advice_can_be_typed(self, folder, tmp_path, name):
        place = shutil.copytree(folder, tmp_path / name)
        (place / "keys" / "secret").chmod(0o644)
        signing.make_private(place / "own.pem", place / "public.pem")
        (place / "own.pem").chmod(0o644)
        for read in (lambda: Ledger(place), lambda: signing.read_private(place / "own.pem")):
            with pytest.raises(InputError, match="can be read by others") as error:
                read()
            advice = str(error.value).partition("with `")[2].removesuffix("`")
            subprocess.run(["sh", "-c", advice], check=True)
            read()

    def test_they_can_lie_elsewhere(self, folder, tmp_path):
        (folder / "keys").rename(tmp_path / "keys")
        with pytest.raises(LedgerError, match="is missing; name the folder of the keys with --keys, or put it back"):
            Ledger(folder)
        with Ledger(folder, tmp_path / "keys") as book:
            assert len(book.requests()) == 3

    def test_signatures_are_good_for_one_purpose(self, folder):
        keys = signing.read_keys(folder / "keys")
        signature = keys.sign("record", "ab")
        assert signing.signed_by(keys.public, "record", "ab", signature)
        assert not signing.signed_by(keys.public, "history", "ab", signature)
        assert not signing.signed_by(keys.public, "record", "ac", signature)
        assert not signing.signed_by(keys.public, "record", "ab", "no hexadecimal")

    def test_a_missing_package_is_named_with_its_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
        with pytest.raises(InputError, match=r"pip install '\.\[records\]'"):
            Ledger(folder)


class TestPublicKey:
    @pytest.fixture
    def pem(self, folder, tmp_path) -> Path:
        path = tmp_path / "public_key.pem"
        with Ledger(folder) as book:
            path.write_bytes(signing.public_pem(book.public))
        shutil.rmtree(folder / "keys")
        return path

    def test_it_verifies_and_does_not_write(self, folder, pem):
        with Ledger(folder, public=pem) as book:
            assert book.problems() == []
            with pytest.raises(LedgerError, match="with its public key alone"):
                request(book)
            assert len(book.requests()) == 3
        by_hand(folder, *unguarded("history_stays", "UPDATE history SET time = 'x' WHERE seq = 4"))
        with Ledger(folder, public=pem, check=False) as book:
            assert "row 4" in book.problems()[0]

    def test_no_more_is_read_than_a_key_has(self, folder, pem, monkeypatch):
        size = pem.stat().st_size
        monkeypatch.setattr(signing, "_MAX_PUBLIC", size)
        assert signing.read_public(pem)
        monkeypatch.setattr(signing, "_MAX_PUBLIC", size - 1)
        with pytest.raises(LedgerError, match="holds no public key in PEM form"):
            signing.read_public(pem)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "cannot be read"),
            (b"key", "holds no public key in PEM form"),
            (b"x" * 5000, "holds no public key in PEM form"),
            (
                signing.public_pem(signing.LedgerKeys(bytes(32), bytes(range(32))).public),
                "public key in .* is not that of",
            ),
        ],
    )
    def test_another_one_is_refused(self, folder, pem, content, words):
        pem.unlink()
        if content is not None:
            pem.write_bytes(content)
        with pytest.raises(LedgerError, match=words):
            Ledger(folder, public=pem)


def test_one_file_cannot_hold_both_keys(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for public in (tmp_path / "key.pem", tmp_path / "link" / "key.pem"):
        with pytest.raises(InputError, match="cannot hold both keys"):
            signing.make_private(tmp_path / "key.pem", public)
    assert not (tmp_path / "key.pem").exists()
