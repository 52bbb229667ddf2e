"""What the programs of this folder have in common: how they end, and the file in which their results are kept.

Results are computed one by one, each is written as soon as it is there, and the same command goes on with the others.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from scissorhands_jax import files, reading, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, LoggedConsole, complain, logged_console, remarks_on, say
from scissorhands_jax.training.identity import differences, list_differences

Result: TypeAlias = dict[str, Any]
_ADVICE = "name another file, or replace it with --overwrite"


_ENDS = (InputError, OSError, KeyboardInterrupt)


class _Logged(Exception):
    """What ended a program, and the console whose log is to have it as well."""

    def __init__(self, console: LoggedConsole, error: BaseException) -> None:
        super().__init__(str(error))
        self.console, self.error = console, error


@contextlib.contextmanager
def followed(options: argparse.Namespace, out: Path | None = None) -> Iterator[LoggedConsole]:
    """The console of a program with `ending` that has `add_follow_options`; its log gets the last sentence too.

    Args:
      options: What the parser returned.
      out: The folder that the program makes, see `LogFile`.

    Raises:
      InputError: The log cannot be written.
    """
    console = logged_console(options, out)
    with remarks_on(console):
        try:
            yield console
        except _ENDS as error:
            raise _Logged(console, error) from error


def ending(then: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Has a `main` end with one sentence and an exit status where it is stopped or was given what cannot be used.

    Args:
      then: What can be done after it was stopped with Ctrl-C, which gives the status 130; the others give 2.
    """

    def wrapped(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def ended(*arguments: Any) -> int:
            console: Console
            error: BaseException
            try:
                return main(*arguments)
            except _Logged as logged:
                console, error = logged.console, logged.error
            except _ENDS as found:
                console, error = Console(stderr=True), found
            if isinstance(error, KeyboardInterrupt):
                complain(console, f"stopped; {then}")
                return 130
            named = isinstance(error, OSError) and error.filename
            complain(console, f"{error.strerror}: {error.filename}" if named else str(error))
            return 2

        return ended

    return wrapped


CONTINUES = "the same command goes on after the last result in FILE"
"""What `ending` says of programs with `open_results`."""


def read_seeds(text: str) -> list[int]:
    """Reads seeds from a text such as `0,1,2`.

    Raises:
      InputError: The text has another form.
    """
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise InputError(f"--seeds must be numbers with commas between them, got {text!r}; write 0,1,2 for three seeds")
    return [int(seed) for seed in text.split(",")]


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds `--overwrite`, for `open_results`."""
    parser.add_argument("--overwrite", action="store_true", help="replace what FILE holds, also of other settings")


def refuse_others(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, option: str, read: Collection[str] = ()
) -> None:
    """Ends a program with a sentence where options are given that have no effect with another one.

    Args:
      parser: The parser of the program.
      arguments: What it parses; None is the command line.
      option: The option, such as `--again`.
      read: The other options that have an effect with it.
    """
    defaults = vars(parser.parse_args(arguments))
    given = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(defaults))))
    effective = {name.removeprefix("--").replace("-", "_") for name in (option, *read)}
    others = [name for name, value in given.items() if value not in (None, []) and name not in effective]
    if others:
        words = given[others[0]] if isinstance(given[others[0]], list) else [f"--{others[0].replace('_', '-')}"]
        parser.error(f"{words[0]} has no effect with {option}; leave it out")


class ResultsFile:
    """Results by name, and the file that holds them; see `open_results`.

    Args:
      path: The file; None keeps nothing.
      settings: What all results depend on, as JSON.
      results: Those that there are.
      compose: What the file has of them, without settings and environment.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        results: dict[str, Result],
        compose: Callable[[dict[str, Result]], Mapping[str, Any]],
    ) -> None:
        self.path, self.results = path, results
        self._settings, self._compose = settings, compose

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Keeps a result with the code that made it, in place of one of the same name, and writes the file."""
        self.results[name] = {**result, "code": provenance.running_code().name}
        if self.path is not None:
            files.write_text(self.path, json.dumps(self.document(), indent=2, allow_nan=False) + "\n")

    def document(self) -> dict[str, Any]:
        """What the file has: the settings, what is composed of the results, `code` in a sentence, and what ran last."""
        codes = {name: result.get("code") for name, result in self.results.items()}
        made = {"code": provenance.code_note(codes)}
        return {**self._settings, **self._compose(self.results), **made, **report.environment()}

    def fill(
        self,
        cases: Mapping[str, Callable[[], Mapping[str, Any]]],
        console: Console,
        shown: Callable[[Result], object] = str,
    ) -> None:
        """Computes the results that are missing.

        Args:
          cases: What gives each result.
          console: Is told every new result.
          shown: What it is told of one.
        """
        missing = [name for name in cases if name not in self.results]
        if not missing:
            say(console, f"{self.path} has all of it, which --overwrite makes again")
        for name in missing:
            self.add(name, cases[name]())
            say(console, f"{name}: {shown(self.results[name])}")


def ordered(results: Mapping[str, Result], cases: Iterable[str]) -> dict[str, Result]:
    """Results in the order of the cases, and behind them those of no case, which another call has kept."""
    return {**{name: results[name] for name in cases if name in results}, **results}


def by_name(document: Mapping[str, Any]) -> dict[str, Result]:
    """The `results` of a file that has them by name."""
    return dict(document["results"])


@contextlib.contextmanager
def sole_writer_of(path: Path | None) -> Iterator[None]:
    """Holds the right to write a file of results, before anything is computed for it; None is no file.

    Raises:
      InputError: It cannot be written, or is a folder.
      BusyError: Another process writes to it.
    """
    with contextlib.ExitStack() as stack:
        if path is not None:
            if path.is_dir():
                raise InputError(f"{path} is a folder; name a file for the results")
            try:
                stack.enter_context(files.sole_writer(path.parent, of=path.name))
                files.remove_leftovers_of(path)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}); name another file") from error
        yield


@contextlib.contextmanager
def open_results(
    path: Path | None,
    settings: Mapping[str, Any],
    *,
    results_of: Callable[[Mapping[str, Any]], dict[str, Result]] = by_name,
    compose: Callable[[dict[str, Result]], Mapping[str, Any]] = lambda results: {"results": results},
    of_each: Mapping[str, Mapping[str, Any]] | None = None,
    timed: bool = False,
    overwrite: bool = False,
) -> Iterator[ResultsFile]:
    """Opens a file of results, to which nobody else can write meanwhile.

    A result that another environment has made than the one that runs keeps that as its own `environment`, because the
    one of the file is that of the last call.

    Args:
      path: The file. Missing folders are created. None is for results that are shown and not kept.
      settings: What all results depend on; the file has it beside them. One that is false may be missing there.
      results_of: The results by name, from what the file has.
      compose: The reverse: what the file has of the results.
      of_each: What single results depend on, by their names; they have it among their fields.
      timed: Whether results are times, so that those of other code, another machine or other versions are refused.
      overwrite: Whether results that are there are replaced, by the first new one.

    Raises:
      InputError: The file holds something else, or results of other settings.
      BusyError: Another process writes to it.
    """
    settings = json.loads(json.dumps(settings))
    if path is None:
        yield ResultsFile(None, settings, {}, compose)
        return
    with sole_writer_of(path):
        results: dict[str, Result] = {}
        if not overwrite and path.exists():
            found = _read(path, results_of)
            results = found.pop("results")
            _check(path, found, results, settings, of_each or {}, timed=timed)
        yield ResultsFile(path, settings, results, compose)


def _read(path: Path, results_of: Callable[[Mapping[str, Any]], dict[str, Result]]) -> dict[str, Any]:
    """What a file has, with its results by name as `results`, each with its environment if it is not that of now."""
    try:
        document = reading.read_json(path)
        if not isinstance(document, dict):
            raise TypeError("it is no JSON object")
        results = {name: dict(result) for name, result in results_of(document).items()}
        made_in = {part: document[part] for part in ("versions", "machine") if part in document}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} holds no results of this program, or is damaged; {_ADVICE}") from error
    now = report.environment()
    if made_in != {part: now[part] for part in ("versions", "machine")}:
        for result in results.values():
            result.setdefault("environment", made_in)
    return {**document, "results": results}


def _check(
    path: Path,
    found: Mapping[str, Any],
    results: Mapping[str, Result],
    settings: Mapping[str, Any],
    of_each: Mapping[str, Mapping[str, Any]],
    *,
    timed: bool,
) -> None:
    """Refuses a file whose results depend on something else."""
    same = {name: value for name, value in settings.items() if value or name in found}
    pairs = [({name: found.get(name) for name in same}, same, "")]
    for name, own in of_each.items():
        if name in results:
            expected = json.loads(json.dumps(own))
            pairs.append(({part: results[name].get(part) for part in expected}, expected, name))
    if timed:
        now, code = report.environment(), provenance.running_code().name
        there = {part: now[part] for part in ("versions", "machine")}
        for name, result in results.items():
            pairs.append((result.get("environment", there), there, ""))
            pairs.append(({"code": result.get("code", provenance.NOT_RECORDED)}, {"code": code}, name))
    different = [one for was, now, name in pairs for one in differences(was, now, name)]
    if different:
        raise InputError(
            f"{path} has results of other settings: {list_differences(different, 'was {} and is now {}')}; {_ADVICE}"
        )
