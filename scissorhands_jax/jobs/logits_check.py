"""Compares what a network answers here with what it answered where it comes from, and looks for reasons.

The file of weights shows names and shapes. It does not show how images are normalised, in which order channels, inputs
and classes come, what is added to a variance, or how images are padded; each of these can be wrong without an error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import optimize, special

from scissorhands_jax import array_files, models, torch_weights, trees
from scissorhands_jax.base import Model, ModelState, Params
from scissorhands_jax.errors import InputError, listed
from scissorhands_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD

NORMALISATION = "normalisation"
SUSPECTS = "normalisation, channel order, flatten order, class order, BatchNorm epsilon, padding"
"""What can differ although all names and shapes fit."""

_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # Rounding alone makes about 1e-5 and 1e-2.
_OTHER_EPSILONS = (1e-3, 1e-4, 1e-6, 1e-8, 0.0)
_OUR_EPSILON = 1e-5
# Normalisations in use, by what they are known for. A lone number is for every channel.
_NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10, with the deviations of most repositories": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "CIFAR-100, rounded differently": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "MNIST": ((0.1307,), (0.3081,)),
    "images from -1 to 1": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
    "images from 0 to 255": ((0.0,), (1 / 255,)),
}


class RecordedAnswers(NamedTuple):
    """Images, and what a network answered to them.

    Attributes:
      images: shape=(N, H, W, C), float32, as the data set has them.
      outputs: Logits, or logarithms of probabilities where the file holds these or probabilities. shape=(N, classes)
      are_logits: Whether they are logits.
      is_normalized: Whether the images are not in [0, 1], so that they may have been normalised.
    """

    images: np.ndarray
    outputs: np.ndarray
    are_logits: bool
    is_normalized: bool


@dataclasses.dataclass(frozen=True)
class Suspect:
    """One thing that may differ.

    Attributes:
      kind: What it is about. Two of one kind are not tried together.
      what: What holds if it is the reason, and what to do.
      images: `images -> images`, which the network is given instead.
      state: `model_state -> model_state` in place of the network's.
      same_padding: Whether strided convolutions are padded as by TensorFlow.
      model: Another model of the same arrays.
    """

    kind: str
    what: str
    images: Callable[[np.ndarray], np.ndarray] = lambda images: images
    state: Callable[[ModelState], ModelState] = lambda state: state
    same_padding: bool = False
    model: Model | None = None


def read_answers(path: str, image_shape: tuple[int, ...], num_classes: int) -> RecordedAnswers:
    """Reads the file of a check.

    Args:
      path: A file of `torch.save` or `.safetensors` with tensors `input` and `output`, or an `.npz` file with such
        arrays.
      image_shape: The shape of an image of the data set, (H, W, C), or of a feature vector, (D,).
      num_classes: The number of outputs.

    Raises:
      InputError: The file cannot be read, or its arrays have other shapes.
    """
    try:
        if Path(path).suffix == ".npz":
            names = array_files.array_names(path)
            arrays = array_files.read_arrays(path, ("input", "output"))
        else:
            arrays = torch_weights.read_state_dict(path)
            names = list(arrays)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the check {path} cannot be read ({error}); write it with torch.save or numpy.savez"
        ) from error
    if not {"input", "output"} <= set(arrays):
        raise InputError(f"the check {path} has {', '.join(names) or 'nothing'}; give arrays input and output")
    images, outputs = np.asarray(arrays["input"]), np.asarray(arrays["output"], np.float64)
    first = (image_shape[-1], *image_shape[:-1])  # channels first
    if images.shape[1:] == first and images.shape[1:] != image_shape:
        images = np.moveaxis(images, 1, -1)
    elif images.ndim > 1 and images[0].size == math.prod(image_shape):
        images = images.reshape(-1, *image_shape)
    if images.shape[1:] != image_shape:
        of_images = f"images of shape {first} or {image_shape}"
        wanted = of_images if len(image_shape) == 3 else f"examples of shape {image_shape}"
        raise InputError(f"input in {path} has shape {arrays['input'].shape}; give {wanted}, as the data set has them")
    if num_classes == 1 and outputs.ndim == 1:
        outputs = outputs[:, None]
    if outputs.shape != (len(images), num_classes) or not len(images):
        raise InputError(
            f"output in {path} has shape {outputs.shape}; give the answers to {len(images)} inputs for each of "
            f"{num_classes} outputs"
        )
    images = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if not (np.all(np.isfinite(images)) and np.all(np.isfinite(outputs))):
        raise InputError(f"the check {path} holds NaN or infinity; write it again")
    are_logits = False
    if num_classes == 1:
        are_logits = True
    elif outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        outputs = _clipped(np.log(np.maximum(outputs, 1e-9)))
    elif np.allclose(special.logsumexp(outputs, axis=1), 0, atol=1e-3):
        outputs = _clipped(outputs)
    else:
        are_logits = True
    is_normalized = len(image_shape) == 3 and (images.min() < -1e-3 or images.max() > 1.001)
    return RecordedAnswers(images, outputs, are_logits, bool(is_normalized))


def check_answers(
    path: str,
    name: str,
    options: dict[str, Any],
    network: tuple[Model, Params, ModelState],
    shape: tuple[int, ...],
) -> str:
    """Compares the answers of a network with those in a file.

    They agree if they differ by less than a thousandth (in bfloat16 three hundredths) of the spread of the answers: of
    the largest distance between an answer and the mean answer to all images.

    Args:
      path: The file; see `read_answers`.
      name: The name of the network in the registry.
      options: Its options.
      network: The model and its weights.
      shape: The shape of an image of the data set, (H, W, C), or of a feature vector, (D,).

    Returns:
      A sentence that says that they agree, and how closely.

    Raises:
      InputError: They do not agree. The message says which suspects, alone or in pairs, make them agree.
    """
    model, params, model_state = network
    blank = jax.ShapeDtypeStruct((1, *shape), np.float32)
    num_classes = jax.eval_shape(lambda images: _logits(model, params, model_state, images, False), blank).shape[1]
    answers = read_answers(path, shape, num_classes)
    tolerance = _TOLERANCE.get(str(options.get("dtype", "float32")), 1e-3)
    trial = _Trial(network, answers, _own_normalization(name, options, model_state), tolerance)
    outputs = trial.outputs(())
    distance, count = trial.distance(outputs), f"{len(answers.images)} {'images' if len(shape) == 3 else 'examples'}"
    if trial.agrees(outputs):
        return f"the network answers the {count} of {path} as it did there, to {distance:.1e}"
    mean, std = trial.own
    undone = Suspect(NORMALISATION, "", images=lambda images: images * std + mean)
    if answers.is_normalized and trial.agrees(trial.outputs([undone])):
        return (
            f"the network answers the {count} of {path} as it did there, if they were normalised already, so "
            "that its mean and std were not compared; give images from 0 to 1 to compare these as well"
        )
    suspected = _suspects(name, options, network, answers.images.shape, num_classes, trial.own)
    found = trial.reasons(list(suspected) if len(shape) == 3 else [])
    head = f"the network answers the {count} of {path} otherwise than there (by {distance:.1g} of their spread)"
    if len(shape) != 3 and not found:
        raise InputError(
            f"{head}, in no order of its outputs; so compare the scaling and the order of the features, and the "
            "architecture layer by layer"
        )
    if found:
        raise InputError(f"{head}, and as there if {' and if '.join(found)}")
    raise InputError(
        f"{head}, and none of the usual suspects ({SUSPECTS}), alone or in pairs, is the reason; so compare the "
        "architecture layer by layer, above all pooling, activations and the order of layers"
    )


def _logits(model: Model, params: Params, model_state: ModelState, images: jax.Array, same_padding: bool) -> jax.Array:
    """The logits of a network, whose strided convolutions may be padded as by TensorFlow."""

    def padded(call, arguments, named, context):
        module = context.module
        if isinstance(module, nn.Conv) and context.method_name == "__call__" and np.max(module.strides or 1) > 1:
            own = module.padding
            object.__setattr__(module, "padding", "SAME")  # Modules refuse to be changed after they were made.
            try:
                return call(*arguments, **named)
            finally:
                object.__setattr__(module, "padding", own)
        return call(*arguments, **named)

    if not same_padding:
        return model.apply(params, model_state, images, train=False)[0]
    with nn.intercept_methods(padded):
        return model.apply(params, model_state, images, train=False)[0]


class _Trial:
    """A network whose answers are compared with those in a file."""

    def __init__(
        self,
        network: tuple[Model, Params, ModelState],
        answers: RecordedAnswers,
        own: tuple[np.ndarray, np.ndarray],
        tolerance: float,
    ) -> None:
        self.model, self.params, self.model_state = network
        self.answers = answers
        self.own = own  # the network's mean and std
        self.tolerance = tolerance
        self._compiled: dict[tuple[int, bool], Callable[..., jax.Array]] = {}

    def outputs(self, suspects: Sequence[Suspect]) -> np.ndarray:
        """The answers if all suspects are right, in the form of those in the file."""
        images, state, model = self.answers.images, self.model_state, self.model
        # A normalisation is for channels that are in their order already.
        for suspect in sorted(suspects, key=lambda suspect: suspect.kind == NORMALISATION):
            images, state, model = suspect.images(images), suspect.state(state), suspect.model or model
        same_padding = any(suspect.same_padding for suspect in suspects)
        if (compiled := self._compiled.get((id(model), same_padding))) is None:
            compiled = jax.jit(functools.partial(_logits, model, same_padding=same_padding))
            self._compiled[id(model), same_padding] = compiled
        logits = np.asarray(compiled(self.params, state, jnp.asarray(images)), np.float64)
        return logits if self.answers.are_logits else _clipped(special.log_softmax(logits, axis=1))

    def distance(self, outputs: np.ndarray) -> float:
        """The largest difference from the answers in the file, as a share of what images make of them."""
        expected = self.answers.outputs
        by_images = np.abs(expected - expected.mean(axis=0)).max()
        return float(np.abs(outputs - expected).max() / max(by_images, 0.01 * np.abs(expected).max(), 1e-6))

    def agrees(self, outputs: np.ndarray) -> bool:
        """Whether answers are those in the file, to rounding."""
        return self.distance(outputs) <= self.tolerance

    def reasons(self, suspects: Sequence[Suspect]) -> list[str]:
        """What the suspects say that make the answers agree: the fewest, two at most."""
        for chosen in ((), *((one,) for one in suspects), *_pairs(suspects)):
            outputs = self.outputs(chosen)
            found = [suspect.what for suspect in chosen]
            if self.agrees(outputs):
                return found
            if len(chosen) < 2 and (order := self._order_of_classes(outputs)) is not None:
                return [*found, order]
        return []

    def _order_of_classes(self, outputs: np.ndarray) -> str | None:
        """In which order of classes answers agree; None if in none."""
        apart = np.abs(outputs[:, :, None] - self.answers.outputs[:, None, :]).max(axis=0)
        order = optimize.linear_sum_assignment(apart.T)[1]
        if not self.agrees(outputs[:, order]):
            return None
        moved = [f"{there} is {here}" for there, here in enumerate(order.tolist()) if there != here]
        return (
            f"classes come in the order that they have there (there class {listed(moved, shown=5)} here): give the "
            "labels of the data set in that order"
        )


def _clipped(logarithms: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, of which float32 does not hold the smallest."""
    return np.maximum(logarithms, np.log(1e-6))


def _pairs(suspects: Sequence[Suspect]) -> Iterator[tuple[Suspect, Suspect]]:
    for index, first in enumerate(suspects):
        yield from ((first, second) for second in suspects[index + 1 :] if second.kind != first.kind)


def _own_normalization(name: str, options: dict[str, Any], model_state: ModelState) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation that a network applies to images."""
    stored = model_state.get("constants", {}).get("normalize") if isinstance(model_state, dict) else None
    known = models.default_options(name) | options
    if stored is not None and known.get("normalize") == "stored":
        return np.asarray(stored["mean"]), np.asarray(stored["std"])
    if known.get("normalize") == "fixed":
        return np.asarray(known["mean"], np.float32), np.asarray(known["std"], np.float32)
    return np.zeros(1, np.float32), np.ones(1, np.float32)


def _suspects(
    name: str,
    options: dict[str, Any],
    network: tuple[Model, Params, ModelState],
    shape: tuple[int, ...],
    num_classes: int,
    own: tuple[np.ndarray, np.ndarray],
) -> Iterator[Suspect]:
    """Everything that is suspected of a network for images of a shape (N, H, W, C)."""
    _, params, model_state = network
    known = models.default_options(name)
    _, height, width, channels = shape
    for what, (mean, std) in _NORMALIZATIONS.items():
        if len(mean) not in (1, channels):
            continue
        yield Suspect(
            NORMALISATION,
            _normalization_advice(what, mean * (channels // len(mean)), std * (channels // len(std)), known),
            images=_renormalizing(mean, std, own),
        )
    if channels > 1:
        yield Suspect(
            "channel order",
            "channels come in the reverse order, BGR for RGB: reverse the images' last axis, as with image[..., ::-1]",
            images=lambda images: images[..., ::-1],
        )
        if not trees.has_image_kernels(params):
            yield Suspect(
                "flatten order",
                "images are flattened channels first: convert the weights in your own code, with flatten=",
                images=lambda images: images.transpose(0, 3, 1, 2).reshape(images.shape),
            )
    if height == width:
        yield Suspect(
            "rows and columns",
            "rows and columns are exchanged: transpose the images, as with image.swapaxes(1, 2)",
            images=lambda images: images.swapaxes(1, 2),
        )
    if isinstance(model_state, dict) and "batch_stats" in model_state:
        for epsilon in _OTHER_EPSILONS:
            yield Suspect(
                "BatchNorm epsilon",
                f"BatchNorm adds {epsilon:g} to variances and not {_OUR_EPSILON:g}: add {epsilon - _OUR_EPSILON:g} to "
                "every running_var in the file, which comes to the same",
                state=_with_added_variance(epsilon - _OUR_EPSILON),
            )
    if trees.has_image_kernels(params):
        yield Suspect(
            "padding",
            "strided convolutions are padded as in TensorFlow (SAME) and not evenly, which no network of the registry "
            "does: write the network yourself and use it in your own code",
            same_padding=True,
        )
    for option, values in (("last_pool", ("average", "max")), ("normalize", ("stored", "stored_unused"))):
        current = (known | options).get(option)
        for value in values:
            if current in values and value != current:
                changed = {**options, option: value}
                other = models.build(name, num_classes=num_classes, image_shape=shape[1:], **changed)
                yield Suspect(option, f"model_options.{option}={value} is added", model=other)


def _normalization_advice(what: str, mean: tuple[float, ...], std: tuple[float, ...], known: dict[str, Any]) -> str:
    if "normalize" not in known:
        return f"images are normalised ({what}: mean {_listed(mean)}, std {_listed(std)}): give the network such images"
    return (
        f"images are normalised in another way ({what}): add model_options.normalize=fixed "
        f"model_options.mean={_listed(mean)} model_options.std={_listed(std)}"
    )


def _listed(numbers: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{number:.6g}" for number in numbers) + "]"


def _renormalizing(
    mean: tuple[float, ...], std: tuple[float, ...], own: tuple[np.ndarray, np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Images for which the network's own normalisation has the result of another one."""

    def change(images: np.ndarray) -> np.ndarray:
        wanted = (images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        return (wanted * own[1] + own[0]).astype(np.float32)

    return change


def _with_added_variance(amount: float) -> Callable[[ModelState], ModelState]:
    def change(model_state: ModelState) -> ModelState:
        def add(path, leaf):
            return leaf + amount if trees.path_name(path).endswith("/var") else leaf

        return jax.tree_util.tree_map_with_path(add, model_state)

    return change
