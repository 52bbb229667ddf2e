"""Huge pages for the arrays of the command line, on Linux."""

import itertools
import os
import sys
from pathlib import Path

_NAME = "glibc.malloc.hugetlb"
_ASKED = "SCISSORHANDS_ASKED_FOR_HUGE_PAGES"
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart(module: str | None = None) -> None:
    """Starts this process again with `malloc` asking for huge pages, where the system gives them on request.

    On a CPU, XLA takes the memory of every call from the system and gives it back afterwards. Page faults are a sixth
    of the time of a ResNet-20's step, and with huge pages there are about a hundred times fewer of them
    (`experiments/cpu_profile.md`). glibc reads the variable when a process starts, so a command asks before anything
    large is imported, and a module of `experiments`, which has imported it, does so again. If `GLIBC_TUNABLES` already
    turns huge pages on or off, nothing is changed.

    Args:
      module: The name of the module that asks, which is left alone unless the process is `python -m MODULE`: another
        program that runs it within itself must not begin anew. None is a command of its own.
    """
    if module is not None and ["-m", module] not in map(list, itertools.pairwise(sys.orig_argv)):
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _NAME in tunables or _ASKED in os.environ or not sys.executable or not _wanted():
        return
    os.environ[_ASKED] = "1"  # A privileged interpreter loses the other variable.
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_NAME}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _wanted() -> bool:
    """Whether the system gives huge pages on request, and glibc (from 2.35) can request them."""
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return (
            library == "glibc"
            and tuple(map(int, version.split("."))) >= (2, 35)
            and "[madvise]" in _ENABLED.read_text(encoding="ascii")
        )
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return False
