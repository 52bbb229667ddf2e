"""Plain lines in place of rich: all that a machine without it gets, and the progress that a log file gets.

No text is read as markup, and lines hold no control characters, whatever the names in them are.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from typing import Any, Self, TextIO

_SHORT = 1.0  # seconds; shorter tasks are not worth a line
_FIRST, _GROWTH, _LONGEST = 10.0, 1.5, 600.0  # seconds until the first line about a task, and between later ones


class PlainConsole:
    """Prints text as it is; the part of `rich.console.Console` that tables and experiments use.

    Args:
      stderr: Whether to print on standard error.
      quiet: Whether to print nothing.
      file: Where to print instead.
    """

    is_terminal = False
    width = 120

    def __init__(self, *, stderr: bool = False, quiet: bool = False, file: TextIO | None = None) -> None:
        self._stderr, self.quiet, self._file = stderr, quiet, file

    def print(self, shown: object = "", *, end: str = "\n", **style: Any) -> None:
        """Prints something as it is, with escapes in place of what is not printable; `style` is ignored.

        Args:
          shown: What is printed, as `str` writes it.
          end: What follows it.
          **style: Further options of rich's consoles.
        """
        del style
        if not self.quiet:
            file = self._file or (sys.stderr if self._stderr else sys.stdout)
            file.write(encodable(printable(str(shown)) + end, getattr(file, "encoding", None)))
            file.flush()


class PlainTable:
    """Rows of text under a title, their cells separated by bars; the part of `rich.table.Table` that is used."""

    def __init__(self, *headers: str, title: str = "") -> None:
        self._title, self._lines = title, [headers]

    def add_row(self, *cells: str) -> None:
        """Adds a row; a line break in a cell becomes a comma."""
        self._lines.append(cells)

    def __str__(self) -> str:
        lines = [" | ".join(", ".join(cell.splitlines()) for cell in line) for line in self._lines]
        return "\n".join([self._title, *lines])


@dataclasses.dataclass
class _Task:
    """What is known of a task, and what has been said about it."""

    name: str
    total: float | None
    completed: float
    note: str
    began: float
    """The time at which it was added, in seconds."""
    due: float
    """The time of the next line."""
    interval: float = _FIRST
    counted_from: tuple[float, float] | None = None
    """The time at which something of it was done for the first time, and how much was done then."""
    is_announced: bool = False
    has_ended: bool = False

    def update(self, now: float, **changes: Any) -> None:
        """Takes over what is known now; None stands for what has not changed."""
        before = self.completed
        for name, value in changes.items():
            if value is not None:
                setattr(self, name, value)
        if self.completed != before:
            self.has_ended = False
            if self.counted_from is None:
                self.counted_from = now, self.completed

    @property
    def is_complete(self) -> bool:
        """Whether all of it is done."""
        return self.total is not None and self.completed >= self.total

    def state(self, now: float) -> str:
        """Says how far it is, how fast it gets on, and how much time is left."""
        parts = [f"{duration_text(now - self.began)} so far"]
        if self.total and self.completed:
            share = f"{100 * self.completed / self.total:.0f} %"
            parts = [f"{self.completed:,.0f} of {self.total:,.0f} ({share})", *self._pace(now)]
        return self._line(*parts)

    def end(self, now: float) -> str:
        """Says what was done, and how long it took."""
        took = duration_text(now - self.began)
        if not self.is_complete:
            done = f"at {self.completed:,.0f} of {self.total:,.0f} " if self.total else ""
            return self._line(f"ended {done}after {took}")
        count = f"{self.total:,.0f} " if self.total and self.total > 1 else ""
        return self._line(f"{count}done in {took}")

    def _pace(self, now: float) -> list[str]:
        since, first = self.counted_from or (now, self.completed)
        if self.completed <= first or now <= since or self.total is None:
            return []
        rate = (self.completed - first) / (now - since)
        each = f"{rate:,.1f} per second" if rate >= 1 else f"{duration_text(1 / rate)} each"
        return [each, f"{duration_text((self.total - self.completed) / rate)} left"]

    def _line(self, *parts: str) -> str:
        return f"{self.name.strip() or 'work'}: {', '.join(filter(None, (*parts, self.note.strip())))}"


class PlainProgress:
    """Writes lines about tasks; the part of `rich.progress.Progress` in use.

    A task gets a line when it begins, after 10 seconds and then at growing intervals of up to 10 minutes, and when it
    ends, each with the last note. The lines at intervals say how much is done, how fast, and how much time is left;
    they also come while nothing is reported. Tasks that take less than a second get none, but for the first and the
    last.

    Args:
      write: Is called with every line, from several threads but never at the same time.
      ends_matter: Whether the first and the last task get lines however short they are.
      clock: Returns the time in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        ends_matter: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._ends_matter, self._clock = write, ends_matter, clock
        self._tasks: dict[int, _Task] = {}
        self._next = 0
        self._unsaid: str | None = None
        self._lock = threading.RLock()
        self._left = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="progress lines", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        with self._lock:
            for task in list(self._tasks):
                self._end(self._tasks.pop(task))
            if self._unsaid is not None:
                self._say(self._unsaid)

    @property
    def task_ids(self) -> list[int]:
        """The tasks that were added and not removed, in this order."""
        return list(self._tasks)

    def add_task(
        self, description: str, *, total: float | None = None, completed: float = 0, note: str = "", **_: Any
    ) -> int:
        """Adds a task and returns its number."""
        with self._lock:
            self._next += 1
            now = self._clock()
            self._tasks[self._next] = _Task(description, total, completed, note, began=now, due=now + _SHORT)
            if self._next == 1 and description and self._ends_matter:
                self._announce(self._tasks[1], now)
            return self._next

    def update(
        self,
        task: int,
        *,
        description: str | None = None,
        total: float | None = None,
        completed: float | None = None,
        advance: float | None = None,
        note: str | None = None,
        **_: Any,
    ) -> None:
        """Takes over what is known of a task now; None stands for what has not changed."""
        with self._lock:
            found, now = self._tasks[task], self._clock()
            if advance is not None:
                completed = found.completed + advance
            found.update(now, name=description, total=total, completed=completed, note=note)
            if found.is_complete:
                self._end(found)
            elif now >= found.due or (task == 1 and not found.is_announced and found.name and self._ends_matter):
                self._announce(found, now)

    def advance(self, task: int, advance: float = 1) -> None:
        """Adds to what is done of a task."""
        with self._lock:
            self.update(task, advance=advance)

    def remove_task(self, task: int) -> None:
        """Ends a task, and forgets it."""
        with self._lock:
            self._end(self._tasks.pop(task))

    def _watch(self) -> None:
        """Writes what is due while nothing is reported."""
        while not self._left.wait(_SHORT):
            with self._lock:
                now = self._clock()
                for task in self._tasks.values():
                    if now >= task.due and not task.has_ended and not self._left.is_set():
                        self._announce(task, now)

    def _announce(self, task: _Task, now: float) -> None:
        """Writes the first line of a task, or the next one."""
        if task.is_announced:
            task.due = now + task.interval
            task.interval = min(_GROWTH * task.interval, _LONGEST)
            self._say(task.state(now))
        else:
            task.is_announced, task.due, task.interval = True, task.began + _FIRST, _GROWTH * _FIRST
            self._say(f"{task.name.strip() or 'work'}: started")

    def _end(self, task: _Task) -> None:
        if not task.has_ended:
            task.has_ended, line = True, task.end(self._clock())
            if task.is_announced:
                self._say(line)
            elif task.is_complete and self._ends_matter:
                self._unsaid = line

    def _say(self, line: str) -> None:
        self._unsaid = None
        self._write(" ".join(printable(line).split()))


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Returns a text that says the same on every terminal, whoever wrote it.

    Everything that is not printable is replaced by its escape in Python: control characters, with which a text could
    move the cursor, change colours or write over other lines, marks that reverse the order of letters, and bytes of
    file names that are not UTF-8.

    Args:
      text: The text.
      keep: Characters that are kept all the same.

    >>> printable("a\x1b[31m b")
    'a\\x1b[31m b'
    """

    def is_kept(sign: str) -> bool:
        return sign.isprintable() or sign in keep or unicodedata.category(sign) == "Zs"  # spaces of any width

    return "".join(sign if is_kept(sign) else sign.encode("unicode_escape").decode() for sign in text)


def encodable(text: str, encoding: str | None) -> str:
    r"""Returns a text with escapes in place of what an encoding does not have.

    Args:
      text: The text.
      encoding: The name of the encoding. None has everything.

    >>> encodable("–", "latin-1"), encodable("–", None)
    ('\\u2013', '–')
    """
    return text if encoding is None else text.encode(encoding, "backslashreplace").decode(encoding)


def duration_text(seconds: float) -> str:
    """A duration in the unit that fits it.

    >>> [duration_text(number) for number in (1.25, 600, 7200)]
    ['1.2 s', '10.0 min', '2.0 h']
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
