"""How the processes of a run find out that they are all there and belong together, before JAX connects them.

Process 0 listens where JAX's coordinator will listen. The others come to it and are greeted, and each says in one line
of JSON who it is. When all are there they are told to go on, and as soon as something is wrong they are told what. JAX
itself would wait for minutes, or end the process without a message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError, PeerError

_SECONDS_FOR_A_LINE = 5.0
_SECONDS_BETWEEN_TRIES = 0.1
_SECONDS_TO_TELL = 5.0  # how long those who come late are still told that something is wrong
_SECONDS_IN_SILENCE = 10.0
_GREETING = "processes of scissorhands_jax meet here"
_MAX_LINE = 1 << 16  # bytes
_logger = logging.getLogger(__name__)


def meet(coordinator: str, count: int, process: int, about: Mapping[str, str], *, seconds: float) -> None:
    """Waits until all processes of a run are there.

    Args:
      coordinator: `HOST:PORT` of process 0.
      count: The number of processes.
      process: The number of this one.
      about: What must be the same in all of them, such as versions, as text by name.
      seconds: How long to wait for the others.

    Raises:
      InputError: Another program uses the port, or the processes do not belong together.
      PeerError: A process did not come.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # around an IPv6 address
    if not 0 < int(port) < 1 << 16:
        raise InputError(f"the port of {coordinator} must be from 1 to 65535")
    hello = {"process": process, "processes": str(count), **about}
    if process == 0:
        _Host(coordinator, hello, count).receive(host, int(port), seconds)
    else:
        _visit(coordinator, host, int(port), hello, seconds)


class _Host:
    """Process 0, to which the others come."""

    def __init__(self, coordinator: str, hello: Mapping[str, Any], count: int) -> None:
        self.coordinator = coordinator
        self.hello = hello
        self.count = count
        self.guests: dict[int, socket.socket] = {}
        self.problem = ""

    def receive(self, host: str, port: int, seconds: float) -> None:
        """Waits for all others and tells them what to do."""
        deadline = time.monotonic() + seconds
        patience = time.monotonic() + _SECONDS_IN_SILENCE
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(self._listener(host, port))
            while len(self.guests) < self.count - 1 and time.monotonic() < deadline:
                listener.settimeout(_SECONDS_BETWEEN_TRIES)
                with contextlib.suppress(TimeoutError):
                    self._welcome(stack.enter_context(listener.accept()[0]))
                if self.problem:
                    deadline = min(deadline, time.monotonic() + _SECONDS_TO_TELL)
                if time.monotonic() > patience:
                    _logger.warning("still waiting at %s for %s", self.coordinator, self._missing())
                    patience = math.inf
                self._dismiss_the_dead()
            lost = len(self.guests) < self.count - 1 and not self.problem
            if lost:
                self.problem = (
                    f"{self._missing()} did not come to {self.coordinator} within {seconds:.0f} s; start all of them, "
                    "with the same --coordinator and --num-processes"
                )
            for guest in self.guests.values():
                _tell(guest, self.problem)
        if self.problem:
            raise (PeerError if lost else InputError)(self.problem)

    def _listener(self, host: str, port: int) -> socket.socket:
        try:
            if host in ("localhost", "127.0.0.1"):  # Then nobody else needs to reach it.
                return socket.create_server((host, port))
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen at {self.coordinator} ({error}); choose a port of this machine that no other "
                "program uses"
            ) from error

    def _welcome(self, guest: socket.socket) -> None:
        """Hears who came. Whoever is no process of a run is ignored."""
        _tell(guest, _GREETING)
        found = _read_line(guest, time.monotonic() + _SECONDS_FOR_A_LINE)
        if found is None or not isinstance(found.get("process"), int):
            guest.close()
            return
        number = found["process"]
        differing = [name for name in {**self.hello, **found} if self.hello.get(name) != found.get(name)]
        differing = [name for name in differing if name != "process"]
        if not self.problem and differing:
            listed = "; ".join(
                f"{name} is {self.hello.get(name)} in process 0 and {str(found.get(name))[:80]} in process {number}"
                for name in differing[:3]
            )
            self.problem = f"the processes do not belong to one run: {listed}; start all of them alike"
        if not self.problem and (number in self.guests or not 0 < number < self.count):
            self.problem = f"two processes say that they are process {number}; give each its own --process-id"
        if self.problem:
            for other in (guest, *self.guests.values()):
                _tell(other, self.problem)
            self.guests.clear()
        else:
            self.guests[number] = guest

    def _dismiss_the_dead(self) -> None:
        """Forgets processes that have ended while they waited."""
        for number, guest in [*self.guests.items()]:
            guest.setblocking(False)
            try:
                gone = guest.recv(1) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                del self.guests[number]

    def _missing(self) -> str:
        numbers = [str(number) for number in range(1, self.count) if number not in self.guests]
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        return f"process{'es' if len(numbers) > 1 else ''} {', '.join(numbers[:5])}{more}"


def _visit(coordinator: str, host: str, port: int, hello: Mapping[str, Any], seconds: float) -> None:
    """Goes to process 0 and waits for its word."""
    deadline = time.monotonic() + seconds
    with _connected(coordinator, host, port, deadline, seconds) as connection:
        greeting = _read_line(connection, min(deadline, time.monotonic() + _SECONDS_IN_SILENCE))
        found = None
        if greeting is not None and greeting.get("word") == _GREETING:
            _tell(connection, hello)
            found = _read_line(connection, deadline + _SECONDS_TO_TELL)
    if found is None:
        raise PeerError(
            f"what answers at {coordinator} is not process 0 of this run, or it has ended; start all processes, with a "
            "port that no other program uses"
        )
    if found.get("word"):
        raise InputError(str(found["word"]))


def _connected(coordinator: str, host: str, port: int, deadline: float, seconds: float) -> socket.socket:
    patience = time.monotonic() + _SECONDS_IN_SILENCE
    while True:
        try:
            return socket.create_connection((host, port), timeout=_SECONDS_FOR_A_LINE)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(
                    f"process 0 did not answer at {coordinator} within {seconds:.0f} s ({error}); start all processes, "
                    "with the same --coordinator"
                ) from error
            if time.monotonic() > patience:
                _logger.warning("still waiting for process 0 at %s (%s)", coordinator, error)
                patience = math.inf
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _tell(connection: socket.socket, what: str | Mapping[str, Any]) -> None:
    line = json.dumps({"word": what} if isinstance(what, str) else dict(what)).encode() + b"\n"
    with contextlib.suppress(OSError):  # The other side may have ended.
        connection.settimeout(_SECONDS_FOR_A_LINE)
        connection.sendall(line)


def _read_line(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """Reads a line of JSON; None if something else comes, or nothing."""
    content = b""
    try:
        while not content.endswith(b"\n"):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(_MAX_LINE)
            content += part
            if not part or len(content) > _MAX_LINE:
                return None
        found = reading.parse_json(content)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
