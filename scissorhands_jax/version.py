"""The version of the package, whether it is installed or runs from its source, and those of other packages."""

import configparser
import importlib.metadata
from pathlib import Path


def version_of(distribution: str) -> str | None:
    """The version of an installed package, by the name of its distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_version() -> str:
    installed = version_of("scissorhands-jax")
    if installed is not None:
        return installed
    source = configparser.ConfigParser()
    source.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    return source.get("metadata", "version", fallback="0") + "+source"


__version__ = _find_version()
