"""`scissorhands sd plan`: what has a shape is exact, for every method, and programs need what XLA says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import Batch, Data, trees
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import losses, networks, planning
from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, concept_scissorhands, concept_training
from scissorhands_jax.diffusion.generating import GenerationSettings
from scissorhands_jax.jobs import config, plan_memory, plan_traced
from scissorhands_jax.training import sharding
from tests.diffusion import unlearning_test as small
from tests.diffusion.unlearning_test import error_of

SIZES = networks.TINY
BATCH, SIDE = 2, 8
LATENTS, CONTEXT = (BATCH, SIDE, SIDE, 4), (BATCH, SIZES.text.length, 32)
WEIGHTS = trees.count_weights(small.SMALL)
QUERIES = 32 * 4  # the weights of `to_q`
PLAN = ["sd", "plan", "--config", "tiny", "--size", "16", "--batch-size", str(BATCH), "--memory"]
METHODS = {"paper": concept_scissorhands.PRESETS["paper"], **CONCEPT_METHODS}
CHANGES = {
    "paper": ["fraction=0.2"],
    "esd": ["train=up_blocks", "steps_per_epoch=2", "sample_steps=2"],
    "salun": ["pseudo=a dog"],
    "munba": ["pseudo=a dog"],
    "erase_diff": ["pseudo=a dog"],
    "selective_amnesia": ["fisher_batches=1"],
    "finetune": ["train=up_blocks"],
}


@pytest.fixture(scope="module", autouse=True)
def _small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "outline", small.small_outline)
        patch.setattr(networks, "unet", lambda sizes, compute=networks.FLOAT32: small.MODEL)
        yield


def settings_of(name, *more):
    return config.override(METHODS[name], [f"batch_size={BATCH}", *CHANGES.get(name, []), *more])


def planned(name, *more, **options):
    settings = settings_of(name, *more)
    return planning.plan_concept(SIZES, settings, generation=GenerationSettings(size=16), memory_gib=64, **options)


def examples(settings, name):
    found = {"latents": jnp.ones(LATENTS), "context": jnp.ones(CONTEXT)}
    if settings.reads_images:
        found["deviation"] = jnp.ones(LATENTS)
    return found | ({read: jnp.ones(CONTEXT) for read in settings.reads} if name == "forget" else {})


class TestMethods:
    @pytest.mark.parametrize(
        ("name", "held", "moments"),
        [
            ("esd", WEIGHTS, 2 * (QUERIES + 4)),  # a second network; moments of what is trained
            ("salun", WEIGHTS / 4, 2 * WEIGHTS),  # a mask
            ("selective_amnesia", 2 * WEIGHTS, 2 * WEIGHTS),  # a second network, and the Fisher information
            ("finetune", 0, 2 * (QUERIES + 4)),
        ],
    )
    def test_steps_take_what_xla_says(self, name, held, moments):
        """The first carry and its step are made and compiled here as a run does it."""
        settings, steps = settings_of(name), planned(name).phases["steps"]
        method, data = settings.method(small.MODEL), Data(*(examples(settings_of(name), part) for part in Data._fields))
        carry = method.init(jax.random.key(0), small.small_params(), {}, data)
        positions = next(iter(method.batches(jax.random.key(0), data, 0)))
        batch = Batch(*(None if seen is None else part for seen, part in zip(positions, data, strict=True)))
        said = jax.jit(method.step, donate_argnums=0).lower(carry, batch).compile().memory_analysis()
        arguments = sum(steps[part] for part in ("params and model state", "optimizer state", "what the method holds"))
        # Examples that a method does not read are no arguments of its program; step and key are a few numbers.
        unread = sum(leaf.nbytes for part, leaf in (batch.forget or {}).items() if name == "esd" and part == "latents")
        assert said.argument_size_in_bytes == pytest.approx(arguments + steps["batch"] - unread, abs=64)
        assert steps["params and model state"] == 4 * WEIGHTS
        assert steps["what the method holds"] == pytest.approx(4 * held, abs=12)
        assert steps["optimizer state"] == pytest.approx(4 * moments, abs=16)

    def test_phases_before_the_steps(self):
        network, outline = 4 * WEIGHTS, small.OUTLINE("unet", SIZES)
        held = {
            name: {phase: parts.held for phase, parts in settings_of(name).beginning(small.SMALL).items()}
            for name in set(METHODS) - {"uce"}
        }
        assert held["paper"] == {"scoring": network, "trimming": 2 * network}
        assert held["salun"] == {"scoring": network, "masking": 2 * network}
        assert held["selective_amnesia"] == {"scoring": 2 * network}
        assert held["ssd"] == {"scoring": 2 * network, "dampening": 3 * network + WEIGHTS}
        assert held["munba"] == held["esd"] == held["finetune"] == {}
        # The closed form holds the new keys and values, and solves in float64 for those of one layer.
        kernels = trees.select(outline, ".*/attn2/to_[kv]")
        edited = 4 * trees.count_weights(outline, kernels)
        found = METHODS["uce"].beginning(outline)["editing"].held
        assert edited < found < edited + 8 * 7 * 64**2

    def test_every_method_is_planned_without_compiling(self, capsys):
        for name in sorted(set(METHODS) - {"uce"}):
            method = ["--method", "scissorhands" if name == "paper" else name, *CHANGES.get(name, [])]
            method += ["ceiling=other-prompts"] if name == "paper" else []  # which follows from the data
            assert cli.main([*PLAN, "64", "--traced", *method, "--json"]) == 0
            document = json.loads(capsys.readouterr().out)
            assert document["traced"]
            assert document["method"] == method[1]
            steps = document["phases_bytes"].get("steps")
            assert (steps is None) == (name == "ssd")
            assert document["total_bytes"] == max(sum(parts.values()) for parts in document["phases_bytes"].values())

    def test_gradients_are_those_of_the_trained_part(self):
        model, part = small.MODEL, concept_training.training_part(small.MODEL, "up_blocks")
        assert concept_training.training_part(model, "all") is model
        assert concept_training.training_part(model, "up_blocks") is part  # so that code is shared
        batch, params = examples(settings_of("finetune"), "retain"), small.small_params()

        def gradient(network):
            loss = losses.noise_loss(network)
            return jax.grad(lambda p: loss(p, {}, batch, train=True, key=jax.random.key(0))[0])(params)

        for trains, of_part, of_all in trees.zip_leaves(
            trees.select(params, "up_blocks"), gradient(part), gradient(model)
        ):
            assert np.any(of_all)
            np.testing.assert_array_equal(of_part, of_all if trains else 0 * of_all)


class TestPlan:
    def test_what_has_a_shape_is_exact_and_the_largest_phase_counts(self, capsys):
        assert cli.main([*PLAN, "64", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        held, phases = 4 * document["parameters"], document["phases_bytes"]
        assert document["parameters"] == WEIGHTS
        assert phases["scoring"]["original network"] == phases["trimming"]["original network"] == held
        assert phases["steps"]["params and model state"] == held
        assert 0 < phases["steps"]["gradients"] <= 2 * held
        assert 2 * held < phases["steps"]["optimizer state"] < 2 * held + 100  # Adam's moments, and some numbers
        examples = 4 * BATCH * (2 * SIDE * SIDE * 4 + SIZES.text.length * 32)
        assert (phases["scoring"]["batch"], phases["steps"]["batch"]) == (examples, 2 * examples)
        assert document["total_bytes"] == max(sum(parts.values()) for parts in phases.values())
        assert document["fits"]
        assert not document["traced"]

    def test_several_devices_have_a_share_each(self, monkeypatch):
        monkeypatch.setattr(plan_memory, "process_bytes", lambda: 0)
        whole = planned("finetune", "train=all", traced=True).phases["steps"]
        # Half of the batch each, and of the arrays where they do not fit otherwise.
        found = planning.plan_concept(
            SIZES,
            settings_of("finetune", "train=all"),
            generation=GenerationSettings(size=16),
            devices=2,
            memory_gib=1e-6,
            traced=True,
        )
        divided = found.phases["steps"]
        assert found.strategy == "sharded parameters"
        assert divided["params and model state"] == 4 * WEIGHTS // 2
        assert divided["batch"] == whole["batch"] // 2
        # A layout says what is divided: here the queries and nothing else.
        layout = dataclasses.replace(sharding.planned_layout(2, fsdp=True), replicate_below=QUERIES)
        laid = planned("finetune", "train=all", traced=True, layout=layout).phases["steps"]
        assert laid["params and model state"] == 4 * (WEIGHTS - QUERIES // 2)
        assert laid["batch"] == divided["batch"]
        assert laid["gathered layers"] == 2 * 4 * QUERIES
        # Programs are compiled undivided, so a layout divides the gradients apart from what else they need.
        assert laid["gradients"] == 4 * (WEIGHTS - QUERIES // 2)
        temporaries = [phases["activations and temporaries"] for phases in (divided, laid)]
        assert temporaries[0] == temporaries[1]

    def test_it_says_whether_it_fits(self, capsys):
        for memory, text in (("64", "It fits in 64 GiB"), ("0.00001", "It does not fit in 10.5 KiB")):
            assert cli.main([*PLAN, memory, "--traced", "--method", "finetune", "--mesh", "2", "--fsdp"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert text in shown
            assert "data 2 x model 1, fsdp" in shown

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--config", "sdxl"], "--config is 'sdxl'; choose one of sd-v1, tiny"),
            (["--memory", "0"], "--memory must be above 0 GiB and finite, got 0"),
            (["fraction=0"], "fraction must lie strictly between 0 and 1"),
            (["--devices", "3"], "--devices must divide the batch size 16, got 3"),
            (["--mesh", "3"], "the data axis of --mesh must divide the batch size 16, got 3 devices"),
            (["--mesh", "0"], "both axes of a mesh need at least one device, got data 0 and model 1"),
            (["--mesh", "2", "--devices", "2"], "--mesh says how many devices there are; give it, and leave --devices"),
            (["--fsdp"], "--mesh says how many devices there are; give it"),
            (["--method", "salun"], "give it as pseudo=PROMPT"),
            (["--method", "fast"], "--method is 'fast'; choose one of scissorhands, esd, uce"),
            (["--method", "esd", "guidance=nan"], "guidance must be a finite number, got nan"),
            (["forget_weight=nan"], "forget_weight must be a finite number, got nan"),
            (["--method", "selective_amnesia", "penalty=inf"], "penalty must be a finite number, got inf"),
            (["--sampler", "ddim"], "--sampler belongs to `sd generate` and `sd unlearn`"),
            (["--method", "esd", "--microbatches", "4"], "microbatches is 4, and has no effect with this method"),
            (["--train", "attn9"], "the layer pattern 'attn9' matches none"),
        ],
    )
    def test_bad_input(self, capsys, change, message):
        assert message in error_of(capsys, "sd", "plan", *change)


class TestTraced:
    """`plan_traced`, on programs whose memory can be counted by hand."""

    @pytest.mark.parametrize(
        ("function", "floats"),
        [
            (lambda x: jnp.sum(jnp.sin(x)), 100),  # one array, and the result takes an argument's place
            (lambda x: jnp.sum(jnp.cos(jnp.sin(x) + 1)), 100),  # each writes over the one before
            (lambda x: jnp.sum(jnp.cumsum(jnp.sin(x))), 200),  # not element by element, so both are there
            (lambda x: jnp.sum(jnp.sin(x).reshape(10, 10).T @ jnp.ones((10, 1))), 110),  # views are no arrays
            (jax.jit(lambda x: jnp.sum(jax.checkpoint(jnp.cumsum)(jnp.sin(x)))), 200),  # calls are looked into
            (lambda x: jax.lax.fori_loop(0, 9, lambda i, s: s + jnp.cumsum(x)[0], 0.0), 100),  # one pass of a loop
        ],
    )
    def test_arrays_count_as_long_as_they_are_needed(self, function, floats):
        assert plan_traced.traced_bytes(function, jnp.zeros(100)) == pytest.approx(4 * floats, abs=16)

    def test_the_trace_and_the_compiler_agree_where_little_is_fused(self):
        """A gradient through products, with nothing between them."""
        weights = [jnp.zeros((64, 64))] * 8

        def loss(weights, x):
            for weight in weights:
                x = x @ weight
            return jnp.sum(jnp.square(x))

        arguments = (weights, jnp.zeros((256, 64)))
        said = jax.jit(jax.grad(loss)).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
        assert plan_traced.traced_bytes(jax.grad(loss), *arguments) == pytest.approx(said, rel=0.3)
