"""Replays of networks alone: structure, logits, losses and gradient norms."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scissorhands_jax import trees
from scissorhands_jax.base import Model, ModelState, Params
from scissorhands_jax.losses import cross_entropy
from scissorhands_jax.models import MODELS, from_linen
from scissorhands_jax.models.layers import BatchNorm
from scissorhands_jax.models.resnet import ResNet
from scissorhands_jax.models.vgg import VGG
from scissorhands_jax.torch_weights.state_dicts import from_state_dict, to_state_dict
from tests.parity.checks import (
    EACH_GRADIENT_NORM,
    GRADIENT_NORMS,
    LOGITS,
    LOSSES,
    ZERO_GRADIENTS,
    Check,
    absolute,
    exact,
    holds,
    relative,
)
from tests.parity.traces import MalformedError, Trace

WORDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "mean", "std")  # in torch's order
Shapes = dict[str, tuple[int, ...]]


class Entry(NamedTuple):
    """One tensor of a state dict."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameter: bool


def module_for(shapes: Shapes, *, mean: tuple[float, ...], std: tuple[float, ...], normalized: bool) -> nn.Module:
    """The network whose state dict has these names and shapes: a VGG if it has `features`, else a ResNet."""
    normalize = ("stored" if normalized else "stored_unused") if "normalize.mean" in shapes else "off"
    inputs = {"mean": tuple(mean), "std": tuple(std), "normalize": normalize}
    if "features.0.weight" in shapes:
        return VGG(shapes["classifier.weight"][0], **inputs)
    stages = [int(stage) for stage in re.findall(r"^layer(\d+)\.0\.conv1\.weight$", "\n".join(shapes), re.MULTILINE)]
    blocks = re.compile(r"^layer(\d+)\.\d+\.conv1\.weight$")
    stage_of = [int(match[1]) for match in map(blocks.match, shapes) if match]
    return ResNet(
        shapes["fc.weight"][0],
        stage_sizes=tuple(stage_of.count(stage) for stage in stages),
        widths=tuple(shapes[f"layer{stage}.0.conv1.weight"][0] for stage in stages),
        stem="imagenet" if shapes["conv1.weight"][-1] == 7 else "cifar",
        **inputs,
    )


@functools.cache
def outline_of(module: nn.Module) -> tuple[Params, ModelState]:
    """Shapes and types of a network's parameters and state, for images of 32x32 pixels."""
    return jax.eval_shape(from_linen(module, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)).init, jax.random.key(0))


@functools.cache
def structure(module: nn.Module) -> tuple[Entry, ...]:
    """The tensors that the library exports for a network, in PyTorch's order: modules as called, words as in WORDS."""
    called: list[str] = []

    def remember(call, args, kwargs, context):
        called.append(".".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(remember):
        outline = outline_of.__wrapped__(module)
    params, model_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), outline)
    parameters = set(to_state_dict(params, {}))

    def position(name: str) -> tuple[int, int]:
        path, _, word = name.rpartition(".")
        return called.index(path), WORDS.index(word)

    tensors = to_state_dict(params, model_state)
    return tuple(
        Entry(name, tensors[name].shape, str(tensors[name].dtype), name in parameters)
        for name in sorted(tensors, key=position)
    )


def entries_like(module: nn.Module, recorded: list[str]) -> list[Entry]:
    """`structure`, with the normalisation where the record has it: first or last, as its authors registered it."""
    entries = structure(module)
    inputs = [entry for entry in entries if entry.name.startswith("normalize.")]
    others = [entry for entry in entries if not entry.name.startswith("normalize.")]
    return inputs + others if recorded[:1] == [entry.name for entry in inputs][:1] else others + inputs


def torch_name(leaf: str) -> str:
    """The PyTorch name of a parameter: `layer1/0/conv1/kernel` is `layer1.0.conv1.weight`."""
    path, _, word = leaf.replace("/", ".").rpartition(".")
    return f"{path}.{'bias' if word == 'bias' else 'weight'}"


def chosen_names(params: Params, pattern: str, order: list[str], *, without_bn: bool) -> list[str]:
    """Names of the parameters that a layer pattern selects, in a given order.

    `without_bn` drops what lies in modules named `bn...`, as the authors' trimming does; that leaves the
    normalisation inside `downsample` selected.
    """
    selection = trees.select(params, pattern)
    names = {
        torch_name(name)
        for name, chosen in zip(trees.leaf_names(params), jax.tree.leaves(selection), strict=True)
        if chosen and not (without_bn and any(part.startswith("bn") for part in name.split("/")))
    }
    return [name for name in order if name in names]


def load(module: nn.Module, tensors: dict[str, np.ndarray], images: np.ndarray) -> tuple[Model, Params, ModelState]:
    """A model and its weights from a state dict."""
    model = from_linen(module, images)
    params, model_state = from_state_dict(tensors, *jax.eval_shape(model.init, jax.random.key(0)))
    return model, params, model_state


def as_images(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) to (N, H, W, C)."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnames=("module", "train"))
def forward(module: nn.Module, params: Params, model_state: ModelState, images: jax.Array, train: bool) -> jax.Array:
    """Logits."""
    return from_linen(module, images).apply(params, model_state, images, train=train)[0]


@functools.partial(jax.jit, static_argnames=("module", "train"))
def evaluate(
    module: nn.Module, params: Params, model_state: ModelState, images: jax.Array, labels: jax.Array, train: bool
) -> tuple[jax.Array, jax.Array, Params]:
    """Cross-entropy, logits and the gradient norm of every parameter, in one pass."""

    def loss(params):
        logits, _ = from_linen(module, images).apply(params, model_state, images, train=train)
        return cross_entropy(logits, labels), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, jax.tree.map(trees.norm, gradients)


_known: dict[tuple[str, ...], tuple[float, np.ndarray, dict[str, float]]] = {}


def _evaluated(
    module: nn.Module, params: Params, model_state: ModelState, images: jax.Array, labels: np.ndarray, mode: str
) -> tuple[float, np.ndarray, dict[str, float]]:
    """`evaluate` with norms by PyTorch's names; what was computed of the same arrays in this process is known."""
    given = jax.tree.map(np.asarray, (params, model_state, images, labels))
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(given)))
    key = (repr(module), str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), given)), digest.hexdigest(), mode)
    if key not in _known:
        value, logits, norms = evaluate(module, params, model_state, images, labels, train=mode == "train")
        leaves = zip(trees.leaf_names(norms), jax.tree.leaves(norms), strict=True)
        _known[key] = float(value), np.asarray(logits), {torch_name(name): float(norm) for name, norm in leaves}
    return _known[key]


def replay_inputs(trace: Trace) -> list[Check]:
    """Images are multiples of 1/255 in [0, 1]; the index sets are valid and disjoint; labels are classes."""
    x, y = trace.arrays["x"], trace.arrays["y"]
    sets = [trace.arrays[key] for key in trace.arrays if key.startswith("idx_")]
    positions = np.concatenate(sets) if sets else np.zeros(0, np.int64)
    levels = np.clip(np.round(x * np.float32(255)), 0, 255)
    return [
        exact("x in steps of 1/255", x, (levels / 255).astype(np.float32)),
        exact("labels per image", y.shape, x.shape[:1]),
        holds("labels are classes", bool(np.issubdtype(y.dtype, np.integer) and y.min() >= 0)),
        exact("index sets overlap", len(np.unique(positions)), len(positions)),
        holds("index sets lie in x", bool(np.all((positions >= 0) & (positions < len(x))))),
    ]


def replay_network(trace: Trace) -> list[Check]:
    """A small trained ResNet: structure, layer choices, logits in both modes, accuracies."""
    meta, tensors = trace.meta, trace.state("sd")
    inputs = trace.inputs().arrays
    module = module_for(
        {name: tensor.shape for name, tensor in tensors.items()},
        mean=tuple(map(float, tensors["normalize.mean"])),
        std=tuple(map(float, tensors["normalize.std"])),
        normalized=True,
    )
    images, labels = as_images(inputs["x"]), inputs["y"]
    _, params, model_state = load(module, tensors, images)

    entries = entries_like(module, list(tensors))
    order = [entry.name for entry in entries if entry.parameter]
    buffers = [entry.name for entry in entries if not entry.parameter]
    exported = to_state_dict(params, model_state)
    checks = [
        exact("state", [(entry.name, entry.shape, entry.dtype) for entry in entries], _listing(tensors)),
        exact("exported", _digest(exported, list(tensors)), _digest(tensors, list(tensors))),
        exact("params", trees.count_weights(params), meta["params"]),
        exact("param_order", order, meta["param_order"]),
        exact("buffers", buffers, meta["buffers"]),
        exact("param_shapes", {e.name: list(e.shape) for e in entries if e.parameter}, meta["param_shapes"].plain()),
        exact(
            "bn",
            {"momentum": BatchNorm.momentum, "eps": BatchNorm.eps, "running_var": "unbiased batch variance"},
            meta["bn"].plain(),
        ),
        exact("widths", _numbers(meta["arch"], "widths"), list(module.widths)),
        exact("strides", _numbers(meta["arch"], "strides"), [1, *[2] * (len(module.widths) - 1)]),
    ]
    for key in meta:
        for rule, without_bn in (("trim_eligible_", True), ("projected_", False)):
            if key.startswith(rule):
                pattern = key.removeprefix(rule).replace("_", "|")
                checks.append(exact(key, chosen_names(params, pattern, order, without_bn=without_bn), meta[key]))

    counts = {int(tensor) for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    checks.append(exact("different batch counters", len(counts), 1))
    logits = np.asarray(forward(module, params, model_state, images, train=False))
    checks.append(relative("logits_eval", logits, trace.arrays["logits_eval"], LOGITS))
    for key in [key for key in trace.arrays if key.startswith("logits_train_first")]:
        first = images[: int(key.removeprefix("logits_train_first"))]
        got = forward(module, params, model_state, first, train=True)
        checks.append(relative(key, got, trace.arrays[key], LOGITS))
    for group, accuracy in meta["accuracy_eval"].plain().items():
        chosen = inputs[f"idx_{group}"]
        checks.append(exact(f"accuracy_{group}", np.mean(logits[chosen].argmax(1) == labels[chosen]), accuracy))
    trace.accept("train_accuracy_full", "of a training set that is not in the folder")
    checks.append(holds("train_accuracy_full", 0 <= meta["train_accuracy_full"] <= 1))
    return checks


def replay_real_network(trace: Trace) -> list[Check]:
    """A full-size network with weights from a recipe: structure, logits, losses, gradient norms in both modes."""
    meta, arrays = trace.meta, trace.arrays
    shapes = {name: tuple(shape) for name, shape in meta["state_order"]}
    normalisation = meta["normalisation"].plain()
    tensors = trace.state("sd") if "recipe_seed" not in meta else recipe(meta["recipe_seed"], shapes, normalisation)
    module = module_for(shapes, **normalisation, normalized=meta["normalisation_used_in_forward"])
    images, labels = as_images(arrays["x"]), arrays["y"]
    _, params, model_state = load(module, tensors, images)

    entries = entries_like(module, list(shapes))
    order = [entry.name for entry in entries if entry.parameter]
    checks = [
        exact("state_order", [[entry.name, list(entry.shape)] for entry in entries], meta["state_order"]),
        exact("param_order", order, meta["param_order"]),
        exact("params", trees.count_weights(params), meta["params"]),
        exact("weights_sha256", _digest(to_state_dict(params, model_state), list(shapes)), meta["weights_sha256"]),
    ]
    for mode in ("eval", "train"):
        # Both modes have the same convolutions, so those for CPUs, which take long to compile, are seen in one of them.
        with mock.patch.dict(os.environ, {"SCISSORHANDS_CPU_CONVOLUTION": "off"} if mode == "eval" else {}):
            value, logits, got = _evaluated(module, params, model_state, images, labels, mode)
        recorded = dict(zip(meta["param_order"], map(float, arrays[f"gradnorm_{mode}"]), strict=True))
        recorded_ce = float(arrays[f"ce_{mode}"])
        checks += [
            relative(f"logits_{mode}", logits, arrays[f"logits_{mode}"], LOGITS),
            # One float32 step of a loss in the thousands is 5e-4, so the absolute limit grows with the loss.
            absolute(f"ce_{mode}", value, recorded_ce, LOSSES * max(1.0, abs(recorded_ce))),
            exact(f"gradnorm_{mode} names", sorted(got), sorted(recorded)),
            relative(
                f"gradnorm_{mode}", [got[name] for name in order], [recorded[name] for name in order], GRADIENT_NORMS
            ),
        ]
        # The batch's own mean removes what a bias in front of BatchNorm adds, so both sides hold rounding noise there.
        zero = _biases_of_convolutions(shapes) if mode == "train" else set()
        for name in order:
            check = f"gradnorm_{mode}/{name}"
            if name in zero:
                limit = ZERO_GRADIENTS * recorded[f"{name.removesuffix('bias')}weight"]
                checks.append(absolute(check, max(got[name], recorded[name]), 0.0, limit))
            else:
                checks.append(relative(check, got[name], recorded[name], EACH_GRADIENT_NORM))
    return checks


def replay_structure(trace: Trace) -> list[Check]:
    """Names, shapes, dtypes and counts of the registry's networks, and what the authors' trimming rule selects."""
    checks = []
    for label, recorded in trace.meta["networks"].plain().items():
        match = re.match(r"(\w+).*\((\d+) classes\)$", label)
        if not match:
            raise MalformedError(f"{label!r} does not say which network it is and how many classes it has")
        name = {"vgg16_bn_lth": "vgg16_bn"}.get(match[1], match[1])
        if name not in MODELS:
            raise MalformedError(f"{label!r} is not in the registry of networks")
        module = MODELS[name](num_classes=int(match[2]))
        names = [entry["name"] for entry in recorded["entries"]]
        entries = entries_like(module, names)
        order = [entry.name for entry in entries if entry.parameter]
        listed = [{**entry._asdict(), "shape": list(entry.shape)} for entry in entries]
        outline, _ = outline_of(module)
        checks += [
            exact(f"{label} entries", listed, recorded.pop("entries")),
            exact(f"{label} n_tensors", len(entries), recorded.pop("n_tensors")),
            exact(f"{label} params", trees.count_weights(outline), recorded.pop("params")),
            exact(f"{label} unknown settings", recorded, {}),
        ]
        for pattern, eligible in trace.meta["trim_eligible"][label].plain().items():
            if not any(re.match(pattern, name) for name in order):
                checks.append(exact(f"{label} {pattern}", [], eligible))
            else:
                checks.append(
                    exact(f"{label} {pattern}", chosen_names(outline, pattern, order, without_bn=True), eligible)
                )
    return checks


def recipe(seed: int, shapes: Shapes, constants: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Weights that NumPy alone makes: tensor i draws from RandomState(1000 * seed + i)."""
    tensors = {}
    for position, (name, shape) in enumerate(shapes.items()):
        random = np.random.RandomState(1000 * seed + position)
        word = name.rpartition(".")[2]
        if name.startswith("normalize."):
            tensor = np.asarray(constants[word], np.float64)
        elif word == "num_batches_tracked":
            tensors[name] = np.zeros(shape, np.int64)
            continue
        elif word == "running_var":
            tensor = 0.5 + random.random_sample(shape)
        elif word == "running_mean":
            tensor = 0.1 * random.standard_normal(shape)
        elif len(shape) >= 2:
            tensor = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif word == "weight":
            tensor = 0.5 + random.random_sample(shape)
        else:
            tensor = 0.1 * random.standard_normal(shape)
        tensors[name] = tensor.astype(np.float32)
    return tensors


def _biases_of_convolutions(shapes: Shapes) -> set[str]:
    biases = {f"{name.removesuffix('weight')}bias" for name, shape in shapes.items() if len(shape) == 4}
    return biases & shapes.keys()


def _digest(tensors: dict[str, np.ndarray], order: list[str]) -> str:
    """SHA-256 over names and little-endian bytes."""
    digest = hashlib.sha256()
    for name in order:
        tensor = np.asarray(tensors[name])
        digest.update(name.encode())
        digest.update(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _listing(tensors: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(name, tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()]


def _numbers(text: str, word: str) -> list[int]:
    """The numbers behind a word of a description: `widths 8,16`."""
    match = re.search(rf"{word} (\d+(?:,\d+)*)", text)
    return [int(number) for number in match[1].split(",")] if match else []
