"""A folder of recorded traces: each a JSON file of settings and, mostly, an npz file of arrays.

What a replay reads is remembered, so that recorded values which nobody looked at are found.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.checks import Check, exact, holds

SUFFIXES = (".json", ".npz")
PROSE = ("doc", "note")  # settings that explain the others


class MalformedError(ValueError):
    """A trace lacks something or holds something that cannot be read."""


class Record(Mapping):
    """A read-only mapping that remembers which entries were read; nested dicts are records too."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = {key: Record(value) if isinstance(value, dict) else value for key, value in entries.items()}
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._entries:
            raise MalformedError(f"nothing is recorded under {key!r}")
        self._read.add(key)
        return self._entries[key]

    def __contains__(self, key: object) -> bool:  # Asking whether an entry exists does not read it.
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except MalformedError:
            return default

    def plain(self) -> dict[str, Any]:
        """All entries, read, as ordinary dicts."""
        return {key: value.plain() if isinstance(value, Record) else value for key, value in self.items()}

    def unread(self) -> list[str]:
        """Paths of the entries that were never read, joined by slashes."""
        paths = []
        for key, value in self._entries.items():
            if isinstance(value, Record) and len(value):
                paths += [f"{key}/{path}" for path in value.unread()]
            elif key not in self._read:
                paths.append(key)
        return paths


class Part(Mapping):
    """The entries of a record under a prefix; reading one here is reading it there."""

    def __init__(self, record: Record, prefix: str) -> None:
        self._record = record
        self._prefix = prefix
        self._keys = [key.removeprefix(prefix) for key in record if key.startswith(prefix)]

    def __getitem__(self, key: str) -> Any:
        return self._record[self._prefix + key]

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}


class Trace:
    """One recorded run: `meta`, the settings, `arrays`, and the `folder` for what it refers to."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        self.meta = Record(folder.read_settings(name))
        self.arrays = Record(folder.read_arrays(name))

    @property
    def kind(self) -> str:
        return str(self.meta.get("kind", "without a kind"))

    @property
    def prefix(self) -> str | None:
        """The number at the beginning of the name, `08`, or None."""
        first = self.name.split("_")[0]
        return first if first.isdigit() else None

    def state(self, prefix: str) -> Part:
        """The arrays under `prefix/`, by the rest of their names: a state dict, masks, momentum buffers."""
        part = Part(self.arrays, f"{prefix}/")
        if not part:
            raise MalformedError(f"no array is recorded under {prefix}/")
        return part

    def batches(self, name: str) -> list[np.ndarray]:
        """A ragged list of positions: `NAME_idx` cut at `NAME_off`, or one batch if there are no offsets."""
        positions = self.arrays[f"{name}_idx"]
        if f"{name}_off" not in self.arrays:
            return [positions]
        offsets = self.arrays[f"{name}_off"]
        if offsets[0] != 0 or offsets[-1] != len(positions) or np.any(np.diff(offsets) < 0):
            raise MalformedError(f"{name}_off does not cut {name}_idx into batches")
        return [positions[start:stop] for start, stop in itertools.pairwise(offsets)]

    def start(self) -> Trace:
        """The trace whose network this one starts from: the one it names, else the only network of the folder."""
        for key in ("starts_from", "net_start", "start_state"):
            if key in self.meta:
                return self.folder.trace(self.meta[key])
        return self.folder.only("network")

    def network(self) -> Trace:
        """The trained network at the beginning of the chain of starts."""
        return self if self.kind == "network" else self.start().network()

    def inputs(self) -> Trace:
        """Images and labels: the inputs that share the network's letter, else the only ones of the folder."""
        network = self.network()
        twin = f"data_{network.name.partition('_')[2]}"
        return self.folder.trace(twin) if twin in self.folder.names else self.folder.only("inputs")

    def accept(self, path: str, reason: str) -> None:
        """Marks an array, or a setting by its path, that nothing in the folder determines; `reason` says what it is."""
        assert reason
        if path in self.arrays:
            self.arrays[path]
            return
        node: Any = self.meta
        for key in path.split("/"):
            node = node[key]
        if isinstance(node, Record):
            node.plain()

    def unchecked(self) -> list[Check]:
        """Failures for recorded values that the replay did not read, and for arrays that differ from their listing."""
        listed = self.meta["arrays"].plain() if "arrays" in self.meta else {}
        found = {key: {"shape": list(a.shape), "dtype": str(a.dtype)} for key, a in self.arrays._entries.items()}
        checks = [exact("name", self.meta.get("name"), self.name), exact("listed arrays", found, listed)]
        checks += [holds(f"unknown array {key}", False) for key in self.arrays.unread()]
        return checks + [holds(f"unknown setting {key}", False) for key in self.meta.unread() if key not in PROSE]


class Folder:
    """A folder of traces; files are read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.iterdir()) if path.is_dir() else []
        self.names = sorted({file.stem for file in files if file.suffix in SUFFIXES})
        self.strangers = [file.name for file in files if file.suffix not in SUFFIXES]
        self.read_settings: Callable[[str], dict] = functools.cache(self._read_settings)
        self.read_arrays: Callable[[str], dict] = functools.cache(self._read_arrays)

    def trace(self, name: str) -> Trace:
        """A trace by name, with a fresh memory of what was read."""
        return Trace(self, name)

    def only(self, kind: str) -> Trace:
        """Returns the only trace of a kind.

        Raises:
          MalformedError: There is no such trace, or more than one.
        """
        found = [name for name in self.names if self._kind(name) == kind]
        if len(found) != 1:
            raise MalformedError(f"needs exactly one trace of kind {kind!r}, found {found}")
        return self.trace(found[0])

    def _kind(self, name: str) -> str | None:
        try:
            return self.read_settings(name).get("kind")
        except (ValueError, OSError):  # A damaged file is reported when it is replayed.
            return None

    def _read_settings(self, name: str) -> dict:
        file = self.path / f"{name}.json"
        if not file.is_file():
            raise MalformedError(f"{file.name} is missing")
        settings = json.loads(file.read_text())
        if not isinstance(settings, dict):
            raise MalformedError(f"{file.name} is not a JSON object")
        return settings

    def _read_arrays(self, name: str) -> dict:
        file = self.path / f"{name}.npz"
        if not file.is_file():
            if self.read_settings(name).get("arrays"):
                raise MalformedError(f"{file.name} is missing")
            return {}
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
