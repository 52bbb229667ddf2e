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
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from scissorhands_jax.errors import InputError, PeerError
from scissorhands_jax.training import watcher

_logger = logging.getLogger(__name__)

# A process that was silent for so long is dead to the others; they end within a minute of its death.
_HEARTBEAT_SECONDS = 30
_SECONDS_TO_MEET = 300
# What a process that fails waits for the others, which may have failed for the same reason.
_SECONDS_TO_PART = 5

_ADVICE = "start all processes of the run again with --resume to go on from the last checkpoint"
_LOST = f"this process stops because it lost touch with another one, which died or cannot be reached; {_ADVICE}"
_ENDED = f"this process was ended from outside; {_ADVICE}"
# The collectives of CPUs (gloo) and GPUs (NCCL), and the coordination service of all, in the errors that XLA raises.
_LOST_PEER = re.compile(r"gloo|nccl|coordination|heartbeat|barrier|socket|connection (reset|closed|refused)", re.I)

_watching: subprocess.Popen | None = None


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds_to_meet: int = _SECONDS_TO_MEET,
) -> None:
    """Joins this process to the others of a run; call it before anything else of JAX.

    Without arguments the cluster is asked (Cloud TPU, Slurm, Open MPI, Kubernetes). On CPU, processes speak through
    gloo. A process that dies ends all others within a minute.

    Args:
      coordinator: `HOST:PORT` of process 0, as the others reach it.
      num_processes: how many there are.
      process_id: of this one, from 0.
      seconds_to_meet: how long to wait for the others.

    Raises:
      InputError: the three do not fit together, or no cluster is known.
      PeerError: the others did not come.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError("of --coordinator, --num-processes and --process-id all three are needed, or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        if re.fullmatch(r".+:\d{1,5}", coordinator) is None:
            raise InputError(f"cannot read the coordinator {coordinator!r}; write HOST:PORT, e.g. 10.0.0.1:1234")
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(f"process {process_id} of {num_processes} cannot be; processes are counted from 0")
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
            initialization_timeout=seconds_to_meet,
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
            f"{seconds_to_meet} s; start all of them, with the same --coordinator and --num-processes"
        ) from error


def is_first() -> bool:
    """Whether this process writes the results and speaks for all."""
    return jax.process_index() == 0


def from_first(compute: Callable[[], Any]) -> Any:
    """What process 0 computes (JSON-able), on every process; an InputError there is raised everywhere."""
    if jax.process_count() == 1:
        return compute()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": compute()}
        except InputError as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length))
    answer = json.loads(np.asarray(text, np.uint8).tobytes())
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Errors that came of another process's death become a PeerError that says so.

    On accelerators and where process 0 dies, JAX ends the process itself, and the watcher says so.
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
