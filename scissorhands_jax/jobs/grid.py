"""A table of results: scenarios, seeds and methods, every network compared with one retrained without the forget set.

A second retrained network for each scenario and seed shows how far apart two of them are, which is the floor.
Every network is a cell (`jobs.cells`), so that a table that was stopped continues with the next network.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import models, report
from scissorhands_jax.errors import InputError, check_seed, listed
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.cells import CellFolder, Diverged, ResultCell
from scissorhands_jax.jobs.experiment import Experiment, OwnNetwork, Scenario
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.jobs.scenarios import (
    REDRAWN,
    REFERENCES,
    DrawnScenario,
    SeededScenario,
    TableNetworks,
    check_seeds,
    run_name,
)
from scissorhands_jax.jobs.table_cells import TableCell
from scissorhands_jax.methods import describe
from scissorhands_jax.metrics import accuracies, gradcam
from scissorhands_jax.report import ORIGINAL, REFERENCE, provenance, table_gates
from scissorhands_jax.terminal import Console, Progress, say
from scissorhands_jax.training.identity import differences, identify


def run_grid(
    experiment: Experiment,
    out: Path,
    *,
    seeds: Sequence[int],
    data_dir: str | None = None,
    networks: Path | None = None,
    only: str | None = None,
    redrawn: bool = True,
    overwrite: bool = False,
    go_on_from: Path | None = None,
    present: Callable[[dict[str, Any]], object] | None = None,
    console: Console | None = None,
    own: OwnNetwork | None = None,
) -> dict[str, Any]:
    """Fills a table in a folder, or continues to fill it, and returns the document in its `results.json`.

    The folder holds a file for every cell (`cells/`), the networks (`networks/`), the positions of every split
    (`positions/`) and `results.json`, which is rewritten after every cell. Run times leave compilation out. The RTE of
    a cell is its time divided by that of retraining in the same process; it is null if the retrained network was made
    by an earlier process.

    Args:
      experiment: What to run.
      out: The folder. A table of the same experiment in it is continued.
      seeds: Different numbers from 0 on. Each draws its own forget set and original, retrained and unlearned networks.
        Seeds that are 1,000 or 2,000 apart are refused, because their networks would share random numbers.
      data_dir: The folder of the data set's files. None for data sets that need none.
      networks: Where original and retrained networks are kept and looked for, so that experiments can share them. The
        default is `out/networks`, where unlearned networks always are.
      only: A regular expression. Only methods whose label it matches are run, and the references. None runs all, and
        `^$` the references alone.
      redrawn: Whether a second retrained network is trained for every seed, which shows by how much two of them differ.
        Without it a seed trains two networks in place of three, and the table has no floor.
      overwrite: Whether to replace a table that is there.
      go_on_from: The `results.json` of a table of the same experiment, whose cells are put into the folder first, so
        that a table can be continued of which only the results were kept. Of a cell that both have the folder's is
        kept. None begins with what is in the folder. Networks that new cells need are trained again unless they are
        in `networks`.
      present: Is called with the document at the end, before another process can write to the folder, to add pages or
        pictures.
      console: Shows the progress. The default is stderr.
      own: A network of your own with its data and its task, in place of what the experiment names. Its code and its
        data identify the table.

    Raises:
      InputError: Something in the experiment cannot be used, or the folder holds something else, such as cells of other
        settings, or `go_on_from` holds no table, or one of other settings.
      BusyError: Another process writes to the folder.
      DivergedError: The original or the retrained network diverged; all earlier cells are kept. An unlearning method
        that diverges is listed under `failures` instead.
    """
    console = console or Console(stderr=True)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds must be different numbers from 0 on, got {list(seeds)}")
    for seed in seeds:
        check_seed(seed)
    check_seeds(seeds)
    chosen = label_pattern(only, {label: None for scenario in experiment.scenarios for label in scenario.methods})
    store = TableNetworks(experiment, data_dir, out, networks or out / "networks", own)
    table = Table(store)
    identity = identify({"command": "grid", **store.loaded.settings, "data_sha256": store.data_sha256})
    taken = [] if go_on_from is None else cells_in(go_on_from)
    table.check(taken, str(go_on_from))
    inputs: list[str | Path | None] = [*store.loaded.inputs, go_on_from]
    with CellFolder.open(out, identity, TableCell, inputs=inputs, store=networks, overwrite=overwrite) as folder:
        added = sum(folder.add(cell.place, cell) for cell, _ in taken)
        if taken:
            others = "; it had the others" if added < len(taken) else ""
            say(console, f"{added} of the {len(taken)} cells of {go_on_from} were put into {out}{others}")
        document = _filled(table, folder, out, table.cells(seeds, chosen, redrawn=redrawn), console)
        if present is not None:
            present(document)
    return document


def _filled(
    table: Table, folder: CellFolder[TableCell], out: Path, cells: Sequence[ResultCell[TableCell]], console: Console
) -> dict[str, Any]:
    """Computes what is missing of a table, and returns its document."""

    def write_results() -> dict[str, Any]:
        document = report.by_first_maker(out / runs.RESULTS_FILE, table.document(folder.read_all()))
        report.write_results(out / runs.RESULTS_FILE, document)
        return document

    there = folder.read_all()
    check_seeds(sorted({int(cell.place["seed"]) for cell in (*there, *cells)}))
    table.check(((cell, getattr(cell, "settings", None)) for cell in there), str(folder.folder))
    if there:
        now = {"those to come": provenance.running_code().name}
        note = provenance.code_note({**code_of(there), **now})
        if len({*code_of(there).values(), *now.values()}) > 1:
            say(console, note)
    with progress_bar(console) as progress:
        folder.fill(cells, progress, write_results, seconds_between=0)
    table.forget_steps(cells)
    return write_results()


def label_pattern(only: str | None, labels: Iterable[str]) -> re.Pattern[str]:
    """The regular expression that chooses among labels; None chooses all of them, and `^$` none.

    Raises:
      InputError: It is not a regular expression, or matches no label.
    """
    try:
        pattern = re.compile(only or "")
    except re.error as error:
        raise InputError(f"the choice of methods {only!r} is not a regular expression: {error}") from error
    labels = list(labels)
    if not any(map(pattern.search, ["", *labels])):
        raise InputError(f"{only!r} matches none of {', '.join(labels)}; correct it, or write '^$' to choose none")
    return pattern


class Table:
    """The cells of one table, and the document that is made of them.

    Args:
      store: Its networks.
    """

    def __init__(self, store: TableNetworks) -> None:
        self.store = store
        self.experiment = store.experiment
        self._started = time.perf_counter()
        self._prepared: SeededScenario | None = None
        self._of_seeds: dict[tuple[str, int], dict[str, Any]] = {}
        self._spent: list[str] = []  # runs whose checkpoints are not needed once their cell is written

    def cells(self, seeds: Sequence[int], only: re.Pattern[str], *, redrawn: bool) -> list[ResultCell[TableCell]]:
        """All cells, each after those whose networks it needs; see `run_grid` for the arguments.

        Raises:
          InputError: A scenario does not fit the data, or a file that it names cannot be read.
        """
        references = [label for label in REFERENCES if redrawn or label != REDRAWN]
        return [
            ResultCell(
                {"scenario": scenario.name, "seed": seed, "method": label},
                functools.partial(self._measure, scenario, seed, label),
                may_diverge=label in scenario.methods,
                of=self._examples(scenario, seed),
            )
            for seed in seeds
            for scenario in self.experiment.scenarios
            for label in (*references, *filter(only.search, scenario.methods))
        ]

    def _measure(self, scenario: Scenario, seed: int, label: str, progress: Progress) -> TableCell:
        """One cell. The cells of one scenario and seed follow one another and share its examples."""
        for name in self._spent:
            self.store.forget_steps(name)
        self._spent = [run_name(scenario, seed, label, number) for number in range(len(scenario.forget))]
        prepared = self._prepared
        if prepared is None or prepared.scenario is not scenario or prepared.seed != seed:
            prepared = self._prepared = SeededScenario(self.store, scenario, seed)
            prepared.save_positions()
        return prepared.measure(label, progress)

    def _examples(self, scenario: Scenario, seed: int) -> dict[str, Any]:
        """Which examples a scenario forgets with a seed, and how many have wrong labels, as its cells say it."""
        found = self._of_seeds.get((scenario.name, seed))
        if found is None:
            drawn = DrawnScenario(self.store.loaded, scenario, seed)
            summary = dataclasses.asdict(drawn.forget_summary())
            found = self._of_seeds[scenario.name, seed] = {
                "forget": summary,
                "flipped_labels": scenario.flipped_labels,
            }
        return found

    def forget_steps(self, cells: Sequence[ResultCell[TableCell]]) -> None:
        """Removes the checkpoints of the runs of cells that are done."""
        scenarios = {scenario.name: scenario for scenario in self.experiment.scenarios}
        for place in (cell.place for cell in cells):
            scenario = scenarios[str(place["scenario"])]
            for number in range(len(scenario.forget)):
                self.store.forget_steps(run_name(scenario, int(place["seed"]), str(place["method"]), number))

    def document(self, found: Sequence[TableCell | Diverged]) -> dict[str, Any]:
        """The document of `results.json`, from the cells that have been computed."""
        order: dict[tuple[str, str], tuple[int, int]] = {}
        for number, scenario in enumerate(self.experiment.scenarios):
            for position, label in enumerate((*REFERENCES, *scenario.methods)):
                order[scenario.name, label] = number, position
        cells = [cell for cell in found if isinstance(cell, TableCell)]
        cells.sort(key=lambda cell: (order[cell.scenario, cell.method], cell.seed))
        references = {(cell.scenario, cell.seed): cell for cell in cells if cell.method == REFERENCE}
        # Rows of one seed stand together, so that scenarios are read seed by seed.
        by_seed = sorted(cells, key=lambda cell: (order[cell.scenario, cell.method][0], cell.seed))
        rows = report.with_gaps(cell.row(references.get((cell.scenario, cell.seed))) for cell in by_seed)
        failures = [self._failure(cell) for cell in found if isinstance(cell, Diverged)]
        rows = report.with_lost_runs(rows, failures)
        return {
            "rows": rows,
            "cells": [cell.as_dict() for cell in cells],
            "failures": failures,
            "gates": [gate._asdict() for gate in table_gates.of_rows(rows)],
            "code": " ".join(filter(None, (provenance.code_note(code_of(found)), originals_note(cells)))),
            "config": {"experiment": self.experiment.name, **self.store.loaded.settings},
            "seconds": time.perf_counter() - self._started,
            **report.environment(),
        }

    def check(self, found: Iterable[tuple[TableCell | Diverged, Any]], where: str) -> None:
        """Checks that all cells belong to this table, whatever files were put into its folder.

        Args:
          found: The cells, each with the settings that it was made with, or None where these are not known.
          where: What holds them, for the message.

        Raises:
          InputError: Some are of other settings.
        """
        scenarios = {scenario.name: scenario for scenario in self.experiment.scenarios}
        methods = {
            (scenario.name, label): describe(settings)
            for scenario in self.experiment.scenarios
            for label, settings in {**dict.fromkeys(REFERENCES, self.experiment.training), **scenario.methods}.items()
        }
        shared = self.store.loaded.settings_sha256()
        wrong = {}
        found = list(found)
        for cell, used in found:
            place = cell.place
            settings = methods.get((str(place.get("scenario")), str(place.get("method"))))
            now = json.loads(json.dumps(settings))
            changed = None if None in (settings, used) else next(differences(used, now), None)
            if settings is None:
                wrong[cell.title] = "this table has no such cell"
            elif changed is not None:
                wrong[cell.title] = "its {} was {!r} and is now {!r}".format(*changed)
            elif other := _other_examples(cell, self._examples(scenarios[str(place["scenario"])], int(place["seed"]))):
                wrong[cell.title] = other
            elif isinstance(cell, Diverged):
                continue
            elif cell.experiment_sha256 not in (None, shared):
                wrong[cell.title] = "its data, its network or the training of that was another"
            elif cell.data_sha256 not in (None, self.store.data_sha256):
                wrong[cell.title] = "its data were others"
        if wrong:
            title, what = next(iter(wrong.items()))
            raise InputError(
                f"{len(wrong)} of {len(found)} cells in {where} were made with other settings "
                f"({'; '.join(wrong)}), such as {title}: {what}; remove them, and they are computed again"
            )

    def _failure(self, cell: Diverged) -> dict[str, Any]:
        name, label = cell.place["scenario"], str(cell.place["method"])
        scenario = next(scenario for scenario in self.experiment.scenarios if scenario.name == name)
        found = {"settings": describe(scenario.methods[label]), "failure": cell.reason, "code": cell.code}
        return {**cell.place, **found, **cell.of}


def _other_examples(cell: TableCell | Diverged, now: Mapping[str, Any]) -> str:
    """Says in which way a cell forgot other examples, or had other wrong labels, than it would now; "" if in none."""
    found = cell.of if isinstance(cell, Diverged) else dataclasses.asdict(cell)
    if found.get("flipped_labels") not in (None, now["flipped_labels"]):
        return f"its flipped_labels was {found['flipped_labels']} and is now {now['flipped_labels']}"
    was, forget = found.get("forget", {}), now["forget"]
    known = "sha256" if "sha256" in was else "requests"  # Positions decide; words are all that some failures have.
    if was.get(known) in (None, forget[known]):
        return ""
    old, new = (" and ".join(each["requests"]) for each in (was, forget))
    return f"{old} named other examples" if old == new else f"it forgot {old}, and would now forget {new}"


def cells_in(path: Path) -> list[tuple[TableCell | Diverged, dict[str, Any]]]:
    """The cells of a table, from its `results.json`, each with the settings that it was made with.

    Raises:
      InputError: The file cannot be read, or holds no table.
    """
    document = report.read_results(path)
    try:
        # What cells and failures of earlier versions do not say themselves.
        said = {scenario["name"]: scenario for scenario in document["config"].get("scenarios", ())}
        found: list[tuple[TableCell | Diverged, dict[str, Any]]] = [
            (
                TableCell.from_dict({"flipped_labels": said.get(cell["scenario"], {}).get("flipped_labels")} | cell),
                cell["settings"],
            )
            for cell in document["cells"]
        ]
        for failure in document["failures"]:
            place = {name: failure[name] for name in ("scenario", "seed", "method")}
            scenario = said.get(place["scenario"], {})
            of = {"flipped_labels": scenario.get("flipped_labels")}
            if "forget" in scenario:
                of["forget"] = {"requests": [spec.replace("{seed}", str(place["seed"])) for spec in scenario["forget"]]}
            of |= {name: failure[name] for name in ("forget", "flipped_labels") if name in failure}
            found.append((Diverged(place, failure["failure"], failure["code"], of), failure["settings"]))
        if not all(isinstance(used, dict) and type(cell.place["seed"]) is int for cell, used in found):
            raise TypeError("a cell has no settings or no seed")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no cells of a table ({error}); name the results.json of a table") from error
    return found


def originals_note(cells: Iterable[TableCell]) -> str:
    """Names the cells that were unlearned from another original than the one in the table, in a sentence.

    That can be where an original was trained again, on another machine or by other code, for cells that were added
    later; "" if there is none.
    """
    cells = list(cells)
    originals = {(cell.scenario, cell.seed): cell.network for cell in cells if cell.method == ORIGINAL}
    others = [
        cell.title
        for cell in cells
        if cell.original is not None and cell.original != originals.get((cell.scenario, cell.seed), cell.original)
    ]
    if not others:
        return ""
    return f"Unlearned from another original of the same seed than the table's: {listed(others)}."


def code_of(cells: Iterable[TableCell | Diverged]) -> dict[str, str | None]:
    """The code that made each cell, by the cell's name; None where it was not recorded."""
    found: dict[str, str | None] = {}
    for cell in cells:
        found[cell.title] = cell.code
        if isinstance(cell, TableCell) and cell.trained_by:
            found[f"the network of {cell.title}"] = cell.trained_by
    return found


def gradcam_picture(
    experiment: Experiment,
    out: Path,
    *,
    seed: int,
    labels: Sequence[str] = ("scissorhands",),
    data_dir: str | None = None,
    networks: Path | None = None,
    num_images: int = 4,
) -> report.Picture | None:
    """Grad-CAM of the original, the retrained and some unlearned networks, on forget and retain images (Figure 1).

    Args:
      experiment: Its table in `out` must have the cells of `seed`. The first scenario is shown.
      out: The folder of the table.
      seed: One of the table's seeds.
      labels: The methods whose networks are shown next to the two references.
      data_dir, networks: As for `run_grid`.
      num_images: The number of forget images, and of retain images: the first ones of each set, at most all.

    Returns:
      The picture, or None where the network has no convolution, or a network is not there because the table was
      continued from its results.
    """
    if models.CAM_LAYERS.get(experiment.model) is None:
        return None
    store = TableNetworks(experiment, data_dir, out, networks or out / "networks")
    scenario = SeededScenario(store, experiment.scenarios[0], seed)
    if not all(scenario.network_folder(label).exists() for label in (ORIGINAL, REFERENCE, *labels)):
        return None
    parts = [
        data_lib.take(part, np.arange(min(num_images, data_lib.size(part))))
        for part in (scenario.data.forget, scenario.data.retain)
    ]
    images, classes = (np.concatenate([part[name] for part in parts]) for name in ("image", "label"))
    layer = experiment.gradcam_layer or gradcam.default_layer(experiment.model)
    maps, logits = {}, {}
    for label in (ORIGINAL, REFERENCE, *labels):
        network = scenario.load(label)
        weights = network.params, network.model_state
        maps[label] = gradcam.heatmaps(store.loaded.model, *weights, images, classes, layer=layer)
        logits[label] = accuracies.predict(store.loaded.model, *weights, images)
    figure = report.gradcam_figure(
        images,
        maps,
        num_forget=data_lib.size(parts[0]),
        labels=classes,
        logits=logits,
        class_names=store.loaded.splits.class_names,
    )
    return report.Picture(
        figure,
        f"Grad-CAM at {layer} for the true class, seed {seed}: where each network looks on images to forget (above) "
        "and to retain (below). A map shows where, not how much.",
        "Heat maps over forget and retain images, one column per network",
        heading="Where the networks look",
        format="png",
        name="gradcam",
    )


def write_report(
    out: Path,
    document: Mapping[str, Any],
    *,
    title: str,
    answer: str | None = None,
    explanations: Sequence[report.Section] = (),
    leading: Sequence[report.Picture] = (),
    figures: Sequence[report.Picture] = (),
) -> None:
    """Writes `report.html` into the folder of a table.

    Args:
      out: The folder.
      document: As `run_grid` returned it.
      title: The heading of the page.
      answer: The result in a sentence. None says which method comes closest to the retrained network.
      explanations: What was done and how to read it, folded at the end of the page.
      leading: The figures at the top of the page. Without any they are the Avg. Gaps of every scenario.
      figures: Further figures, below the tables.
    """
    rows = document["rows"]
    networks = {f"{c['scenario']}, seed {c['seed']}, {c['method']}": c["network"] for c in document["cells"]}
    forgotten = {f"{c['scenario']}, seed {c['seed']}": c["forget"]["sha256"] for c in document["cells"]}
    # Tables of earlier versions have eight digits of another checksum.
    kind = "SHA-256" if all(len(digest) == 64 for digest in networks.values()) else "SHA-256, or earlier a checksum"
    drawn = report.row_pictures(rows)
    gaps = [picture for picture in drawn if picture.name == "gap"]
    report.write_html(
        out / "report.html",
        report.Page(
            title=title,
            answer=answer or report.closest_sentence(rows),
            trust=report.gates_summary(document["gates"]),
            leading=leading or gaps,
            gates=document["gates"],
            rows=rows,
            figures=[*(picture for picture in drawn if picture.name != "gap"), *figures],
            explanations=explanations,
            settings=document["config"],
            remarks=[*report.failures_section(document), report.Section("Code", [document["code"]])],
            hashes={f"Networks ({kind})": networks, "Forget sets (SHA-256)": forgotten},
            environment=report.environment_of(document),
        ),
    )
