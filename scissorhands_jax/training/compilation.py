"""What JAX has spent on making programs, apart from the time spent on running them."""

from __future__ import annotations

import jax

_EVENTS = frozenset(
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_spans: list[tuple[float, float]] = []  # when they began and ended, in order and apart from each other


def seconds() -> float:
    """Seconds that this process has spent on tracing, lowering and compiling since this module was imported."""
    return sum(end - start for start, end in _spans)


def _on_span(event: str, start_time: float, end_time: float, **_: str | int) -> None:
    if event in _EVENTS:
        # What is compiled while something is traced is reported first, and is then a part of the trace.
        while _spans and _spans[-1][1] >= start_time:
            start_time = min(start_time, _spans.pop()[0])
        _spans.append((start_time, end_time))


jax.monitoring.register_event_time_span_listener(_on_span)
