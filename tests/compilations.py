"""What XLA compiles, by name, and at what cost."""

from __future__ import annotations

import functools
import gc
import itertools
import os
from typing import Any

import jax


class Compilations:
    """Keeps the names of the functions that XLA compiles while it is entered, such as `jit(_step)`."""

    def __enter__(self) -> Compilations:
        self.names: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, *, fun_name: str = "", **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(fun_name)


def save_time() -> None:
    """Takes a fifth off the time that JAX needs in this process for tracing and lowering very many small programs.

    Tracing makes short-lived small objects by the million, which call for Python's collector all the time; here it
    runs at a higher threshold. And JAX makes a context with all the dialects of MLIR for every program that it lowers;
    here a hundred programs share one, which does not change what they compile to. The second is done where
    `SHARED_CONTEXTS` is set, as `conftest.py` sets it, and where this JAX makes its contexts in that way.
    """
    gc.set_threshold(20_000)
    try:
        from jax._src.interpreters import mlir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return
    if "SHARED_CONTEXTS" in os.environ:
        shared = functools.lru_cache(maxsize=1)(lambda hundred: make())
        numbers = itertools.count()
        mlir.make_ir_context = lambda: shared(next(numbers) // 100)
