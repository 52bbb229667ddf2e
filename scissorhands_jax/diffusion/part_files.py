"""The tensors of one network: found in its files under whatever names, checked by their shapes, and read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scissorhands_jax import torch_weights
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import model_sources, networks, other_networks
from scissorhands_jax.diffusion.file_layouts import FILE_DTYPES, fit_part
from scissorhands_jax.diffusion.model_sources import PartSource, Pieces
from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part
from scissorhands_jax.errors import WeightsError

_logger = logging.getLogger(__name__)


def read_part_file(
    part: Part, file: Path, config: DiffusionConfig = networks.SD_V1, *, ema: bool | None = None
) -> tuple[Params, str]:
    """Reads one network from a file of its own or from a checkpoint of all three; the arguments are `read_part`'s.

    Returns:
      The parameters, and the type that they are exported in by default.
    """
    return read_part(part, PartSource((file,), None), config, ema=ema)[:2]


def read_part(
    part: Part, source: PartSource, config: DiffusionConfig, *, ema: bool | None = None
) -> tuple[Params, str, str]:
    """Reads one network.

    Tensors may have the names of any version of diffusers or those of CompVis, behind any prefix. Numbers become
    float32, which holds the narrower types exactly.

    Args:
      part: Which of the three networks.
      source: Its files.
      config: The sizes that the network must have.
      ema: Whether averaged weights are taken. None takes others where there are any.

    Returns:
      The parameters; the type that they are exported in by default, which is the file's if that is float32, float16 or
      bfloat16, or else float32; and the type or types of the file.

    Raises:
      WeightsError: A file is damaged or holds another network, of which every missing, extra and misshapen tensor is
        reported; or a tensor holds NaN or infinity.
    """
    with _fitted(part, source, config, ema) as renamed:
        outline = networks.outline(part, config)
        try:
            params, _ = torch_weights.from_state_dict(renamed, outline, {}, flatten={})
        except WeightsError as error:
            raise _misfit(part, source, error) from error
        types = sorted(renamed.types())
    return params, types[0] if len(types) == 1 and types[0] in FILE_DTYPES else "float32", " and ".join(types)


def check_part(part: Part, source: PartSource, config: DiffusionConfig, *, ema: bool | None = None) -> str:
    """Refuses by names and shapes, without reading tensors, what `read_part` would refuse.

    What else lies in the files, and whether weights are averages, is said in the log.

    Args:
      part: Which of the three networks.
      source: Its files.
      config: The sizes that the network must have.
      ema: See `read_part`.

    Returns:
      Which tensors `read_part` would take, where a file holds several networks: the place and the name of one of them.

    Raises:
      WeightsError: See `read_part`.
    """
    with _fitted(part, source, config, ema, remarks=True) as renamed:
        try:
            torch_weights.check_shapes(renamed.found_shapes(), networks.outline(part, config), {})
        except WeightsError as error:
            raise _misfit(part, source, error) from error
        return renamed.taken()


def _misfit(part: Part, source: PartSource, error: WeightsError) -> WeightsError:
    return WeightsError(f"{source.files[0]} does not hold the {PART_TITLES[part]} of Stable Diffusion v1: {error}")


@contextlib.contextmanager
def _fitted(
    part: Part, source: PartSource, config: DiffusionConfig, ema: bool | None, *, remarks: bool = False
) -> Iterator[RenamedTensors]:
    """The tensors of a network under our names.

    Raises:
      WeightsError: It is another network, or there are no averages although they are wanted.
    """
    wanted = ema if part == "unet" else None  # checkpoints keep averages of nothing else
    shapes = torch_weights.state_dict_shapes(networks.outline(part, config), {})
    with model_sources.open_weights(source, ema=wanted) as tensors:
        file = source.files[0]
        held = {name: tensors.shape(name) for name in tensors}
        other = other_networks.describe_other_network(part, config, held, tensors.where)
        if other is not None:
            raise WeightsError(f"{file} looks like {other}, not like the {PART_TITLES[part]} of Stable Diffusion v1")
        chosen = torch_weights.is_averaged(tensors.where) or source.averaged is not None
        if wanted and source.averaged is False:
            raise WeightsError(
                f"cannot import {file} with --ema: its folder holds no averaged weights (EMA) of the UNet; leave --ema "
                "out to take what it has"
            )
        if remarks and source.averaged and wanted is None:
            _logger.warning("%s: took the averaged weights (EMA) and left the others beside it aside; see --ema", file)
        try:
            found = fit_part(part, config, shapes, tensors, ema=None if chosen else wanted)
        except WeightsError as error:
            raise WeightsError(f"cannot import {file} with --ema: {error}") from error
        if remarks and found.aside:
            _logger.warning("%s also holds %s, which were left aside", file, ", ".join(found.aside[:10]))
        if remarks and found.averages and part == "unet":
            taken, other = ("averaged weights (EMA)", "others") if found.averaged else ("weights", "averages (EMA)")
            _logger.warning("%s: took the %s of the UNet and left its %s aside; see --ema", file, taken, other)
        yield RenamedTensors(tensors, shapes, found.sources)


class RenamedTensors(Mapping[str, np.ndarray]):
    """The tensors of a file under our names.

    A 1x1 convolution and a linear map hold the same numbers, so axes of length 1 are added or removed at the end of a
    shape.

    Args:
      tensors: The file.
      shapes: The expected shapes by our names.
      sources: The names in the file by ours; a tensor that is none of ours has its own name.
    """

    def __init__(
        self,
        tensors: torch_weights.LazyStateDict | Pieces,
        shapes: Mapping[str, tuple[int, ...]],
        sources: Mapping[str, str],
    ) -> None:
        self._tensors, self._shapes, self._sources = tensors, shapes, dict(sources)

    def _fitted_shape(self, name: str, found: tuple[int, ...]) -> tuple[int, ...]:
        """Our shape where it differs by axes of length 1 at the end only, and otherwise the one that was found."""
        shape = self._shapes.get(name, ())
        longer, shorter = max(found, shape, key=len), min(found, shape, key=len)
        same = 0 < len(shorter) < len(longer) and longer == (*shorter, *[1] * (len(longer) - len(shorter)))
        return shape if same else found

    def found_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, which are not read for them."""
        return {name: self._fitted_shape(name, self._tensors.shape(source)) for name, source in self._sources.items()}

    def taken(self) -> str:
        """The place of our tensors in the file, and the name there of the first of them."""
        name = next((self._sources[name] for name in sorted(self._shapes) if name in self._sources), "")
        return f"{self._tensors.where}: {name}" if self._tensors.where else name

    def types(self) -> set[str]:
        """The types of our tensors in the file."""
        return {str(self._tensors.dtype(self._sources[name])) for name in self._shapes if name in self._sources}

    def __getitem__(self, name: str) -> np.ndarray:
        source = self._sources[name]
        array = self._tensors[source]
        array = array.reshape(self._fitted_shape(name, array.shape))
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise WeightsError(f"{source} holds NaN or infinity; there is no network to work with")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources
