"""What helps Scissorhands: its pairing, ceiling, schedule, saliency and repair, varied one at a time.

    python -m experiments.variants --config cifar10_small --data-dir data --seeds 0,1,2 \
        --networks runs/cifar10_small/networks --out runs/variants

Every cell is scored on validation data, as `scissorhands tune` does it, and also compared with the retrained network,
which the score never sees. A cell that lies in OUT already is not computed again. What no setting expresses is composed
here of public parts of the library.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import configs, programs
from experiments.starts import check_same_start, start_of
from scissorhands_jax import data as data_lib
from scissorhands_jax import files, losses, reading, reinit, report, saliency
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Dataset,
    Key,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    Scores,
    StatefulLossFn,
    freeze,
    take_model,
)
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.jobs import config, grid, search
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks, TrainedNetwork, check_seeds
from scissorhands_jax.methods import describe
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.methods.settings import of_network
from scissorhands_jax.methods.trimming import trimming_mask
from scissorhands_jax.metrics import distances
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import (
    Progress,
    add_follow_options,
    say,
)
from scissorhands_jax.training.identity import differences, list_differences
from scissorhands_jax.training.loop import run

BASE: dict[str, Any] = {
    "fraction": 0.05,
    "forget_weight": 0.25,
    "learning_rate": 0.05,
    "schedule": "linear",
    "ceiling": "off",
    "departures": {"every_step_joint": False},
}
"""What all variants start from: the published pairing at good settings for `cifar10_small`, which were found on seeds 0
and 1 before there was a ceiling."""
_JOINT: dict[str, Any] = {"departures": {}}
_FISHER_BATCH = 16
_TEMPERATURE = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of unlearning."""

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of Scissorhands that differ from `BASE`."""
    scores: Literal["forget", "sensitivity ratio", "fisher ratio"] = "forget"
    """What weights are ranked by: |w g_f|, |w g_f| / (|w g_r| + mean |w g_r|), or the same ratio of diagonal Fisher
    information."""
    distillation: float = 0.0
    """The weight of the divergence from the original's answers on retained examples."""
    averaged_from: float | None = None
    """The share of the steps after which weights are averaged. Statistics are then estimated anew on the retain set."""
    retain_only_from: float | None = None
    """The share of the epochs after which steps see retained examples only."""


def _variants() -> dict[str, Variant]:
    constant, uniform, held_out = {"schedule": "drops"}, {"ceiling": "uniform"}, {"ceiling": "held-out"}
    gentle = {**_JOINT, **uniform, "forget_weight": 0.05}
    variants = {
        "base": Variant(),
        "once an epoch, uniform ceiling": Variant(changes=uniform),
        "once an epoch, held-out ceiling": Variant(changes=held_out),
        "once an epoch, constant rate": Variant(changes=constant),
        "once an epoch, never projected": Variant(changes={"projected": False}),
        "once an epoch, 9 epochs": Variant(changes={"epochs": 9}),
        "once an epoch, lambda 0.1, 9 epochs": Variant(changes={"epochs": 9, "forget_weight": 0.1}),
        "every step": Variant(changes=_JOINT),
        "every step, uniform ceiling": Variant(changes={**_JOINT, **uniform}),
        "every step, held-out ceiling": Variant(changes={**_JOINT, **held_out}),
        "every step, uniform ceiling, constant rate": Variant(changes={**_JOINT, **uniform, **constant}),
        "every step, held-out ceiling, always projected": Variant(
            changes={"departures": {"project_above_ceiling": True}, **held_out}
        ),
        "every step, held-out ceiling, never projected": Variant(changes={**_JOINT, "projected": False, **held_out}),
    }
    for weight in (0.05, 1.0):
        other = {"forget_weight": weight}
        variants |= {
            f"once an epoch, lambda {weight:g}": Variant(changes=other),
            f"every step, uniform ceiling, lambda {weight:g}": Variant(changes={**_JOINT, **uniform, **other}),
            f"every step, held-out ceiling, lambda {weight:g}": Variant(changes={**_JOINT, **held_out, **other}),
        }
    extras: dict[str, dict[str, Any]] = {
        "sensitivity ratio": {"scores": "sensitivity ratio"},
        "fisher ratio": {"scores": "fisher ratio"},
        "distillation 0.5": {"distillation": 0.5},
        "distillation 2": {"distillation": 2.0},
        "averaged": {"averaged_from": 0.6},
        "retain only in the last epoch": {"retain_only_from": 0.8},
    }
    variants |= {f"once an epoch, {name}": Variant(**extra) for name, extra in extras.items()}
    variants["once an epoch, averaged, constant rate"] = Variant(averaged_from=0.6, changes=constant)
    variants["every step, uniform ceiling, lambda 0.05, 3 epochs"] = Variant(changes={**gentle, "epochs": 3})
    variants |= {
        f"every step, uniform ceiling, lambda 0.05, {name}": Variant(changes=gentle, **extra)
        for name, extra in extras.items()
        if name in ("sensitivity ratio", "distillation 0.5", "averaged", "retain only in the last epoch")
    }
    return variants


VARIANTS = _variants()
"""The rows of the table by their labels. They are compared with `base`, which sees the forget set once an epoch and has
no ceiling."""


@programs.ending("the same command goes on after the last cell")
def main(arguments: list[str] | None = None) -> int:
    """Runs the variants, writes every cell and the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.variants", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, metavar="NAME")
    parser.add_argument("--only", default=".", metavar="REGEX", help="labels of variants; default all")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="default 0,1,2")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="runs with other keys per seed (default 1)")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--networks", type=Path, required=True, metavar="DIR", help="trained networks, made if missing")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="of the experiment")
    add_follow_options(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    with programs.followed(options, options.out) as console, files.sole_writer(options.out):
        seeds = programs.read_seeds(options.seeds)
        if options.draws < 1:
            raise InputError(f"--draws must be at least 1, got {options.draws}")
        pairs = itertools.product(seeds, range(options.draws))
        again = {f"'retrained again' of seed {s}, draw {draw}": _seed_again(s, draw) for s, draw in pairs}
        check_seeds(seeds, again)
        experiment = config.override(configs.load(options.config), options.settings)
        labels = ["retrained again", *filter(grid.label_pattern(options.only, VARIANTS).search, VARIANTS)]
        store = TableNetworks(experiment, options.data_dir, options.networks.parent, options.networks)
        table = _Table(options.out, {"config": store.loaded.settings, "base": BASE, "data_sha256": store.data_sha256})
        with progress_bar(console) as progress:
            for seed in seeds:
                cells = Cells(store, seed, progress)
                check_same_start(table.rows, {"seed": seed, **cells.start}, str(options.out))
                for label, draw in itertools.product(labels, range(options.draws)):
                    if not table.has(label, seed, draw, functools.partial(cells.way_of, label)):
                        table.add(cells.measured(label, draw))
                        say(console, _line(table.rows[-1]))
    return 0


def _seed_again(seed: int, draw: int) -> int:
    """The seed of a network that is retrained once more."""
    return 10_000 + 100 * seed + draw


class _Table:
    """The cells so far, as `results.json` and `table.md` in a folder."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, json.loads(json.dumps(about))
        self.rows: list[dict[str, Any]] = []
        file = folder / "results.json"
        if file.exists():
            document = reading.read_json(file, nan=True)
            # Earlier versions did not write down hashes of the data.
            if {name: document.get(name) for name in self.about} | {
                "data_sha256": document.get("data_sha256", self.about["data_sha256"])
            } != self.about:
                raise InputError(f"{folder} holds cells of other settings or data; remove it, or name another folder")
            self.rows = document["rows"]

    def has(self, label: str, seed: int, draw: int, way_of: Callable[[float], Mapping[str, Any]]) -> bool:
        """Whether there is a cell.

        Args:
          label, seed, draw: Its place.
          way_of: How it would be made now, for a loss on held-out examples (`Cells.way_of`). What a cell of an earlier
            version does not say is taken.

        Raises:
          InputError: It was made in another way.
        """
        for row in self.rows:
            if (row["variant"], row["seed"], row["draw"]) != (label, seed, draw):
                continue
            way = json.loads(json.dumps(way_of(row["held_out_loss"])))
            known = {name: row[name] for name in way if name in row}
            now = {name: way[name] for name in known}
            if found := list(differences(known, now)):
                raise InputError(
                    f"the cell of {label!r}, seed {seed}, draw {draw} in {self.folder} was made in another way: "
                    f"{list_differences(found, 'was {} and is now {}')}; name another folder"
                )
            return True
        return False

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.folder.mkdir(parents=True, exist_ok=True)
        codes = {f"{row['variant']}, seed {row['seed']}, draw {row['draw']}": row.get("code") for row in self.rows}
        document = {"rows": self.rows, "code": provenance.code_note(codes), **self.about, **report.environment()}
        files.write_text(self.folder / "results.json", json.dumps(document, indent=2) + "\n")
        files.write_text(self.folder / "table.md", table_of(self.rows))


class Cells:
    """The cells of one seed."""

    def __init__(self, store: TableNetworks, seed: int, progress: Progress) -> None:
        self.store, self.seed, self.progress = store, seed, progress
        self.scenario = store.experiment.scenarios[0]
        self.prepared = SeededScenario(store, self.scenario, seed)
        self.original, self.retrained = self.prepared.original(progress), self.prepared.retrained(progress)
        self.start = start_of(self.prepared, self.original)
        self.oracle = self._row(self.retrained.params, self.retrained.model_state)
        self.before = self._numbers(self.original.params, self.original.model_state)
        self.held_out_loss = losses.average_loss(store.loaded.loss_fn, *self.original[:2], self.prepared.validation)

    def measured(self, label: str, draw: int) -> dict[str, Any]:
        """One cell; `score` and `avg_gap` are None where the run diverged."""
        cell: dict[str, Any] = {"variant": label, "seed": self.seed, "draw": draw}
        cell |= {"score": None, "avg_gap": None, "held_out_loss": self.held_out_loss}
        cell |= {**self.start, "code": provenance.running_code().name, **self.way_of(label, self.held_out_loss)}
        try:
            if label == "retrained again":
                params, model_state = self._retrained_again(draw)
            else:
                params, model_state, seconds = self._unlearned(VARIANTS[label], draw)
                cell |= {"seconds": seconds}
            numbers, row = self._numbers(params, model_state), self._row(params, model_state)
        except DivergedError as error:
            return {**cell, "diverged": str(error)}
        whole_classes = any(map(forget_sets.forgets_classes, self.scenario.forget))
        score = search.proxy_score(numbers, self.before, whole_classes=whole_classes)
        gap = distances.average_gap(row, self.oracle)
        return {**cell, "score": score, "avg_gap": gap, "metrics": row, "numbers": numbers}

    def way_of(self, label: str, held_out_loss: float) -> dict[str, Any]:
        """How a variant is made: its settings, and what is no setting; nothing for a retrained network."""
        if label == "retrained again":
            return {}
        parts = dataclasses.asdict(VARIANTS[label])
        del parts["changes"]  # They are in the settings.
        return {"settings": describe(self._settings(VARIANTS[label], held_out_loss)), "composed": parts}

    def _settings(self, variant: Variant, held_out_loss: float) -> ScissorhandsSettings:
        settings = dataclasses.replace(self.scenario.methods["scissorhands"], **BASE | variant.changes)
        settings = of_network(settings, lambda: held_out_loss)
        assert isinstance(settings, ScissorhandsSettings)
        return settings

    def _retrained_again(self, draw: int) -> tuple[Params, ModelState]:
        examples = Data(None, self.prepared.data.retain)
        folder = self.store.networks / f"retrained-again-seed{self.seed}-{draw}"
        network = self.store.train(folder, examples, _seed_again(self.seed, draw), self.progress)
        return network.params, network.model_state

    def _unlearned(self, variant: Variant, draw: int) -> tuple[Params, ModelState, float]:
        settings = self._settings(variant, self.held_out_loss)
        assert isinstance(settings, ScissorhandsSettings)
        method, data = build(self.store, settings, variant, self.original, self.prepared.data)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 4), draw)
        start = self.original
        result = run(method, key, start.params, start.model_state, data, num_epochs=settings.epochs)
        model_state = result.model_state
        if variant.averaged_from is not None:
            model_state = recalibrated(self.store.loaded.model, result.params, model_state, data, settings.batch_size)
        return result.params, model_state, result.seconds

    def _row(self, params: Params, model_state: ModelState) -> dict[str, Any]:
        prepared = self.prepared
        return measure_row(self.store.loaded.model, params, model_state, prepared.data, prepared.test, seed=self.seed)

    def _numbers(self, params: Params, model_state: ModelState) -> dict[str, float]:
        prepared = self.prepared
        return search.measure_trial(self.store.loaded.model, params, model_state, prepared.data, prepared.validation)


def build(
    store: TableNetworks, settings: ScissorhandsSettings, variant: Variant, original: TrainedNetwork, data: Data
) -> tuple[Method, Data]:
    """The method of a variant, and the examples as it reads them."""
    loaded = store.loaded
    loss_fn = loaded.loss_fn
    if variant.distillation:
        loss_fn = DistillationLoss(loaded.model, variant.distillation, losses.augmentation_of(loss_fn))
        data = with_teacher(loaded.model, original, data)
    method = settings.build(loaded.model, loss_fn, len(loaded.splits.class_names))
    if variant.scores != "forget":
        method = trimmed_by_ratio(method, settings, loss_fn, fisher=variant.scores == "fisher ratio")
    if variant.retain_only_from is not None:
        method = with_retain_only_end(method, round(variant.retain_only_from * settings.epochs))
    if variant.averaged_from is not None:
        per_epoch = len(list(method.batches(jax.random.key(0), data, 0)))
        method = averaged(method, round(variant.averaged_from * per_epoch * settings.epochs))
    return method, data


@dataclasses.dataclass(frozen=True)
class DistillationLoss:
    """Cross-entropy, and for the examples that are `taught` the divergence from the `teacher`'s logits as well.

    In training passes images are augmented as in the table's own loss. The teacher saw them as they are.
    """

    model: Model
    weight: float
    augment: losses.Augment | None = None

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        images, key = losses.augmented(self.augment if train else None, key, batch["image"])
        logits, model_state = self.model.apply(params, model_state, images, train=train, key=key)
        distance = losses.kl_divergences(batch["teacher"], logits, temperature=_TEMPERATURE)
        loss = losses.cross_entropy(logits, batch["label"])
        return loss + self.weight * jnp.mean(batch["taught"] * distance), model_state


def with_teacher(model: Model, teacher: TrainedNetwork, data: Data) -> Data:
    """The same examples with the teacher's logits; retained examples are taught, forgotten ones are not."""

    def extended(part: Dataset, taught: float) -> Dataset:
        batches = [part["image"][positions] for positions in data_lib.even_batches(data_lib.size(part), 500)]
        logits = [losses.teacher_logits(model, (teacher.params, teacher.model_state), images) for images in batches]
        weights = np.full(data_lib.size(part), taught, np.float32)
        return {**part, "teacher": np.concatenate(logits), "taught": weights}

    return Data(extended(data.forget, 0.0), extended(data.retain, 1.0))


def trimmed_by_ratio(
    method: Method, settings: ScissorhandsSettings, loss_fn: StatefulLossFn, *, fisher: bool
) -> Method:
    """The method with other weights trimmed: those that matter more for the forget than for the retain set."""

    def measure(params: Params, model_state: ModelState, part: Dataset) -> Scores:
        size = _FISHER_BATCH if fisher else settings.batch_size
        positions = data_lib.even_batches(data_lib.size(part), size)
        batches = [data_lib.take(part, chosen) for chosen in positions]
        if fisher:
            return saliency.diagonal_fisher(loss_fn, params, model_state, batches)
        return saliency.connection_sensitivity(freeze(loss_fn, model_state), params, batches)

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        carry = method.init(key, params, model_state, data)
        forget, retain = (measure(params, model_state, part) for part in data)
        floor = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(retain)]).mean()
        ratio = jax.tree.map(lambda f, r: f / (r + floor), forget, retain)
        mask, trimmed = trimming_mask(ratio, params, fraction=settings.fraction, trim=settings.trim)
        draw_key = jax.random.fold_in(key, 1)
        fresh = reinit.reinitialize(draw_key, params, mask, initializer=reinit.uniform(), trim=trimmed)
        return carry._replace(params=fresh)

    return method._replace(init=init)


def with_retain_only_end(method: Method, first_epoch: int) -> Method:
    """The method with steps that see retained examples only, from an epoch on, counted from 0."""

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        whole = method.batches(key, data, epoch)
        return whole if epoch < first_epoch else (Batch(None, batch.retain) for batch in whole)

    return method._replace(batches=batches)


class AveragingAux(NamedTuple):
    """What averaging carries in addition to the method's own."""

    inner: PyTree
    mean: Params  # of the weights after the steps so far
    count: jax.Array  # shape=(), float32: how many


@dataclasses.dataclass(frozen=True)
class _AveragingStep:
    method: Method
    first_step: int

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        inner, mean, count = carry.aux
        carry, metrics = self.method.step(carry._replace(aux=inner), batch)
        count = count + (carry.step > self.first_step)
        share = jnp.where(carry.step > self.first_step, 1 / jnp.maximum(count, 1), 0)
        mean = jax.tree.map(lambda m, w: m + share * (w - m), mean, carry.params)
        return carry._replace(aux=AveragingAux(carry.aux, mean, count)), metrics


def averaged(method: Method, first_step: int) -> Method:
    """The method whose result is the mean of its weights after the steps from `first_step` on, counted from 0."""

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        carry = method.init(key, params, model_state, data)
        return carry._replace(aux=AveragingAux(carry.aux, carry.params, jnp.zeros(())))

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        inner = method.begin_epoch(carry._replace(aux=carry.aux.inner), data)
        return inner._replace(aux=carry.aux._replace(inner=inner.aux))

    def finish(carry: Carry) -> tuple[Params, ModelState]:
        return carry.aux.mean, take_model(carry)[1]

    return Method(init, _AveragingStep(method, first_step), method.batches, begin_epoch, finish)


def recalibrated(model: Model, params: Params, model_state: ModelState, data: Data, batch_size: int) -> ModelState:
    """The network's statistics after one pass over the retain set in training mode, which moves no weight."""
    apply = jax.jit(lambda state, images: model.apply(params, state, images, train=True)[1])
    total = data_lib.size(data.retain)
    for positions in data_lib.shuffled_batches(jax.random.key(0), total, batch_size):
        model_state = apply(model_state, data.retain["image"][positions])
    return model_state


def table_of(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown: means and standard deviations over cells, differences from the base over equal cells."""
    cells = {label: [row for row in rows if row["variant"] == label] for label in [row["variant"] for row in rows]}
    base = {(row["seed"], row["draw"]): row["avg_gap"] for row in cells.get("base", [])}
    lines = [
        "| variant | Acc forget | Acc retain | Acc test | MIA | Avg. Gap | minus base | score |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, group in cells.items():
        whole = [row for row in group if row["avg_gap"] is not None]
        note = f" ({len(group) - len(whole)} of {len(group)} diverged)" if len(whole) < len(group) else ""
        columns = [[row["metrics"][name] for row in whole] for name in distances.GAP_FIELDS]
        columns.append([row["avg_gap"] for row in whole])
        pairs = [(row["avg_gap"], base.get((row["seed"], row["draw"]))) for row in whole]
        columns.append([gap - other for gap, other in pairs if other is not None])
        columns.append([row["score"] for row in whole])
        lines.append(f"| {label}{note} | " + " | ".join(map(_mean, columns)) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _line(row: dict[str, Any]) -> str:
    cell = f"seed {row['seed']}, draw {row['draw']}, {row['variant']}"
    if row["avg_gap"] is None:
        return f"{cell}: diverged"
    return f"{cell}: score {row['score']:.2f}, Avg. Gap {row['avg_gap']:.2f}"


if __name__ == "__main__":
    huge_pages.restart("experiments.variants")
    sys.exit(main())
