"""The version of the package, whether it is installed or runs from its source."""

import configparser
import importlib.metadata
from pathlib import Path


def _find_version() -> str:
    try:
        return importlib.metadata.version("scissorhands-jax")
    except importlib.metadata.PackageNotFoundError:  # The package runs from its source and is not installed.
        source = configparser.ConfigParser()
        source.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
        return source.get("metadata", "version", fallback="0") + "+source"


__version__ = _find_version()
