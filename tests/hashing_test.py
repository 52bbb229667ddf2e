"""Hashes against hashlib, what they tell apart and what not, and that nothing else in the package makes any."""

import hashlib
import json
import struct
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


def test_trees_are_told_apart():
    """Also those whose changes add up to nothing, which a sum of numbers times odd weights takes for the same."""
    moved = np.array([3, 0], np.int32), np.array([0, 1], np.int32)  # 1 * 3 + 3 * 0 == 1 * 0 + 3 * 1
    trees = [network(), network(1.0), (network()[0], {"count": jnp.int32(4)}), jax.random.key(2), None, np.zeros(0)]
    assert len({hashing.tree_sha256(tree) for tree in [*trees, *moved]}) == len(trees) + 2
    assert hashing.tree_sha256(network()) == hashing.tree_sha256(network())
    turned = np.arange(6.0).reshape(2, 3).T
    assert hashing.tree_sha256(turned) == hashing.tree_sha256(turned.copy())


SMALL = ("float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2", "float8_e8m0fnu", "int4", "uint4")


def test_equal_bytes_of_different_small_types_have_different_hashes():
    """NumPy calls most of these types `<V1`."""
    raw = np.arange(8, dtype=np.uint8)
    arrays = [raw, raw.view(np.int8), *(raw.view(getattr(jnp, kind)) for kind in SMALL)]
    assert len({hashing.tree_sha256({"kernel": array}) for array in arrays}) == len(arrays)
    assert len({hashing.network_sha256({"kernel": array}, {}) for array in arrays}) == len(arrays)


@pytest.mark.parametrize(
    ("kind", "spelled"),
    [("float32", "<f4"), ("float16", "<f2"), ("int8", "|i1"), ("bool", "|b1"), (">f4", ">f4"), (jnp.bfloat16, "<V2")],
)
def test_hashes_that_ledgers_and_runs_hold_stay_what_they_are(kind, spelled):
    array = np.array([[0, 1, 1]]).astype(kind)
    content = json.dumps(["a/0", spelled, [1, 3]], separators=(",", ":")).encode() + array.tobytes()
    assert hashing.tree_sha256({"a": [array]}) == hashlib.sha256(content).hexdigest()


def test_kinds_of_containers_are_no_part_of_a_hash():
    x, y = np.zeros(2, np.float32), np.ones(2, np.float32)
    same = [
        ({"a/b": x}, {"a": {"b": x}}),
        ([x, y], {"0": x, "1": y}),
        ((x, y), [x, y]),
        ({"a": x, "b": None}, {"a": x, "c": {}}),
    ]
    for one, other in same:
        assert hashing.tree_sha256(one) == hashing.tree_sha256(other)
    key = jax.random.key(3)
    assert hashing.tree_sha256(key) == hashing.tree_sha256(jax.random.key_data(key))


class TestCanonical:
    """RFC 8785, by the numbers and the orders that it lists itself."""

    @pytest.mark.parametrize(
        ("bits", "text"),
        [
            *(("0000000000000000", "0"), ("8000000000000000", "0"), ("0000000000000001", "5e-324")),
            *(("8000000000000001", "-5e-324"), ("7fefffffffffffff", "1.7976931348623157e+308")),
            *(("4340000000000000", "9007199254740992"), ("c340000000000000", "-9007199254740992")),
            *(("4430000000000000", "295147905179352830000"), ("44b52d02c7e14af5", "9.999999999999997e+22")),
            *(("44b52d02c7e14af6", "1e+23"), ("44b52d02c7e14af7", "1.0000000000000001e+23")),
            *(("444b1ae4d6e2ef4e", "999999999999999700000"), ("444b1ae4d6e2ef4f", "999999999999999900000")),
            *(("444b1ae4d6e2ef50", "1e+21"), ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7")),
            *(("3eb0c6f7a0b5ed8d", "0.000001"), ("41b3de4355555553", "333333333.3333332")),
            *(("41b3de4355555557", "333333333.33333343"), ("becbf647612f3696", "-0.0000033333333333333333")),
            *(("43143ff3c1cb0959", "1424953923781206.2"), ("3ff0000000000000", "1")),
        ],
    )
    def test_numbers_are_written_as_ecmascript_writes_them(self, bits, text):
        (number,) = struct.unpack(">d", bytes.fromhex(bits))
        assert hashing.canonical([number]) == f"[{text}]".encode()

    def test_keys_are_sorted_by_utf16_code_units(self):
        keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
        expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
        written = hashing.canonical({key: number for number, key in enumerate(keys)})
        assert list(json.loads(written)) == expected

    def test_texts_are_escaped_only_where_they_must_be(self):
        value = {"b": [1, None, True], "a": "\u20ac$\x0f\nA'B\"\\/\x7f"}
        assert hashing.canonical(value) == '{"a":"\u20ac$\\u000f\\nA\'B\\"\\\\/\x7f","b":[1,null,true]}'.encode()

    @pytest.mark.parametrize(
        "value", [float("nan"), float("inf"), -float("inf"), 2**53, "\ud800", {1: 2}, {"\ud800": 1}, b"a"]
    )
    def test_what_has_no_canonical_form_is_refused(self, value):
        with pytest.raises(ValueError, match=r"."):
            hashing.canonical([value])

    def test_numbers_can_be_kept_as_text(self):
        assert hashing.without_floats({"rate": 0.1, "pair": (1e-30, 2)}) == {"rate": "0.1", "pair": ["1e-30", 2]}
        seeds = hashing.without_floats([2**53, -(2**60), 2**53 - 1, True])
        assert seeds == [str(2**53), str(-(2**60)), 2**53 - 1, True]
        hashing.canonical(seeds)
        assert hashing.without_floats([np.float64(0.1)]) == ["0.1"]

    @pytest.mark.parametrize(
        "text",
        [
            b'{"a": 1}',
            b'{"b":1,"a":2}',
            b'{"a":1,"a":1}',
            b'{"a":1.0}',
            b'{"a":-0}',
            b'{"a":"\\u00e9"}',
            b"[1]",
            b"{",
            b"\xff",
        ],
    )
    def test_and_no_other_is_read(self, text, tmp_path):
        with pytest.raises(ValueError, match=r"JSON|Expecting|decode|twice"):
            hashing.parse_canonical(text)
        (tmp_path / "record").write_bytes(text)
        with pytest.raises(LedgerError, match=r"record was changed or damaged: .*; put it back"):
            hashing.read_canonical(tmp_path / "record")


def test_nothing_else_makes_hashes():
    """But for digests under a secret, which are `signing`'s."""
    package = Path(scissorhands_jax.__file__).parent
    users = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "hashlib" in path.read_text()}
    assert users == {"hashing.py", "deletion/signing.py"}
