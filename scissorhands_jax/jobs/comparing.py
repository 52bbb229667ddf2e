"""How well networks of your own have forgotten: their rows, the gates of these, and a page, for any task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scissorhands_jax import report
from scissorhands_jax.base import Data, Dataset, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.scenarios import REFERENCES
from scissorhands_jax.metrics import answers
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import table_gates
from scissorhands_jax.tasks import CLASSIFICATION, Task
from scissorhands_jax.terminal import Console, say


@dataclasses.dataclass(frozen=True)
class MeasuredNetworks:
    """Networks that were measured on the same examples."""

    rows: list[report.Row]
    """A row for each network (`metrics.row.measure_row`), with what compares it to the retrained one."""
    gates: list[dict[str, Any]]
    """Whether the numbers can be trusted (`report.table_gates`)."""

    def show(self, console: Console | None = None) -> None:
        """Prints the table, and whether it can be trusted. The default console is stdout."""
        console = Console() if console is None else console
        report.print_tables(self.rows, console)
        say(console, report.gates_note(self.gates))

    def write(self, out: Path, *, title: str = "Networks that were made to forget") -> None:
        """Writes `results.json` and `report.html` into a folder, which is made if it does not exist.

        Args:
          out: The folder. Files of these names in it are replaced.
          title: The heading of the page.
        """
        document = {"rows": self.rows, "gates": self.gates, "config": {}, **report.environment()}
        report.write_results(Path(out) / runs.RESULTS_FILE, document)
        page = report.Page(
            title=title,
            answer=report.closest_sentence(self.rows),
            trust=report.gates_summary(self.gates),
            gates=self.gates,
            rows=self.rows,
            figures=report.row_pictures(self.rows),
            environment=report.environment_of(document),
        )
        report.write_html(Path(out) / "report.html", page)


def evaluate(
    model: Model,
    networks: Mapping[str, tuple[Params, ModelState] | Mapping[int, tuple[Params, ModelState]]],
    data: Data | Mapping[int, Data],
    test: Dataset,
    *,
    task: Task = CLASSIFICATION,
    scenario: str = "forgetting",
    seed: int = 0,
    every_attack: bool = False,
) -> MeasuredNetworks:
    """Measures networks on what they were to forget, what they were to keep and unseen examples, and compares them.

    With the networks called "original", "retrain" and "retrained, drawn again" (a second one that was trained without
    the forget set) there are gates, which say whether the numbers mean anything, and the distance of every other
    network to the retrained one. A single seed seldom suffices for all gates.

    Args:
      model: The network.
      networks: By name the parameters and the state of each network: a pair, or pairs by seed.
      data: The forget and the retain set; or those of each seed, if networks are given by seed.
      test: Examples that no network has seen.
      task: What the network is for.
      scenario: What the table is called.
      seed: The seed of the attack's subsample, and that of the networks if they are not given by seed.
      every_attack: Whether further membership attacks are run; see `metrics.row.measure_row`.

    Raises:
      InputError: There is no network, seeds of networks and data differ, or something cannot be measured.
    """
    by_seed = dict(data) if isinstance(data, Mapping) else {seed: data}
    rows = []
    for name, given in networks.items():
        found = dict(given) if isinstance(given, Mapping) else {seed: given}
        unknown = sorted(set(found) - set(by_seed))
        if unknown:
            raise InputError(f"{name!r} has a network of seed {unknown[0]}, and there are no data of it; add them")
        for number, network in found.items():
            numbers = _numbers(model, network, by_seed[number], test, task, number, every_attack, name in REFERENCES)
            place = {"scenario": scenario, "method": name, "seed": number}
            rows.append({**dict.fromkeys(("avg_gap", "seconds", "rte")), **numbers, **place})
    if not rows:
        raise InputError("there is no network to evaluate; give at least one by its name")
    fields = report.row_fields(rows[0])
    compared = report.with_gaps({field: row[field] for field in dict.fromkeys((*fields, *row))} for row in rows)
    return MeasuredNetworks(compared, [gate._asdict() for gate in table_gates.of_rows(compared)])


def _numbers(
    model: Model,
    network: tuple[Params, ModelState],
    data: Data,
    test: Dataset,
    task: Task,
    seed: int,
    every_attack: bool,
    is_reference: bool,
) -> dict[str, Any]:
    """The numbers of one network, with how it treats the forget set and unseen examples if gates look at that."""
    known = answers.known_examples(task, test, data.retain)
    numbers = measure_row(model, *network, data, known, seed=seed, every_attack=every_attack, task=task)
    if is_reference:
        shown: list[PyTree] = []
        for part in (data.forget, test):
            scores = answers.certainties(task, answers.outputs_of(task, model, *network, part), part)
            shown += [scores, answers.example_groups(task, part)]
        numbers |= table_gates.held_out_ranks(*shown)
    return numbers
