"""Grad-CAM: the regions of an image that speak for a class (Selvaraju et al., ICCV 2017).

Networks need no change. Calls of Flax layers are intercepted: the output of a layer is read, and zeros are added to it,
with respect to which the logit is differentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import ApplyFn, Model, ModelState, Params
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.models import CAM_LAYERS

Replace = Callable[[str, Any], Any]  # (path of a submodule, its output) -> the output that replaces it


def default_layer(name: str) -> str:
    """Returns the layer that Grad-CAM reads in a network of the registry: the last stage of convolutions.

    Args:
      name: A key of `models.MODELS`.

    Raises:
      InputError: The network has no convolution, or there is no such network.

    >>> default_layer("resnet20")
    'layer3'
    """
    if name not in CAM_LAYERS:
        raise InputError(f"there is no network {name!r}; {suggest(name, CAM_LAYERS)}")
    layer = CAM_LAYERS[name]
    if layer is None:
        raise InputError(f"{name} has no convolution, so Grad-CAM has no map to show; choose another network")
    return layer


def heatmaps(
    model: Model, params: Params, model_state: ModelState, images: chex.Array, labels: chex.Array, *, layer: str
) -> np.ndarray:
    """Computes Grad-CAM heat maps of a network in evaluation mode.

    With `A` the output of `layer`, of shape (h, w, K), and `y_c` the logit of class `c`, it is

      map = max(0, sum_k a_k A_k),   a_k = mean over h and w of the derivative of y_c with respect to A_k,

    enlarged to the size of the image by bilinear interpolation and divided by its maximum. So a map shows where, but
    not how much. If no region speaks for the class, it is zero everywhere. Multiplying all logits by a positive factor,
    or adding a constant to them, does not change it.

    Args:
      model: A network made of a linen module, by `models.build` or `from_linen`.
      params: The parameters of the network.
      model_state: BatchNorm statistics and the like, which are read and never changed.
      images: The images as the network takes them. All go through the network at once. shape=(N, H, W, C)
      labels: The classes `c`, integers: the true ones, or whichever are to be explained. shape=(N,)
      layer: The path of a submodule with an output of shape (N, h, w, K), such as `layer3` or `layer3/0/conv2`; see
        `default_layer`.

    Returns:
      One map for each image, in [0, 1]. shape=(N, H, W), dtype=float32

    Raises:
      InputError: JAX cannot take the arrays (`data.check_numbers`), the network has no such layer or calls it more than
        once, its output is not an image, shapes or labels do not fit, or the network's numbers are not finite.
    """
    data_lib.check_numbers(images, "the array of images")
    data_lib.check_not_masked(labels, "the labels")
    images, labels = jnp.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.shape[0] == 0 or labels.shape != images.shape[:1]:
        raise InputError(
            f"images have shape {images.shape} and labels {labels.shape}; give (N, H, W, C) and (N,) with N > 0"
        )
    logits, output = _shapes(model, params, model_state, images, layer)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"labels must be integers in 0..{logits.shape[1] - 1}, got {labels.dtype} in {labels.min()}..{labels.max()}"
        )
    zeros = jnp.zeros(output.shape, output.dtype)
    maps = np.asarray(_compiled(model.apply, layer)(params, model_state, images, jnp.asarray(labels, jnp.int32), zeros))
    if not np.isfinite(maps).all():
        raise InputError("the heat maps hold NaN or infinity; the network has diverged, so use an earlier one")
    top = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, top, out=np.zeros_like(maps), where=top > 0)


def _shapes(
    model: Model, params: Params, model_state: ModelState, images: jax.Array, layer: str
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of the logits and of the layer's output, without computing anything."""
    outputs: dict[str, list[Any]] = {}

    def record(path, output):
        outputs.setdefault(path, []).append(output)
        return output

    logits = jax.eval_shape(functools.partial(_forward, model.apply, record), params, model_state, images)
    usable = [path for path, found in outputs.items() if [np.ndim(output) for output in found] == [4]]
    if layer in usable:
        (output,) = outputs[layer]
        return logits, jax.ShapeDtypeStruct(output.shape, output.dtype)
    choice = f"choose one of {', '.join(usable)}" if usable else "it has no layer that Grad-CAM could read"
    if layer not in outputs:
        raise InputError(f"the network has no linen layer {layer!r}; {choice}")
    if len(outputs[layer]) > 1:
        raise InputError(f"the network calls the layer {layer!r} {len(outputs[layer])} times; {choice}")
    shape = getattr(outputs[layer][0], "shape", type(outputs[layer][0]).__name__)
    raise InputError(f"the layer {layer!r} gives {shape}, not (N, h, w, K); {choice}")


def _forward(apply: ApplyFn, replace: Replace, params: Params, model_state: ModelState, images: jax.Array) -> jax.Array:
    """Computes the logits, with `replace` applied to the output of every submodule."""

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name != "__call__":
            return output
        return replace("/".join(context.module.path), output)

    with nn.intercept_methods(intercept):
        logits, _ = apply(params, model_state, images, train=False)
    return logits


@functools.lru_cache(maxsize=32)
def _compiled(apply: ApplyFn, layer: str) -> Callable[..., jax.Array]:
    """Returns one compiled function per model and layer: jit keeps compiled code with the function that it returns."""

    @jax.jit
    def maps(params, model_state, images, labels, zeros):
        def score(added):
            activations = []

            def add(path, output):
                if path != layer:
                    return output
                activations.append(output + added)
                return activations[-1]

            logits = _forward(apply, add, params, model_state, images)
            # In evaluation mode the logits of an example do not depend on the activations of others, so the gradient of
            # the sum holds the gradient of each example.
            chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
            return jnp.sum(chosen.astype(jnp.float32)), activations[0]

        gradient, activation = jax.grad(score, has_aux=True)(zeros)
        weights = jnp.mean(gradient.astype(jnp.float32), axis=(1, 2), keepdims=True)
        cam = jax.nn.relu(jnp.sum(weights * activation.astype(jnp.float32), axis=-1))
        return jax.image.resize(cam, images.shape[:3], "linear")

    return maps
