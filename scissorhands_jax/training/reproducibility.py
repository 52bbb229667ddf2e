"""What the numbers of a run depend on besides what it is given: options of JAX, and the environment it runs in."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

import jax

from scissorhands_jax import hashing
from scissorhands_jax.version import __version__, version_of

LIBRARIES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "numpy": "numpy",
    "flax": "flax",
    "optax": "optax",
    "scipy": "scipy",
    "chex": "chex",
    "equinox": "equinox",
    "scissorhands_jax": "scissorhands-jax",
}
"""The libraries whose versions the environment names: what each is imported as, and the name of its distribution."""

_OPTIONS = (
    *("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable"),
    *("jax_numpy_dtype_promotion", "jax_random_seed_offset"),
)
_VARIABLES = ("SCISSORHANDS_CPU_CONVOLUTION", "NVIDIA_TF32_OVERRIDE")
# Flags of XLA that change the arithmetic. The others at most change the order of sums.
_ARITHMETIC = re.compile(r"fast_math|fast_min_max|precision|denormal|tf32|bf16|fp16")
# Flags of XLA that change no number: what is written for debugging, and devices, which are named by themselves.
_IRRELEVANT = re.compile(r"--xla_(dump|force_host_platform_device_count|.*(log|profile|print))")


def numerical_options() -> dict[str, str]:
    """Options that a user sets, as text by name, with which a run computes something else: another run.

    These are JAX's options for random numbers, precision and types, and the flags of XLA that change its arithmetic.
    """
    found = {name: str(getattr(jax.config, name, None)) for name in _OPTIONS}
    return found | {"xla_flags": " ".join(flag for flag in _xla_flags() if _ARITHMETIC.search(flag))}


def numerical_environment() -> dict[str, str]:
    """Everything around a run that its bits depend on, as text by name: two runs with equal ones end in equal bits.

    It names the kind and number of devices and of processes, on CPU also the processor and the cores that this process
    may use (XLA divides sums among them), the versions of Python and of `LIBRARIES`, and XLA's flags. The driver and
    the vendor's libraries of an accelerator are not recorded.
    """
    found = {
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "processes": str(jax.process_count()),
        **library_versions(),
    }
    if jax.default_backend() == "cpu":
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        found |= {"processor": _processor(), "cores": str(len(cores))}
    found |= {name: os.environ.get(name, "") for name in _VARIABLES}
    return found | {"XLA_FLAGS": " ".join(flag for flag in _xla_flags() if not _ARITHMETIC.search(flag))}


def _xla_flags() -> list[str]:
    return sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if not _IRRELEVANT.match(flag))


@functools.cache
def library_versions() -> dict[str, str]:
    """The versions of Python, of `LIBRARIES`, and of the source of this package, as text by name."""
    found = {"python": platform.python_version()}
    found |= {name: version_of(distribution) or "" for name, distribution in LIBRARIES.items()}
    source = hashing.sources_sha256(Path(__file__).parents[1])
    return found | {"scissorhands_jax": f"{__version__}, source {source[:8]}"}


@functools.cache
def _processor() -> str:
    """The model of the processor, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
