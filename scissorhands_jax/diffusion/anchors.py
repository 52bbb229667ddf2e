"""An anchor made of data: retain images under the forgotten text, so that a network knows what to draw for it.

Driving up the noise loss of a concept says what its text must not give and nothing else, and what comes out is noise.
Retain images that are also seen under that text say what it may give: something of what is kept, as a network
would draw for a text that it never met.
"""

from __future__ import annotations

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data
from scissorhands_jax.errors import InputError


def check_anchor(share: float, total: int | None = None) -> None:
    """Refuses a share that cannot be used.

    Args:
      share: The share of the retain examples.
      total: The number of these; None if it is not known.

    Raises:
      InputError: The share is below 0 or above 1, or so small that it is no example.
    """
    if not 0 <= share <= 1:
        raise InputError(f"anchor must be a share of the retain images, 0 to 1, got {share:g}")
    if total is not None and share > 0 and not round(share * total):
        raise InputError(f"an anchor of {share:g} of {total} retain images is none of them; raise it, or set anchor=0")


def anchored(data: Data, share: float, seed: int = 0) -> Data:
    """Data whose retain set holds a share of its examples a second time, with the texts of forget examples.

    Args:
      data: Both sets; the examples of each have `context`, of one shape.
      share: The share of the retain examples, 0 to 1; 0 leaves the data as they are.
      seed: The seed of which examples these are.

    Returns:
      The same data, where `round(share * N)` examples, drawn without replacement and with the texts of the forget
      examples in turn, follow the N retain examples.

    Raises:
      InputError: The share is out of its range, or so small that it is no example.
    """
    total = data_lib.size(data.retain)
    check_anchor(share, total)
    chosen = np.random.default_rng(seed).permutation(total)[: round(share * total)]
    if not chosen.size:
        return data
    turns = np.arange(chosen.size) % data_lib.size(data.forget)
    more = {name: np.asarray(values)[chosen] for name, values in data.retain.items()}
    more["context"] = np.asarray(data.forget["context"])[turns]
    return data._replace(retain={name: np.concatenate([data.retain[name], more[name]]) for name in more})
