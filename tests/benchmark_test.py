"""The benchmark at tiny sizes: that it measures what it says. How fast anything is, is never asserted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments import benchmark

SETTINGS = benchmark.Settings(batch_size=4, repeats=3, quick=True)


class TestTimeInTurn:
    def test_every_call_is_made_in_every_round_and_two_rounds_do_not_count(self):
        made, notes = [], []
        calls = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
        timed = benchmark.time_in_turn(calls, 3, notes.append)
        assert made == ["a", "b"] * 5
        assert [len(timed[name].seconds) for name in "ab"] == [3, 3]
        assert notes == ["compiles", "warms up", "round 1/3", "round 2/3", "round 3/3"]

    def test_compilations_are_counted_where_they_happen(self):
        sizes = iter(range(3, 8))

        @jax.jit
        def grows(x):
            return x * 3 + 1

        @jax.jit
        def stays(x):
            return x * 3 - 1

        fixed, inputs = jnp.ones(2), [jnp.ones(size) for size in range(8)]
        calls = {"grows": lambda: grows(inputs[next(sizes)]), "stays": lambda: stays(fixed), "never": lambda: fixed}
        timed = benchmark.time_in_turn(calls, 3)
        assert {name: row.recompilations for name, row in timed.items()} == {"grows": 4, "stays": 0, "never": 0}
        assert timed["grows"].compile_seconds > 0
        assert timed["stays"].compile_seconds > 0
        assert timed["never"].compile_seconds is None

    def test_a_recompiling_case_shows_in_its_result(self):
        turn = iter(range(1, 100))
        step = jax.jit(lambda x: x + 1)
        result = benchmark.compare("x", "grows", lambda: step(jnp.ones(next(turn))), {}, SETTINGS, lambda note: None)
        assert result.recompilations >= SETTINGS.repeats + 1


def test_spread_is_the_median_and_the_quartiles():
    spread = benchmark.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert spread == benchmark.Spread(median=3.0, lower=2.0, upper=4.0, repeats=5)


def test_ratios_are_taken_round_by_round():
    result = benchmark.compare("x", "", lambda: None, {"self": lambda: None}, SETTINGS, lambda note: None)
    (against,) = result.against
    assert against.ratio.repeats == against.seconds.repeats == SETTINGS.repeats
    assert result.ratio_to("self") == against.ratio.median


def check_order_and_origin(document):
    names = [result["name"] for result in document["results"]]
    assert names == list(benchmark.cases(SETTINGS))
    assert names[:3] == ["mlp/step", "mlp/projection", "mlp/memory"]
    assert {name.split("/")[1] for name in names[3:]} == set(benchmark.PARTS)
    assert document["settings"] == {"batch_size": 4, "repeats": 3, "quick": True}
    assert document["note"] == "rehearsal"
    assert document["machine"]["backend"] == "cpu"
    assert "jax" in document["versions"]


def check_times(results):
    """Quartiles are in order, references are there, and nothing compiles after the first call."""
    references = {"mlp/step": ["unprojected step"], "mlp/projection": ["step"]}
    for result in results:
        assert len(result["load"]) == 2
        if result["name"] == "mlp/memory":
            assert result["seconds"] is result["recompilations"] is None
            continue
        for spread in (result["seconds"], *(row["ratio"] for row in result["against"])):
            assert 0 < spread["lower"] <= spread["median"] <= spread["upper"]
            assert spread["repeats"] == 3
        names = [row["name"] for row in result["against"]]
        assert names == references.get(result["name"], ["read pass", "copy pass"])
        assert result["recompilations"] == 0


def check_step_and_memory(step, memory):
    assert step["numbers"]["images_per_second"] == pytest.approx(8 / step["seconds"]["median"])
    assert step["numbers"]["weights"] == 48 * 16 + 16 + 16 * 10 + 10
    numbers = memory["numbers"]
    assert numbers["params_bytes"] == 4 * step["numbers"]["weights"]
    # Parameters and momentum go in and, donated, come out; both gradients are in between.
    assert numbers["peak_bytes"] > 3 * numbers["params_bytes"]
    images = 2 * 4 * (48 + 4)
    beyond = numbers["peak_bytes"] - images - numbers["activations_bytes"]
    assert numbers["copies_beyond_activations"] == pytest.approx(beyond / numbers["params_bytes"])
    assert numbers["resident_growth_bytes"] is None or numbers["resident_growth_bytes"] >= 0


def check_aims(found):
    assert len(found) in (6, 7)  # measured memory only where the system tells it
    for aim in found:
        assert aim["met"] == (aim["value"] <= aim["limit"])
    (recompiled,) = [aim for aim in found if aim["what"].startswith("compilations")]
    assert (recompiled["value"], recompiled["met"]) == (0, True)


def test_a_rehearsal_measures_everything_and_can_be_resumed(tmp_path, capsys):
    path = tmp_path / "new" / "benchmark.json"
    command = ["--quick", "--out", str(path)]
    assert benchmark.main([*command, "--note", "rehearsal"]) == 0
    document = json.loads(path.read_text())
    results = document["results"]
    check_order_and_origin(document)
    check_times(results)
    check_step_and_memory(results[0], results[2])
    check_aims(document["aims"])
    for row in results:
        assert json.loads(json.dumps(dataclasses.asdict(benchmark.Result.from_json(row)))) == row

    capsys.readouterr()
    assert benchmark.main([*command, "--note", "again", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**document, "note": "again"}

    path.write_text(json.dumps({**document, "results": results[:-1]}))
    assert benchmark.main([*command, "--resume"]) == 0
    redone = json.loads(path.read_text())["results"]
    assert redone[:-1] == results[:-1]
    assert redone[-1]["name"] == results[-1]["name"]
    assert redone[-1] != results[-1]

    assert benchmark.main([*command, "--resume", "--repeats", "5"]) == 2
    assert "settings" in capsys.readouterr().err


class TestCommand:
    def test_only_chooses_cases_and_json_goes_to_standard_output(self, capsys):
        assert benchmark.main(["--quick", "--only", "saliency|mask_updates", "--json", "--repeats", "2"]) == 0
        shown = capsys.readouterr()
        names = [result["name"] for result in json.loads(shown.out)["results"]]
        assert names == ["5K/saliency", "5K/mask_updates"]
        assert "read pass" in shown.err

    def test_the_table_goes_to_standard_output(self, capsys):
        assert benchmark.main(["--quick", "--only", "saliency"]) == 0
        assert "× copy pass" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--only", "nothing"], "matches no case; there are mlp/step"),
            (["--only", "("], "not a regular expression"),
            (["--repeats", "0"], "at least 1"),
            (["--resume"], "needs --out"),
        ],
    )
    def test_bad_input_is_refused(self, arguments, message, capsys):
        assert benchmark.main(["--quick", *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_a_damaged_file_is_refused(self, tmp_path, capsys):
        path = tmp_path / "benchmark.json"
        path.write_text("{")
        assert benchmark.main(["--quick", "--out", str(path), "--resume"]) == 2
        assert "holds no results" in capsys.readouterr().err


def test_full_size_has_both_networks_and_both_trees():
    settings = benchmark.Settings()
    assert list(settings.networks) == ["resnet20", "resnet18"]
    sizes = {name: sum(benchmark.math.prod(shape) for shape in shapes) for name, shapes in settings.trees.items()}
    assert sizes == {"11M": 11_173_962, "100M": 100_000_000}
