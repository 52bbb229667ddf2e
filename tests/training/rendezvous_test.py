"""Processes find out that they belong together, or what is wrong, before JAX could hang or crash."""

import contextlib
import json
import logging
import socket
import threading
import time

import pytest

from scissorhands_jax.errors import InputError, PeerError
from scissorhands_jax.training import rendezvous
from tests import limits
from tests.ports import free_port

VERSIONS = {"jax": "1.0", "scissorhands_jax": "0.1"}


@pytest.fixture
def coordinator():
    return f"127.0.0.1:{free_port()}"


def together(coordinator, *guests, seconds=2 * limits.PATIENCE):
    """What became of processes, each given as (number, count) or with other versions as third: None or its error."""
    results = [None] * len(guests)

    def come(place, number, count, about=VERSIONS):
        try:
            rendezvous.meet(coordinator, count, number, about, seconds=seconds)
        except (InputError, PeerError) as error:
            results[place] = error

    threads = [threading.Thread(target=come, args=(place, *guest)) for place, guest in enumerate(guests)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < limits.PATIENCE
    return results


def test_all_go_on_when_all_are_there(coordinator):
    assert together(coordinator, (2, 3), (0, 3), (1, 3)) == [None] * 3
    assert together(coordinator, (0, 2), (1, 2)) == [None] * 2, "the port can be used again at once"
    assert together(coordinator, (0, 1)) == [None]


@pytest.mark.parametrize(
    ("guests", "message"),
    [
        (((0, 2), (1, 3)), "processes is 2 in process 0 and 3 in process 1; start all of them alike"),
        (((0, 3), (1, 2)), "processes is 3 in process 0 and 2 in process 1; start all of them alike"),
        (((0, 3), (1, 3), (1, 3)), "two processes say that they are process 1; give each its own --process-id"),
        (((0, 2), (1, 2, {**VERSIONS, "jax": "2.0"})), "jax is 1.0 in process 0 and 2.0 in process 1"),
        (((0, 2), (1, 2, {"jax": "1.0"})), "scissorhands_jax is 0.1 in process 0 and None in process 1"),
    ],
)
def test_what_does_not_fit_ends_all_at_once(coordinator, guests, message, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS_TO_TELL", 1.0)
    errors = together(coordinator, *guests)
    assert all(isinstance(error, InputError) and message in str(error) for error in errors), errors


def test_who_comes_late_is_told_as_well(coordinator, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS_TO_TELL", 3.0)
    welcome = rendezvous._Host._welcome

    def slowly(host, guest):
        time.sleep(0.5)
        welcome(host, guest)

    monkeypatch.setattr(rendezvous._Host, "_welcome", slowly)
    errors = together(coordinator, (0, 4), (1, 9), (2, 4), (3, 4))
    assert len({str(error) for error in errors}) == 1
    assert "processes is 4 in process 0 and 9 in process 1" in str(errors[0])


@pytest.mark.parametrize("listens", [True, False])
def test_a_used_port_is_named(listens, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS_IN_SILENCE", 0.3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        coordinator = f"127.0.0.1:{other.getsockname()[1]}"
        first, second = together(coordinator, (0, 2), (1, 2), **{} if listens else {"seconds": 1.5})
    assert isinstance(first, InputError)
    assert f"process 0 cannot listen at {coordinator}" in str(first)
    assert "choose a port" in str(first)
    assert isinstance(second, PeerError)
    expected = "is not process 0 of this run" if listens else f"process 0 did not answer at {coordinator} within"
    assert expected in str(second)


def test_who_does_not_come_is_named(coordinator):
    with pytest.raises(PeerError, match=r"process 0 did not answer at .* within 0 s \(.*refused\); start all"):
        rendezvous.meet(coordinator, 2, 1, VERSIONS, seconds=0.3)
    with pytest.raises(PeerError, match=f"processes 1, 2, 3, 4, 5 and 2 more did not come to {coordinator} within 0 s"):
        rendezvous.meet(coordinator, 8, 0, VERSIONS, seconds=0.3)
    errors = []

    def come():
        with contextlib.suppress(InputError):
            rendezvous.meet(coordinator, 3, 2, VERSIONS, seconds=5)
        errors.append(True)

    guest = threading.Thread(target=come)
    guest.start()
    with pytest.raises(PeerError, match="process 1 did not come to"):
        rendezvous.meet(coordinator, 3, 0, VERSIONS, seconds=1)
    guest.join()
    assert errors == [True]


def test_five_that_do_not_come_are_all_that_are_named():
    assert rendezvous._Host("here", {}, 6)._missing() == "processes 1, 2, 3, 4, 5"
    assert rendezvous._Host("here", {}, 7)._missing() == "processes 1, 2, 3, 4, 5 and 1 more"


def test_process_0_is_reached_by_both_families_of_addresses(coordinator):
    _, _, port = coordinator.rpartition(":")
    assert together(f"0.0.0.0:{port}", (0, 2), (1, 2)) == [None] * 2
    if socket.has_dualstack_ipv6():
        assert together(f"[::1]:{port}", (0, 2), (1, 2)) == [None] * 2


def test_a_long_wait_is_told(coordinator, caplog, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS_IN_SILENCE", 0.1)
    with caplog.at_level(logging.WARNING), pytest.raises(PeerError):
        rendezvous.meet(coordinator, 2, 0, VERSIONS, seconds=0.5)
    with caplog.at_level(logging.WARNING), pytest.raises(PeerError):
        rendezvous.meet(coordinator, 2, 1, VERSIONS, seconds=0.5)
    first, second = caplog.messages
    assert first == f"still waiting at {coordinator} for process 1"
    assert second.startswith(f"still waiting for process 0 at {coordinator} (")


def test_strangers_and_the_dead_do_not_count(coordinator, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS_FOR_A_LINE", 0.2)
    result = []

    def host():
        try:
            rendezvous.meet(coordinator, 3, 0, VERSIONS, seconds=20)
        except (InputError, PeerError) as error:
            result.append(error)

    thread = threading.Thread(target=host)
    thread.start()
    where = ("127.0.0.1", int(coordinator.rpartition(":")[2]))
    for content in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[" * 70_000, b"[1]\n", b'{"process": "1"}\n', b"\xff\n"):
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(where) as stranger:
                stranger.sendall(content)
                break
    with socket.create_connection(where) as dead:  # a process of the run that ends while it waits
        dead.sendall(json.dumps({"process": 1, "processes": "3", **VERSIONS}).encode() + b"\n")
        assert b"meet here" in dead.recv(1000)
        time.sleep(0.3)
    time.sleep(0.5)
    assert thread.is_alive()
    assert together(coordinator, (1, 3), (2, 3)) == [None, None]
    thread.join()
    assert result == []


def test_a_port_that_cannot_be_is_named():
    for number in (0, 1):
        with pytest.raises(InputError, match=r"the port of 127.0.0.1:99999 must be from 1 to 65535"):
            rendezvous.meet("127.0.0.1:99999", 2, number, VERSIONS, seconds=1)
