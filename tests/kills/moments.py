"""Copies of a folder as it is before every operation on it: what a process that is killed at that moment leaves.

A copy is made instead of a kill because it costs less: one run gives all moments. Operations are seen by an audit hook
(`open` for writing, renames, links, removals, folders) and by SQLite's tracing of statements. What tensorstore and
SQLite do between them, in C++ and C, is seen by the kills at random moments only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scissorhands_jax.deletion import database

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watching: list[Moments] = []


class Moments:
    """The different states of a folder, in the order in which they came, or some moments that are drawn.

    Args:
      world: The folder.
      copies: Where the copies are kept.
      count: How many moments are drawn; None keeps every state that differs from those before it.
      seed: The seed of the draw.
    """

    def __init__(self, world: Path, copies: Path, *, count: int | None = None, seed: int = 0) -> None:
        self.world, self.copies = world, copies
        self.operations = self.moments = 0
        self._count, self._draw = count, random.Random(seed)
        self.states: list[Path] = []
        self._known: set[str] = set()
        self._opened: set[Path] = set()
        self._lock = threading.Lock()
        self._busy = threading.local()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps every state that the folder has within a block."""
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked.append(True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "_connect", self._traced(database._connect))
            _watching.append(self)
            try:
                yield
            finally:
                _watching.remove(self)
        self.look(None)

    def _traced(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connect_and_trace(*arguments: Any) -> sqlite3.Connection:
            connection = connect(*arguments)
            connection.set_trace_callback(lambda statement: self.see("statement", ()))
            return connection

        return connect_and_trace

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Is called with every event of the interpreter."""
        if getattr(self._busy, "now", False):
            return
        opened = None
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes) or not (flags or 0) & _WRITES:
                return
            opened = Path(os.fsdecode(path)).absolute()
            if self.world not in opened.parents:
                return
        elif event not in _CHANGES and event != "statement":
            return
        self.look(opened)

    def look(self, opened: Path | None) -> None:
        """Keeps the state of the folder, and those in which a file that is being written is empty or half there."""
        with self._lock:
            self._busy.now = True
            try:
                self.operations += 1
                self._keep(None)
                for path in self._opened:
                    if path.is_file() and not path.is_symlink() and path.stat().st_size:
                        self._keep(path)
                self._opened = {opened} if opened is not None else set()
            finally:
                self._busy.now = False

    def _keep(self, torn: Path | None) -> None:
        for share in (0, 0.5) if torn is not None else (1,):
            self.moments += 1
            place = len(self.states)
            if self._count is not None and place == self._count:
                place = self._draw.randrange(self.moments)  # so that every moment has the same chance in the end
                if place >= self._count:
                    continue
            with contextlib.suppress(OSError):  # Tensorstore's threads go on, and a file is gone before it is copied.
                digest = "" if self._count is not None else _digest(self.world, torn, share)
                if digest in self._known:
                    continue
                copy = self.copies / f"{self.moments:05d}"
                shutil.copytree(self.world, copy, symlinks=True)
                if torn is not None:
                    half = copy / torn.relative_to(self.world)
                    os.truncate(half, int(share * half.stat().st_size))
                if digest:
                    self._known.add(digest)
                self.states[place : place + 1] = [copy]


def restore(world: Path, state: Path) -> None:
    """Makes a folder what it was."""
    if world.exists():
        shutil.rmtree(world)
    shutil.copytree(state, world, symlinks=True)


def _digest(world: Path, torn: Path | None, share: float) -> str:
    """A hash of all names, contents, links and permissions."""
    found = hashlib.sha256()
    for path in sorted(world.rglob("*")):
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
            if path == torn:
                content = content[: int(share * len(content))]
        found.update(repr((str(path), oct(path.lstat().st_mode), len(content))).encode() + content)
    return found.hexdigest()


_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for moments in _watching:
        moments.see(event, arguments)
