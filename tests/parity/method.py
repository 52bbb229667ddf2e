"""Replays of the method itself: saliency, trimming, projection, and whole epochs of the published code."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import masks, optimizers, saliency, trees
from scissorhands_jax.base import Batch, Carry, Data, Method, Model, ModelState, Params, PyTree, StatefulLossFn
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods.scissorhands import constraint_gradients, scissorhands
from scissorhands_jax.methods.semantics import SEMANTICS
from scissorhands_jax.methods.trimming import trim_network
from scissorhands_jax.projection import project_gradient, solve_dual
from scissorhands_jax.reinit import ByName, zeros
from scissorhands_jax.torch_weights.state_dicts import from_state_dict, to_state_dict
from tests.parity.checks import (
    DOTS,
    DUALS,
    GRADIENTS,
    LOSSES,
    MASK_MISMATCHES,
    PROJECTED,
    WEIGHTS,
    Check,
    absolute,
    exact,
    mismatches,
    relative,
    states,
)
from tests.parity.networks import as_images, chosen_names, load, module_for, torch_name
from tests.parity.traces import MalformedError, Trace

# The module, whose name in the package is that of the function.
repair = importlib.import_module("scissorhands_jax.methods.scissorhands")
AUTHORS = SEMANTICS["authors"]
SMALLEST = 1e-3  # relative, of the smallest score: a product of two numbers near zero (measured: 2e-5)
UNREACHED = 10**6  # an epoch
LAYERS = re.compile(r"(?:layer\d+\|)*layer\d+\|fc")
PROJECTION = re.compile(rf"({LAYERS.pattern}) (?:trim and )?projection")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network and the images that a trace starts from."""

    model: Model
    params: Params
    model_state: ModelState
    loss_fn: StatefulLossFn
    images: np.ndarray
    labels: np.ndarray
    order: list[str]  # PyTorch names of the parameters, in PyTorch's order

    def batch(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[positions], "label": self.labels[positions].astype(np.int32)}

    def named(self, tree: PyTree) -> dict[str, np.ndarray]:
        """A tree like the parameters, by PyTorch's names and in its layout."""
        return to_state_dict(tree, {})

    def flat(self, tree: PyTree, names: list[str]) -> np.ndarray:
        tensors = self.named(tree)
        return np.concatenate([np.asarray(tensors[name]).ravel() for name in names])


@functools.cache
def _model(module, shape: tuple[int, ...]) -> tuple[Model, StatefulLossFn]:
    """One model and loss per network, so that every trace of a folder shares their compilations."""
    from scissorhands_jax.models import from_linen

    model = from_linen(module, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return model, classification_loss(model)


def setting_of(trace: Trace, changes: dict[str, np.ndarray] | None = None) -> Setting:
    """Loads the network at the beginning of a trace, some of its tensors changed if asked to."""
    network = trace.network()
    tensors = network.state("sd") | (changes or {})
    inputs = trace.inputs().arrays
    module = module_for(
        {name: tensor.shape for name, tensor in tensors.items()},
        mean=tuple(map(float, tensors["normalize.mean"])),
        std=tuple(map(float, tensors["normalize.std"])),
        normalized=True,
    )
    images = as_images(inputs["x"])
    _, params, model_state = load(module, tensors, images)
    model, loss_fn = _model(module, images.shape[1:])
    return Setting(model, params, model_state, loss_fn, images, inputs["y"], network.meta["param_order"])


def replay_saliency(trace: Trace) -> list[Check]:
    """Scores, thresholds and masks; the fallback cases are recognised by their list of cases."""
    return _replay_fallback(trace) if "cases" in trace.meta else _replay_scores(trace)


def _replay_scores(trace: Trace) -> list[Check]:
    meta, arrays, setting = trace.meta, trace.arrays, setting_of(trace)
    positions = trace.batches("snip")
    batches = [setting.batch(p) for p in positions]
    sums = saliency.gradient_sum(
        setting.loss_fn, setting.params, setting.model_state, batches, train=True, absolute=True
    )
    scores = saliency.scores_of(sums, setting.params, absolute=True)
    named_scores = setting.named(scores)
    flat = np.sort(setting.flat(scores, setting.order))
    recorded_bn = trace.state("bn_after")
    buffers = to_state_dict({}, sums.model_state)
    top = next(key for key in arrays if key.startswith("sal_sorted_top"))
    count = int(top.removeprefix("sal_sorted_top"))
    checks = [
        exact("batches", [len(positions), max(map(len, positions))], [meta["prune_num"], meta["batch_size"]]),
        absolute("loss", sums.losses, arrays["loss"], LOSSES),
        *states("gradsum", setting.named(sums.gradient), trace.state("gradsum"), GRADIENTS),
        *states("sal", setting.named(scores), trace.state("sal"), GRADIENTS),
        *states("bn_after", {name: buffers[name] for name in recorded_bn if name in buffers}, recorded_bn, WEIGHTS),
        exact("n_total", flat.size, meta["n_total"]),
        exact("n_zero_saliency", int(np.sum(flat == 0)), meta["n_zero_saliency"]),
        relative("sal_max", flat[-1], meta["sal_max"], GRADIENTS),
        relative("sal_min", flat[0], meta["sal_min"], SMALLEST),
        relative(top, _ordered(flat, count, arrays[top]), arrays[top], GRADIENTS),
    ]
    evaluated = saliency.gradient_sum(setting.loss_fn, setting.params, setting.model_state, batches, absolute=True)
    evaluated_scores = saliency.scores_of(evaluated, setting.params, absolute=True)
    for kept in meta["sparsities"]:
        counts = meta["counts"][str(kept)]
        mask, threshold = masks.kept_fraction_mask(scores, kept)
        checks += [
            exact(f"k {kept}", int(kept * flat.size), counts["k"]),
            relative(f"threshold {kept}", threshold, meta["thresholds"][str(kept)], GRADIENTS),
            *mask_checks(
                f"mask_{kept}", setting.named(mask), trace.state(f"mask_{kept}"), named_scores, float(threshold)
            ),
            exact(f"masked_total {kept}", _total(trace.state(f"mask_{kept}")), counts["masked_total"]),
        ]
        for key in counts:
            if key.startswith("masked_in_"):
                pattern = key.removeprefix("masked_in_").removesuffix("_nonbn").replace("_", "|")
                names = chosen_names(setting.params, pattern, setting.order, without_bn=key.endswith("_nonbn"))
                checks.append(exact(f"{key} {kept}", _total(trace.state(f"mask_{kept}"), names), counts[key]))
        mask, threshold = masks.kept_fraction_mask(evaluated_scores, kept)
        recorded = meta["evalmode_thresholds"][str(kept)]
        checks += [
            relative(f"evalmode threshold {kept}", threshold, recorded["threshold"], GRADIENTS),
            exact("evalmode batches are the same", recorded["batches_equal"], True),
            *mask_checks(
                f"evalmode_mask_{kept}",
                setting.named(mask),
                trace.state(f"evalmode_mask_{kept}"),
                setting.named(evaluated_scores),
                float(threshold),
            ),
        ]
    checks.append(exact("bn_mode", meta["bn_mode"].split()[0], "train" if AUTHORS.saliency_train else "eval"))
    return checks


def _replay_fallback(trace: Trace) -> list[Check]:
    checks = []
    for name, case in trace.meta["cases"].items():
        changes = {}
        if name == "mostly_zero":
            network = trace.network().state("sd")
            changes = {
                key: np.zeros_like(value)
                for key, value in network.items()
                if re.fullmatch(r"layer4\.\d+\.conv[12]\.weight", key)
            }
        setting = setting_of(trace, changes)
        sums = saliency.gradient_sum(
            setting.loss_fn,
            setting.params,
            setting.model_state,
            [setting.batch(trace.arrays[f"{name}/idx"])],
            train=True,
            absolute=True,
        )
        scores = saliency.scores_of(sums, setting.params, absolute=True)
        flat = np.sort(setting.flat(scores, setting.order))
        mask, threshold = masks.kept_fraction_mask(scores, case["sparsity"])
        k, largest = int(case["sparsity"] * flat.size), case["sal_max"]
        recorded = {key: value for key, value in trace.state(name).items() if key != "idx"}
        recorded = {key.removeprefix("mask/"): value for key, value in recorded.items()}
        checks += [
            exact(f"{name} k", k, case["k"]),
            absolute(
                f"{name} kth_value",
                masks.kth_largest(scores, flat.size - k + 1),
                case["kth_value"],
                GRADIENTS * largest,
            ),
            relative(f"{name} threshold_used", threshold, case["threshold_used"], GRADIENTS),
            relative(f"{name} half_range", (flat[-1] - flat[0]) / 2, case["half_range"], GRADIENTS),
            relative(f"{name} sal_max", flat[-1], largest, GRADIENTS),
            relative(f"{name} sal_min", flat[0], case["sal_min"], SMALLEST),
            exact(f"{name} masked_total", _total(recorded), case["masked_total"]),
            _near(f"{name} n_zero", int(np.sum(flat == 0)), case["n_zero"]),
            *mask_checks(f"{name} mask", setting.named(mask), recorded, setting.named(scores), float(threshold)),
        ]
    refused = 0
    try:
        masks.kept_fraction_mask(scores, 0.5 / flat.size)
    except ValueError:
        refused = 1
    checks.append(exact("k = 0 is refused", bool(refused), "Error" in trace.meta["error_when_k_is_zero"]))
    return checks


def replay_trim(trace: Trace) -> list[Check]:
    """Re-initialisation with the recorded draws, and the network after it."""
    meta, setting = trace.meta, setting_of(trace)
    pattern = LAYERS.match(meta["rule"])[0]
    trimmed, scores, threshold = _trim(trace, setting, pattern, meta["sparsity"])
    eligible = list(meta["trimmed_per_tensor"])
    drawn = [name for name in eligible if name not in meta["zero_reinit"]]
    return [
        exact(
            "eligible", eligible, chosen_names(setting.params, pattern, setting.order, without_bn=AUTHORS.skip_bn_names)
        ),
        exact("draw_order", drawn, meta["draw_order"]),
        exact("drawn", sorted(trace.state("reinit")), sorted(meta["draw_order"])),
        exact("zero_reinit", [name for name in eligible if name.endswith("bias")], meta["zero_reinit"]),
        exact("prune_num", len(trace.batches("snip")), meta["prune_num"]),
        exact("bn_mode", meta["bn_mode"], "train" if AUTHORS.saliency_train else "eval"),
        relative("threshold", threshold, meta["threshold"], GRADIENTS),
        exact(
            "trimmed_per_tensor",
            {n: _total(trace.state("mask"), [n]) for n in eligible},
            meta["trimmed_per_tensor"].plain(),
        ),
        *_trim_states(trace, setting, trimmed, scores, threshold),
    ]


def _trim(trace: Trace, setting: Setting, pattern: str, kept: float):
    """Trims with the draws recorded in this trace, or in the one that it shares them with."""
    draws = _draws(trace)
    fresh = {name: jnp.asarray(value) for name, value in our_layout(setting, draws).items()}

    def choose(name: str):
        if name not in fresh:
            return zeros()
        return lambda key, shape, dtype: fresh[name].reshape(shape).astype(dtype)

    batches = [setting.batch(p) for p in trace.batches("snip")]
    trimmed = trim_network(
        jax.random.key(0),
        setting.loss_fn,
        setting.params,
        setting.model_state,
        batches,
        fraction=1 - kept,
        initializer=ByName(choose),
        trim=pattern,
        semantics=AUTHORS,
    )
    sums = saliency.gradient_sum(
        setting.loss_fn, setting.params, setting.model_state, batches, train=True, absolute=True
    )
    scores = saliency.scores_of(sums, setting.params, absolute=True)
    _, threshold = masks.kept_fraction_mask(scores, kept)
    return trimmed, setting.named(scores), float(threshold)


def _draws(trace: Trace) -> dict[str, np.ndarray]:
    """The recorded random tensors: the trace's own, its start's, or those of a trace with the same saliency batch."""
    for source in (trace, trace.start()):
        if any(key.startswith("reinit/") for key in source.arrays):
            return source.state("reinit")
    for name in trace.folder.names:
        twin = trace.folder.trace(name)
        if any(key.startswith("reinit/") for key in twin.arrays) and "snip_idx" in twin.arrays:
            same_start = twin.network().name == trace.network().name
            if same_start and np.array_equal(twin.arrays["snip_idx"], trace.arrays["snip_idx"]):
                return twin.state("reinit")
    raise MalformedError("no trace of the folder holds the random tensors of this one")


def our_layout(setting: Setting, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch tensors by our leaf names, in our layouts."""
    template = setting.named(setting.params)
    tree, _ = from_state_dict({**template, **tensors}, setting.params, {})
    leaves = dict(zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True))
    return {name: leaf for name, leaf in leaves.items() if torch_name(name) in tensors}


def _trim_states(trace: Trace, setting: Setting, trimmed, scores, threshold: float) -> list[Check]:
    checks = []
    if any(key.startswith("mask/") for key in trace.arrays):
        recorded = trace.state("mask")
        mask = setting.named(trimmed.mask)
        checks += mask_checks(
            "mask", {name: mask[name] for name in recorded if name in mask}, recorded, scores, threshold
        )
        rest = sum(int(value.sum()) for name, value in mask.items() if name not in recorded)
        checks.append(exact("trimmed elsewhere", rest, 0))
    if any(key.startswith("sd_trim/") for key in trace.arrays):
        got = to_state_dict(trimmed.params, trimmed.model_state)
        checks += states("sd_trim", got, trace.state("sd_trim"), WEIGHTS)
    return checks


def replay_projection(trace: Trace) -> list[Check]:
    """Quadratic programs in float64, and the optax transformation where anything is violated."""
    checks = [exact("p", _sizes(trace), {trace.meta["p"]})]
    with jax.enable_x64(True):
        for name, case in trace.meta["cases"].items():
            checks += _replay_problem(name, case, trace.state(name))
    return checks


def _sizes(trace: Trace) -> set[int]:
    return {len(trace.arrays[key]) for key in trace.arrays if key.endswith("/g")}


def _replay_problem(name: str, case, arrays: dict[str, np.ndarray]) -> list[Check]:
    columns, gradient = arrays["M"], arrays["g"]
    rows = jnp.asarray(-columns.T.astype(np.float64))  # our sign: gradients of the forget loss
    g = jnp.asarray(gradient.astype(np.float64))
    single = columns.shape[1] == 1
    margin, eps = case["margin"], case["eps"]
    gram = trees.gram([rows])
    dots = trees.stack_vdot([rows], [g])
    singular = np.linalg.matrix_rank(columns.astype(np.float64)) < columns.shape[1] and eps == 0
    recorded_dots = gradient @ columns
    violated = bool(np.any(recorded_dots < 0))
    checks = [
        exact(f"{name} t", columns.shape[1], case["t"]),
        exact(f"{name} settings", name.endswith(f"_m{margin}_e{eps}"), True),
        exact(f"{name} any_negative_dot", violated, case["any_negative_dot"]),
        absolute(f"{name} dots", -dots, arrays["dots"], DOTS),
    ]
    failed = case.get("error")
    if failed is not None:  # the recorded solver gave up; ours must still give a finite answer
        dual = _solve(gram, dots, margin)
        return [*checks, exact(f"{name} finite", bool(np.isfinite(dual).all()), True)]
    dual = np.asarray(_solve(gram + eps * jnp.eye(len(rows)), dots, margin))
    result = np.asarray(g - dual @ rows)
    if not singular:
        checks.append(absolute(f"{name} v", dual, arrays["v"], DUALS * max(1.0, float(np.abs(arrays["v"]).max()))))
        after = float(np.min(-rows @ result))
        checks.append(absolute(f"{name} constraint_min_dot_after", after, case["constraint_min_dot_after"], DOTS))
        checks.append(relative(f"{name} out", result, arrays["out"], PROJECTED))
    else:  # v is one of many, so the recorded one need only give the same result; the result itself is unique
        limit = PROJECTED * float(np.abs(gradient).max())
        checks += [
            absolute(f"{name} out", result, arrays["out"], limit),
            absolute(f"{name} v", np.asarray(g - arrays["v"] @ rows), arrays["out"], limit),
            absolute(f"{name} constraint_min_dot_after", 0.0, case["constraint_min_dot_after"], DOTS),
        ]
    if violated and not singular:
        updates, state = _project(len(rows), margin, eps, [g], [rows])
        checks.append(relative(f"{name} project_gradient", updates[0], arrays["out"], PROJECTED))
        checks.append(exact(f"{name} violated", bool(state.violated), True))
    if single:
        v = np.asarray(_solve(gram, dots, 0.0))
        checks.append(
            absolute(f"{name} closed_form_v", v, arrays["closed_form_v"], DUALS * max(1.0, float(np.abs(v).max())))
        )
        checks.append(relative(f"{name} closed_form_out", g - v @ rows, arrays["closed_form_out"], PROJECTED))
    return checks


_solve = jax.jit(lambda gram, dots, margin: solve_dual(gram, dots, margin=margin))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _project(count: int, margin: float, eps: float, gradient: PyTree, rows: PyTree):
    transform = project_gradient(count, margin=margin, eps=eps)
    return transform.update(gradient, transform.init(gradient), constraint_grads=rows)


def replay_epochs(trace: Trace) -> list[Check]:
    """A trimmed start, or one or two epochs of repair, step by step."""
    setting = setting_of(trace)
    if "hyper" in trace.meta and "retain_idx" not in trace.arrays:
        return _replay_start(trace, setting)
    return _Epochs(trace, setting).replay()


def _replay_start(trace: Trace, setting: Setting) -> list[Check]:
    meta = trace.meta
    hyper = meta["hyper"].plain()
    pattern = _trim_pattern(trace)
    trimmed, scores, threshold = _trim(trace, setting, pattern, hyper["sparsity"])
    drawn = [
        name
        for name in chosen_names(setting.params, pattern, setting.order, without_bn=AUTHORS.skip_bn_names)
        if not name.endswith("bias")
    ]
    return [
        exact("draw_order", drawn, meta["draw_order"]),
        relative("threshold", threshold, meta["threshold"], GRADIENTS),
        *_hyper_checks(hyper, trace),
        *_trim_states(trace, setting, trimmed, scores, threshold),
    ]


def _trim_pattern(trace: Trace) -> str:
    """The layers that were trimmed, from the names of the tensors that were drawn."""
    stages = sorted({name.split(".")[0] for name in _draws(trace)} - {"fc"})
    return "|".join([*stages, "fc"])


def _hyper_checks(hyper: dict, trace: Trace) -> list[Check]:
    """Settings that the recorded batches determine."""
    longest = max(len(batch) for batch in trace.batches("snip"))
    return [
        exact("prune_num", len(trace.batches("snip")), hyper["prune_num"]),
        exact("batch_size", longest, hyper["batch_size"]),
    ]


class _Epochs:
    """Drives the method's own step with the recorded batches."""

    def __init__(self, trace: Trace, setting: Setting) -> None:
        self.trace, self.setting = trace, setting
        self.hyper = hyper = trace.meta["hyper"].plain()
        self.epochs = trace.arrays["epoch"]
        self.retain, self.forget = trace.batches("retain"), trace.batches("forget")
        self.trim_pattern = _trim_pattern(trace)
        found = PROJECTION.search(trace.meta["variant"]) if "variant" in trace.meta else None
        self.project_pattern = found[1] if found else "layer3|layer4|fc"
        self.every = 10 if hyper.get("every10") else 1
        self.schedule = self._schedule()
        self.method = self._method()
        self.names = chosen_names(setting.params, self.project_pattern, setting.order, without_bn=False)
        self.checks: list[Check] = []

    def _schedule(self) -> optimizers.RateSchedule:
        """The learning rate drops tenfold at two epochs, reached or not, which is one form for all traces."""
        milestones = [int(m) for m in str(self.hyper.get("decreasing_lr", "91,136")).split(",")]
        milestones += [UNREACHED] * (2 - len(milestones))
        per_epoch = int(np.sum(self.epochs == self.epochs[0]))
        return optimizers.drops([milestone * per_epoch for milestone in milestones], 0.1)

    def _method(self) -> Method:
        """Steps of methods that differ in numbers alone are equal, so that traces share their compilations."""
        hyper = self.hyper
        optimizer = optimizers.sgd(
            hyper["unlearn_lr"], momentum=hyper["momentum"], weight_decay=hyper["weight_decay"], scheduled=True
        )
        return scissorhands(
            self.setting.loss_fn,
            optimizer,
            fraction=1 - hyper["sparsity"],
            forget_weight=hyper["lam"],
            trim=self.trim_pattern,
            project=self.project_pattern,
            projected=hyper["project"],
            num_constraints=hyper["memory_num"],
            mode="authors",
            batch_size=hyper["batch_size"],
            project_every=self.every,
        )

    def replay(self) -> list[Check]:
        trace, meta, arrays = self.trace, self.trace.meta, self.trace.arrays
        trimmed, scores, threshold = _trim(trace, self.setting, self.trim_pattern, self.hyper["sparsity"])
        self.checks += [
            relative("snip_threshold", threshold, meta["snip_threshold"], GRADIENTS),
            absolute("snip_losses", trimmed.losses, arrays["snip_losses"], LOSSES),
            *_hyper_checks(self.hyper, trace),
            *_trim_states(trace, self.setting, trimmed, scores, threshold),
        ]
        self._check_structure()
        carry = self._start(trimmed)
        rows: dict[str, list] = {
            name: [] for name in ("loss_r", "loss_u", "dot", "v", "gnorm", "pre", "post", "projected")
        }
        memory_losses, memories, hits = [], trace.batches("mem"), []
        step_of_epoch, current = 0, None
        for index, epoch in enumerate(self.epochs):
            if epoch != current:
                current, step_of_epoch = epoch, 0
                carry, losses = self._begin_epoch(carry, memories, len(memory_losses))
                memory_losses.append(losses)
            batch = self._batch(index)
            carry, metrics, before, after, logits = _step_and_look(self.method.step, self.setting.model, carry, batch)
            hits.append(int(np.sum(np.asarray(logits).argmax(1) == batch.retain["label"])))
            step_of_epoch += 1
            self._note(rows, index, metrics, before, after)
            if index == 0:
                self._check_first(before, after, metrics)
            self._check_states(carry, index + 1)
        self._check_rows(rows)
        self.checks.append(absolute("loss_mem", np.array(memory_losses), arrays["loss_mem"], LOSSES))
        recorded = meta["returned_retain_accuracy"]
        if recorded is not None:
            total = sum(len(batch) for batch in self.retain)
            self.checks.append(relative("returned_retain_accuracy", 100 * sum(hits) / total, recorded, 1e-6))
        return self.checks

    def _batch(self, index: int) -> Batch:
        joint = self.trace.arrays["step_kind"][index] == 0
        position = int(np.sum(self.trace.arrays["step_kind"][:index] == 0))
        forget = self.setting.batch(self.forget[position]) if joint else None
        return Batch(forget, self.setting.batch(self.retain[index]))

    def _start(self, trimmed) -> Carry:
        """The method's own start, with the recorded trimming in place of one of its own."""
        data = Data(
            self.setting.batch(np.concatenate(self.trace.batches("snip"))),
            self.setting.batch(self.retain[0]),
        )
        carry = self.method.init(jax.random.key(0), self.setting.params, self.setting.model_state, data)
        opt_state = optimizers.with_schedule(carry.opt_state, self.schedule)
        return carry._replace(params=trimmed.params, model_state=trimmed.model_state, opt_state=opt_state)

    def _begin_epoch(self, carry: Carry, memories: list, epoch: int) -> tuple[Carry, np.ndarray]:
        """As `Method.begin_epoch`, with the recorded memory batches in place of random ones."""
        aux = carry.aux._replace(joint_step=jnp.zeros((), jnp.int32))
        count = self.hyper["memory_num"]
        if not self.hyper["project"]:
            self.checks.append(exact("memories", len(memories), 0))
            return carry._replace(aux=aux), np.zeros(0)
        batches = [self.setting.batch(p) for p in memories[epoch * count : (epoch + 1) * count]]
        held, losses = constraint_gradients(self.setting.loss_fn, carry.params, carry.model_state, batches)
        key = f"g_o_epoch{epoch}"
        if key in self.trace.arrays:
            recorded = self.trace.arrays[key]
            got = np.stack(
                [-self.setting.flat(jax.tree.map(lambda leaf, k=k: leaf[k], held), self.names) for k in range(count)],
                axis=1,
            )
            self.checks.append(relative(key, got, recorded, GRADIENTS))
        return carry._replace(aux=aux._replace(constraint_grads=held)), np.asarray(losses)

    def _note(self, rows: dict[str, list], index: int, metrics, before: PyTree, after: PyTree) -> None:
        count = self.hyper["memory_num"] if self.hyper["project"] else 1  # without constraints, one blank column
        joint = "loss_forget" in metrics
        number = int(
            np.sum(
                (self.trace.arrays["step_kind"][: index + 1] == 0) & (self.epochs[: index + 1] == self.epochs[index])
            )
        )
        due = joint and self.hyper["project"] and number % self.every == 0
        blank = np.full(count, np.nan)
        rows["loss_r"].append(float(metrics["loss_retain"]))
        rows["loss_u"].append(float(metrics["loss_forget"]) if joint else np.nan)
        rows["dot"].append(-np.asarray(metrics["dots"], np.float64) if due else blank)
        projected = bool(metrics["projected"]) if due else False
        rows["projected"].append(projected)
        rows["v"].append(np.asarray(metrics["dual"], np.float64) if projected else blank)
        rows["gnorm"].append(float(metrics["grad_norm"]))
        rows["pre"].append(self._subnorm(before) if due else np.nan)
        rows["post"].append(self._subnorm(after))

    # Norms in float64 on the host: a sum of 70,000 float32 squares would cost digits that the recorder kept.
    def _subnorm(self, gradient: PyTree) -> float:
        return float(np.linalg.norm(self.setting.flat(gradient, self.names).astype(np.float64)))

    def _check_first(self, before: PyTree, after: PyTree, metrics) -> None:
        arrays = self.trace.arrays
        norms = [float(np.linalg.norm(self.setting.named(after)[name])) for name in self.setting.order]
        self.checks.append(
            relative("step1_gnorm_per_tensor_post", norms, arrays["step1_gnorm_per_tensor_post"], GRADIENTS)
        )
        if "per_tensor_order" in self.trace.meta:
            self.checks.append(exact("per_tensor_order", self.setting.order, self.trace.meta["per_tensor_order"]))
        if "first_proj_call" in arrays:
            if int(arrays["first_proj_call"]) != 0:
                raise MalformedError("the first recorded projection is not that of the first step")
            self.checks += [
                exact("first projected", bool(metrics["projected"]), True),
                relative(
                    "first_proj_g_in", self.setting.flat(before, self.names), arrays["first_proj_g_in"], GRADIENTS
                ),
                relative(
                    "first_proj_g_out", self.setting.flat(after, self.names), arrays["first_proj_g_out"], GRADIENTS
                ),
            ]

    def _check_states(self, carry: Carry, done: int) -> None:
        for suffix in [f"step{done}", *(["last"] if done == len(self.epochs) else [])]:
            if any(key.startswith(f"sd_{suffix}/") for key in self.trace.arrays):
                got = to_state_dict(carry.params, carry.model_state)
                self.checks += states(f"sd_{suffix}", got, self.trace.state(f"sd_{suffix}"), WEIGHTS)
            if any(key.startswith(f"mom_{suffix}/") for key in self.trace.arrays):
                trace = optax.tree_utils.tree_get(carry.opt_state.optimizer, "trace")
                got = self.setting.named(trace)
                self.checks += states(f"mom_{suffix}", got, self.trace.state(f"mom_{suffix}"), GRADIENTS)

    def _check_rows(self, rows: dict[str, list]) -> None:
        arrays = self.trace.arrays
        self.checks += [
            _numbers("loss_r", rows["loss_r"], arrays["loss_r"], LOSSES),
            _numbers("loss_u", rows["loss_u"], arrays["loss_u"], LOSSES),
            _numbers("dot", rows["dot"], arrays["dot"], DOTS),
            _numbers("v", rows["v"], arrays["v"], DUALS),
            exact("projected", np.array(rows["projected"]), arrays["projected"]),
            _numbers("gnorm_post", rows["gnorm"], arrays["gnorm_post"], GRADIENTS, relative_to_largest=True),
            _numbers("subnorm_pre", rows["pre"], arrays["subnorm_pre"], GRADIENTS, relative_to_largest=True),
            _numbers("subnorm_post", rows["post"], arrays["subnorm_post"], GRADIENTS, relative_to_largest=True),
            relative("lr", self._rates(), arrays["lr"], 1e-6),
        ]

    def _rates(self) -> np.ndarray:
        """The learning rate of every step."""
        knots, factors = map(jnp.asarray, self.schedule)
        steps = jnp.arange(len(self.epochs))
        return self.hyper["unlearn_lr"] * jax.vmap(lambda step: optimizers.interpolate(step, knots, factors))(steps)

    def _check_structure(self) -> None:
        """Counts and orders that follow from the settings and the batches."""
        meta, arrays, hyper = self.trace.meta, self.trace.arrays, self.hyper
        kinds = arrays["step_kind"]
        self.checks += [
            exact("n_steps", len(self.retain), meta["n_steps"]),
            exact("n_joint_steps", int(np.sum(kinds == 0)), meta["n_joint_steps"]),
            exact("projected_steps", np.flatnonzero(arrays["projected"]).tolist(), meta["projected_steps"]),
            exact("epochs", sorted(set(self.epochs.tolist())), list(range(hyper["unlearn_epochs"]))),
        ]
        if hyper["project"]:
            memories = self.trace.batches("mem")
            self.checks.append(exact("memory_num", len(memories), hyper["memory_num"] * hyper["unlearn_epochs"]))
        # The library's own order of steps for sets of these sizes: joint while forget batches last, then retain only.
        sizes = [[len(b) for b in batches] for batches in (self.forget, self.retain)]
        start_forget = start_retain = 0
        expected: list[int] = []
        for epoch in range(hyper["unlearn_epochs"]):
            steps = int(np.sum(self.epochs == epoch))
            joint = int(np.sum((self.epochs == epoch) & (kinds == 0)))
            forget = sizes[0][start_forget : start_forget + joint]
            retain = sizes[1][start_retain : start_retain + steps]
            start_forget, start_retain = start_forget + joint, start_retain + steps
            data = Data(np.zeros(sum(forget)), np.zeros(sum(retain)))
            batches = list(self.method.batches(jax.random.key(0), data, epoch))
            expected += [0 if batch.forget is not None else 1 for batch in batches]
            ours = [len(batch.retain) for batch in batches]
            self.checks.append(exact("retain batch sizes", ours, retain))
        self.checks.append(exact("step_kind", np.array(expected), kinds))
        mode = meta["bn_mode"].plain()
        ours = {
            "snip": "train" if AUTHORS.saliency_train else "eval",
            "proxy": "eval",
            "training": "train",
        }
        self.checks.append(exact("bn_mode", ours, mode))
        if "iterative_unlearn_bitwise_equal" in meta:
            self.checks.append(exact("the recorder's own flag", meta["iterative_unlearn_bitwise_equal"], True))
        for key in ("starts_from", "net_start", "start_state"):
            if key in meta:
                self.checks.append(exact(key, meta[key] in self.trace.folder.names, True))
        for key, reason in (("variant", "names the layers"), ("lr_schedule", "prose for decreasing_lr")):
            if key in meta:
                self.trace.accept(key, reason)


# Every trace compiles its step for four shapes of batches and runs it a few times: compiling fast matters more.
@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def _step_and_look(step, model: Model, carry: Carry, batch: Batch):
    """The method's step, and beside it what it does not report: what it hands to its projection and its optimizer.

    Returns the new carry, the step's metrics, its gradient before and after projection, and the retain logits.
    """
    logits, _ = model.apply(carry.params, carry.model_state, batch.retain["image"], train=True)
    project, gradients = repair._project, []

    def watched_project(transform, gradient, *rest):
        gradients.append(gradient)
        return project(transform, gradient, *rest)

    def watched_update(gradient, *rest):
        gradients.append(gradient)
        return step.update(gradient, *rest)

    with mock.patch.object(repair, "_project", watched_project):
        carry, metrics = dataclasses.replace(step, update=watched_update)(carry, batch)
    return carry, metrics, gradients[0], gradients[-1], logits


def _numbers(name: str, got, recorded: np.ndarray, tolerance: float, *, relative_to_largest: bool = False) -> Check:
    """As `absolute` (or `relative`), with NaN where the recorder noted nothing, at the same places."""
    got = np.asarray(got, np.float64)
    if got.shape != recorded.shape or not np.array_equal(np.isnan(got), np.isnan(recorded)):
        return Check(f"{name} is noted at the same steps", np.inf, tolerance)
    there = ~np.isnan(recorded)
    compare = relative if relative_to_largest else absolute
    return compare(name, got[there], recorded[there], tolerance)


def _ordered(flat: np.ndarray, count: int, recorded: np.ndarray) -> np.ndarray:
    """The largest scores in the recorded direction."""
    largest = flat[-count:]
    return largest[::-1] if recorded[0] > recorded[-1] else largest


def mask_checks(
    name: str,
    got: dict[str, np.ndarray],
    recorded: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    threshold: float,
) -> list[Check]:
    """All of a network's masks at once: equal, but for a few entries whose score lies at the threshold."""
    checks = [exact(f"{name} names", sorted(got), sorted(recorded))]
    if not checks[0].ok:
        return checks
    ours, theirs, flat = (
        np.concatenate([np.asarray(tensors[key]).ravel() for key in sorted(recorded)])
        for tensors in (got, recorded, scores)
    )
    clear = np.abs(flat - threshold) > GRADIENTS * threshold
    return [
        *checks,
        exact(f"{name} off the threshold", ours[clear], theirs[clear]),
        mismatches(name, ours, theirs, MASK_MISMATCHES),
    ]


def _total(mask, names: list[str] | None = None) -> int:
    """How many entries of a recorded mask are True, in all tensors or some."""
    return int(sum(int(np.sum(mask[name])) for name in (mask if names is None else names)))


def _near(name: str, got: int, recorded: int) -> Check:
    """Counts of exact zeros, which rounding may move a little."""
    return Check(name, abs(got - recorded), MASK_MISMATCHES)
