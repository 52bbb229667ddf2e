"""Where the networks of a model lie: in a folder of diffusers, in the cache of the hub, or in one file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scissorhands_jax import hashing, reading, torch_weights
from scissorhands_jax.diffusion.file_layouts import FILE_STEMS, FOLDERS
from scissorhands_jax.diffusion.folder_configs import PART_CONFIG_FILE, PIPELINE_FILE
from scissorhands_jax.diffusion.networks import PART_TITLES, Part
from scissorhands_jax.errors import InputError, WeightsError

_VARIANTS = ("", ".fp16", ".bf16")
_UNAVERAGED = ".non_ema"
_PIECE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_HALF = (".incomplete", ".part", ".crdownload", ".tmp")
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


class PartSource(NamedTuple):
    """The weights of a network."""

    files: tuple[Path, ...]
    """One file, or all pieces of one."""
    config: Path | None
    """The `config.json` beside them, if there is one."""
    averaged: bool | None = None
    """Whether they are the averages (EMA) of a folder that also has, or has alone, weights that are none; None is where
    the names of the files say nothing."""

    def sha256(self) -> str:
        """The SHA-256 of the file, or of those of the pieces; hexadecimal."""
        hashes = [hashing.file_sha256(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashing.sha256("".join(hashes))


def find_model(path: Path) -> Path:
    """The folder of a model, or its file.

    Args:
      path: The folder or file itself, or the model's folder in the cache of the hub (`models--NAME`, or `snapshots` in
        it), of which the snapshot is taken that `refs/main` names, or the only one.

    Raises:
      InputError: The cache holds several snapshots or models.
    """
    if path.name == "snapshots" and path.parent.name.startswith("models--"):
        path = path.parent
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        models = sorted(child.name for child in path.glob("models--*")) if path.is_dir() else []
        if models:
            raise InputError(f"{path} is a cache of models, {', '.join(models[:10])}; name the folder of one of them")
        return path
    names = sorted(child.name for child in snapshots.iterdir() if child.is_dir())
    head = path / "refs" / "main"
    try:
        wanted = reading.read_text(head).strip() if head.is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {head}: {error}; name a folder in {snapshots}") from error
    if wanted in names:
        return snapshots / str(wanted)
    if len(names) == 1:
        return snapshots / names[0]
    raise InputError(
        f"{snapshots} has {len(names)} snapshots ({', '.join(names[:5]) or 'none'}) and no refs/main that names one; "
        "name the folder of one of them, or download the model again"
    )


def find_weights(part: Part, path: Path, *, ema: bool | None = None) -> PartSource:
    """The weights of a network.

    Args:
      part: Which of the three networks.
      path: A file, with the weights of this network or of all; the folder of the network or of the whole model, as
        diffusers writes them; or what `find_model` takes.
      ema: False prefers weights that are no averages (`non_ema`) where a folder has both; the others then are averages.

    Raises:
      InputError: There is no such file, it is incomplete, or it is not clear which one is meant.
    """
    path = find_model(path)
    if not path.is_dir():
        return _single(part, path)
    own = path / FOLDERS[part]
    folder = own if own.is_dir() else path
    stems = (FILE_STEMS[part], "pytorch_model") if part == "text" else (FILE_STEMS[part],)
    tails = [_UNAVERAGED, ""] if ema is False else ["", _UNAVERAGED]
    for tail in tails:
        for kind in ("safetensors", "bin"):
            for variant in _VARIANTS:
                for stem in stems:
                    for file in (folder / f"{stem}{variant}{tail}.{kind}", folder / f"{stem}{tail}{variant}.{kind}"):
                        if file.is_file():
                            return PartSource((file,), _config_beside(file), _averaged(file, tail))
                    for index in (f"{stem}{variant}.{kind}.index.json", f"{stem}.{kind}.index{variant}.json"):
                        if (folder / index).is_file():
                            return _pieces(folder / index)._replace(averaged=_averaged(folder / index, ""))
    names = sorted(child.name for child in folder.iterdir())
    broken = [name for name in names if (folder / name).is_symlink() and not (folder / name).exists()]
    if broken or any(name.endswith(_HALF) for name in names):
        shown = ", ".join(broken or names)
        raise InputError(f"the weights in {folder} are only half downloaded ({shown}); download them again")
    alone = [name for name in names if name.endswith(_CHECKPOINTS) and not (folder / PIPELINE_FILE).exists()]
    if len(alone) == 1 and folder == path:
        return _single(part, folder / alone[0])
    if len(alone) > 1:
        raise InputError(
            f"{folder} holds several files of weights ({', '.join(alone[:10])}); name the one that you mean"
        )
    raise InputError(
        f"there is no {FILE_STEMS[part]}.safetensors in {folder}, it holds {', '.join(names[:10]) or 'nothing'}; "
        f"give the file of the {PART_TITLES[part]}"
    )


def _averaged(file: Path, tail: str) -> bool | None:
    """Whether a file has averages: diffusers gives weights that are none their own name beside them."""
    stem = file.name.partition(".")[0]
    both = any(_UNAVERAGED in name.name for name in file.parent.glob(f"{stem}.*"))
    return tail != _UNAVERAGED if both else None


def _single(part: Part, path: Path) -> PartSource:
    """A file that was named."""
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}; name the folder or the file of a model")
    if path.name.endswith(".json") and ".index" in path.name:
        return _pieces(path)
    if piece := _PIECE.fullmatch(path.name):
        raise InputError(
            f"{path} is piece {int(piece[2])} of {int(piece[3])} of a network; name the folder with all of them"
        )
    named = path.name.startswith((FILE_STEMS[part], "pytorch_model"))
    return PartSource((path,), _config_beside(path) if named else None)


def _config_beside(file: Path) -> Path | None:
    config = file.with_name(PART_CONFIG_FILE)
    return config if config.is_file() else None


def _pieces(index: Path) -> PartSource:
    """All pieces that an index names."""
    try:
        names = sorted(set(reading.read_json(index)["weight_map"].values()))
        if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise ValueError("it does not name files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {index}: {error}; download it again") from error
    files = tuple(index.with_name(name) for name in names)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(files)} pieces of the weights in {index.parent} are missing "
            f"({', '.join(absent[:5])}); download them again"
        )
    return PartSource(files, _config_beside(index))


class Pieces(Mapping[str, np.ndarray]):
    """The tensors of open files as if they were in one; each is read when it is accessed."""

    def __init__(self, parts: tuple[torch_weights.LazyStateDict, ...]) -> None:
        self._homes = {name: part for part in parts for name in part}
        self.where = parts[0].where if len(parts) == 1 else ""
        """The place of the tensors in a checkpoint, as `LazyStateDict` has it."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return self._homes[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The type of a tensor, which is not read for it."""
        return self._homes[name].dtype(name)


@contextlib.contextmanager
def open_weights(source: PartSource, *, ema: bool | None = None) -> Iterator[Pieces]:
    """Opens the files of a network.

    Args:
      source: Its files.
      ema: Whether averaged weights are read where a file keeps both in dicts of their own.

    Raises:
      WeightsError: A file cannot be read, or two hold the same tensor.
    """
    with contextlib.ExitStack() as stack:
        parts = tuple(stack.enter_context(torch_weights.open_state_dict(file, ema=ema)) for file in source.files)
        pieces = Pieces(parts)
        if len(pieces) != sum(map(len, parts)):
            raise WeightsError(f"several pieces beside {source.files[0]} hold the same tensor; download them again")
        yield pieces
