"""The closed list of what the folder of a ledger may hold; `verify` names everything else in it."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from scissorhands_jax import files

_KINDS = {
    stat.S_ISLNK: "a link, whose content can be changed elsewhere",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISBLK: "a device",
    stat.S_ISCHR: "a device",
}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a folder may hold. Everything in `files` must be an ordinary file with one name."""

    files: frozenset[Path]
    """The files, which need not exist."""
    folders: frozenset[Path] = frozenset()
    """Folders that may be there although they hold nothing."""
    open_folders: frozenset[Path] = frozenset()
    """Folders that may hold any files, because a run is still working in them."""
    leftovers: bool = False
    """Whether there may be leftovers (`files.is_leftover`), because another process is working on the ledger. What a
    living process is writing may be there in any case."""


def foreign(folder: Path, allowed: Contents) -> list[str]:
    """Names everything in a folder and below it that it may not hold, in one sentence each.

    That is every other file, hidden and temporary ones included, every folder that holds none of the files, and
    everything that is not an ordinary file: links, pipes, sockets, devices, a folder in the place of a file, and a file
    that has a second name elsewhere (a hard link).

    Args:
      folder: The folder. It may itself be reached by a link.
      allowed: What it may hold. The paths begin with `folder`.
    """
    inner = {parent for path in (*allowed.files, *allowed.open_folders) for parent in path.parents}
    return list(_foreign_in(folder, allowed, inner | allowed.folders | allowed.open_folders))


def _foreign_in(folder: Path, allowed: Contents, known: Collection[Path]) -> Iterator[str]:
    is_open = any(place in allowed.open_folders for place in (folder, *folder.parents))
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:  # Another process has just removed it.
        return
    except OSError as error:
        yield f"the folder {folder} cannot be read: {error.strerror}; make it readable and verify again"
        return
    if not names and folder not in known and not is_open:
        yield _stranger(folder, "an empty folder")
    for name in names:
        path = folder / name
        try:
            found = path.lstat()
        except FileNotFoundError:  # Another process has just removed it.
            continue
        special = [words for is_kind, words in _KINDS.items() if is_kind(found.st_mode)]
        if special:
            yield _stranger(path, special[0])
        elif (allowed.leftovers and files.is_leftover(path)) or files.is_being_written(path):
            continue
        elif stat.S_ISDIR(found.st_mode):
            if path in allowed.files:
                yield _stranger(path, "a folder, and not the file of that name")
            else:
                yield from _foreign_in(path, allowed, known)
        elif path not in allowed.files and not is_open:
            yield _stranger(path)
        elif found.st_nlink > 1:
            yield f"{path} has a second name, through which it can be changed; put a copy of its own in its place"


def _stranger(path: Path, kind: str = "") -> str:
    return f"{path} is {f'{kind}, and ' if kind else ''}not a part of the ledger; move it elsewhere"
