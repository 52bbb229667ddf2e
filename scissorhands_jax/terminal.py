"""Consoles, tables and progress in the terminal: rich's, or plain lines on a machine that lacks rich.

Nothing that is printed by these names is read as markup, as the name of an emoji or as a command to the terminal: file
names, labels and whatever else people typed appear as they are, and what is not printable as an escape.

Tables of results (`jobs.grid`) and the experiments for a borrowed accelerator print by these names only, so that they
run where there is JAX and little else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scissorhands_jax.errors import InputError
from scissorhands_jax.plain_terminal import PlainConsole, PlainProgress, PlainTable, encodable, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.control import Control
    from rich.progress import Progress
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text
else:
    try:
        import rich.console
        from rich.control import Control
        from rich.progress import Progress
        from rich.segment import Segment
        from rich.table import Table
    except ModuleNotFoundError:
        Console, Progress, Table, Control = PlainConsole, PlainProgress, PlainTable, type(None)
    else:

        class Console(rich.console.Console):
            """A console of rich that shows every text as it is, whatever the encoding of its file.

            Args:
              **options: Those of rich's console, of which `markup`, `emoji` and `highlight` are off.
            """

            def __init__(self, **options: Any) -> None:
                super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

            def render_str(self, text: str, **options: Any) -> Text:
                """Makes a text as rich does, with escapes in place of what is not printable."""
                return super().render_str(printable(text), **options)

            def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
                """Renders something as rich does, with escapes in place of what is not printable or not encodable."""
                for segment in super().render(renderable, options):
                    text = segment.text if segment.control else encodable(printable(segment.text), self.encoding)
                    yield segment._replace(text=text)


__all__ = [
    "LOG_HELP",
    "QUIET_HELP",
    "Console",
    "LogFile",
    "LoggedConsole",
    "Progress",
    "Table",
    "add_follow_options",
    "complain",
    "is_live",
    "literal",
    "logged_console",
    "printable",
    "remarks_on",
    "say",
    "write_line",
]

_logger = logging.getLogger(__name__)

QUIET_HELP = "Print no progress and no remarks on standard error; errors and results are printed."
LOG_HELP = "Also write progress and remarks to this file, with the time in UTC. Lines are added to a file that exists."


class LogFile:
    """A file to which lines are added, each with the time.

    Args:
      path: The file, in an existing folder or in `out`.
      out: The folder that a command is about to make. Lines for a file in it wait until there is something else in it,
        because a command refuses a folder that is not empty.

    Raises:
      InputError: The file cannot be written.
    """

    def __init__(self, path: Path, out: str | Path | None = None) -> None:
        self._path, self._out, self._waiting, self._rest = path, None, "", ""
        self._is_lost = False
        if out is not None and os.path.realpath(out) in map(str, Path(os.path.realpath(path)).parents):
            self._out = Path(out)
            return
        try:
            open(path, "a", opener=_without_waiting).close()
        except OSError as error:
            raise InputError(f"the log {path} cannot be written ({error.strerror}); name another file") from error

    def write(self, text: str) -> None:
        """Adds a text; what follows the last line break waits for the next one."""
        *lines, self._rest = (self._rest + text).split("\n")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        shown = (printable(line.rstrip(), keep="") for line in lines)
        self._waiting += "".join(f"{stamp} {line}\n" for line in shown if line)
        if self._has_place():
            self.close()

    def _has_place(self) -> bool:
        """Whether the file would not be all that is in the folder of the command."""
        return self._out is None or (self._out.is_dir() and any(self._out.iterdir()))

    def close(self, *, ended_well: bool = True) -> None:
        """Writes the lines that wait.

        Args:
          ended_well: Whether the command has done what it was asked for. If not, and nothing was left in its folder,
            lines for a file in that folder are lost, which would otherwise be in the way of the same command.
        """
        if self._waiting and not self._is_lost and (ended_well or self._has_place()):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="utf-8", opener=_without_waiting) as file:
                    file.write(self._waiting)
            except OSError as error:
                self._is_lost = True
                _logger.warning("the log %s cannot be written any more (%s); the work goes on", self._path, error)
        self._waiting = ""


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file. A pipe that nobody reads raises an OSError; by default a process waits until somebody does."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


class LoggedConsole(Console):
    """A console on standard error whose lines also go to a file.

    Args:
      quiet: Whether to print nothing. The file gets all lines all the same.
      log: The file. None is a console without one.
    """

    def __init__(self, *, quiet: bool = False, log: LogFile | None = None) -> None:
        more: dict[str, Any] = {}
        if not issubclass(Console, PlainConsole) and not sys.stderr.isatty():
            more["force_terminal"] = False  # whatever FORCE_COLOR says: a file is no place for control characters
        super().__init__(stderr=True, quiet=quiet, **more)
        self.log_file = log

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints something, as the class above does it."""
        super().print(*objects, **options)
        # Controls move the cursor for a live display.
        if self.log_file is not None and not any(isinstance(shown, Control) for shown in objects):
            sink = io.StringIO()
            plain: dict[str, Any] = {}
            if not issubclass(Console, PlainConsole):
                plain = {"width": 120, "force_terminal": False}
            Console(file=sink, **plain).print(*objects, **options)
            self.log_file.write(sink.getvalue())


class _Remarks(logging.Handler):
    """Prints warnings of the library's loggers as lines of a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self._console, record.getMessage())
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def remarks_on(console: Console) -> Iterator[None]:
    """Has the library's warnings appear on a console, so that a log gets them and a quiet console shows none.

    Outside of it they go where Python sends warnings of loggers.

    Args:
      console: The console.
    """
    logger, handler = logging.getLogger("scissorhands_jax"), _Remarks(console)
    logger.addHandler(handler)
    # Libraries that are imported meanwhile give the root logger a handler of its own, which would print them again.
    was, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = was


def is_live(console: Console) -> bool:
    """Whether a console can show a bar that moves: a terminal or a notebook, and not a file or a pipe."""
    if isinstance(console, PlainConsole) or console.quiet:
        return False
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal and console.file.isatty())


def add_follow_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--quiet` and `--log`, which every command has that takes long."""
    parser.add_argument("--quiet", action="store_true", help=QUIET_HELP)
    parser.add_argument("--log", type=Path, metavar="FILE", help=LOG_HELP)


def logged_console(options: argparse.Namespace, out: Path | None = None) -> LoggedConsole:
    """The console that `add_follow_options` describes.

    Args:
      options: What the parser returned.
      out: The folder that the command makes, see `LogFile`.

    Raises:
      InputError: The log cannot be written.
    """
    return LoggedConsole(quiet=options.quiet, log=None if options.log is None else LogFile(options.log, out))


def literal(*parts: str | tuple[str, str]) -> Any:
    """Returns a text that any console of rich shows as it is, such as for the cell of a table.

    Args:
      *parts: The parts of the text, from left to right, each with a style of rich where it has one.
    """
    pairs = [(printable(part), "") if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts]
    if Table is PlainTable:
        return "".join(text for text, _ in pairs)
    from rich.text import Text

    return Text.assemble(*pairs)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Prints a line as it is on any console of rich, and leaves its breaking to the terminal.

    The line is written at once, so that what another thread or process writes comes before or after it.

    Args:
      console: The console.
      *parts: The parts of the line, as `literal` takes them.
    """
    console.print(literal(*parts), soft_wrap=True)


def write_line(text: str) -> None:
    """Writes a line of results to standard output."""
    sys.stdout.write(encodable(printable(text, keep="\t") + "\n", getattr(sys.stdout, "encoding", None)))


def complain(console: Console, message: str) -> None:
    """Prints an error on one line, on a quiet console as well."""
    was, console.quiet = console.quiet, False
    say(console, ("error: ", "bold red"), " ".join(printable(message).split()))
    console.quiet = was
