"""The version of the package, also where it runs from its source."""

import configparser
import importlib.metadata
from pathlib import Path


def _find_version() -> str:
    try:
        return importlib.metadata.version("scissorhands-jax")
    except importlib.metadata.PackageNotFoundError:  # run from its source, without an installation
        source = configparser.ConfigParser()
        source.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
        return source.get("metadata", "version", fallback="0") + "+source"


__version__ = _find_version()
