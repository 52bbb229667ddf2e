"""A ceiling for the forget loss that follows from the data: what the network makes of forget images under other texts.

A network that was retrained without a concept never met its text. What it makes of the concept's images under that text
cannot be measured before there is such a network. But the original can be asked how well it predicts the noise of these
images under texts that do not name them, and a network that has forgotten what the text means has about that loss.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Key, ModelState, Params, PyTree, Scalar, StatefulLossFn
from scissorhands_jax.errors import check_whole

OTHER_PROMPTS = "other-prompts"
"""The name of this ceiling in settings."""


def other_prompts_ceiling(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    data: Data,
    key: Key,
    *,
    batch_size: int = 64,
    batches: int = 16,
) -> float:
    """The mean loss of forget images under the texts of retain images.

    Args:
      loss_fn: The noise loss. Equal ones share compiled code.
      params: The original's parameters.
      model_state: Its state.
      data: Both sets; the examples of each have `context`, of one shape.
      key: Decides the pairs of image and text, timesteps and noise.
      batch_size: The number of pairs in a batch.
      batches: The number of batches. The default takes 1,024 pairs, drawn with replacement.

    Returns:
      The ceiling, above 0.

    Raises:
      InputError: `batch_size` or `batches` is below 1, or no whole number.
    """
    batch_size, batches = data_lib.check_batch_size(batch_size), check_whole("batches", batches, 1)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    total = 0.0
    for number in range(batches):
        images, texts = (
            generator.integers(data_lib.size(part), size=batch_size) for part in (data.forget, data.retain)
        )
        batch = _under_other_texts(data, images, texts)
        total += float(_loss(loss_fn, params, model_state, batch, jax.random.fold_in(key, number)))
    return total / batches


def _under_other_texts(data: Data, images: np.ndarray, texts: np.ndarray) -> Mapping[str, PyTree]:
    forget = {name: values[images] for name, values in data.forget.items() if name != "pseudo"}
    return {**forget, "context": data.retain["context"][texts]}


@functools.partial(jax.jit, static_argnums=0)
def _loss(loss_fn: StatefulLossFn, params: Params, model_state: ModelState, batch: PyTree, key: Key) -> Scalar:
    return loss_fn(params, model_state, batch, train=False, key=key)[0]
