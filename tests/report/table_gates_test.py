"""Gates of tables: they hold on sound results, fail on each fault, and err as rarely as they say.

Simulations are at the sizes that tables have: 1, 2, 3 and 5 seeds, 225 to 5,000 forget examples. Their tolerance is
four standard deviations of a binomial share; seeds are fixed.
"""

import math
import re

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax import report, tasks
from scissorhands_jax.metrics import answers
from scissorhands_jax.report import gates, table_gates

SOUND = {"acc_retain": 100.0, "acc_test": 90.0, "num_forget": 100}
ORIGINAL = SOUND | {"method": "original", "acc_forget": 100.0, "mia": 2.0}
RETRAINED = SOUND | {"method": "retrain", "acc_forget": 70.0, "mia": 20.0}
HELD_OUT = {"held_out_auc": 0.51, "held_out_low": 0.45, "held_out_high": 0.55}
KNOWN = {"held_out_auc": 0.71, "held_out_low": 0.45, "held_out_high": 0.55}


def rows(seeds=3, original=ORIGINAL, retrained=RETRAINED | HELD_OUT, redrawn=None):
    """Retrained networks differ by a point from seed to seed, and the two of a seed by a point, too."""
    found = []
    for seed in range(seeds):
        place = {**dict.fromkeys(report.ROW_FIELDS), "scenario": "one", "seed": seed}
        first = place | retrained | {"acc_forget": retrained["acc_forget"] + seed}
        second = first | {"method": report.REDRAWN, "acc_forget": first["acc_forget"] + 1} | (redrawn or {})
        found += [place | original, first, second]
    return found


def outcome(table):
    return {gate.name.removeprefix("one: "): gate.passed for gate in table_gates.of_rows(table)}


def why(table, name):
    return next(gate.explanation for gate in table_gates.of_rows(table) if gate.name == f"one: {name}")


def note(table):
    return report.gates_note([gate._asdict() for gate in table_gates.of_rows(table)])


def without(table, *methods):
    return [row for row in table if row["method"] not in methods]


class TestOutcomes:
    @pytest.mark.parametrize("seeds", [2, 3, 5])
    def test_sound_results_hold(self, seeds):
        table = rows(seeds)
        assert outcome(table) == {gates.CAUGHT: True, gates.SILENT: True, gates.FARTHER: True}
        assert note(table) == "All 3 gates hold: originals are caught, and nothing is found in retrained networks."

    def test_an_original_that_knows_no_more_than_a_retrained_network_is_not_caught(self):
        """Its MIA is far off, as it may be by chance where nothing was memorised."""
        table = rows(original=ORIGINAL | {"acc_forget": 71.0, "mia": 2.0})
        assert outcome(table)[gates.CAUGHT] is False
        assert "nothing shows that it knows them better" in note(table)
        assert "MIA, which decides nothing, is 2.00 % against 20.00 %" in note(table)

    @pytest.mark.parametrize(
        ("changes", "caught"),
        [
            ({"acc_forget": 60.0}, False),
            ({"acc_forget": 71.5} | KNOWN, True),
            ({"acc_forget": 40.0} | KNOWN, False),
            (KNOWN | {"held_out_auc": 0.4}, False),
        ],
    )
    def test_only_knowing_more_counts_and_neither_number_may_say_the_opposite(self, changes, caught):
        assert outcome(rows(original=ORIGINAL | changes))[gates.CAUGHT] is caught

    @pytest.mark.parametrize(("value", "caught"), [(0.54, False), (0.55, False), (0.56, True), (0.3, False)])
    def test_of_one_seed_an_original_within_the_range_by_chance_is_not_caught(self, value, caught):
        table = rows(1, ORIGINAL | HELD_OUT | {"held_out_auc": value}, redrawn={"acc_forget": 70.0})
        assert outcome(table)[gates.CAUGHT] is caught

    @pytest.mark.parametrize(("value", "silent"), [(0.45, True), (0.449, False), (0.55, True), (0.551, False)])
    def test_the_ends_of_the_range_belong_to_it(self, value, silent):
        assert outcome(rows(retrained=RETRAINED | HELD_OUT | {"held_out_auc": value}))[gates.SILENT] is silent

    def test_two_examples_catch_nobody(self):
        table = rows(
            2, ORIGINAL | {"num_forget": 2}, RETRAINED | {"num_forget": 2, "acc_forget": 0.0}, {"acc_forget": 0.0}
        )
        assert outcome(table)[gates.CAUGHT] is None
        assert why(table, gates.CAUGHT).startswith("2 forget examples in 2 seeds are too few")

    def test_seeds_that_differ_too_much_are_not_called_too_few_examples(self):
        table = without(rows(2, ORIGINAL | {"num_forget": 5000}, RETRAINED | {"num_forget": 5000}), report.REDRAWN)
        table[-1] |= {"acc_forget": 20.0}
        assert outcome(table)[gates.CAUGHT] is None
        assert why(table, gates.CAUGHT).startswith("networks of 2 seeds differ too much: by chance alone")

    def test_a_second_retrained_network_of_some_seeds_throws_no_seed_away(self):
        """Of three seeds two have one retrained network, and of another table one seed has none at all."""
        table = [row for row in rows(3) if (row["method"], row["seed"] > 0) != (report.REDRAWN, True)]
        whole = next(gate for gate in table_gates.of_rows(table) if gate.name.endswith(gates.CAUGHT))
        assert whole.estimate.networks == 3
        assert "seeds" not in whole.explanation
        table = [row for row in rows(3) if (row["method"] == "original", row["seed"] > 1) != (False, True)]
        assert "above that of retrained networks in 2 of 3 seeds, 95 % interval" in why(table, gates.CAUGHT)

    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
    def test_a_gate_that_could_not_hold_or_could_not_fail_is_not_run(self, value):
        wide = {"held_out_auc": value, "held_out_low": -0.26, "held_out_high": 1.26, "num_forget": 1}
        table = rows(1, ORIGINAL | wide, RETRAINED | wide)
        assert outcome(table) == dict.fromkeys((gates.CAUGHT, gates.SILENT, gates.FARTHER))
        assert why(table, gates.SILENT) == why(table, gates.CAUGHT)
        assert why(table, gates.SILENT).startswith("1 forget example is too few")
        assert note(table).startswith("No gate was run, so nothing shows")

    def test_what_is_printed_lies_on_the_scale(self):
        wide = {"held_out_auc": 1.0, "held_out_low": 0.05, "held_out_high": 0.95}
        table = rows(2, ORIGINAL | wide, RETRAINED | HELD_OUT | wide | {"acc_forget": 0.0})
        assert outcome(table)[gates.CAUGHT] is True
        assert "had it seen neither, [5.0, 95.0] (fewer than four in five are found)" in why(table, gates.CAUGHT)
        assert ", 100.00] (four in five" in why(table, gates.CAUGHT)
        assert "fewer than four in five leaks are found" in why(table, gates.SILENT)

    @pytest.mark.parametrize("value", [0.4, 0.6])
    @pytest.mark.parametrize("which", ["retrain", report.REDRAWN])
    def test_retrained_networks_that_saw_the_forget_set_are_found(self, value, which):
        table = [row | ({"held_out_auc": 2 * value - 0.5} if row["method"] == which else {}) for row in rows()]
        assert outcome(table) == {gates.CAUGHT: True, gates.SILENT: False, gates.FARTHER: True}
        assert "they saw the forget set after all" in note(table)

    def test_an_original_like_a_retrained_network_is_not_farther(self):
        table = rows(original=RETRAINED | {"method": "original", "acc_forget": 71.5})
        assert outcome(table)[gates.FARTHER] is False
        assert "a method cannot be distinguished from retraining by its gap" in note(table)

    def test_what_is_missing_is_said(self):
        one = rows(1, ORIGINAL | KNOWN)
        assert outcome(one) == {gates.CAUGHT: True, gates.SILENT: True, gates.FARTHER: None}
        assert why(one, gates.FARTHER) == "needs two seeds, each with two retrained networks"
        assert "2 of 3 gates hold, the others were not run. one: the original is farther" in note(one)
        assert why(rows(1), gates.CAUGHT) == "needs two seeds, or a comparison of the original with held-out examples"
        alone = [row for row in rows() if row["method"] == "original"]
        assert set(outcome(alone).values()) == {None}
        assert note(alone).endswith("nothing shows that these numbers can be trusted: needs a retrained network.")
        assert why(without(rows(), "original"), gates.CAUGHT) == "needs the original"
        bare = rows(original=ORIGINAL | {"num_forget": None, "mia": None})
        assert why(bare, gates.CAUGHT).startswith("needs two seeds, or a comparison")
        assert why(bare, gates.FARTHER) == "the results have no Avg. Gap"

    def test_results_from_before_there_were_two_retrained_networks_keep_two_gates(self):
        table = without(rows(), report.REDRAWN)
        assert outcome(table) == {gates.CAUGHT: True, gates.SILENT: True, gates.FARTHER: None}
        assert why(table, gates.FARTHER) == "needs two seeds, each with two retrained networks"
        assert outcome(without(rows(1), report.REDRAWN))[gates.CAUGHT] is None

    @pytest.mark.parametrize(("count", "silent"), [(40, True), (50, True), (51, None), (99, None)])
    def test_no_gate_passes_for_examples_that_were_not_compared(self, count, silent):
        """Of so many of 100 forget examples no held-out one has the class, so that nothing is known of them."""
        lacks = {"held_out_uncompared": count}
        said = f"{count} of 100 forget examples have no held-out one of the same class"
        table = rows(1, ORIGINAL | KNOWN | lacks, RETRAINED | HELD_OUT | lacks)
        assert (outcome(table)[gates.CAUGHT], outcome(table)[gates.SILENT]) == (True, silent)
        assert said in why(table, gates.CAUGHT)
        assert said in why(table, gates.SILENT)
        table = rows(1, ORIGINAL | HELD_OUT | lacks, RETRAINED | KNOWN | lacks)
        assert (outcome(table)[gates.CAUGHT], outcome(table)[gates.SILENT]) == (None, False)
        assert said in why(table, gates.CAUGHT)
        assert said in why(table, gates.SILENT)

    def test_accuracy_which_is_of_all_examples_decides_also_where_some_were_not_compared(self):
        lacks = {"held_out_uncompared": 40}
        table = rows(3, ORIGINAL | HELD_OUT | lacks | {"acc_forget": 71.5})
        assert outcome(table)[gates.CAUGHT] is False
        assert outcome(rows(3, ORIGINAL | HELD_OUT | lacks))[gates.CAUGHT] is True
        one = ORIGINAL | HELD_OUT | {"num_forget": None, "held_out_uncompared": 1}
        assert "1 forget example has no held-out one" in why(rows(3, one), gates.CAUGHT)

    def test_held_out_numbers_compare_like_with_like(self):
        """Wrong labels are answered wrongly, so a forget set with some of them differs from clean examples."""
        generator = np.random.default_rng(0)
        label = np.zeros(400, int)
        wrong = np.arange(400) % 2 == 0
        logits = generator.normal(size=(400, 3))
        logits[:, 0] += np.where(wrong, -3, 3)
        held, held_label = generator.normal((3, 0, 0), size=(300, 3)), np.zeros(300, int)
        blind = table_gates.held_out_numbers(logits, label, label, held, held_label, held_label)
        assert blind["held_out_auc"] < blind["held_out_low"]
        found = table_gates.held_out_numbers(logits, label, wrong.astype(int), held, held_label, held_label)
        assert found["held_out_low"] < found["held_out_auc"] < found["held_out_high"]
        assert (blind["held_out_uncompared"], found["held_out_uncompared"]) == (0, 200)
        assert table_gates.held_out_numbers(logits, label, label + 1, held, held_label, held_label) == {}


SIMULATIONS = 150


def error(share, simulations=SIMULATIONS):
    return 4 * math.sqrt(share * (1 - share) / simulations)


def drawn_table(generator, seeds, count, shifts=(0.0, 0.0, 0.0), more=0.0, held_out=True):
    """A table in which nothing was memorised, but for shifts of the ranks and more right answers of the original.

    Networks of one seed differ by three points beyond what the choice of examples explains, MIA by 17.
    """
    table = []
    held, classes = 500, 2
    labels, held_labels = np.arange(count) % classes, np.arange(held) % classes
    shared = generator.normal(size=held)
    for seed in range(seeds):
        hard = generator.normal(size=count)
        share = generator.uniform(0.4, 0.8)
        for method, shift in zip(("original", "retrain", report.REDRAWN), shifts, strict=True):
            chance = np.clip(share + 0.03 * generator.normal() + (more if method == "original" else 0), 0, 1)
            row = {
                **dict.fromkeys(report.ROW_FIELDS),
                **{"scenario": "one", "seed": seed, "method": method, "num_forget": count},
                "acc_forget": 100 * generator.binomial(count, chance) / count,
                "acc_retain": 99 + 0.3 * generator.normal(),
                "acc_test": 100 * share + 0.7 * generator.normal(),
                "mia": float(np.clip(50 + 17 * generator.normal(), 0, 100)),
            }
            if held_out:
                own = _logits(hard + generator.normal(size=count) + shift, labels)
                other = _logits(shared + generator.normal(size=held), held_labels)
                row |= table_gates.held_out_numbers(own, labels, labels, other, held_labels, held_labels)
            table.append(row)
    return table


def _logits(margins, labels):
    """Logits of two classes that have these margins."""
    return np.where(np.eye(2, dtype=bool)[labels], margins[:, None], 0.0)


def simulated(seeds, count, **options):
    """The share of tables in which each gate holds."""
    generator = np.random.default_rng(1000 * seeds + count)
    found = [outcome(drawn_table(generator, seeds, count, **options)) for _ in range(SIMULATIONS)]
    return {name: np.mean([one[name] is True for one in found]) for name in found[0]}


REGRESSION = tasks.regression(1.0)


def drawn_errors(generator, seeds, count, *, left=1.0, uneven=0.5, held_out=True):
    """A table of a regression, in which the original's errors on the forget set are `left` times as large.

    Examples differ in how large their errors are, networks of one seed by three per cent beyond that.
    """
    table = []
    held_sizes = np.exp(uneven * generator.normal(size=500))
    for seed in range(seeds):
        sizes = np.exp(uneven * generator.normal(size=count))
        for method in ("original", "retrain", report.REDRAWN):
            scale = (1 + 0.03 * generator.normal()) * (left if method == "original" else 1)
            errors, held = (size * generator.normal(size=len(size)) for size in (sizes, held_sizes))
            found = {}
            for name, part in (("forget", scale * errors), ("retain", held[:100]), ("test", held)):
                examples = {"label": part.astype(np.float32)}
                value = answers.metric_value(
                    REGRESSION, REGRESSION.metrics[0], np.zeros(len(part), np.float32), examples
                )
                found |= {f"rmse_{name}": value.value, f"rmse_{name}_error": value.error}
            row = {"scenario": "one", "seed": seed, "method": method, "num_forget": count, "seconds": None, "rte": None}
            row |= {**found, "mia": float(generator.uniform(0, 100)), "avg_gap": None, "task": REGRESSION.document()}
            if held_out:
                groups = np.zeros(count, int), np.zeros(len(held), int)
                row |= table_gates.held_out_ranks(-((scale * errors) ** 2), groups[0], -(held**2), groups[1])
            table.append(row)
    return table


class TestErrors:
    """The gates of a task whose first metric is an error, not an accuracy."""

    @pytest.mark.parametrize(("seeds", "count"), [(1, 225), (3, 60)])
    def test_where_nothing_was_memorised_they_err_as_rarely_as_they_say(self, seeds, count):
        generator = np.random.default_rng(seeds)
        found = [outcome(drawn_errors(generator, seeds, count)) for _ in range(SIMULATIONS)]
        shares = {name: np.mean([one[name] is True for one in found]) for name in found[0]}
        assert shares[gates.CAUGHT] <= 0.03 + error(0.03)
        assert shares[gates.SILENT] >= 0.99 - error(0.01)
        assert shares[gates.FARTHER] <= 0.05 + error(0.05)

    def test_the_error_alone_errs_as_rarely(self):
        generator = np.random.default_rng(2)
        tables = [drawn_errors(generator, 2, 60, held_out=False) for _ in range(SIMULATIONS)]
        assert np.mean([outcome(table)[gates.CAUGHT] for table in tables]) <= 0.025 + error(0.025)

    def test_knowledge_of_the_stated_size_is_found_in_four_of_five_cases(self):
        """Of two normal errors the one with a deviation of a, not 1, is the smaller in 2 / pi atan(1 / a) of pairs."""
        generator = np.random.default_rng(9)
        said = why(drawn_errors(generator, 2, 60, uneven=0.0), gates.CAUGHT)
        stated = float(re.search(r"four in five are found from ([\d.]+) % on", said)[1]) / 100
        left = 1 / math.tan(math.pi * stated / 2)
        tables = [drawn_errors(generator, 2, 60, left=left, uneven=0.0) for _ in range(SIMULATIONS)]
        assert np.mean([outcome(table)[gates.CAUGHT] for table in tables]) > 0.8 - error(0.8)

    def test_what_is_found_is_said_in_the_words_of_the_metric(self):
        said = why(drawn_errors(np.random.default_rng(0), 3, 225, left=0.5), gates.CAUGHT)
        assert "its RMSE on the forget set is" in said
        assert "points below that of retrained networks" in said
        assert "if errors vary normally): it knows" not in said


class TestChances:
    @pytest.mark.parametrize(("seeds", "count"), [(1, 225), (2, 450), (3, 225), (5, 225), (2, 5000)])
    def test_where_nothing_was_memorised_gates_err_as_rarely_as_they_say(self, seeds, count):
        """MIA has a standard deviation of 17 points, and the original is a retrained network like the others."""
        found = simulated(seeds, count)
        assert found[gates.CAUGHT] <= 0.03 + error(0.03)
        assert found[gates.SILENT] >= 0.99 - error(0.01)
        assert found[gates.FARTHER] <= 0.05 + error(0.05)

    @pytest.mark.parametrize("seeds", [2, 3])
    def test_without_a_second_retrained_network_the_accuracy_errs_as_rarely(self, seeds):
        generator = np.random.default_rng(seeds)
        caught = [
            outcome(without(drawn_table(generator, seeds, 225, held_out=False), report.REDRAWN))[gates.CAUGHT]
            for _ in range(SIMULATIONS)
        ]
        assert False in caught
        assert np.mean([one is True for one in caught]) <= 0.025 + error(0.025)

    @pytest.mark.parametrize(("seeds", "count"), [(1, 225), (2, 450)])
    def test_knowledge_of_the_stated_size_is_found_in_four_of_five_cases(self, seeds, count):
        """Two scores differ with the standard deviation 2, so that a shift d is seen in Phi(d / 2) of the pairs."""
        generator = np.random.default_rng(7)
        said = why(drawn_table(generator, seeds, count), gates.CAUGHT)
        stated = float(re.search(r"four in five are found from ([\d.]+) % on", said)[1]) / 100
        shift = 2 * stats.norm.ppf(stated)
        assert simulated(seeds, count, shifts=(shift, 0.0, 0.0))[gates.CAUGHT] > 0.8 - error(0.8)
        said = why(drawn_table(generator, seeds, count), gates.SILENT)
        leaked = float(re.search(r"four in five leaks are found at ([\d.]+) %", said)[1]) / 100
        assert leaked == pytest.approx(stated, abs=1e-3)
        assert 1 - simulated(seeds, count, shifts=(0.0, shift, shift))[gates.SILENT] > 0.8 - error(0.8)

    @pytest.mark.parametrize("seeds", [2, 3])
    def test_a_difference_of_accuracy_of_the_stated_size_is_found_in_four_of_five_cases(self, seeds):
        """What is printed uses the spread that was found, so its mean over tables is the size."""
        generator = np.random.default_rng(8)
        pattern = r"\(four in five are found from ([\d.]+) on\)"
        said = [why(drawn_table(generator, seeds, 5000, held_out=False), gates.CAUGHT) for _ in range(100)]
        stated = math.sqrt(np.mean([float(re.search(pattern, one)[1]) ** 2 for one in said]))
        found = simulated(seeds, 5000, more=stated / 100, held_out=False)[gates.CAUGHT]
        assert found == pytest.approx(0.8, abs=error(0.8))

    def test_every_gate_states_its_chances(self):
        for gate in table_gates.of_rows(rows()):
            assert re.search(r"\(.*in \d(\.\d)? % of cases", gate.explanation), gate.explanation
            assert re.search(r"found|four in five", gate.explanation)

    @pytest.mark.parametrize(
        ("seeds", "says"), [(2, "in 5 % of cases"), (3, "in 3.7 % of cases"), (5, "in 4.5 % of cases")]
    )
    def test_the_chance_of_being_farther_depends_on_the_number_of_seeds(self, seeds, says):
        assert says in why(rows(seeds), gates.FARTHER)
