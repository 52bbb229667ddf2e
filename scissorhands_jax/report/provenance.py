"""Which code made a result, by which command, and when."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scissorhands_jax import hashing
from scissorhands_jax.errors import listed
from scissorhands_jax.version import __version__

NOT_RECORDED = "commit not recorded"


@dataclasses.dataclass(frozen=True)
class Code:
    """The code that ran: the package's version, a SHA-256 of its source, and the commit if Git tracks the source."""

    version: str | None
    source_sha256: str
    git_commit: str | None
    git_changed: bool

    @property
    def name(self) -> str:
        """The commit in 12 digits, or without Git the version; with a hash of the source unless the commit decides it.

        So two results have the same name only if they were made by the same source.
        """
        source = self.source_sha256[:8]
        if self.git_commit is None:
            return f"version {self.version} without a commit, source {source}"
        return self.git_commit[:12] + (f"-modified, source {source}" if self.git_changed else "")


@functools.cache
def running_code() -> Code:
    """Describes the code that is running, as it was when this was first called."""
    return dataclasses.replace(code_in(Path(__file__).parents[1]), version=__version__)


def code_in(package: Path) -> Code:
    """Describes the source in a folder of this package, perhaps of another checkout, whose version is not read."""
    commit = _git(package, "rev-parse", "HEAD")
    changed = bool(_git(package, "status", "--porcelain", "--", "."))
    return Code(None, hashing.sources_sha256(package), commit, changed)


def note_code() -> None:
    """Has results name the code as it is now: a long program calls this as it begins, before its files may change."""
    running_code()


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns Git's answer if Git tracks the package. An installed package may lie within an unrelated repository."""
    try:
        for command in (("ls-files", "--error-unmatch", "__init__.py"), arguments):
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def made_by() -> Mapping[str, Any]:
    """Describes what made a result: `code` (see `Code.name`), `version`, `command` and `date`.

    The command is as it was typed, but of paths outside the current folder only the last part is kept. The date is the
    UTC time at which this process first asked.
    """
    return {
        "code": running_code().name,
        "version": __version__,
        "command": _command(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _command() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    program = ["python", "-m", name] if name else [os.path.basename(sys.argv[0])]
    return shlex.join([*program, *map(_without_folders, sys.argv[1:])])


_BEFORE = r"""=:,;\[({"'\s"""
_PATH = re.compile(
    # How a path from elsewhere begins; then up to a comma, a quote, the end of a list or the next path.
    rf"""(?<![^{_BEFORE}])(?:/|~[^/{_BEFORE}]*/|(?:[^/{_BEFORE}]+/)*\.\.(?=/|$))"""
    r"""(?:(?!:[/~])[^,;"'\])}]|[\])}](?![\])},;"'\s]|$))*"""
)


def _without_folders(argument: str) -> str:
    """Leaves of each path to a place outside the current folder only the last part.

    Paths are recognised by how they begin, also within settings and lists: with a slash, a tilde or, after perhaps
    other folders, two dots. They may lead into the current folder all the same.

    >>> _without_folders('folders=["/home/me/data", "../you/a=b/c"]')
    'folders=["…/data", "…/c"]'
    """
    return _PATH.sub(lambda found: _shortened(found[0]), argument)


def _shortened(path: str) -> str:
    here = os.getcwd()
    place = os.path.normpath(os.path.join(here, path))
    if not path.startswith("~") and (place == here or place.startswith(here + os.sep)):
        return os.path.relpath(place, here)
    last = os.path.basename(path.rstrip("/"))
    return f"…/{last}"


def code_note(cells: Mapping[str, str | None]) -> str:
    """Writes which code made the parts of a table, in a sentence.

    Args:
      cells: The name of the code (see `Code.name`) by the name of the part; None where it was not recorded.

    Returns:
      A sentence that begins with a warning if there are several; "" without parts.
    """
    by_code: dict[str, list[str]] = {}
    for cell, code in cells.items():
        by_code.setdefault(code or NOT_RECORDED, []).append(cell)
    if not by_code:
        return ""
    if len(by_code) == 1:
        (code,) = by_code
        return "The commit was not recorded." if code == NOT_RECORDED else f"All cells were made by {code}."
    parts = "; ".join(f"{code}: {listed(names, shown=6)}" for code, names in by_code.items())
    return f"The cells were made by {len(by_code)} states of the code, which may give other numbers. {parts}."
