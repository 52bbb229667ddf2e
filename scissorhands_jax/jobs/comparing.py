"""How well networks of your own have forgotten: their rows, the gates of these, and a page, for any task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from scissorhands_jax import data as data_lib
from scissorhands_jax import report
from scissorhands_jax.base import Data, Dataset, Model, ModelState, Params, PyTree, check_model
from scissorhands_jax.errors import InputError, check_seed
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


class HoldsNetwork(Protocol):
    """What holds the parameters and the state of a network, such as a `Result` or a `TrainedModel`."""

    @property
    def params(self) -> Params: ...

    @property
    def model_state(self) -> ModelState: ...


EvaluatedNetwork = HoldsNetwork | tuple[Params, ModelState]


def evaluate(
    model: Model,
    networks: Mapping[str, EvaluatedNetwork | Mapping[int, EvaluatedNetwork]],
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
      networks: The networks by name. Each is the pair of its parameters and its state, or what holds both, such as the
        result of `run` or `train`; or a dict of such networks by seed.
      data: The forget and the retain set; or those of each seed, if networks are given by seed.
      test: Examples that no network has seen.
      task: What the network is for.
      scenario: What the table is called.
      seed: The seed of the attack's subsample, and that of the networks if they are not given by seed.
      every_attack: Whether further membership attacks are run; see `metrics.row.measure_row`.

    Raises:
      InputError: There is no network, something else than a model, a network or data was given, networks have no names,
        a set is empty, all test examples are of classes that were forgotten as a whole, a seed is none, seeds of
        networks and data differ, or something cannot be measured.
    """
    check_model(model)
    if not isinstance(networks, Mapping):
        raise InputError(f"the networks are {_described(networks)}; give a dict of them by name")
    by_seed = _of_seeds(data, seed)
    for number, one in by_seed.items():
        check_seed(number)
        _check_sets(one, test)
        answers.known_test_set(task, test, one.retain)
    rows = []
    for name, given in networks.items():
        found = {number: _pair(network, name) for number, network in _of_seeds(given, seed).items()}
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


def _of_seeds(given: Any, seed: int) -> dict[int, Any]:
    """What was given by seed, or else for one seed. The keys of a dict are seeds if all are integers."""
    by_seed = isinstance(given, Mapping) and bool(given) and all(isinstance(key, Integral) for key in given)
    return dict(given) if by_seed else {seed: given}


def _pair(network: Any, name: str) -> tuple[Params, ModelState]:
    """The parameters and the state of a network, or InputError if it is none."""
    if hasattr(network, "params") and hasattr(network, "model_state"):
        return network.params, network.model_state
    if isinstance(network, tuple) and len(network) == 2:
        return network
    raise InputError(
        f"{name!r} is {_described(network)}; give a pair (params, model_state), what run or train returns, or a "
        "dict of these by seed"
    )


def _check_sets(data: Any, test: Dataset) -> None:
    """Raises InputError unless there are examples of all three kinds."""
    if not isinstance(data, Data):
        raise InputError(
            f"the data are {_described(data)}; give the two parts, as split(train, positions) makes them, or a dict of "
            "these by seed"
        )
    for part, what, why in (
        (data.forget, "examples to forget", "how well they were forgotten"),
        (data.retain, "retained examples", "what was lost"),
        (test, "test examples", "what was lost, and how unseen examples are treated"),
    ):
        if not data_lib.size(part):
            raise InputError(f"there are no {what}, without which nothing says {why}; give at least one")


def _described(given: Any) -> str:
    """Names what was given, for a message."""
    keys = f" with the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) and given else ""
    return f"a {type(given).__name__}{keys}"


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
