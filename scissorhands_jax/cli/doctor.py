"""The command `scissorhands doctor`, whose output belongs into a report of a fault."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from pathlib import Path
from typing import ClassVar

from scissorhands_jax.cli.shared import DataFolderOptions
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, write_line

EXTRAS = {
    "cryptography": "records",
    "equinox": "equinox",
    "ftfy": "diffusion",
    "tokenizers": "diffusion",
    "nudenet": "nudenet",
    "tensorflow": "tensorflow",
    "torch": "torch",
}
"""Packages that are used if they are there, each with the extra that installs it."""
_COMPACT = ("cifar10", "cifar100_own")
_VARIABLES = re.compile(r"(JAX|XLA|CUDA|NVIDIA|TPU|ROCM|SCISSORHANDS)_|GLIBC_TUNABLES$")
# Secrets, and what names machines, people or places.
_PRIVATE = re.compile(
    "KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|ADDRESS|HOST|(?<!PLATFORM_)NAME|NODE|USER|PROJECT|ZONE|URL|DIR|PATH|FILE|DUMP"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorCommand(DataFolderOptions):
    """Print versions, devices, flags and the data that were found, for a report of a fault.

    Nothing is changed, nothing is sent, and no path and no name of a person or machine is printed.
    """

    example: ClassVar[str] = "doctor --data-dir data"

    def run(self, console: Console) -> None:
        del console
        folder = None if self.data_dir is None else Path(self.data_dir)
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; name the one that holds the data sets, or leave --data-dir out"
            )
        sections = {
            "versions": versions(),
            "machine": machine(),
            "devices": devices(),
            "settings": settings(),
            "data": data_found(folder),
        }
        for heading, found in sections.items():
            write_line(heading)
            for name, value in found.items():
                write_line(f"  {name}: {value}")


def versions() -> dict[str, str]:
    """The versions of this package with its commit, of Python, and of all packages that are required or used."""
    from scissorhands_jax.report import provenance
    from scissorhands_jax.training.reproducibility import LIBRARIES
    from scissorhands_jax.version import __version__, version_of

    names = dict.fromkeys([*LIBRARIES.values(), "orbax-checkpoint", "scikit-learn"])
    found = {
        "scissorhands-jax": f"{__version__}, {provenance.running_code().name}",
        "python": platform.python_version(),
    }
    found |= {
        name: version_of(name) or "missing" for name in names if name != "scissorhands-jax" and name not in EXTRAS
    }
    return found | {name: version_of(name) or f"not installed (the extra `{extra}`)" for name, extra in EXTRAS.items()}


def machine() -> dict[str, str]:
    """The system, the processor and the cores that this process may use, and the memory."""
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "C library": " ".join(platform.libc_ver()).strip() or "unknown",
        "cores": f"{may_use} of {os.cpu_count()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return found


def devices() -> dict[str, str]:
    """What JAX computes on: the kind, number and memory of its devices, or why there are none."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:  # A plug-in that is installed and does not find its device, for instance.
        return {"none": " ".join(str(error).split())[:300]}
    kinds: dict[str, str] = {}
    for device in found:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = f", {_gib(limit)} each" if limit else ""
        count = sum(other.device_kind == device.device_kind for other in found)
        kinds[device.device_kind] = f"{count}{memory}"
    return {"backend": jax.default_backend(), **kinds, "processes": str(jax.process_count())}


def settings() -> dict[str, str]:
    """Options of JAX with which a run computes something else, and variables of the environment that it reads."""
    from scissorhands_jax.training.reproducibility import numerical_options

    variables = {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.match(name)}
    return numerical_options() | {name: _shown(name, value) for name, value in variables.items()}


def data_found(folder: Path | None) -> dict[str, str]:
    """What is there of each data set, by name.

    Args:
      folder: The folder of the data sets' files; None if the user named none.
    """
    from scissorhands_jax import datasets
    from scissorhands_jax.datasets import archives, compact, prepared

    found = {"digits": "there, with scikit-learn"}
    if folder is None:
        return found | {"others": "not looked for; name their folder with --data-dir"}
    for name in datasets.DATASETS:
        if name == "digits":
            continue
        forms = {
            "prepared": name in prepared.SET_FOLDERS and prepared.is_prepared(folder, name),
            "compact files": name in _COMPACT and compact.has_compact_files(folder, name),
            "one file": name == "orl_faces" and (folder / "orl_faces.npz").is_file(),
            "official archives, to be prepared": name in archives.ARCHIVES
            and all((folder / archive.name).is_file() for archive in archives.ARCHIVES[name]),
        }
        found[name] = ", ".join(form for form, is_there in forms.items() if is_there) or "not there"
    return found


def _shown(name: str, value: str) -> str:
    """The value of a variable, unless it may say where something lies or what nobody should know."""
    is_private = "/" in value.replace("://", "") or "\\" in value or _PRIVATE.search(name)
    return "set, not shown" if is_private else value or "empty"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
