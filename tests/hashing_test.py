"""Hashes against hashlib, what they tell apart and what not, and that nothing else in the package makes any."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scissorhands_jax
from scissorhands_jax import hashing
from scissorhands_jax.errors import LedgerError


def network(shift=0.0):
    return {"kernel": np.array([[0.0, 1.0 + shift], [2.0, np.nan]], np.float32)}, {"count": jnp.int32(3)}


def test_text_bytes_and_files_have_the_hash_that_everyone_knows(tmp_path):
    known = hashlib.sha256("é".encode()).hexdigest()
    (tmp_path / "file").write_text("é", encoding="utf-8")
    assert hashing.sha256("é") == hashing.sha256("é".encode()) == hashing.file_sha256(tmp_path / "file") == known


def test_files_count_in_their_order_and_names_do_not(tmp_path):
    for name, content in (("a", "1"), ("b", "2"), ("c", "1")):
        (tmp_path / name).write_text(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert hashing.files_sha256([a, b]) == hashing.files_sha256([c, b]) != hashing.files_sha256([b, a])


def test_positions_are_a_set():
    known = hashlib.sha256(np.array([1, 5, 9], "<i4").tobytes()).hexdigest()
    assert hashing.positions_sha256(np.array([9, 1, 5])) == hashing.positions_sha256(np.uint8([1, 9, 5])) == known


def test_a_network_is_its_names_types_shapes_and_numbers():
    params, model_state = network()
    kernel = params["kernel"]
    others = [
        network(1e-7),
        ({"bias": kernel}, model_state),
        ({"kernel": kernel.reshape(4)}, model_state),
        ({"kernel": kernel.view(np.int32)}, model_state),
        (params, {}),
    ]
    hashes = {hashing.network_sha256(*one) for one in [(params, model_state), *others]}
    assert len(hashes) == 1 + len(others)
    on_device = jax.tree.map(jnp.asarray, params)
    assert hashing.network_sha256(on_device, model_state) == hashing.network_sha256(params, model_state)


def test_a_checksum_tells_numbers_apart():
    trees = [network(), network(1.0), (network()[0], {"count": jnp.int32(4)}), jax.random.key(2), None, np.zeros(0)]
    sums = [hashing.tree_checksum(tree) for tree in trees]
    assert sums[0] == hashing.tree_checksum(network())
    assert len(set(sums)) == len(trees)
    assert hashing.tree_checksum(np.arange(6.0).reshape(2, 3).T) == hashing.tree_checksum(
        np.array([0.0, 3, 1, 4, 2, 5])
    )


class TestCanonical:
    def test_there_is_one_way_to_write_a_value(self):
        assert hashing.canonical({"b": [1, None, True], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null,true]}'
        assert hashing.without_floats({"rate": 0.1, "pair": (1e-30, 2)}) == {"rate": "0.1", "pair": ["1e-30", 2]}
        with pytest.raises(TypeError):
            hashing.canonical({"rate": 0.1})

    @pytest.mark.parametrize(
        "text", [b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1.0}', b"[1]", b"{", b"\xff"]
    )
    def test_and_no_other_is_read(self, text, tmp_path):
        with pytest.raises(ValueError, match=r"JSON|Expecting|decode"):
            hashing.parse_canonical(text)
        (tmp_path / "record").write_bytes(text)
        with pytest.raises(LedgerError, match=r"record was changed or damaged: .*; put it back"):
            hashing.read_canonical(tmp_path / "record")


def test_nothing_else_makes_hashes():
    """But for digests under a secret, which are `signing`'s."""
    package = Path(scissorhands_jax.__file__).parent
    users = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "hashlib" in path.read_text()}
    assert users == {"hashing.py", "deletion/signing.py"}
