"""Plain lines in place of rich, for machines without it: what `terminal` offers there."""

from __future__ import annotations

import re
import sys
from typing import Any, Self

_MARKUP = re.compile(r"\[/?[a-z ]*\]")


class PlainConsole:
    """Prints text as it is; the part of `rich.console.Console` that tables and experiments use.

    Args:
      stderr: Whether to print on standard error.
      quiet: Whether to print nothing.
    """

    is_terminal = False
    width = 120

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        self._stderr, self._quiet = stderr, quiet

    def print(self, shown: object = "", *, end: str = "\n", markup: bool = True, **style: Any) -> None:
        """Prints something; `style` is ignored.

        Args:
          shown: What is printed, as `str` writes it.
          end: What follows it.
          markup: Whether words such as `[bold]` are markup, which is left out.
          **style: Further options of rich's consoles.
        """
        del style
        if not self._quiet:
            text = _MARKUP.sub("", str(shown)) if markup else str(shown)
            print(text, end=end, file=sys.stderr if self._stderr else sys.stdout, flush=True)


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


class PlainProgress:
    """Prints a line when a task begins and when it gets another name; the part of `rich.progress.Progress` in use."""

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._names: dict[int, str] = {}
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def task_ids(self) -> list[int]:
        """The tasks that were added and not removed, in this order."""
        return list(self._names)

    def add_task(self, description: str, **_: Any) -> int:
        """Adds a task and returns its number."""
        self._next += 1
        self._names[self._next] = ""
        self.update(self._next, description=description)
        return self._next

    def update(self, task: int, *, description: str | None = None, **_: Any) -> None:
        """Prints the description of a task if it is another one than before."""
        if description and description != self._names[task]:
            self._names[task] = description
            self._console.print(description, markup=False)

    def advance(self, task: int) -> None:
        """Does nothing: plain lines do not show how far a task is."""

    def remove_task(self, task: int) -> None:
        """Forgets a task."""
        del self._names[task]
