"""Ways to damage files and JSON documents."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path


def damaged(raw: bytes, generator: random.Random) -> bytes:
    """A file with flipped bits, cut off, with a hole, something put in or twice, or with huge numbers in it."""
    content, kind = bytearray(raw), generator.randrange(8)
    start = generator.randrange(len(raw))
    stop = min(len(raw), start + generator.choice([1, 4, 8, 64, 4096]))
    if kind <= 1:
        for _ in range(generator.choice([1, 1, 5, 50])):
            content[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
    elif kind == 2:
        del content[start:]
    elif kind == 3:
        del content[start:stop]
    elif kind == 4:
        content[start:start] = generator.choice([generator.randbytes(16), raw[start:stop], b"\0" * 64, b'{"a":' * 20])
    elif kind == 5:
        content[start:stop] = bytes(stop - start)
    elif kind == 6:
        content[start : start + 8] = struct.pack("<Q", generator.choice([2**64 - 1, 2**63, 2**40, 2**31, 0]))
    else:
        other = generator.randrange(len(raw))
        content[start:stop], content[other : other + 8] = content[other : other + 8], content[start:stop]
    return bytes(content)


def nonsense(generator: random.Random, depth: int = 3):
    """A JSON value of any kind."""
    kinds = [None, True, 0, -1, 2**70, 1e308, float("nan"), "", "x" * 50, "\0", "../../etc/passwd", "F32", [], {}]
    if depth and generator.random() < 0.5:
        many = generator.randrange(4)
        if generator.random() < 0.5:
            return [nonsense(generator, depth - 1) for _ in range(many)]
        keys = ["dtype", "shape", "data_offsets", "a", "version", "rows", "config", "network", "x" * 30]
        return {generator.choice(keys): nonsense(generator, depth - 1) for _ in range(many)}
    return generator.choice(kinds)


def spoiled(value, generator: random.Random):
    """A JSON document with something else in one place."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(list(value))
        return {**value, key: spoiled(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        position = generator.randrange(len(value))
        return [*value[:position], spoiled(value[position], generator), *value[position + 1 :]]
    return nonsense(generator)


HOSTILE = (
    b"",
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b"[" * 500 + b"]" * 500,
    b"9" * 100_000,
    b"\xff\xfe",
    b"null",
    b"1e999",
)
HOSTILE += (b"[" + b"{}," * 2**22 + b"{}]", b'{"a":1,"a":2}', b"NaN", b'"\\ud800"')


def damaged_json(document, generator: random.Random, number: int) -> bytes:
    """Hostile JSON first, and then damaged spellings of a document and whole spellings of damaged ones in turn."""
    if number < len(HOSTILE):
        return HOSTILE[number]
    raw = json.dumps(document).encode()
    return damaged(raw, generator) if number % 2 else json.dumps(spoiled(document, generator)).encode()


class DamagedFolder:
    """Damages or removes one file of a folder after another, and puts back what was there before the next."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self._whole: tuple[Path, bytes] | None = None

    def damage(self, generator: random.Random, number: int) -> None:
        """Damages a file; about one in seven is removed."""
        if self._whole is not None:
            path, content = self._whole
            path.write_bytes(content)
        path = self._paths[number % len(self._paths)]
        self._whole = path, path.read_bytes()
        if generator.random() < 0.15 or not self._whole[1]:
            path.unlink()
        else:
            path.write_bytes(damaged(self._whole[1], generator))
