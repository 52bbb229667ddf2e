"""Many processes that make one run, on one machine or on many: how they meet, and how they part."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp

from scissorhands_jax import hashing
from scissorhands_jax.errors import (
    BusyError,
    CheckpointError,
    DivergedError,
    InputError,
    LedgerError,
    PeerError,
    WeightsError,
)
from scissorhands_jax.training import rendezvous, reproducibility, watcher
from scissorhands_jax.training.identity import differences, list_differences

_logger = logging.getLogger(__name__)

# A process that was silent for so long is dead to the others; they end within a minute of its death.
_HEARTBEAT_SECONDS = 30
_SECONDS_TO_MEET = 120
# What a process that fails waits for the others, which may have failed for the same reason.
_SECONDS_TO_PART = 5
# How long processes may be apart on the way to a place where they meet, for one of them may read its data slowly.
_SECONDS_APART = 1800
_MILLISECONDS_PER_LOOK = 500
_SECONDS_FOR_FILES = 5  # until what one machine wrote must be seen by the others
_ENDED_EARLY = "scissorhands/ended/"  # where a process that ends for itself says so

_ADVICE = "start all processes of the run again with --resume to go on from the last checkpoint"
_LOST = f"this process stops because it lost touch with another one, which died or cannot be reached; {_ADVICE}"
_ENDED = f"this process was ended from outside; {_ADVICE}"
# The collectives of CPUs (gloo) and GPUs (NCCL), and the coordination service of all, in the errors that XLA raises.
_LOST_PEER = re.compile(r"gloo|nccl|coordination|heartbeat|barrier|socket|connection (reset|closed|refused)", re.I)

# The errors of process 0 that are raised in the others as well; a message alone makes each of them.
_KINDS: tuple[type[InputError | OSError], ...] = (
    *(BusyError, CheckpointError, DivergedError, LedgerError, WeightsError),
    *(InputError, OSError),
)
_PASSED_ON = {kind.__name__: kind for kind in _KINDS}

_watching: subprocess.Popen | None = None


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds_to_meet: int | None = None,
) -> None:
    """Joins this process to the others of a run; call it before anything else of JAX.

    Without arguments the cluster is asked (Cloud TPU, Slurm, Open MPI, Kubernetes). On CPU, processes speak through
    gloo. A process that dies ends all others within a minute.

    Args:
      coordinator: `HOST:PORT` of process 0, as the others reach it.
      num_processes: How many there are.
      process_id: The number of this one, from 0.
      seconds_to_meet: How long to wait for the others, at least 1. The default is two minutes.

    Raises:
      InputError: The three do not fit together, another program uses the port, no cluster is known, or the processes
        have other versions or another idea of their number.
      PeerError: The others did not come.
    """
    if seconds_to_meet is not None and seconds_to_meet < 1:
        raise InputError(f"--seconds-to-meet must be at least 1, got {seconds_to_meet}")
    seconds = _SECONDS_TO_MEET if seconds_to_meet is None else seconds_to_meet
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError("of --coordinator, --num-processes and --process-id all three are needed, or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        if re.fullmatch(r".+:\d{1,5}", coordinator) is None:
            raise InputError(f"cannot read the coordinator {coordinator!r}; write HOST:PORT, e.g. 10.0.0.1:1234")
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(f"process {process_id} of {num_processes} cannot be; processes are counted from 0")
        rendezvous.meet(coordinator, num_processes, process_id, reproducibility.library_versions(), seconds=seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = (coordinator or "").rpartition(":")[0]
    _watch()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Without a name to the world, the service need not listen to it.
            coordinator_bind_address=coordinator if host in ("localhost", "127.0.0.1") else None,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        _dismiss()
        raise InputError(
            f"no cluster was found ({error}); name it with --coordinator, --num-processes and --process-id"
        ) from error
    except RuntimeError as error:
        _dismiss()
        raise PeerError(
            f"the processes of the run did not all meet at {coordinator or 'the coordinator'} within "
            f"{seconds} s; start all of them, with the same --coordinator and --num-processes"
        ) from error


def is_first() -> bool:
    """Whether this process writes the results and speaks for all."""
    return jax.process_index() == 0


def from_first(compute: Callable[[], Any]) -> Any:
    """What process 0 computes (JSON-able), on every process.

    Raises:
      InputError, OSError: Process 0 raised one, which is raised everywhere; of the classes of `errors` as the same.
    """
    if jax.process_count() == 1:
        return compute()
    place = _next_place("first")
    if is_first():
        try:
            value = compute()
        except (InputError, OSError) as error:
            classes = [kind.__name__ for kind in type(error).__mro__]
            _client().key_value_set(place, json.dumps({"error": str(error), "classes": classes}))
            raise
        _client().key_value_set(place, json.dumps({"value": value}))
        return value
    answer = json.loads(_wait_for(place))
    if "error" in answer:
        raise next(_PASSED_ON[name] for name in answer["classes"] if name in _PASSED_ON)(answer["error"])
    return answer["value"]


def agree(about: str, document: Mapping[str, Any]) -> None:
    """Ends a run of many processes unless all of them are about to do the same.

    Nothing is computed together for it, so that processes that differ in anything still get an answer. With one
    process nothing happens.

    Args:
      about: A word for what is compared, the same in all processes.
      document: Everything that determines the result (`identity.Identity.compared`), as JSON.

    Raises:
      InputError: Processes differ. The error is the same in all of them, and names the first three differences.
      PeerError: A process has ended, or cannot be reached.
    """
    if jax.process_count() == 1:
        return
    place = _next_place(about)
    if not is_first():
        _client().key_value_set(f"{place}/{jax.process_index()}", json.dumps(document))
        answer = _wait_for(f"{place}/answer")
    else:
        answer = ""
        for number in range(1, jax.process_count()):
            found = list(differences(dict(document), json.loads(_wait_for(f"{place}/{number}"))))
            if found and not answer:
                difference = list_differences(found, f"is {{}} in process 0 and {{}} in process {number}")
                answer = f"process {number} is about to do something else than process 0: {difference}"
        _client().key_value_set(f"{place}/answer", answer)
    if answer:
        raise InputError(f"{answer}; start all processes with the same arguments, files and versions")


def agree_on_file(path: Path) -> None:
    """Ends a run of many processes unless all of them see the same file, which process 0 has just written.

    Raises:
      InputError: A process sees another file, or none.
      PeerError: A process has ended, or cannot be reached.
    """
    if jax.process_count() == 1:
        return
    _wait_for_path(path)
    found = f"SHA-256 {hashing.file_sha256(path)[:16]}" if path.is_file() else "not there"
    agree("file", {f"the file {path.name} of a folder that all must share": found})


def agree_on_folder(path: Path) -> None:
    """Ends a run of many processes unless all of them see a folder that process 0 sees.

    Raises:
      InputError: A process does not see it.
      PeerError: A process has ended, or cannot be reached.
    """
    if jax.process_count() == 1:
        return
    _wait_for_path(path)
    found = "there" if path.is_dir() else "not there"
    agree("folder", {f"the folder {path.name} of a folder that all must share": found})


def _wait_for_path(path: Path) -> None:
    """Waits some seconds for what another machine wrote to be seen here."""
    deadline = time.monotonic() + _SECONDS_FOR_FILES
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_MILLISECONDS_PER_LOOK / 1000)


_places: dict[str, int] = {}  # how often processes have met, by what it was about


def _next_place(about: str) -> str:
    """Returns a key of the coordinator for the next meeting, which processes reach in the same order."""
    _places[about] = _places.get(about, 0) + 1
    return f"scissorhands/{about}/{_places[about]}"


def _client() -> Any:
    return ocp.multihost.get_jax_distributed_client()


def _wait_for(key: str) -> str:
    """Returns what another process says under a key, as soon as it does; or says which process has ended."""
    deadline = time.monotonic() + _SECONDS_APART
    while time.monotonic() < deadline:
        try:
            return _client().blocking_key_value_get(key, _MILLISECONDS_PER_LOOK)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise PeerError(_LOST) from error
        for ended, what in _client().key_value_dir_get(_ENDED_EARLY):
            number = ended.rpartition("/")[2]
            raise PeerError(f"this process stops because process {number} {what}; its own message says why")
    raise PeerError(f"another process did not come within {_SECONDS_APART} s; {_ADVICE}")


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Errors that came of another process's death become a PeerError that says so.

    On accelerators and where process 0 dies, JAX ends the process itself, and the watcher says so.

    Raises:
      PeerError: Another process of the run has ended.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if jax.process_count() == 1 or isinstance(error, InputError) or _LOST_PEER.search(str(error)) is None:
            raise
        raise PeerError(_LOST) from error


def leave(status: int) -> int:
    """Ends this process's part in a run of many: hands the status back if all went well, else exits with it.

    A process that failed cannot wait for the others, as JAX would at the end of the interpreter.
    """
    if not jax.distributed.is_initialized():
        return status
    if status == 0:
        jax.distributed.shutdown()
        _dismiss()
        return 0
    _exit(status)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    _dismiss()
    try:
        _client().key_value_set(f"{_ENDED_EARLY}{jax.process_index()}", f"has ended with exit status {status}")
        everyone = set(range(jax.process_count()))  # named, they meet without a device
        ocp.multihost.sync_global_processes("failed", timeout=_SECONDS_TO_PART, processes=everyone)
    except Exception as error:
        _logger.debug("left alone: %s", error)
    os._exit(status)


def _watch() -> None:
    """Starts the watcher, and sends it what native code writes; what Python writes passes it by."""
    global _watching
    if _watching is not None:
        return
    command = [sys.executable, "-I", watcher.__file__, _LOST, _ENDED]
    _watching = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert _watching.stdin is not None
    for name, number in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        stream = os.fdopen(os.dup(number), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        setattr(sys, name, stream)
        os.dup2(_watching.stdin.fileno(), number)
    atexit.register(_dismiss)


def _dismiss() -> None:
    """Tells the watcher that this process ends by itself."""
    global _watching
    if _watching is not None:
        os.write(2, watcher.DONE)
        _watching = None
