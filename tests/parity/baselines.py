"""Replays of the baselines: each recorded batch through the library's own step."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import optax

from scissorhands_jax import saliency, trees
from scissorhands_jax.base import Batch, Carry, Data, Method, PyTree
from scissorhands_jax.losses import cross_entropy
from scissorhands_jax.methods import (
    boundary_expand,
    boundary_shrink,
    finetune,
    gradient_ascent,
    influence,
    l1_sparse,
    salun,
)
from scissorhands_jax.methods.boundary_shrink import adversarial_images, boundary_labels
from scissorhands_jax.methods.influence import published_recursion, removal_gradients
from scissorhands_jax.methods.salun import salun_mask
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.torch_weights.state_dicts import to_state_dict
from tests.parity.checks import (
    GRADIENTS,
    INFLUENCE,
    INFLUENCED_WEIGHTS,
    LOSSES,
    MASK_MISMATCHES,
    PIXELS,
    WEIGHTS,
    ZERO_GRADIENTS,
    Check,
    absolute,
    exact,
    mismatches,
    relative,
    states,
)
from tests.parity.method import Setting, mask_checks, our_layout, setting_of
from tests.parity.networks import as_images
from tests.parity.traces import MalformedError, Record, Trace


def replay_baseline(trace: Trace) -> list[Check]:
    """Replays the baseline that the trace names."""
    name = trace.meta["method"]
    for beginning, replay in _REPLAYS.items():
        if name.startswith(beginning):
            return replay(trace)
    raise MalformedError(f"nothing replays the method {name!r}")


def _finetune(trace: Trace) -> list[Check]:
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    return _run(trace, setting, finetune(setting.loss_fn, _optimizer(hyper), batch_size=hyper["batch_size"]), "retain")


def _gradient_ascent(trace: Trace) -> list[Check]:
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    method = gradient_ascent(setting.loss_fn, _optimizer(hyper), batch_size=hyper["batch_size"])
    return _run(trace, setting, method, "forget")


def _l1_sparse(trace: Trace) -> list[Check]:
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    method = l1_sparse(
        setting.loss_fn,
        _optimizer(hyper),
        penalty=hyper["alpha"],
        num_epochs=hyper["epochs"],
        unpenalized_epochs=hyper["no_l1_epochs"],
        batch_size=hyper["batch_size"],
    )
    penalized = hyper["epochs"] - hyper["no_l1_epochs"]
    weights = [hyper["alpha"] * max(0.0, 1 - epoch / penalized) for epoch in range(hyper["epochs"])]
    zeros = sum(int(np.sum(t == 0)) for name, t in trace.state("sd_last").items() if name in setting.order)
    return [
        relative("alpha_per_epoch", weights, trace.arrays["alpha_per_epoch"], 1e-12),
        exact("n_exact_zero_weights_after", zeros, trace.meta["n_exact_zero_weights_after"]),
        *_run(trace, setting, method, "retain"),
    ]


def _salun_mask(trace: Trace) -> list[Check]:
    meta, setting = trace.meta, setting_of(trace)
    batches = [setting.batch(positions) for positions in trace.batches("batch")]
    sums = saliency.gradient_sum(setting.loss_fn, setting.params, setting.model_state, batches, weighted=False)
    gradient = jax.tree.map(abs, sums.gradient)
    named = setting.named(gradient)
    flat = np.sort(setting.flat(gradient, setting.order))[::-1]
    checks = [
        *states("absgrad", named, trace.state("absgrad"), GRADIENTS),
        exact("n_total", flat.size, meta["n_total"]),
        exact("n_exact_zero", int(np.sum(flat == 0)), meta["n_exact_zero"]),
        exact("bn_mode", meta["bn_mode"].split()[0], "eval"),
        exact("mask_dtype", "0/1" in meta["mask_dtype"], True),
    ]
    for ratio, cut in meta["cut"].items():
        mask = salun_mask(setting.loss_fn, setting.params, setting.model_state, batches, float(ratio), mode="authors")
        recorded = {name: value.astype(bool) for name, value in trace.state(f"mask_{ratio}").items()}
        k = int(float(ratio) * flat.size)
        checks += [
            exact(f"k {ratio}", k, cut["k"]),
            relative(f"kth {ratio}", flat[k - 1], cut["kth"], GRADIENTS),
            relative(f"next {ratio}", flat[k], cut["next"], GRADIENTS),
            exact(f"n_selected {ratio}", sum(int(m.sum()) for m in recorded.values()), cut["n_selected"]),
            *mask_checks(f"mask_{ratio}", setting.named(mask), recorded, named, cut["kth"]),
        ]
    return checks


def _random_label(trace: Trace) -> list[Check]:
    """In the order that is recorded; both have the published code's mask, which masks gradients."""
    return _sequential_labels(trace) if "forget_idx" in trace.arrays else _mixed_labels(trace)


def _mixed_labels(trace: Trace) -> list[Check]:
    """The recorded labels are handed in with the examples, so one kind of batch serves the mixed ones."""
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    forget = trace.inputs().arrays["idx_forget"]
    labels = trace.arrays["batch_label"]
    positions = trace.arrays["batch_idx"]
    mask_trace = trace.folder.trace("06_salun_mask")
    ratio = _ratio(trace)
    named_mask = {name: value.astype(bool) for name, value in mask_trace.state(f"mask_{ratio}").items()}
    method = salun(
        setting.loss_fn,
        _optimizer(hyper),
        num_classes=int(labels.max()) + 1,
        fraction=float(ratio),
        mode="authors",
        batch_size=hyper["batch_size"],
    )
    mask = _as_ours(setting, named_mask)
    start, last = setting.named(setting.params), trace.state("sd_last")
    moved = max(float(np.max(np.abs(last[name] - start[name])[~mask], initial=0)) for name, mask in named_mask.items())
    of_forget = np.isin(positions, forget)
    same = float(np.mean(labels[of_forget] == setting.labels[positions[of_forget]]))
    return [
        exact("retain labels", labels[~of_forget], setting.labels[positions[~of_forget]]),
        relative("frac_random_label_equals_true", same, trace.meta["frac_random_label_equals_true"], 1e-12),
        relative("max_change_of_masked_out_entries", moved, trace.meta["max_change_of_masked_out_entries"], 1e-6),
        *_run(
            trace,
            setting,
            method,
            "retain",
            labels=labels,
            prepare=lambda carry: carry._replace(aux=mask),
            compiled=_step_as_published,
        ),
    ]


def _sequential_labels(trace: Trace) -> list[Check]:
    """All forget batches, then all retain batches, through the method's own steps for each.

    The mask and the batches that it was made of are not recorded, but what it did is: after the first step, a weight
    without a gradient has moved by weight decay alone.
    """
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    inputs = trace.inputs().arrays
    forget, retain, labels = trace.batches("forget"), trace.batches("retain"), trace.arrays["forget_label"]
    fraction = float(_ratio(trace))
    method = salun(
        setting.loss_fn,
        _optimizer(hyper),
        num_classes=int(max(labels.max(), setting.labels.max())) + 1,
        fraction=fraction,
        mode="authors",
        order="sequential",
        batch_size=hyper["batch_size"],
        relabel=lambda key, given: given,
    )
    rate, decay = np.float32(hyper["lr"]), np.float32(hyper["weight_decay"])
    start, moved = setting.named(setting.params), trace.state("sd_step1")
    marked = {name: moved[name] != w - rate * (decay * w) for name, w in start.items()}
    flat = np.concatenate([marked[name].ravel() for name in setting.order])
    whole = [setting.batch(inputs["idx_forget"])]
    ours = salun_mask(setting.loss_fn, setting.params, setting.model_state, whole, fraction, mode="authors")
    own = list(method.batches(jax.random.key(0), Data(inputs["idx_forget"], inputs["idx_retain"]), 0))
    sizes = [[None if part is None else len(part) for part in batch] for batch in own]
    return [
        exact("order", "all forget batches, then all retain batches" in trace.meta["method"], True),
        exact("order and sizes", sizes, [[len(b), None] for b in forget] + [[None, len(b)] for b in retain]),
        exact("forget", np.sort(np.concatenate(forget)), np.sort(inputs["idx_forget"])),
        exact("retain", np.sort(np.concatenate(retain)), np.sort(inputs["idx_retain"])),
        exact("marked", int(flat.sum()), int(fraction * flat.size)),
        # Which batches the signed sum was made of moves a few; a mask by chance would differ in half of them.
        mismatches("mask", setting.flat(ours, setting.order), flat, flat.size // 20),
        *_run(
            trace,
            setting,
            method,
            ["forget"] * len(forget) + ["retain"] * len(retain),
            batches=forget + retain,
            labels=np.concatenate([labels, setting.labels[np.concatenate(retain)]]),
            prepare=lambda carry: carry._replace(aux=_as_ours(setting, marked)),
        ),
    ]


def _ratio(trace: Trace) -> str:
    """The share of the weights in a mask, from the name of the method."""
    return trace.meta["method"].split("mask ")[1].split()[0].rstrip(",")


def _as_ours(setting: Setting, mask: dict[str, np.ndarray]) -> PyTree:
    """A mask by PyTorch's names and in its layout as a tree like the parameters."""
    leaves = our_layout(setting, {name: value.astype(np.float32) for name, value in mask.items()})
    names = trees.leaf_names(setting.params)
    return jax.tree.unflatten(jax.tree.structure(setting.params), [leaves[name] > 0 for name in names])


def _boundary_shrink(trace: Trace) -> list[Check]:
    """Labels are computed as the method does, one batch after another, and so are the images of the first epoch."""
    setting, hyper, arrays = setting_of(trace), trace.meta["hyper"].plain(), trace.arrays
    attack = {"step_size": trace.meta["bound"], "clip": (0.0, 1.0)}
    frozen = (setting.model, setting.params, setting.model_state)
    images, labels, true = [], [], []
    for positions in trace.batches("batch"):
        batch = setting.batch(positions)
        moved, found = _attack(*frozen, batch["image"], batch["label"], **attack)
        images.append(moved)
        labels.append(found)
        true.append(batch["label"])
    first = as_images(arrays["x_adv_first_epoch"])
    wrong = np.abs(np.concatenate(images)[: len(first)] - first) > PIXELS
    if wrong.any() and np.sum(wrong) <= MASK_MISMATCHES:  # a gradient that is zero but for rounding has either sign
        shown = [setting.batch(positions) for positions in trace.batches("batch")]
        slopes = np.concatenate([_slopes(*frozen, batch["image"], batch["label"]) for batch in shown])[: len(first)]
        wrong &= np.abs(slopes) > ZERO_GRADIENTS * np.max(np.abs(slopes))
    same = float(np.mean(np.concatenate(labels) == np.concatenate(true)))
    method = boundary_shrink(
        setting.model, setting.loss_fn, _optimizer(hyper), mode="authors", batch_size=hyper["batch_size"], **attack
    )
    return [
        exact("adv_label", np.concatenate(labels), arrays["adv_label"]),
        exact("x_adv_first_epoch", int(np.sum(wrong)), 0),
        relative("frac_adv_label_equals_true", same, trace.meta["frac_adv_label_equals_true"], 1e-12),
        *_run(
            trace,
            setting,
            method,
            "forget",
            losses=("loss_original", "loss_relabelled"),
            bn_mode={"attack_model": "eval copy of the start net, never updated", "model": "train"},
        ),
    ]


_QUICK = {"xla_backend_optimization_level": 0}
_quickly = functools.partial(jax.jit, static_argnums=0, compiler_options=_QUICK)


@functools.partial(_quickly, static_argnames=("step_size", "clip"))
def _attack(model, params, model_state, images, labels, step_size, clip):
    moved, _ = adversarial_images(
        model, params, model_state, images, labels, step_size=step_size, clip=clip, rounded=True
    )
    return moved, boundary_labels(model, params, model_state, moved, labels, any_label=True)


@_quickly
def _slopes(model, params, model_state, images, labels):
    return jax.grad(lambda x: cross_entropy(model.apply(params, model_state, x, train=False)[0], labels))(images)


def _boundary_expand(trace: Trace) -> list[Check]:
    """The recorded last row of the head, which was drawn at random, is put in the place of ours."""
    setting, hyper, arrays = setting_of(trace), trace.meta["hyper"].plain(), trace.arrays
    weight, bias = arrays["fc_weight_expanded"], arrays["fc_bias_expanded"]
    classes = len(weight) - 1
    method = boundary_expand(
        setting.model, _optimizer(hyper), num_classes=classes, mode="authors", batch_size=hyper["batch_size"]
    )
    begun = []

    def prepare(carry: Carry) -> Carry:
        rows = {"fc/kernel": weight[-1:].T, "fc/bias": bias[-1:]}
        names = trees.leaf_names(carry.params.shadow)
        shadow = jax.tree.unflatten(jax.tree.structure(carry.params.shadow), [rows[name] for name in names])
        carry = carry._replace(params=carry.params._replace(shadow=shadow))
        begun.append(to_state_dict(*method.finish(carry)))
        return carry

    checks = _run(trace, setting, method, "forget", prepare=prepare)
    return [
        exact("target_label", classes, trace.meta["target_label"]),
        exact("fc_weight_expanded", begun[0]["fc.weight"], weight),
        exact("fc_bias_expanded", begun[0]["fc.bias"], bias),
        *checks,
    ]


def _influence(trace: Trace) -> list[Check]:
    """What the method itself computes on its way: both gradients, and the result of the recursion."""
    setting, meta, arrays = setting_of(trace), trace.meta, trace.arrays
    inputs = trace.inputs().arrays
    order = arrays["retain_order"]
    data = Data(setting.batch(inputs["idx_forget"]), setting.batch(order))
    passes, samples, perturbations = [], [], []

    def watched_gradients(*args, **options):
        passes.append(removal_gradients(*args, **options))
        return passes[-1]

    def watched_recursion(loss_fn, params, model_state, examples, vector, *, constant):
        samples.extend(examples)
        perturbations.append(published_recursion(loss_fn, params, model_state, samples, vector, constant=constant))
        return perturbations[-1]

    module = importlib.import_module("scissorhands_jax.methods.influence")
    size = len(inputs["idx_forget"])
    method = influence(setting.loss_fn, alpha=meta["alpha"], num_samples=meta["N"], mode="authors", batch_size=size)
    with mock.patch.multiple(module, removal_gradients=watched_gradients, published_recursion=watched_recursion):
        result = method.finish(method.init(jax.random.key(0), setting.params, setting.model_state, data))
    forget, retain = passes[0]
    trace.accept("batch_size", "of sums that do not depend on it")
    return [
        exact("retain_order", order, np.resize(inputs["idx_retain"], len(order))),  # over and over where it is longer
        exact("n_forget", size, meta["n_forget"]),
        exact("n_retain", len(order), meta["n_retain"]),
        exact("n_single_sample_gradients", len(samples), meta["n_single_sample_gradients"]),
        exact("bn_mode", meta["bn_mode"].split()[0], "eval"),
        relative("forget_grad", setting.flat(forget, setting.order), arrays["forget_grad"], GRADIENTS),
        relative("retain_grad_scaled", setting.flat(retain, setting.order), arrays["retain_grad_scaled"], GRADIENTS),
        relative("perturb", setting.flat(perturbations[0], setting.order), arrays["perturb"], INFLUENCE),
        *states("sd_last", to_state_dict(*result), trace.state("sd_last"), INFLUENCED_WEIGHTS),
    ]


_REPLAYS = {
    "fine-tune": _finetune,
    "gradient ascent": _gradient_ascent,
    "l1-sparse": _l1_sparse,
    "SalUn mask": _salun_mask,
    "random labels": _random_label,
    "boundary shrink": _boundary_shrink,
    "boundary expanding": _boundary_expand,
    "IU": _influence,
}


def _optimizer(hyper: dict) -> optax.GradientTransformation:
    return sgd(hyper["lr"], momentum=hyper["momentum"], weight_decay=hyper["weight_decay"])


def _run(
    trace: Trace,
    setting: Setting,
    method: Method,
    part: str | list[str],
    *,
    batches: list[np.ndarray] | None = None,
    labels=None,
    prepare: Callable[[Carry], Carry] | None = None,
    losses: tuple[str, ...] = (),
    bn_mode: str | dict = "train",
    compiled: Callable | None = None,
) -> list[Check]:
    """Takes steps with all recorded batches, as the given part of the data, or each as a part of its own.

    Args:
      batches: The batches to use in place of those called `batch`.
      labels: The labels to use in place of those of the examples.
      prepare: Changes the carry before the first step.
      losses: The metrics of a step that `ce` holds, in its order. The default is the first metric that is a loss.
      compiled: The function that takes a step. The default is `_step`.
    """
    arrays, meta = trace.arrays, trace.meta
    hyper = meta["hyper"].plain()
    batches = trace.batches("batch") if batches is None else batches
    parts = [part] * len(batches) if isinstance(part, str) else part
    steps_per_epoch = len(batches) // hyper["epochs"]
    examples = [setting.batch(positions) for positions in batches]
    if labels is not None:
        for batch, given in zip(examples, np.split(labels, np.cumsum([len(b) for b in batches])[:-1]), strict=True):
            batch["label"] = given.astype(np.int32)
    data = Data(examples[0], examples[0])
    carry = method.init(jax.random.key(0), setting.params, setting.model_state, data)
    if prepare is not None:
        carry = prepare(carry)
    values, norms, checks = [], [], []
    for index, batch in enumerate(examples):
        if index % steps_per_epoch == 0:
            carry = method.begin_epoch(carry, data)
        carry, metrics = (compiled or _step)(method.step, carry, Batch(**{parts[index]: batch}))
        names = losses or [name for name in metrics if name.startswith("loss_")][:1]
        values += [float(metrics[name]) for name in names]
        norms.append(float(metrics["grad_norm"]))
        done = index + 1
        for suffix in [f"step{done}", *(["last"] if done == len(examples) else [])]:
            if any(key.startswith(f"sd_{suffix}/") for key in arrays):
                got = to_state_dict(*method.finish(carry))
                checks += states(f"sd_{suffix}", got, trace.state(f"sd_{suffix}"), WEIGHTS)
            if any(key.startswith(f"mom_{suffix}/") for key in arrays):
                momentum, _ = method.finish(carry._replace(params=optax.tree_utils.tree_get(carry.opt_state, "trace")))
                checks += states(f"mom_{suffix}", setting.named(momentum), trace.state(f"mom_{suffix}"), GRADIENTS)
    positions, recorded_mode = np.concatenate(batches), meta["bn_mode"]
    evaluations = max(1, len(losses))
    return [
        absolute("ce", values, arrays["ce"], LOSSES),
        exact("ce_batch", np.repeat([len(b) for b in batches], evaluations), arrays["ce_batch"]),
        relative("gnorm", norms, arrays["gnorm"], GRADIENTS),
        relative("lr", np.full(len(batches), hyper["lr"]), arrays["lr"], 1e-12),
        exact("batch_size", max(map(len, batches)), hyper["batch_size"]),
        exact("epochs", len(positions) / len(np.unique(positions)), hyper["epochs"]),
        exact("bn_mode", recorded_mode.plain() if isinstance(recorded_mode, Record) else recorded_mode, bn_mode),
        *checks,
    ]


@_quickly
def _step(step, carry, batch):
    return step(carry, batch)


# At the eighth step with random labels, the input of a ReLU lies within rounding of 0: the losses agree to 2e-7, the
# gradients' norms no longer to 4e-4, and the runs part. Fused code rounds as PyTorch did; tests/conftest.py has other.
_FUSED = {"xla_cpu_use_fusion_emitters": True} if "use_fusion_emitters" in os.environ.get("XLA_FLAGS", "") else {}


@functools.partial(jax.jit, static_argnums=0, compiler_options=_QUICK | _FUSED)
def _step_as_published(step, carry, batch):
    return step(carry, batch)
