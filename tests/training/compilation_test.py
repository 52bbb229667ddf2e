"""The clock of tracing, lowering and compiling."""

import time

import jax
import jax.numpy as jnp

from scissorhands_jax.training import compilation

PAUSE = 0.2


def clocked(call):
    before = compilation.seconds()
    jax.block_until_ready(call())
    return compilation.seconds() - before


def test_tracing_counts_and_running_does_not():
    runs = []

    def slow(x):
        time.sleep(PAUSE)  # while it is traced

        def late(x):
            runs.append(time.time())
            time.sleep(PAUSE)  # while it runs
            return x

        return jax.pure_callback(late, x, x)

    x, function = jnp.ones(3), jax.jit(slow)
    assert clocked(lambda: function(x)) >= PAUSE
    assert compilation._spans[-1][1] <= runs[0]
    assert clocked(lambda: function(x)) == 0


def test_what_is_compiled_while_something_is_traced_counts_once(monkeypatch):
    monkeypatch.setattr(compilation, "_spans", [])

    def tell(part, start, end):
        jax.monitoring.record_event_time_span(f"/jax/core/compile/{part}_duration", start, end)

    tell("jaxpr_trace", 1.0, 2.0)
    tell("jaxpr_to_mlir_module", 4.0, 5.0)
    tell("backend_compile", 5.5, 8.0)
    tell("jaxpr_trace", 3.0, 9.0)  # the two before are within it
    tell("backend_compile", 10.0, 14.0)
    jax.monitoring.record_event_time_span("/jax/something/else", 15.0, 16.0)
    assert compilation.seconds() == 1.0 + 6.0 + 4.0


def test_programs_one_after_the_other_add_up():
    def slow(x):
        time.sleep(PAUSE)
        return x - 1

    x = jnp.ones(3)
    first, second = jax.jit(slow), jax.jit(lambda x: slow(2 * x))
    began = time.perf_counter()
    assert 2 * PAUSE <= clocked(lambda: (first(x), second(x))) <= time.perf_counter() - began


def test_compiling_what_was_lowered_before_counts():
    x = jnp.ones(3)
    lowered = jax.jit(lambda x: jnp.sort(jnp.sin(x))).lower(x)
    assert clocked(lowered.compile) > 0
