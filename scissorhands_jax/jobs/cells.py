"""Cells: results that take long to compute, each kept in a file of its own and computed only once.

Tables and audits are folders of cells. A computation that is killed at any moment loses the cell it was working on and
nothing else: the next call reads the cells that are done and computes the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from scissorhands_jax import files, reading
from scissorhands_jax.errors import CheckpointError, DivergedError, InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Progress
from scissorhands_jax.training.identity import Identity

SECONDS_BETWEEN_RESULTS = 20.0
_DIVERGED = ".diverged"
_MAX_CELL = 2**30  # bytes; an audit keeps the logits of all examples that it watches


class CellResult(Protocol):
    """What a cell holds once it is computed: a value that can be written to a file and read back."""

    SUFFIX: ClassVar[str]
    """Of the file, such as ".json"."""

    def encode(self) -> bytes:
        """The content of the file."""
        ...

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """The value of which `encode` gave this content."""
        ...


CellT = TypeVar("CellT", bound=CellResult)


@dataclasses.dataclass(frozen=True)
class Diverged:
    """The content of a cell whose method diverged."""

    place: Mapping[str, str | int]
    reason: str
    code: str | None = None
    """The code that ran (`provenance.Code.name`). None in cells from before it was recorded."""
    of: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """`ResultCell.of`. Empty in cells from before it was recorded."""

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return _title(self.place)


@dataclasses.dataclass(frozen=True)
class ResultCell(Generic[CellT]):
    """One result: what determines it, and how it is computed."""

    place: Mapping[str, str | int]
    """Its coordinates by name, such as `{"scenario": "one class", "seed": 3, "method": "finetune"}`. With the identity
    of the folder they determine the result."""
    compute: Callable[[Progress], CellT]
    """Is called once, with the display on which it may show its progress."""
    may_diverge: bool = False
    """Whether the others are still computed if this one raises `DivergedError`."""
    of: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What it is computed of and its place does not say, as JSON, which is kept where it diverges."""

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return _name(self.place)

    @property
    def title(self) -> str:
        """What it is called in a progress bar."""
        return _title(self.place)


class CellFolder(Generic[CellT]):
    """The cells of one experiment on disk.

    Args:
      folder: Holds a file per cell. It is made when the first cell is written.
      kind: The type of the results.
    """

    def __init__(self, folder: Path, kind: type[CellT]) -> None:
        self.folder = folder
        self.kind = kind

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        out: Path,
        identity: Identity,
        kind: type[CellT],
        *,
        inputs: Iterable[str | Path | None] = (),
        store: Path | None = None,
        overwrite: bool,
    ) -> Iterator[Self]:
        """The cells in the folder of a run, `out/cells`, to which nobody else can write meanwhile.

        A run with the same identity is continued.

        Args:
          out: The folder of the run. It is made if it does not exist.
          identity: All that the cells depend on together.
          kind: The type of the results.
          inputs: The files and folders that the run reads, as for `runs.open_folder`.
          store: Where the caller has said that networks are kept, which is read as well. Its own place, `out/networks`,
            goes with the run that is removed.
          overwrite: Whether to remove the run that is in the folder.

        Raises:
          InputError: The folder holds other files or another run, or what the run reads.
          BusyError: Another process writes to the folder.
        """
        own = store is None or files.resolved(store) == files.resolved(out / "networks")
        read = [*inputs, None if own else store]
        opened = runs.open_folder(out, identity, inputs=read, overwrite=overwrite, resume=True)
        with opened as fresh, runs.cleared_if_refused(out, fresh, "cells/*", "networks/*"):
            yield cls(out / "cells", kind)

    def path(self, cell: ResultCell[CellT]) -> Path:
        """The file of a cell that has been computed."""
        return self.folder / (cell.name + self.kind.SUFFIX)

    def is_done(self, cell: ResultCell[CellT]) -> bool:
        """Whether the cell has a result, or is known to diverge."""
        return self.path(cell).exists() or self.path(cell).with_suffix(_DIVERGED).exists()

    def read(self, cell: ResultCell[CellT]) -> CellT | Diverged | None:
        """The result of a cell, or None if it has none yet.

        Raises:
          CheckpointError: The file is damaged.
        """
        for path in (self.path(cell), self.path(cell).with_suffix(_DIVERGED)):
            if path.exists():
                return self._read(path)
        return None

    def read_all(self) -> list[CellT | Diverged]:
        """The results of all cells in the folder, also of those that another call has computed, sorted by file name.

        Raises:
          CheckpointError: A file is damaged.
        """
        found = [path for path in self.folder.glob("*") if path.suffix in (self.kind.SUFFIX, _DIVERGED)]
        return [self._read(path) for path in sorted(found)]

    def add(self, place: Mapping[str, str | int], result: CellT | Diverged) -> bool:
        """Writes a result that was computed elsewhere, unless its cell has one, and returns whether it did.

        Args:
          place: The cell's coordinates, as in `ResultCell.place`.
          result: Its result.
        """
        path = self.folder / (_name(place) + self.kind.SUFFIX)
        if path.exists() or path.with_suffix(_DIVERGED).exists():
            return False
        self._write(path, result)
        return True

    def replace(self, place: Mapping[str, str | int], result: CellT | Diverged) -> None:
        """Writes another result of a cell that has been computed, such as one with more measurements.

        Args:
          place: The cell's coordinates, as in `ResultCell.place`.
          result: Its result.
        """
        self._write(self.folder / (_name(place) + self.kind.SUFFIX), result)

    def fill(
        self,
        cells: Sequence[ResultCell[CellT]],
        progress: Progress,
        write_results: Callable[[], object],
        *,
        seconds_between: float | None = None,
    ) -> None:
        """Computes the cells that have no result yet, in their order.

        Args:
          cells: All cells of this call.
          progress: Shows one line for them together.
          write_results: Writes the results so far. It is called after the first new cell and then at intervals, but not
            at the end, when the caller knows more.
          seconds_between: The shortest interval between two such calls. None is `SECONDS_BETWEEN_RESULTS`.

        Raises:
          InputError: Two cells have the same file.
          DivergedError: A cell diverged that may not. The cells before it are kept.
        """
        interval = SECONDS_BETWEEN_RESULTS if seconds_between is None else seconds_between
        places: dict[str, ResultCell[CellT]] = {}
        for cell in cells:
            other = places.setdefault(cell.name, cell)
            if other is not cell:
                raise InputError(f"{other.title!r} and {cell.title!r} would share a file; give one another name")
        waiting = [cell for cell in cells if not self.is_done(cell)]
        task = progress.add_task("", total=len(cells), completed=len(cells) - len(waiting), note="")
        written = -math.inf
        for cell in waiting:
            progress.update(task, description=cell.title)
            self._compute(cell, progress)
            if time.perf_counter() - written >= interval:
                write_results()
                written = time.perf_counter()
            progress.advance(task)

    def _compute(self, cell: ResultCell[CellT], progress: Progress) -> None:
        result: CellT | Diverged
        try:
            result = cell.compute(progress)
        except DivergedError as error:
            if not cell.may_diverge:
                raise
            result = Diverged(dict(cell.place), str(error), provenance.running_code().name, dict(cell.of))
        self._write(self.path(cell), result)

    def _write(self, path: Path, result: CellT | Diverged) -> None:
        if isinstance(result, Diverged):
            files.write_bytes(path.with_suffix(_DIVERGED), json.dumps(dataclasses.asdict(result)).encode())
        else:
            files.write_bytes(path, result.encode())

    def _read(self, path: Path) -> CellT | Diverged:
        try:
            content = reading.read_bytes(path, _MAX_CELL)
            return Diverged(**reading.parse_json(content)) if path.suffix == _DIVERGED else self.kind.decode(content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; remove it, and it is computed again") from error


def _name(place: Mapping[str, str | int]) -> str:
    """The name of the file of a cell, without the suffix."""
    return "-".join(slug(value if isinstance(value, str) else f"{key}{value}") for key, value in place.items())


def _title(place: Mapping[str, str | int]) -> str:
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in place.items())


def slug(text: str) -> str:
    """A text as a part of a file name.

    >>> slug("random 10 %, seed 3")
    'random_10_percent_seed_3'
    """
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", text.replace("%", "percent")).strip("_")
