"""What XLA compiles, by name."""

from __future__ import annotations

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
