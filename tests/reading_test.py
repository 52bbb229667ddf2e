"""Readers of untrusted files keep their limits, and read all that is within them."""

import gzip
import io
import json
import os
import random
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from scissorhands_jax import array_files, image_files, reading, torch_weights
from scissorhands_jax.errors import InputError
from tests import limits
from tests.fuzz.watch import Watch


@pytest.fixture
def few(monkeypatch):
    """Limits small enough to be met exactly."""
    for name, limit in {"MAX_JSON": 60, "MAX_VALUES": 10, "MAX_DEPTH": 4, "MAX_TEXT": 40, "MAX_LINES": 3}.items():
        monkeypatch.setattr(reading, name, limit)


class TestJson:
    @pytest.mark.parametrize("text", ['{"a": [1, 2.5, true, null, "é"]}', "3", '""', "[[[[]]]]", '{"a":{"b":[{}]}}'])
    def test_what_is_within_the_limits_is_what_json_reads(self, few, text):
        assert reading.parse_json(text) == reading.parse_json(text.encode()) == json.loads(text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[[[[[]]]]]", "nested too deeply"),
            ('{"a":[{"b":[[]]}]}', "nested too deeply"),
            ("[" * 11, "more than 10 values"),
            ("[1,1,1,1,1,1,1,1,1,1,1]", "more than 10 values"),
            ('"' + "x" * 59 + '"', "larger than 60 bytes"),
            ('{"a":1,"b":2,"a":1}', "the key 'a' twice"),
            ('[{"b":{"c":1,"c":1}}]', "the key 'c' twice"),
            ("NaN", "NaN, which JSON does not have"),
            ("[-Infinity]", "-Infinity, which JSON does not have"),
            ("1e999", "1e999, which is too large"),
            ("9" * 50 + "x", "Extra data"),
            (b"\xff", "decode"),
        ],
    )
    def test_what_is_beyond_them_is_refused(self, few, text, message):
        with pytest.raises(ValueError, match=message):
            reading.parse_json(text)

    def test_limits_are_met_exactly(self, few):
        assert len(reading.parse_json("[1,1,1,1,1,1,1,1,1,1]")) == 10
        assert len(reading.parse_json('"' + "x" * 58 + '"')) == 58

    def test_numbers_that_json_lacks_are_read_where_they_are_expected(self):
        found = reading.parse_json("[NaN, Infinity, -Infinity, 1e999]", nan=True)
        assert np.isnan(found[0])
        assert found[1:] == [np.inf, -np.inf, np.inf]

    def test_any_depth_is_refused_before_it_can_break_who_walks_it(self):
        for depth in (reading.MAX_DEPTH + 1, 5_000, 200_000):
            for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
                with pytest.raises(ValueError, match="nested too deeply"):
                    reading.parse_json(text)
        whole = "[" * reading.MAX_DEPTH + "]" * reading.MAX_DEPTH
        assert json.dumps(reading.parse_json(whole)) == whole

    def test_a_document_at_its_limits_takes_bounded_memory(self, monkeypatch):
        monkeypatch.setattr(reading, "MAX_VALUES", 2**16)
        text = b"[" + b"{}," * (reading.MAX_VALUES // 2 - 1) + b"{}]"
        with limits.spent(memory=True) as work:
            assert len(reading.parse_json(text)) == reading.MAX_VALUES // 2
        assert work.peak / 2**16 < 2**30 / 2**22


@pytest.mark.parametrize("digits", ["1" + "0" * 400, "-1" + "0" * 400])
def test_an_integer_that_no_other_reader_holds_is_refused(digits):
    with pytest.raises(ValueError, match="which is too large"):
        reading.parse_json(f"[{digits}]")
    assert reading.parse_json(f"[{2**200}, -{2**200}]") == [2**200, -(2**200)]


class TestText:
    def test_lines_are_those_of_the_file(self, few, tmp_path):
        (tmp_path / "file").write_bytes("a\r\n\nb é".encode())
        assert reading.read_lines(tmp_path / "file") == ["a", "", "b é"]
        assert reading.read_text(tmp_path / "file") == "a\r\n\nb é"

    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path):
        (tmp_path / "file").write_text("\ufeffa,b\n\ufeff1,2\n", encoding="utf-8")
        assert reading.read_text(tmp_path / "file") == "a,b\n\ufeff1,2\n"
        assert reading.read_lines(tmp_path / "file")[0] == "a,b"
        assert reading.read_rows(tmp_path / "file").columns == ["a", "b"]

    @pytest.mark.parametrize(
        ("content", "message"), [(b"\n\n\n\n", "more than 3 lines"), (b"x" * 41, "than 40 bytes"), (b"\xff", "decode")]
    )
    def test_more_is_refused(self, few, tmp_path, content, message):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            reading.read_lines(tmp_path / "file")

    def test_rows_are_dicts_of_the_columns_that_they_have(self, few, tmp_path):
        (tmp_path / "file").write_bytes('\ufeff\na,b\n1,"x\ny"\n\n2\n3,4,, \n'.encode())
        columns, line, rows = reading.read_rows(tmp_path / "file")
        assert (columns, line) == (["a", "b"], 2)
        assert rows == [(3, {"a": "1", "b": "x\ny"}), (6, {"a": "2"}), (7, {"a": "3", "b": "4"})]

    @pytest.mark.parametrize(
        ("content", "message"), [("a\n1\n2\n3\n4\n", "more than 3 lines"), ("a\n" + "x" * 40, "larger than 40 bytes")]
    )
    def test_more_rows_are_refused(self, few, tmp_path, content, message):
        (tmp_path / "file").write_text(content)
        with pytest.raises(ValueError, match=message):
            reading.read_rows(tmp_path / "file")

    @pytest.mark.parametrize("row", ["3,4,5", "3,4,,x", '"1",2,3'])
    def test_a_value_beyond_the_columns_is_refused(self, tmp_path, row):
        """As in `1,5,3` for 1,5 and 3, or where a comma stands between positions."""
        (tmp_path / "file").write_text(f"a,b\n1,2\n\n{row}\n")
        with pytest.raises(ValueError, match=r"line 4 has \d values, and the first line 2 columns"):
            reading.read_rows(tmp_path / "file")

    @pytest.mark.parametrize("row", ['5,"b\n7,c\n9,d', '5,"b" c\n7,d'])
    def test_a_quote_that_does_not_end_takes_no_lines_in(self, tmp_path, row):
        (tmp_path / "file").write_text(f"position,note\n3,a\n{row}\n")
        with pytest.raises(ValueError, match=r"unexpected end of data|expected after"):
            reading.read_rows(tmp_path / "file")
        (tmp_path / "file").write_text('position,note\n3,say "hi"\n5,"a ""b"", in\ntwo lines"\n')
        assert [row.values["note"] for row in reading.read_rows(tmp_path / "file").rows] == [
            'say "hi"',
            'a "b", in\ntwo lines',
        ]

    def test_a_huge_field_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("a\n" + "x" * 200_000)
        with pytest.raises(ValueError, match="field larger than field limit"):
            reading.read_rows(tmp_path / "file")

    def test_short_rows_below_many_columns_take_no_more_than_the_file(self, tmp_path):
        (tmp_path / "file").write_text(",".join(map(str, range(100_000))) + "\n" + "1\n" * 100_000)
        with limits.spent(memory=True) as work:
            assert len(reading.read_rows(tmp_path / "file").rows) == 100_000
        assert work.peak < 2**27


class TestGzip:
    def test_both_forms_are_read(self, tmp_path):
        for content in (b"text", gzip.compress(b"text"), gzip.compress(b"te") + gzip.compress(b"xt")):
            (tmp_path / "file").write_bytes(content)
            assert reading.read_gzip(tmp_path / "file", 100) == b"text"

    def test_no_more_than_the_limit_is_unpacked(self, tmp_path):
        (tmp_path / "file").write_bytes(gzip.compress(bytes(2 * 10**8), 1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="unpacks to more than 5000000 bytes"):
            reading.read_gzip(tmp_path / "file", 5_000_000)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
        (tmp_path / "file").write_bytes(gzip.compress(bytes(100)))
        assert len(reading.read_gzip(tmp_path / "file", 100)) == 100
        with pytest.raises(ValueError, match="unpacks to more than 99 bytes"):
            reading.read_gzip(tmp_path / "file", 99)

    def test_half_a_stream_is_refused(self, tmp_path):
        (tmp_path / "file").write_bytes(gzip.compress(random.Random(0).randbytes(1000))[:500])
        with pytest.raises(ValueError, match="gzip stream is damaged"):
            reading.read_gzip(tmp_path / "file", 10_000)


class TestArchives:
    def test_what_was_packed_is_read(self, tmp_path):
        content = {"a": bytes(100), "b/c": b"text"}
        with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in content.items():
                archive.writestr(name, part)
        assert reading.read_archive(tmp_path / "file", 104) == content
        with pytest.raises(ValueError, match="unpacks to more than 103 bytes"):
            reading.read_archive(tmp_path / "file", 103)

    def test_a_directory_of_many_entries_is_refused_quickly(self, tmp_path):
        entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
        many = entry * (reading.MAX_DIRECTORY // len(entry) + 1)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(many), 0, 0)
        (tmp_path / "file").write_bytes(many + end)
        for read in (array_files.read_arrays, lambda path: reading.read_archive(path, 10)):
            with pytest.raises(ValueError, match="directory is larger"):
                read(tmp_path / "file")
        with pytest.raises(InputError, match="directory is larger"):
            torch_weights.read_state_dict(tmp_path / "file")


def npy(header: str, content: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


class TestArrays:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_what_numpy_wrote_is_read_bit_by_bit(self, tmp_path, save):
        arrays = {
            **{"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3)), "c": np.array(3)},
            **{"d": np.array(["x", "yz"]), "e": np.zeros((0, 4), np.int16), "f": np.array([(1, 2.0)], "i4,f8")},
        }
        save(tmp_path / "file.npz", **arrays)
        found = array_files.read_arrays(tmp_path / "file.npz")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
            assert found[name].flags.writeable
        assert list(array_files.read_arrays(tmp_path / "file.npz", ("c", "z"))) == ["c"]
        assert array_files.array_names(tmp_path / "file.npz") == list(arrays)
        np.save(tmp_path / "file.npy", arrays["b"])
        np.testing.assert_array_equal(array_files.read_array(tmp_path / "file.npy"), arrays["b"])

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }\n",
            "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }\n",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n",
            "(" * 9000,
            "not Python",
        ],
    )
    def test_a_header_that_lies_costs_nothing(self, header):
        with limits.spent(memory=True) as work, pytest.raises(ValueError):  # noqa: PT011
            array_files.read_array(npy(header, bytes(16)))
        assert work.peak < 50_000_000

    def test_a_compression_bomb_is_refused(self, tmp_path, monkeypatch):
        np.savez_compressed(tmp_path / "file.npz", a=np.zeros(10**6, np.uint8))
        assert array_files.read_arrays(tmp_path / "file.npz")["a"].size == 10**6
        monkeypatch.setattr(array_files, "MIN_UNPACKED", 10**5)
        with pytest.raises(ValueError, match="unpacks to more than 100 times its size"):
            array_files.read_arrays(tmp_path / "file.npz")
        with pytest.raises(ValueError, match="unpacks to more"):
            array_files.read_arrays(tmp_path / "file.npz", ("other",))

    def test_two_arrays_of_one_name_are_refused(self):
        buffer = io.BytesIO()
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }\n"
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a", npy(header, b"1"))
            archive.writestr("a.npy", npy(header, b"2"))
        with pytest.raises(ValueError, match="two arrays named 'a'"):
            array_files.read_arrays(buffer.getvalue())


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has a row of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


class TestImages:
    @pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp", "ppm"])
    def test_images_are_read_whatever_the_file_is_called(self, tmp_path, form):
        Image.new("RGB", (5, 4), (200, 200, 200)).save(tmp_path / "file", form)
        with image_files.open_image(tmp_path / "file") as image:
            assert image.size == (5, 4)
            assert abs(int(np.asarray(image.convert("L"))[0, 0]) - 200) < 3

    @pytest.mark.parametrize("form", ["eps", "tiff", "gif", "ico"])
    def test_other_formats_are_refused_unopened(self, tmp_path, form):
        Image.new("RGB", (32, 32)).save(tmp_path / "file", form)
        (tmp_path / "file").rename(tmp_path / "file.png")
        with (
            pytest.raises(ValueError, match="no whole PNG, JPEG, WebP, BMP, PGM or PPM"),
            image_files.open_image(tmp_path / "file.png") as image,
        ):
            image.load()

    @pytest.mark.parametrize(("width", "height"), [(8193, 8192), (2**31 - 1, 2**31 - 1), (60_000, 60_000)])
    def test_pixels_are_counted_before_they_are_unpacked(self, width, height):
        with (
            pytest.raises(ValueError, match=r"pixels|decompression bomb"),
            image_files.open_image(png(width, height)) as image,
        ):
            image.load()

    def test_a_file_of_more_bytes_than_the_limit_is_refused(self, tmp_path, monkeypatch):
        Image.new("L", (5, 4)).save(tmp_path / "file.png")
        size = (tmp_path / "file.png").stat().st_size
        monkeypatch.setattr(image_files, "MAX_IMAGE", size)
        with image_files.open_image(tmp_path / "file.png") as image:
            assert image.size == (5, 4)
        monkeypatch.setattr(image_files, "MAX_IMAGE", size - 1)
        with pytest.raises(ValueError, match=str(size - 1)), image_files.open_image(tmp_path / "file.png"):
            pass

    def test_the_largest_image_is_opened_and_half_of_it_is_refused(self):
        with image_files.open_image(png(8192, 8192)) as image:
            assert image.size == (8192, 8192)
        with pytest.raises(ValueError, match="truncated"), image_files.open_image(png(4, 4)) as image:
            image.load()


class TestWeights:
    def test_a_header_of_many_empty_tensors_is_refused_quickly(self, tmp_path):
        entries = (f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(2**16 + 1))
        header = ("{" + ",".join(entries) + "}").encode()
        (tmp_path / "many").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(InputError, match=r"names 65537 tensors, more than 65536"):
            torch_weights.read_state_dict(tmp_path / "many")
        (tmp_path / "long").write_bytes(struct.pack("<Q", 2**23 + 1) + b"{" + b" " * 2**23)
        with pytest.raises(InputError, match=r"header of 8388609 bytes, more than 8388608"):
            torch_weights.read_state_dict(tmp_path / "long")

    def test_a_name_that_two_tensors_have_is_refused(self, tmp_path):
        entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        header = f"{{{entry},{entry}}}".encode()
        (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(InputError, match="damaged"):
            torch_weights.read_state_dict(tmp_path / "file")


class TestPipes:
    """What may never end is not begun; a reader that waited would be ended by the watch after a minute."""

    @pytest.mark.parametrize(
        "read",
        [
            *(reading.open_file, reading.read_text, reading.read_lines, reading.read_rows, reading.read_json),
            *(lambda path: reading.read_gzip(path, 100), lambda path: reading.read_archive(path, 100)),
            *(array_files.read_array, array_files.read_arrays, lambda path: image_files.open_image(path).__enter__()),
        ],
    )
    @pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
    def test_only_files_are_opened(self, tmp_path, read, kind):
        path = {"pipe": tmp_path / "file", "device": "/dev/zero", "folder": tmp_path}[kind]
        if kind == "pipe":
            os.mkfifo(path)

        def refused() -> None:
            with pytest.raises((OSError, ValueError), match=r"pipe or device|directory"):
                read(path)

        assert not Watch().survives(refused, tmp_path)
