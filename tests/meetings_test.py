"""Processes of a run compare and share what they know: threads here, with a coordinator in memory."""

import os
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from scissorhands_jax.errors import BusyError, DivergedError, InputError, NonFiniteError, PeerError
from scissorhands_jax.training import distributed, rendezvous, watcher
from tests import limits


class Coordinator:
    """What the client of JAX's coordination service does, in memory."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.changed = threading.Condition()
        self.fault = ""

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            assert key not in self.said, f"{key} is said twice"
            self.said[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            if self.fault or not self.changed.wait_for(lambda: key in self.said, milliseconds / 1000):
                raise RuntimeError(self.fault or "DEADLINE_EXCEEDED: nobody said it")
            return self.said[key]

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        with self.changed:
            return [pair for pair in self.said.items() if pair[0].startswith(folder)]


@pytest.fixture
def coordinator(monkeypatch) -> Coordinator:
    """What processes meet at; each is a thread that `together` has started."""
    made, here = Coordinator(), threading.local()
    monkeypatch.setattr(distributed, "_client", lambda: made)
    monkeypatch.setattr(distributed, "_MILLISECONDS_PER_LOOK", 20)
    monkeypatch.setattr(distributed, "_SECONDS_APART", 60)
    monkeypatch.setattr(distributed, "_next_place", lambda about: f"scissorhands/{about}/{here.meeting}")
    monkeypatch.setattr(jax, "process_index", lambda: getattr(here, "number", 0))
    monkeypatch.setattr(jax, "process_count", lambda: getattr(here, "count", 1))
    made.here = here
    return made


def together(coordinator, *acts, meeting=1) -> list:
    """What each process returns, or its error."""
    found: list = [None] * len(acts)

    def act(number):
        vars(coordinator.here).update(number=number, count=len(acts), meeting=meeting)
        try:
            found[number] = acts[number]()
        except (InputError, OSError, PeerError) as error:
            found[number] = error

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_first_computes_for_all(coordinator):
    computed = []

    def compute(number):
        computed.append(number)
        return {"from": number}

    acts = [lambda number=number: distributed.from_first(lambda: compute(number)) for number in range(3)]
    assert together(coordinator, *acts) == [{"from": 0}] * 3
    assert computed == [0]
    assert distributed.from_first(lambda: compute(7)) == {"from": 7}, "one process needs nobody"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("it cannot be"), InputError),
        (BusyError("another one writes there"), BusyError),
        (NonFiniteError(3, "loss", np.nan, "lower the rate"), DivergedError),
        (FileNotFoundError(2, "No such file", "data.npz"), OSError),
    ],
)
def test_an_error_of_the_first_is_one_of_all(coordinator, error, kind):
    def fails():
        raise error

    first, other = together(coordinator, *[lambda: distributed.from_first(fails)] * 2)
    assert first is error
    assert (type(other), str(other)) == (kind, str(error))


def test_all_must_see_the_folder_that_the_first_sees(coordinator, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_SECONDS_FOR_FILES", 0.1)
    (tmp_path / "3").mkdir()
    here, nowhere = tmp_path / "3", tmp_path / "4"
    assert together(coordinator, *[lambda: distributed.agree_on_folder(here)] * 2) == [None] * 2
    acts = [lambda path=path: distributed.agree_on_folder(path / "3") for path in (tmp_path, nowhere)]
    errors = together(coordinator, *acts, meeting=2)
    assert len({str(error) for error in errors}) == 1
    assert "the folder 3 of a folder that all must share is 'there' in process 0 and 'not there' in" in str(errors[0])


def test_who_differs_ends_all(coordinator):
    def about(*documents, meeting):
        acts = [lambda document=document: distributed.agree("run", document) for document in documents]
        return together(coordinator, *acts, meeting=meeting)

    assert about({"a": 1}, {"a": 1}, {"a": 1}, meeting=1) == [None] * 3
    errors = about({"a": 1}, {"a": 2}, {"a": 1}, {"a": 3}, meeting=2)
    assert [type(error) for error in errors] == [InputError] * 4
    assert {str(error) for error in errors} == {
        "process 1 is about to do something else than process 0: a is 1 in process 0 and 2 in process 1; start all "
        "processes with the same arguments, files and versions"
    }, "the first that differs is named, to all"
    assert {str(error)[:9] for error in about({"a": 1}, {"a": 1}, {"a": 2}, meeting=3)} == {"process 2"}
    said = len(coordinator.said)
    distributed.agree("run", {"a": 1})
    assert len(coordinator.said) == said, "one process needs nobody"


def test_all_must_see_the_file_that_the_first_has_written(coordinator, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_SECONDS_FOR_FILES", 0.3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "mine" / "run.json").write_text("{ }")

    def sees(*paths, meeting):
        acts = [lambda path=path: distributed.agree_on_file(path) for path in paths]
        return [str(each) for each in together(coordinator, *acts, meeting=meeting)]

    right, late = tmp_path / "run.json", tmp_path / "late.json"
    assert sees(right, right, meeting=1) == ["None"] * 2
    for meeting, path, words in ((2, tmp_path / "mine/run.json", "SHA-256 "), (3, tmp_path / "run", "not there")):
        for message in sees(right, path, meeting=meeting):
            assert "SHA-256 44136fa355b3678a" in message
            assert f"and '{words}" in message
    monkeypatch.setattr(distributed, "_SECONDS_FOR_FILES", 2 * limits.PATIENCE)
    began = time.monotonic()
    distributed.agree_on_file(tmp_path / "nowhere")
    assert time.monotonic() - began < limits.PATIENCE, "one process waits for no file"
    timer = threading.Timer(0.1, lambda: late.write_text("{}"))
    timer.start()
    assert sees(late, late, meeting=4) == ["None"] * 2, "it may be seen a little later"


def test_who_ends_or_is_lost_is_named(coordinator, monkeypatch):
    def waits():
        distributed._wait_for("never said")

    coordinator.said["scissorhands/ended/3"] = "has ended with exit status 2"
    assert [str(error) for error in together(coordinator, waits)] == [
        "this process stops because process 3 has ended with exit status 2; its own message says why"
    ]
    coordinator.said.clear()
    monkeypatch.setattr(distributed, "_SECONDS_APART", 0.1)
    (late,) = together(coordinator, waits)
    assert isinstance(late, PeerError)
    assert str(late).startswith("another process did not come within 0.1 s; start all")
    coordinator.fault = "UNAVAILABLE: the socket was closed"
    (lost,) = together(coordinator, waits)
    assert isinstance(lost, PeerError)
    assert str(lost).startswith("this process stops because it lost touch with another one")


def test_each_meeting_has_a_place_of_its_own():
    first, second = (distributed._next_place("a test of places") for _ in range(2))
    assert first == "scissorhands/a test of places/1"
    assert second == "scissorhands/a test of places/2"
    assert distributed._next_place("another test of places").endswith("/1")


@pytest.mark.parametrize(
    ("count", "error", "found"),
    [
        (2, RuntimeError("Gloo AllReduce failed: Connection reset by peer"), PeerError),
        (2, ValueError("the coordination service is gone"), PeerError),
        (1, RuntimeError("Gloo AllReduce failed"), RuntimeError),
        (2, InputError("no socket is named"), InputError),
        (2, RuntimeError("out of memory"), RuntimeError),
    ],
)
def test_only_errors_of_lost_processes_are_explained(monkeypatch, count, error, found):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(found) as caught, distributed.explaining():
        raise error
    assert (type(caught.value) is PeerError) == (found is PeerError)


class Left(Exception):
    """In place of the end of the process."""


@pytest.mark.parametrize("reachable", [True, False])
def test_a_process_that_fails_says_so_and_does_not_wait_for_the_others(coordinator, monkeypatch, reachable):
    met, dismissed, closed = [], [], []

    def meets(name, *, timeout, processes):
        met.append((timeout, processes))
        if not reachable:
            raise RuntimeError("nobody is there")

    def end(status):
        raise Left(status)

    monkeypatch.setattr(distributed.os, "_exit", end)
    monkeypatch.setattr(distributed.ocp.multihost, "sync_global_processes", meets)
    monkeypatch.setattr(distributed, "_dismiss", lambda: dismissed.append(True))
    distribution = types.SimpleNamespace(is_initialized=lambda: bool(met) or started, shutdown=lambda: closed.append(1))
    monkeypatch.setattr(jax, "distributed", distribution)
    started = False
    assert distributed.leave(2) == 2, "a process that is alone just ends"
    started = True
    vars(coordinator.here).update(number=1, count=3)
    assert distributed.leave(0) == 0
    assert (closed, dismissed, coordinator.said) == ([1], [True], {})
    with pytest.raises(Left, match="3"):
        distributed.leave(3)
    assert coordinator.said == {"scissorhands/ended/1": "has ended with exit status 3"}
    assert met == [(5, {0, 1, 2})]
    assert (closed, dismissed) == ([1], [True, True])


class TestStart:
    @pytest.fixture
    def calls(self, monkeypatch) -> dict:
        """What `start` calls, with which arguments; nothing is connected."""
        found: dict = {"options": {}, "watched": 0, "dismissed": 0}

        def count(name):
            found[name] += 1

        monkeypatch.setattr(rendezvous, "meet", lambda *given, seconds: found.update(met=(*given[:3], seconds)))
        monkeypatch.setattr(distributed, "_watch", lambda: count("watched"))
        monkeypatch.setattr(distributed, "_dismiss", lambda: count("dismissed"))
        monkeypatch.setattr(
            type(jax.config), "update", lambda config, name, value: found["options"].update({name: value})
        )
        monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **named: found.update(given=given, **named))
        return found

    def test_all_that_was_said_reaches_jax(self, calls):
        distributed.start("127.0.0.1:1234", 3, 2, seconds_to_meet=1)
        assert calls["met"] == ("127.0.0.1:1234", 3, 2, 1)
        assert calls["given"] == ("127.0.0.1:1234", 3, 2)
        assert calls["coordinator_bind_address"] == "127.0.0.1:1234"
        assert calls["initialization_timeout"] == 1
        assert calls["heartbeat_timeout_seconds"] == calls["shutdown_timeout_seconds"] == 30
        assert calls["options"] == {"jax_cpu_collectives_implementation": "gloo"}
        distributed.start("10.0.0.1:1234", 1, 0)
        assert calls["met"] == ("10.0.0.1:1234", 1, 0, 120)
        assert calls["coordinator_bind_address"] is None, "others come from other machines"
        del calls["met"]
        distributed.start()
        assert calls["given"] == (None, None, None)
        assert "met" not in calls, "a cluster knows who belongs together"
        assert (calls["watched"], calls["dismissed"]) == (3, 0)

    @pytest.mark.parametrize(
        ("error", "found", "words"),
        [
            (ValueError("nothing is known"), InputError, r"no cluster was found \(nothing is known\); name it with"),
            (RuntimeError("late"), PeerError, "did not all meet at the coordinator within 120 s; start all of them"),
        ],
    )
    def test_a_failure_is_one_sentence(self, calls, monkeypatch, error, found, words):
        def fail(*given, **named):
            raise error

        monkeypatch.setattr(jax.distributed, "initialize", fail)
        with pytest.raises(found, match=words):
            distributed.start()
        assert calls["dismissed"] == 1
        with pytest.raises(InputError, match="--seconds-to-meet must be at least 1, got 0"):
            distributed.start(seconds_to_meet=0)


def test_the_watcher_hears_native_code_alone_and_no_key_of_the_terminal_ends_it(monkeypatch):
    reading, writing = os.pipe()
    before = {number: os.dup(number) for number in (1, 2)}
    begun = []

    def begin(command, **named):
        begun.append(named)
        return types.SimpleNamespace(stdin=os.fdopen(writing, "wb"))

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(distributed, "_watching", None)
    monkeypatch.setattr(distributed.subprocess, "Popen", begin)
    monkeypatch.setattr(distributed.atexit, "register", lambda function: None)
    try:
        distributed._watch()
        distributed._watch()
        sys.stdout.write("\udcff is no text\n")
        os.write(1, b"one\n")
        os.write(2, b"two\n")
        distributed._dismiss()
        distributed._dismiss()
    finally:
        for number, copy in before.items():
            os.dup2(copy, number)
            os.close(copy)
    assert os.read(reading, 1000) == b"one\ntwo\n" + watcher.DONE
    os.close(reading)
    assert [named["start_new_session"] for named in begun] == [True]
