"""What the bits of a run depend on besides its arguments: the machine, the versions and the flags."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax
import jaxlib

_VARIABLES = ("XLA_FLAGS", "SCISSORHANDS_CPU_CONVOLUTION")
_OPTIONS = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")


def numerical_environment() -> dict[str, str]:
    """Everything around a run that its bits depend on, as text by name: two runs with equal ones end in equal bits.

    It names the kind and number of devices, on CPU also the processor and the cores that this process may use (XLA
    divides sums among them), the versions of Python, JAX and jaxlib, XLA's flags and JAX's numerical options.
    """
    found = {
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }
    if jax.default_backend() == "cpu":
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        found |= {"processor": _processor(), "cores": str(len(cores))}
    found |= {name: os.environ.get(name, "") for name in _VARIABLES}
    return found | {name: str(getattr(jax.config, name)) for name in _OPTIONS}


def environment_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two numerical environments, as "name: A, now B" for each difference; empty if nothing."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name}: {before.get(name) or 'none'}, now {now.get(name) or 'none'}" for name in names)


def _processor() -> str:
    """The model of the processor, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
