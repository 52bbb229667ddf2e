"""Ports for servers of tests, which no other test and no outgoing connection is given in the meantime."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _EACH = 20_000, 1_000  # below the ports that systems give to outgoing connections
_numbers = itertools.count(os.getpid())


def free_port() -> int:
    """A port on which nothing listens, of the thousand that this worker of pytest has to itself, in turn."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_numbers, _EACH):
        port = _FIRST + _EACH * (worker % 10) + number % _EACH
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("none of this worker's ports is free")
