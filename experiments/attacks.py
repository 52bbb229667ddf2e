"""Runs membership attacks that a table left for later: `python -m experiments.attacks FILE`.

    python -m experiments.attacks runs/cifar10/results.json         # of `experiments.run ... attack_later=true`
    python -m experiments.attacks results/accelerator.json          # of all tables of `experiments.accelerator`

FILE gets the numbers, and so do the cells of a table that lie beside it. The predictions are read from the folder of
the table, or from the archives `NAME-predictions-N.zip` next to the file of an accelerator; what has none stays as it
is. This needs scikit-learn.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import programs
from scissorhands_jax import files, reading
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console

LARGEST = 15 * 2**20
"""Bytes of an archive of predictions. Some machines give back files of at most 16 MiB."""
MAX_PREDICTIONS = 2**28
"""Bytes of the predictions of one network, which may be larger than `LARGEST`: each archive has one at least."""


@programs.ending("the same command begins again")
def main(arguments: Sequence[str] | None = None) -> int:
    """Fills in the file and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.attacks", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    from scissorhands_jax.jobs import late_attacks  # imports JAX, which `Archives` does not need

    file, console = parser.parse_args(arguments).file, Console(stderr=True)
    tell = functools.partial(console.print, highlight=False, markup=False)
    try:
        # A table that is filled holds the right to its folder, and an accelerator that to its file.
        with files.sole_writer(file.parent), files.sole_writer(file.parent, of=file.name):
            document = reading.read_json(file)
            if "parts" in document:
                archives = Archives(file)
                for name, part in document["parts"].items():
                    if "cells" in (part["result"] or {}):
                        read = functools.partial(archives.read, part["table"])
                        part["result"] = late_attacks.with_attacks(part["result"], read, tell)
                        tell(f"{name}: {_counted(part['result'])}")
            else:
                document = late_attacks.with_attacks(document, functools.partial(_from_folder, file.parent), tell)
                late_attacks.keep_in_cells(file.parent, document)
                tell(_counted(document))
            files.write_text(file, json.dumps(document, indent=1) + "\n")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} holds no results of tables ({type(error).__name__}: {error}); name another file"
        ) from error
    return 0


def _counted(document: dict[str, Any]) -> str:
    done = sum("mia" in cell["metrics"] for cell in document["cells"])
    return f"{done} of {len(document['cells'])} networks are attacked"


def _from_folder(folder: Path, name: str) -> bytes | None:
    return reading.read_bytes(folder / name, MAX_PREDICTIONS) if (folder / name).is_file() else None


class Archives:
    """The predictions of tables in a few files, each of which a machine with small limits gives back.

    Args:
      out: The file of the results, next to which the archives are.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._entries: dict[int, dict[str, bytes]] = {}
        for path in sorted(out.parent.glob(f"{glob.escape(out.stem)}-predictions-*.zip")):
            try:
                entries = reading.read_archive(path, 2 * MAX_PREDICTIONS)
            except ValueError as error:
                raise InputError(f"{path} is damaged ({error}); copy it again") from error
            self._entries[int(path.stem.rpartition("-")[2])] = entries

    def path(self, number: int) -> Path:
        """The file of an archive."""
        return self._out.with_name(f"{self._out.stem}-predictions-{number}.zip")

    def read(self, table: str, name: str) -> bytes | None:
        """The predictions of a network of a table, or None if no archive has them."""
        found = (entries.get(f"{table}/{name}") for entries in self._entries.values())
        return next((content for content in found if content is not None), None)

    def add(self, table: str, folder: Path) -> None:
        """Adds the predictions in the folder of a table, and replaces those of other networks of the same name."""
        changed = set()
        for path in sorted(folder.glob("predictions/*.npz")):
            name, content = f"{table}/predictions/{path.name}", reading.read_bytes(path, MAX_PREDICTIONS)
            if self.read(table, f"predictions/{path.name}") == content:
                continue
            for number, entries in self._entries.items():
                if entries.pop(name, None) is not None:
                    changed.add(number)
            last = max(self._entries, default=1)
            if sum(map(len, self._entries.get(last, {}).values())) + len(content) > LARGEST:
                last += 1
            self._entries.setdefault(last, {})[name] = content
            changed.add(last)
        for number in sorted(changed):
            self._write(number)

    def _write(self, number: int) -> None:
        with files.writing(self.path(number)) as file, zipfile.ZipFile(file, "w") as archive:
            for name, content in self._entries[number].items():
                archive.writestr(name, content)


if __name__ == "__main__":
    sys.exit(main())
