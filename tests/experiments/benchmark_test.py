"""The benchmark at tiny sizes: that it measures what it says. How fast anything is, is never asserted."""

import dataclasses
import importlib.util
import json
import math
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import against_torch, epochs, limits, parts, settings, steps, timing
from scissorhands_jax import torch_weights
from scissorhands_jax.methods.scissorhands import constraint_gradients
from scissorhands_jax.training import loop as training
from tests.comparison import same_bits
from tests.equipment import absent

SETTINGS = settings.Settings(batch_size=4, repeats=3, quick=True)
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def needs_torch():
    if not HAS_TORCH:
        absent("TORCH", "PyTorch, the package torch, is not installed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(settings.Settings):
    """The networks of the full size with few channels and small images.

    ResNet-18 has more than 4 channels: PyTorch 2.13.0 writes beyond its arrays in training one with 4, channels last,
    without JAX in the process too. The C library's heap checks (`LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3`)
    end that, and pass 8, 12 and 16 channels, PyTorch's own layout, and ResNet-20 with 4.
    """

    @property
    def networks(self):
        widths = {"resnet20": (8, 16, 32), "resnet18": (8, 16, 24, 32)}
        return {name: {"image_shape": (16, 16, 3), "widths": widths[name]} for name in super().networks}


class TestTimeInTurn:
    def test_every_call_is_made_in_every_round_and_two_rounds_do_not_count(self):
        made, notes = [], []
        calls = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
        timed = timing.time_in_turn(calls, 3, notes.append)
        assert "".join(made) == "abbaabbaab"
        assert [len(timed[name].seconds) for name in "ab"] == [3, 3]
        assert notes == ["compiles", "warms up", "round 1/3", "round 2/3", "round 3/3"]

    def test_what_is_called_before_is_not_timed(self, monkeypatch):
        """On a clock that stands still but for the calls: a small letter takes a second, a capital takes a hundred."""
        made = []
        seconds = {"a": 1, "b": 1, "A": 100, "B": 100}
        clock = types.SimpleNamespace(perf_counter=lambda: float(sum(map(seconds.get, made))))
        monkeypatch.setattr(timing, "time", clock)
        calls = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
        before = {name: lambda name=name: made.append(name.upper()) for name in "ab"}
        timed = timing.time_in_turn(calls, 1, before=before)
        assert "".join(made) == "abBbAaAaBb"
        assert timed["a"].seconds == timed["b"].seconds == [1.0]

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
        timed = timing.time_in_turn(calls, 3)
        assert {name: row.recompilations for name, row in timed.items()} == {"grows": 4, "stays": 0, "never": 0}
        assert timed["grows"].compile_seconds > 0
        assert timed["stays"].compile_seconds > 0
        assert timed["never"].compile_seconds is None

    def test_a_recompiling_case_shows_in_its_result(self):
        turn = iter(range(1, 100))
        step = jax.jit(lambda x: x + 1)
        result = timing.compare("x", "grows", lambda: step(jnp.ones(next(turn))), {}, SETTINGS, lambda note: None)
        assert result.recompilations >= SETTINGS.repeats + 1


def test_spread_is_the_median_and_the_quartiles():
    spread = timing.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert spread == timing.Spread(median=3.0, lower=2.0, upper=4.0, repeats=5)


def test_ratios_are_taken_round_by_round():
    result = timing.compare("x", "", lambda: None, {"self": lambda: None}, SETTINGS, lambda note: None)
    (against,) = result.against
    assert against.ratio.repeats == against.seconds.repeats == SETTINGS.repeats
    assert result.ratio_to("self") == against.ratio.median


def check_order_and_origin(document):
    names = [result["name"] for result in document["results"]]
    assert names == list(benchmark.cases(SETTINGS))
    steps_there = [f"mlp/{kind}" for kind in ("step", "projection", "memory", "epoch", *against_torch.STEPS)]
    first = len(steps_there) if HAS_TORCH else 4
    passes = [f"mlp@{size}/{what}" for size in ("2", "4", "4-bfloat16") for what in limits.PASSES]
    others = ["unet/train", "own network/train"]
    together = [f"sweep of mlp/{how}" for how in ("batched", "scanned")]
    assert names[:first] == steps_there[:first]
    assert names[first:] == ["product/float32", *passes, *others, *together, *(f"5K/{part}" for part in parts.PARTS)]
    assert document["settings"] == {"batch_size": 4, "repeats": 3, "quick": True}
    assert document["note"] == "rehearsal"
    assert document["machine"]["backend"] == "cpu"
    assert "jax" in document["versions"]


def check_times(results):
    """Quartiles are in order, references are there, and nothing compiles after the first call."""
    references = {"mlp": ["PyTorch"], "mlp@2": ["matrix product"], "mlp@4": ["matrix product"], "product": ["copy"]}
    references |= {"mlp/step": ["unprojected step"], "mlp/projection": ["step"], "sweep of mlp": ["turns"]}
    references["mlp@4-bfloat16"] = references["mlp@4"]
    references |= {"unet/train": ["XLA's convolutions"], "own network/train": ["XLA's convolutions"]}
    references["mlp/epoch"] = ["one step per call"]
    references["mlp/epoch"] += ["PyTorch", "published code's in PyTorch"] if HAS_TORCH else []
    for result in results:
        assert len(result["load"]) == 2
        if result["name"] == "mlp/memory":
            assert result["seconds"] is result["recompilations"] is None
            continue
        for spread in (result["seconds"], *(row["ratio"] for row in result["against"])):
            assert 0 < spread["lower"] <= spread["median"] <= spread["upper"]
            assert spread["repeats"] == 3
        names = [row["name"] for row in result["against"]]
        group = result["name"].split("/")[0]
        assert names == references.get(result["name"], references.get(group, ["read pass", "copy pass"]))
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


def check_rates(results):
    """Rates follow from times and counts, and shares of the limits from ratios."""
    by_name = {result["name"]: result for result in results}
    product = by_name["product/float32"]
    assert product["numbers"]["flops"] == 2 * 64**3
    for batch_size in (2, 4):
        for what, factor in (("forward", 1), ("gradient", 3), ("train", 3)):
            row = by_name[f"mlp@{batch_size}/{what}"]
            numbers, seconds = row["numbers"], row["seconds"]["median"]
            assert numbers["flops"] == factor * 2 * batch_size * (48 * 16 + 16 * 10)
            assert numbers["flops_per_second"] == pytest.approx(numbers["flops"] / seconds)
            ratio = row["against"][0]["ratio"]["median"]
            assert numbers["share_of_matrix_rate"] == pytest.approx(numbers["flops"] / (2 * 64**3) / ratio)
            assert numbers["images_per_second"] == pytest.approx(batch_size / seconds)
    numbers, (_, copy) = by_name["5K/saliency"]["numbers"], by_name["5K/saliency"]["against"]
    assert numbers["least_bytes"] == 3 * 4 * 5000  # gradient, weights and scores
    assert numbers["share_of_copy_bandwidth"] == pytest.approx(1.5 / copy["ratio"]["median"])


def check_aims(found):
    assert len(found) in (6 + 3 * HAS_TORCH, 7 + 3 * HAS_TORCH)  # measured memory only where the system tells it
    for aim in found:
        assert aim["met"] == (aim["value"] >= aim["limit"] if aim["at_least"] else aim["value"] <= aim["limit"])
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
    check_rates(results)
    check_aims(document["aims"])
    for row in results:
        assert json.loads(json.dumps(dataclasses.asdict(timing.Result.from_json(row)))) == row

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


def test_two_checkouts_take_turns(tmp_path, capsys):
    here = Path(__file__).resolve().parents[2]
    path = tmp_path / "both.json"
    command = ["--quick", "--against", str(here), "--repeats", "2", "--out", str(path), "--only", "step|own"]
    assert benchmark.main(command) == 0
    results = json.loads(path.read_text())["results"]
    cases = ["mlp/step", "own network/train"]
    assert [result["name"] for result in results] == [f"{case}, both checkouts" for case in cases]
    for result in results:
        assert [row["name"] for row in result["against"]] == ["the other checkout"]
        assert result["against"][0]["ratio"]["repeats"] == 2
    assert benchmark.main(["--quick", "--against", str(tmp_path)]) == 2
    assert "is no checkout of the library" in capsys.readouterr().err


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
    full = settings.Settings()
    assert list(full.networks) == ["resnet20", "resnet18"]
    sizes = {name: sum(math.prod(shape) for shape in shapes) for name, shapes in full.trees.items()}
    assert sizes == {"11M": 11_173_962, "100M": 100_000_000}


def test_operations_are_counted_as_the_network_defines_them():
    model, _ = settings.build("resnet8", (("image_shape", (8, 8, 3)), ("widths", (4, 6, 8))))
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    images = jnp.zeros((2, 8, 8, 3))
    jaxpr = jax.make_jaxpr(lambda p, s: model.apply(p, s, images, train=False)[0])(params, model_state).jaxpr
    pixels = {64: 3 * 9 * 4 + 2 * 4 * 9 * 4, 16: 4 * 9 * 6 + 6 * 9 * 6, 4: 6 * 9 * 8 + 8 * 9 * 8}
    multiplications = 2 * (sum(count * weights for count, weights in pixels.items()) + 8 * 10)
    assert limits.count_flops(jaxpr) == 2 * multiplications


@pytest.mark.usefixtures("needs_torch")
@pytest.mark.parametrize("network", ["resnet20", "resnet18"])
def test_pytorch_has_the_same_networks(network):
    import torch

    from experiments.benchmark import torch_steps

    full = settings.Settings()
    outline = jax.eval_shape(settings.network_of(network, full)[0].init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), outline)
    state = torch_weights.to_state_dict(*zeros)
    expected = {name: value.shape for name, value in state.items() if not name.startswith("normalize.")}
    with torch.device("meta"):
        module = torch_steps.network(network, full.networks[network])
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == expected


@pytest.mark.usefixtures("needs_torch")
@pytest.mark.parametrize("network", ["resnet20", "resnet18"])
def test_pytorch_takes_the_same_steps(network):
    """A training step and a repair step from the same weights on the same images move both networks alike."""
    narrow = Narrow(batch_size=4)
    for step in ("torch_train", "torch_repair"):  # The repair step takes the weights that both begin with.
        check_same_step(network, step, narrow)


def check_same_step(network, step, narrow):
    own, reference, _ = against_torch.pair_of_calls(network, step, narrow)
    repair, module = steps.repair_of(network, narrow), reference.__closure__
    (torch_steps,) = [cell.cell_contents for cell in module if hasattr(cell.cell_contents, "module")]
    before = {name: value.detach().numpy().copy() for name, value in torch_steps.module.named_parameters()}
    if step == "torch_repair":
        carry, _ = training._step(repair._step, repair.carry, repair.examples)
        found = carry.params, carry.model_state
    else:
        found = own()[:2]
    reference()
    expected = {name: value.detach().numpy() for name, value in torch_steps.module.state_dict().items()}
    state = torch_weights.to_state_dict(*found)
    assert set(expected) <= set(state)
    for name, old in before.items():
        change = np.asarray(state[name]) - old
        np.testing.assert_allclose(change, expected[name] - old, rtol=1e-2, atol=2e-2 * abs(change).max())


@pytest.mark.usefixtures("needs_torch")
@pytest.mark.parametrize("sign", [1, -1])
def test_pytorch_repairs_as_the_published_code_does(sign):
    """A step in authors' mode, with a constraint that is violated and with its opposite, which is not."""
    import torch

    from experiments.benchmark import torch_steps

    narrow = Narrow(batch_size=4)
    repair = steps.Repair("resnet20", narrow, mode="authors", project="layer3|linear")
    forget, retain = (torch_steps.tensors(part) for part in (repair.examples.forget, repair.examples.retain))
    reference = against_torch.steps_of("resnet20", repair.carry, narrow, published=True)
    assert reference.module.conv1.weight.is_contiguous()
    constraint, _ = constraint_gradients(
        repair.loss_fn, repair.carry.params, repair.carry.model_state, [repair.examples.forget]
    )
    found = torch_weights.to_state_dict(jax.tree.map(lambda leaf: leaf[0], constraint), repair.carry.model_state)
    names = [name for name, _ in reference.module.named_parameters() if name.startswith(("layer3", "linear"))]
    held = np.concatenate([np.ravel(found[name]) for name in names])
    np.testing.assert_allclose(-reference.constraint(*forget), held, rtol=1e-3, atol=1e-4 * abs(held).max())

    with_it = repair.carry.aux._replace(constraint_grads=jax.tree.map(lambda leaf: sign * leaf, constraint))
    carry, metrics = training._step(repair._step, repair.carry._replace(aux=with_it), repair.examples)
    before = {name: value.detach().numpy().copy() for name, value in reference.module.named_parameters()}
    reference.held = torch.from_numpy(-sign * held)
    dual = reference.repair(retain, forget)
    np.testing.assert_allclose(dual, metrics["dual"][0], rtol=1e-3)
    assert (float(dual) == 0) != bool(metrics["projected"])
    after = reference.module.state_dict()
    state = torch_weights.to_state_dict(carry.params, carry.model_state)
    for name, old in before.items():
        change = np.asarray(state[name]) - old
        np.testing.assert_allclose(change, after[name].numpy() - old, rtol=1e-2, atol=2e-2 * abs(change).max())


@pytest.mark.usefixtures("needs_torch")
def test_an_epoch_of_the_published_code_takes_its_constraint_first_and_leaves_nothing_frozen(monkeypatch):
    import gc

    from experiments.benchmark import torch_steps

    forget, retain = (torch_steps.tensors(settings.random_images((4, 4, 3), n, seed=n)) for n in (4, 12))
    options = {"image_shape": (4, 4, 3), "hidden": (16,)}
    steps_of_it = torch_steps.Published("mlp", options, learning_rate=0.1, forget_weight=0.05)
    taken = []
    for name in ("train", "repair"):
        function = getattr(steps_of_it, name)
        monkeypatch.setattr(
            steps_of_it, name, lambda *batch, name=name, function=function: (taken.append(name), function(*batch))[1]
        )
    steps_of_it.epoch(retain, forget, 4)
    assert taken == ["repair", "train", "train"]
    assert steps_of_it.held.shape == (16 * 10 + 10,)
    assert gc.get_freeze_count() == 0


def test_every_epoch_begins_where_the_first_began():
    data, own, references, single_steps = epochs.epochs("mlp", SETTINGS)
    assert [len(part["label"]) for part in data] == [4, 4 * epochs.RETAIN_BATCHES]
    first = own()
    assert not same_bits(first[0], steps.repair_of("mlp", SETTINGS).carry.params)
    assert same_bits(first, own())
    assert same_bits(first, references[epochs.SINGLE]())
    assert not same_bits(first, single_steps[epochs.OWN]())
    assert single_steps.keys() - {epochs.OWN} == references.keys()


@pytest.mark.usefixtures("needs_torch")
def test_pytorch_crops_and_flips():
    import torch

    from experiments.benchmark import torch_steps

    image = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3) + 1
    padded = np.pad(image[0].numpy(), ((4, 4), (4, 4), (0, 0)))
    windows = [padded[top : top + 4, left : left + 4] for top in range(9) for left in range(9)]
    found = {crop.numpy().tobytes() for crop in torch_steps.crop_and_flip(image.repeat(4000, 1, 1, 1))}
    assert found == {window.tobytes() for window in windows} | {window[:, ::-1].tobytes() for window in windows}
