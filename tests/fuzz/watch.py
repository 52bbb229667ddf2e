"""Calls readers under watch: they may refuse in one sentence, in bounded time and memory, and do nothing else."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from scissorhands_jax.errors import InputError

SECONDS, MEMORY = 5.0, 2**30  # of CPU time and bytes, for one input, beyond what the process has
_DANGEROUS_MODULES = {"webbrowser", "pty", "pdb", "pydoc", "runpy", "timeit", "profile", "cProfile", "doctest", "pip"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """What Python is about to do, from its audit events; hooks stay for good, so it looks only while it is told to."""

    # Nobody who reads a file has any business with these.
    forbidden = (
        *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.", "ctypes."),
        *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"),
    )
    changing = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "shutil.")

    def __init__(self) -> None:
        self.folder: str | None = None
        self.done: list[str] = []
        self.slowest = 0.0
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event.startswith(self.forbidden) or (event == "import" and arguments[0] in _DANGEROUS_MODULES):
            self.done.append(f"{event} {arguments[:1]}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if isinstance(arguments[0] if arguments else 0, int):  # a file that is open already
            return
        # The suite's cache of compiled programs has a folder of its own.
        allowed = (self.folder, jax.config.jax_compilation_cache_dir or self.folder)
        if (writes or event.startswith(self.changing)) and not os.fsdecode(arguments[0]).startswith(allowed):
            self.done.append(f"{event} {arguments[:1]}")

    def survives(self, read: Callable[[], object], folder: Path, *, native: bool = False) -> bool:
        """Calls a reader, which may write to a folder only. With `native` the address space is not limited.

        Returns:
          Whether it refused its input, in one sentence.

        Raises:
          AssertionError: It took too long, did something else, or said too much or nothing.
        """
        before, peak = resource.getrlimit(resource.RLIMIT_AS), _peak_memory()
        if Path("/proc/self/statm").exists() and not native:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
        self.done, self.folder, said, started = [], str(folder), None, time.process_time()
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(60)  # for what waits instead of computing
        try:
            read()
        except InputError as error:
            said = str(error)
        finally:
            signal.alarm(0)
            self.folder = None
            resource.setrlimit(resource.RLIMIT_AS, before)
        seconds = time.process_time() - started
        self.slowest = max(self.slowest, seconds)
        assert self.done == []
        assert seconds < SECONDS
        assert _peak_memory() - peak < MEMORY
        assert said is None or (0 < len(said) < 3000 and "Traceback" not in said)
        return said is not None


def _peak_memory() -> int:
    """The most bytes of memory that this process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _too_long(*_: object) -> None:
    raise AssertionError("it has waited for a minute")
