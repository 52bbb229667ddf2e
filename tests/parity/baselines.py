"""Replays of the baselines: each recorded batch through the library's own step."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax

from scissorhands_jax import saliency, trees
from scissorhands_jax.base import Batch, Data, Method
from scissorhands_jax.methods import finetune, gradient_ascent, l1_sparse, salun
from scissorhands_jax.methods.salun import salun_mask
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.torch_weights import to_state_dict
from tests.parity.checks import (
    GRADIENTS,
    LOSSES,
    WEIGHTS,
    Check,
    NotYetError,
    absolute,
    exact,
    relative,
    states,
)
from tests.parity.method import Setting, mask_checks, our_layout, setting_of
from tests.parity.traces import Trace


def replay_baseline(trace: Trace) -> list[Check]:
    """The baseline that the trace names."""
    name = trace.meta["method"]
    for beginning, replay in _REPLAYS.items():
        if name.startswith(beginning):
            return replay(trace)
    raise NotYetError(f"not yet replayed: {name}")


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
    """The recorded labels are handed in with the examples, so one kind of batch serves the mixed ones."""
    setting, hyper = setting_of(trace), trace.meta["hyper"].plain()
    forget = trace.inputs().arrays["idx_forget"]
    labels = trace.arrays["batch_label"]
    positions = trace.arrays["batch_idx"]
    mask_trace = trace.folder.trace("06_salun_mask")
    ratio = trace.meta["method"].split("mask ")[1].split()[0]
    named_mask = {name: value.astype(bool) for name, value in mask_trace.state(f"mask_{ratio}").items()}
    method = salun(
        setting.loss_fn,
        _optimizer(hyper),
        num_classes=int(labels.max()) + 1,
        fraction=float(ratio),
        mode="authors",
        batch_size=hyper["batch_size"],
    )
    as_floats = {name: mask.astype(np.float32) for name, mask in named_mask.items()}
    leaves = our_layout(setting, as_floats)
    names = trees.leaf_names(setting.params)
    mask = jax.tree.unflatten(jax.tree.structure(setting.params), [leaves[name] > 0 for name in names])
    start, last = setting.named(setting.params), trace.state("sd_last")
    moved = max(float(np.max(np.abs(last[name] - start[name])[~mask], initial=0)) for name, mask in named_mask.items())
    of_forget = np.isin(positions, forget)
    same = float(np.mean(labels[of_forget] == setting.labels[positions[of_forget]]))
    return [
        exact("retain labels", labels[~of_forget], setting.labels[positions[~of_forget]]),
        relative("frac_random_label_equals_true", same, trace.meta["frac_random_label_equals_true"], 1e-12),
        relative("max_change_of_masked_out_entries", moved, trace.meta["max_change_of_masked_out_entries"], 1e-6),
        *_run(trace, setting, method, "retain", labels=labels, aux=mask),
    ]


_REPLAYS = {
    "fine-tune": _finetune,
    "gradient ascent": _gradient_ascent,
    "l1-sparse": _l1_sparse,
    "SalUn mask": _salun_mask,
    "random labels": _random_label,
}


def _optimizer(hyper: dict) -> optax.GradientTransformation:
    return sgd(hyper["lr"], momentum=hyper["momentum"], weight_decay=hyper["weight_decay"])


def _run(trace: Trace, setting: Setting, method: Method, part: str, *, labels=None, aux=None) -> list[Check]:
    """All recorded batches, as the given part of the data."""
    arrays, meta = trace.arrays, trace.meta
    hyper = meta["hyper"].plain()
    batches = trace.batches("batch")
    steps_per_epoch = len(batches) // hyper["epochs"]
    examples = [setting.batch(positions) for positions in batches]
    if labels is not None:
        for batch, given in zip(examples, np.split(labels, np.cumsum([len(b) for b in batches])[:-1]), strict=True):
            batch["label"] = given.astype(np.int32)
    data = Data(examples[0], examples[0])
    carry = method.init(jax.random.key(0), setting.params, setting.model_state, data)
    if aux is not None:
        carry = carry._replace(aux=aux)
    losses, norms, checks = [], [], []
    for index, batch in enumerate(examples):
        if index % steps_per_epoch == 0:
            carry = method.begin_epoch(carry, data)
        carry, metrics = _step(method.step, carry, Batch(**{part: batch}))
        losses.append(next(float(value) for name, value in metrics.items() if name.startswith("loss_")))
        norms.append(float(metrics["grad_norm"]))
        done = index + 1
        for suffix in [f"step{done}", *(["last"] if done == len(examples) else [])]:
            if any(key.startswith(f"sd_{suffix}/") for key in arrays):
                got = to_state_dict(carry.params, carry.model_state)
                checks += states(f"sd_{suffix}", got, trace.state(f"sd_{suffix}"), WEIGHTS)
            if any(key.startswith(f"mom_{suffix}/") for key in arrays):
                momentum = setting.named(optax.tree_utils.tree_get(carry.opt_state, "trace"))
                checks += states(f"mom_{suffix}", momentum, trace.state(f"mom_{suffix}"), GRADIENTS)
    return [
        absolute("ce", losses, arrays["ce"], LOSSES),
        exact("ce_batch", np.array([len(b) for b in batches]), arrays["ce_batch"]),
        relative("gnorm", norms, arrays["gnorm"], GRADIENTS),
        relative("lr", np.full(len(batches), hyper["lr"]), arrays["lr"], 1e-12),
        exact("batch_size", max(map(len, batches)), hyper["batch_size"]),
        exact("bn_mode", meta["bn_mode"], "train"),
        *checks,
    ]


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _step(step, carry, batch):
    return step(carry, batch)
