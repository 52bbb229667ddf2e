"""Networks and batches over many devices give what one device gives, ungathered; 8 virtual CPU devices, one process."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scissorhands_jax import hashing
from scissorhands_jax.base import Batch
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import feeding, sharding
from scissorhands_jax.training import loop as training
from scissorhands_jax.training.sharding import make_layout
from tests import tiny
from tests.diffusion import mesh_checks as diffusion_checks
from tests.language import mesh_checks
from tests.methods import pair_gradients_test

DEVICES = 8
MESHES = {
    "8x1": (8, 1, False),
    "8x1 fsdp": (8, 1, True),
    "4x2 fsdp": (4, 2, True),
    "1x8": (1, 8, False),
}
RESNET_MESHES = ("4x2 fsdp",)
COUNTED = {"threshold": "threshold_pass", "projection": "projection"}
TREE_CHECKS = ("masks", "ties", "published_cut", "reinitialize", "dot_products", "projection", "saliency", "hash")
CHECKS = (
    *(f"{check}, {axes}" for axes in ("auto", "explicit") for check in TREE_CHECKS),
    *(f"run, mlp, {mesh}" for mesh in MESHES),
    *(f"run, resnet, {mesh}" for mesh in RESNET_MESHES),
    "traffic, data parallel",
    "traffic, fsdp",
    "one compilation",
    "formulas, data parallel",
    "formulas, divided weights",
    "formulas, threshold and projection",
    "stacked steps",
    "data on every device",
    "stacked steps of data on every device",
    "gathered where they are needed",
    "prediction",
    "batch refused",
    "batch refused before the original is evaluated",
    "mesh refused",
    "a checkpoint goes on with on another mesh",
    "a network is read on one device",
    "members, each where its own run ends",
    "members, divided over devices that ask nothing of each other",
    "members, timed beside the other ways",
    "draws lie as the weights",
    "shards are projected as the whole",
    "shards are projected as the whole, unchecked",
    "a shard is refused by the projection",
    "a shard is refused by the ranking",
    "shards follow the gradient of the whole",
    "a shard is refused by the gradient",
    "a convolution of shards",
    "packed text",
    "both gradients of a pair, both ways",
    *mesh_checks.CHECKS,
    *diffusion_checks.CHECKS,
)


@pytest.fixture(scope="module")
def outcome():
    """What the checks below print, by name."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.training.sharding_test"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("check", CHECKS)
def test_many_devices_do_what_one_does(outcome, check):
    assert outcome[check] == "ok"


class TestLayout:
    def test_the_largest_divisible_dimension_is_divided_and_small_arrays_are_not(self):
        mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
        layout, full = (sharding.Layout(mesh, fsdp=fsdp, replicate_below=100) for fsdp in (False, True))
        assert layout.spec((3, 3, 16, 32)) == jax.P(None, None, None, "model")
        assert layout.spec((64, 33)) == jax.P("model")
        assert layout.spec((33, 5)) == layout.spec((99,)) == layout.spec(()) == jax.P()
        assert full.spec((64, 33)) == jax.P(("data", "model"))
        assert full.spec((33, 6)) == jax.P(None, "model")  # 8 divides neither, 2 divides one
        assert full.spec((16, 16)) == jax.P(None, ("data", "model"))

    def test_arrays_of_16384_numbers_are_divided(self):
        layout = sharding.Layout(jax.sharding.AbstractMesh((4, 2), ("data", "model")))
        assert layout.spec((64, 255)) == jax.P()
        assert layout.spec((64, 256)) == jax.P(None, "model")
        assert make_layout().replicate_below == layout.replicate_below

    def test_one_process_moves_arrays_without_the_host_and_reads_all_of_them(self, monkeypatch):
        layout = make_layout()
        tree = {"made": jax.numpy.arange(6.0), "read": np.arange(3.0, dtype=np.float32)}
        callback, read = jax.make_array_from_callback, []
        monkeypatch.setattr(
            jax, "make_array_from_callback", lambda shape, *more: [read.append(shape), callback(shape, *more)][1]
        )
        placed = layout.place(tree)
        assert read == [(3,)]
        assert all(leaf.sharding.mesh == layout.mesh for leaf in placed.values())
        for host in (sharding.to_host(tree), sharding.to_host(placed)):
            assert all(type(host[name]) is np.ndarray and np.array_equal(host[name], tree[name]) for name in tree)

    def test_many_processes_read_what_each_has_and_move_what_is_divided_over_them(self, monkeypatch):
        layout, leaf, moved = make_layout(), jax.numpy.arange(6.0), []
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "device_put", lambda array, place: moved.append(place))
        assert layout.place(leaf).sharding.mesh == layout.mesh
        assert moved == []
        monkeypatch.setattr(type(leaf), "is_fully_addressable", property(lambda array: False))
        layout.place(leaf)
        assert moved == [layout.shardings(leaf)]

    def test_rows_on_the_host_have_a_length_and_slices(self):
        rows = sharding.HostRows(np.arange(10, dtype=np.float32), make_layout())
        assert len(rows) == 10
        for part in (slice(2, 5), slice(-3, None), np.array([7, 1])):
            assert np.array_equal(rows[part], np.arange(10)[part])

    def test_one_device_is_a_mesh_too(self):
        result = training.run(
            tiny.method("finetune"), jax.random.key(0), *tiny.start(), tiny.data(), num_epochs=1, layout=make_layout()
        )
        expected = training.run(tiny.method("finetune"), jax.random.key(0), *tiny.start(), tiny.data(), num_epochs=1)
        for left, right in zip(jax.tree.leaves(result[:2]), jax.tree.leaves(expected[:2]), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((4, 2), "a mesh of 4 x 2 needs 8 devices, but there are 1; ask for fewer"),
            ((0, 1), "at least one device, got data 0 and model 1"),
            ((None, 2), "a model axis of 2 does not divide the number of devices, 1"),
        ],
    )
    def test_a_mesh_that_cannot_be_is_refused(self, sizes, message):
        with pytest.raises(InputError, match=message):
            make_layout(*sizes)

    @pytest.mark.parametrize("text", ["", "x2", "4x2x1", "4 by 2", "-1"])
    def test_a_mesh_that_cannot_be_read_is_refused(self, text):
        with pytest.raises(InputError, match="write DATA or DATAxMODEL"):
            sharding.parse_mesh(text)
        assert sharding.parse_mesh("4x2") == (4, 2)
        assert sharding.parse_mesh("8") == (8, 1)

    def test_many_processes_feed_their_shares_from_the_host(self, monkeypatch):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        layout = make_layout()
        with pytest.raises(InputError, match="leave feed_from out"):
            feeding.make_feed(tiny.data(), "device", layout)
        assert type(feeding.make_feed(tiny.data(), "auto", layout)) is feeding.DividedFeed


def main() -> None:
    """Runs all checks that need many devices, and prints `name: ok` or what is wrong."""
    import contextlib
    import dataclasses
    import functools
    import shutil
    import tempfile

    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from rich.console import Console

    from experiments import scaling
    from experiments.collectives import collectives
    from scissorhands_jax import data as data_lib
    from scissorhands_jax import masks, models, reinit, saliency, torch_weights, trees
    from scissorhands_jax.base import Data
    from scissorhands_jax.jobs import unlearning
    from scissorhands_jax.jobs.config import RunConfig
    from scissorhands_jax.losses import classification_loss
    from scissorhands_jax.methods import METHODS, finetune, scissorhands
    from scissorhands_jax.metrics import accuracies
    from scissorhands_jax.models.resnet import ResNet
    from scissorhands_jax.optimizers import sgd
    from scissorhands_jax.projection import project_gradient
    from scissorhands_jax.training import checkpoints, sweeps
    from tests.compilations import Compilations, save_time
    from tests.language import packing_test

    save_time()
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == DEVICES
    key = jax.random.key(0)

    def report(name, condition, found=""):
        print(f"{name}: {'ok' if condition else f'wrong {found}'}", flush=True)

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    def near(a, b, tolerance=1e-5):
        a, b = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (a, b))
        return trees.norm(jax.tree.map(np.subtract, a, b)) <= tolerance * trees.norm(a)

    def alike(a, b):
        """Whether two trees lie on the devices alike."""
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(x.sharding.is_equivalent_to(y.sharding, x.ndim) for x, y in pairs)

    def largest(function, *arguments, kinds=("all-gather", "all-to-all", "collective-permute", "all-reduce")):
        """Numbers in the largest array that crosses devices in the compiled program."""
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return max([each.largest for each in collectives(text) if each.kind in kinds], default=0)

    tree = {
        "kernel": jax.random.normal(key, (64, 48)),
        "wide": jax.random.normal(jax.random.key(1), (16, 8, 24)),
        "bias": jax.random.normal(jax.random.key(2), (8,)),
    }
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf + jnp.flip(leaf), leaf - 1]), tree)
    scores = jax.tree.map(jnp.abs, tree)
    coarse = jax.tree.map(lambda leaf: jnp.round(leaf * 2), scores)
    transform = project_gradient(2)

    def top(s):
        return masks.top_fraction(s, 0.1)

    def cut(s):
        return masks.kept_fraction_mask(s, 0.9)[0]

    def renew(t, m):
        return reinit.reinitialize(jax.random.key(5), t, m, initializer=reinit.uniform())

    @jax.jit
    def dots(a, stack):
        return trees.vdot(a, a), trees.stack_vdot(stack, a), trees.gram(stack)

    @jax.jit
    def project(gradient, constraints):
        return transform.update(gradient, transform.init(gradient), constraint_grads=constraints)[0]

    def drawn(devices):
        """A draw for weights that are divided over devices."""
        mesh = jax.make_mesh((devices,), ("model",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
        weights = jax.device_put(tree["bias"], NamedSharding(mesh, PartitionSpec("model")))
        return reinit._draw(reinit.uniform(), key, weights), weights

    one, two, four = map(drawn, (1, 2, 4))
    lies = all(alike(draw, weights) for draw, weights in (one, two, four))
    report("draws lie as the weights", lies and same(one[0], two[0]) and same(one[0], four[0]))

    for axes in (AxisType.Auto, AxisType.Explicit):
        everywhere = PartitionSpec() if axes is AxisType.Explicit else None
        # The wide array is divided along an inner axis, which a flat view would gather.
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axes,) * 2)
        specs = {"kernel": ("model", "data"), "wide": (None, "model", "data"), "bias": ("model",)}

        def spread(tree, lead=0, mesh=mesh, specs=specs):
            places = {name: PartitionSpec(*[None] * lead, *spec) for name, spec in specs.items()}
            return jax.tree.map(lambda leaf, place: jax.device_put(leaf, NamedSharding(mesh, place)), tree, places)

        def say(check, condition, axes=axes):
            report(f"{check}, {axes.name.lower()}", condition)

        with jax.set_mesh(mesh):
            many, many_scores, many_rows = spread(tree), spread(scores), spread(rows, 1)
            mask = top(many_scores)
            lies = alike(mask, many)
            say("masks", same(top(scores), mask) and lies and largest(top, many_scores) == 1)
            say("ties", same(top(coarse), top(spread(coarse))) and largest(top, spread(coarse)) == 1)
            say("published_cut", same(cut(scores), cut(many_scores)) and largest(cut, many_scores) == 1)
            fresh = renew(many, mask)
            lies = alike(fresh, many)
            traced = jax.jit(renew)(many, mask)
            say("reinitialize", same(renew(tree, top(scores)), fresh) and same(fresh, traced) and lies)
            say("dot_products", near(dots(tree, rows), dots(many, many_rows)) and largest(dots, many, many_rows) <= 4)
            say(
                "projection",
                near(project(tree, rows), project(many, many_rows)) and largest(project, many, many_rows) <= 4,
            )
            say("hash", hashing.tree_sha256(tree) == hashing.tree_sha256(many) != hashing.tree_sha256(scores))

            def loss_fn(params, batch, place=everywhere):
                hidden = jnp.tanh(jnp.einsum("bi,io->bo", batch, params["kernel"], out_sharding=place))
                return jnp.mean(hidden**2) + jnp.mean(params["wide"] ** 4) + jnp.mean(params["bias"] ** 2)

            batch = jax.random.normal(key, (32, 64))
            found = saliency.connection_sensitivity(loss_fn, many, [batch])
            expected = saliency.connection_sensitivity(functools.partial(loss_fn, place=None), tree, [batch])
            lies = alike(found, many)
        say("saliency", near(expected, found) and lies)

    _check_shards(report, near, tree, rows)

    data = Data(tiny.examples(16, 1), tiny.examples(48, 2))
    shape = (4, 4, 2)
    networks = {
        "mlp": models.build("mlp", num_classes=3, image_shape=shape, hidden=(64, 48)),
        "resnet": models.from_linen(
            ResNet(3, stage_sizes=(1, 1), widths=(8, 16), normalize="off"),
            jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        ),
    }

    def layout_of(mesh):
        data_axis, model_axis, fsdp = MESHES[mesh]
        return make_layout(data_axis, model_axis, fsdp=fsdp, replicate_below=64)

    def lies_as(tree, layout):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(layout.shardings(tree)), strict=True)
        return all(leaf.sharding.is_equivalent_to(place, leaf.ndim) for leaf, place in pairs)

    def step_text(method, layout, model):
        """The compiled step, and the numbers in the largest array of the network."""
        start = layout.place(model.init(jax.random.key(1)))
        carry = layout.place(method.init(key, *start, sharding.host_rows(data, layout)))
        examples = jax.tree.map(lambda leaf: layout.rows(leaf, np.arange(16)), data)
        batch = Batch(examples.forget, examples.retain)
        text = training._step.lower(method.step, carry, batch, layout).compile().as_text()
        return text, trees.count_weights(start[0]), max(leaf.size for leaf in jax.tree.leaves(start[0]))

    results = {}
    for name, model in networks.items():
        start = model.init(jax.random.key(1))
        method = scissorhands(
            classification_loss(model), sgd(0.05), fraction=0.1, batch_size=16, every_step_joint=False
        )
        one = training.run(method, key, *start, data, num_epochs=2)
        for mesh in MESHES if name == "mlp" else RESNET_MESHES:
            layout = layout_of(mesh)
            many = training.run(method, key, *start, data, num_epochs=2, layout=layout)
            results[name, mesh] = many
            good = near(one[:2], many[:2], 1e-4) and lies_as(many[:2], layout)
            report(f"run, {name}, {mesh}", good)
            if name == "mlp" and mesh in ("8x1", "8x1 fsdp"):
                text, total, biggest = step_text(method, layout, model)
                found = collectives(text)
                if mesh == "8x1":
                    # Two gradients, two losses; and no array of weights is gathered.
                    reduced = sum(sum(each.sizes) for each in found) // 4
                    kinds = {each.kind for each in found}
                    good = kinds == {"all-reduce"} and 2 * total <= reduced <= 2 * total + 16
                    report("traffic, data parallel", good, f"{kinds} {reduced} of {total}")
                else:
                    # What crosses devices is one layer's weights or its activations at a time.
                    report("traffic, fsdp", max(each.largest for each in found) <= 2 * biggest, str(found))

    model = networks["mlp"]
    start = model.init(jax.random.key(1))
    loss_fn = classification_loss(model)
    method = scissorhands(loss_fn, sgd(0.05), fraction=0.1, batch_size=16, every_step_joint=False)
    layout = layout_of("4x2 fsdp")
    with Compilations() as compilations:
        training.run(finetune(loss_fn, sgd(0.05), batch_size=16), key, *start, data, num_epochs=3, layout=layout)
    report("one compilation", compilations.names.count("jit(_step)") == 1, str(compilations.names))
    stacked = training.run(method, key, *start, data, num_epochs=2, layout=layout, steps_per_call=2)
    report("stacked steps", near(results["mlp", "4x2 fsdp"].params, stacked.params))

    expected = results["mlp", "4x2 fsdp"]  # whose data were put on the devices, because they fit
    for name, per_call, reference in (("data", None, expected), ("stacked steps of data", 2, stacked)):
        fed = training.run(
            method, key, *start, data, num_epochs=2, layout=layout, steps_per_call=per_call, feed_from="host"
        )
        report(f"{name} on every device", same(fed[:2], reference[:2]))
    resident, read = (feeding.make_feed(data, source, layout) for source in ("device", "host"))
    batches = [Batch(np.arange(16), np.arange(16)[::-1]), Batch(np.arange(16), np.arange(16) + 20)]
    good = []
    for calls in ([feeding.StepGroup(0, 1, None), feeding.StepGroup(1, 1, None)], [feeding.StepGroup(0, 2, 2)]):
        for left, right in zip(resident.examples(batches, calls), read.examples(batches, calls), strict=True):
            good.append(same(left, right) and alike(left, right))
    positions = layout.divided(jax.tree.map(np.asarray, batches[0]))
    text = feeding._gather_divided.lower(layout.everywhere(data), positions, layout).compile().as_text()
    report("gathered where they are needed", all(good) and not collectives(text), f"{good} {collectives(text)}")

    images = data.retain["image"][:45]
    expected = accuracies.predict(model, *start, images, batch_size=16)
    found = accuracies.predict(model, *layout.place(start), images, batch_size=16, layout=layout)
    report("prediction", found.shape == (45, 3) and near(expected, found))

    spread_over = [scaling.on_mesh(128, count, 1, False) for count in (1, 2, 4, 8)]
    moved = [(row["predicted"]["step"], sum(row["step_bytes"].values())) for row in spread_over]
    report("formulas, data parallel", all(formula <= found <= formula + 64 for formula, found in moved), str(moved))
    parallel, divided = spread_over[-1], scaling.on_mesh(128, 4, 2, True)
    formula, found = divided["predicted"], sum(divided["step_bytes"].values())
    good = 0 < found <= formula["step_at_most"] and divided["state_bytes"] < parallel["state_bytes"] / 2
    report("formulas, divided weights", good, str(divided))
    good = [sum(divided[f"{part}_bytes"].values()) == formula[name] for part, name in COUNTED.items()]
    report("formulas, threshold and projection", all(good), str(divided))

    def refusal(function):
        try:
            function()
        except InputError as error:
            return str(error)
        return ""

    odd = finetune(loss_fn, sgd(0.05), batch_size=18)
    message = refusal(lambda: training.run(odd, key, *start, data, num_epochs=1, layout=layout))
    report("batch refused", "a batch of 18 retain examples cannot be divided over the 4 devices" in message, message)
    config = RunConfig(
        model="mlp",
        model_options={"hidden": (8,)},
        dataset="digits",
        forget="random:0.1",
        method_name="finetune",
        method=METHODS["finetune"](batch_size=50),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.safetensors"
        small = models.build("mlp", num_classes=10, image_shape=(8, 8, 1), hidden=(8,))
        torch_weights.write_safetensors(weights, torch_weights.to_state_dict(*small.init(key)))
        job = dataclasses.replace(config, weights=weights)
        out = Path(folder) / "run"
        with Compilations() as compilations:
            message = refusal(lambda: unlearning.unlearn(job, out, layout=layout, console=Console(quiet=True)))
        good = "a batch of 50 retain examples cannot be divided over the 4 devices" in message and not out.exists()
        computed = [name for name in compilations.names if "forward" in name or "step" in name]
        report("batch refused before the original is evaluated", good and not computed, f"{message} {computed}")
    message = refusal(lambda: make_layout(4, 4))
    report("mesh refused", message == "a mesh of 4 x 4 needs 16 devices, but there are 8; ask for fewer", message)

    with tempfile.TemporaryDirectory() as folder:
        first, second = layout_of("4x2 fsdp"), layout_of("1x8")
        keeper = checkpoints.Checkpointer(folder, keep=1)

        def stop(progress):
            if progress.epoch == 1:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            training.run(method, key, *start, data, num_epochs=2, checkpoint=keeper, layout=first, on_step=stop)
        assert keeper.latest_step is not None
        keeper.close()
        good = []
        for other in (second, None):
            copy = shutil.copytree(folder, f"{folder}/{other is None}", ignore=shutil.ignore_patterns("True", "False"))
            keeper = checkpoints.Checkpointer(copy)
            resumed = training.run(method, key, *start, data, num_epochs=2, checkpoint=keeper, layout=other)
            keeper.close()
            good.append(near(results["mlp", "4x2 fsdp"].params, resumed.params, 1e-4))
        report("a checkpoint goes on with on another mesh", all(good), str(good))
        trained = results["mlp", "4x2 fsdp"]
        checkpoints.save_network(f"{folder}/network", *trained[:2], {})
        params, _ = checkpoints.load_network(f"{folder}/network", *start)
        alone = all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(params))
        report("a network is read on one device", same(trained.params, params) and alone)

    settings = [METHODS["scissorhands"](batch_size=16, learning_rate=0.05, fraction=f) for f in (0.1, 0.2, 0.3)]
    built = sweeps.methods_of(lambda one: one.build(model, loss_fn, 3), [*settings, *settings])
    members = [sweeps.Member(method, jax.random.key(seed), *start) for seed, method in enumerate(built)]
    alone = [training.run(*member, data, num_epochs=2) for member in members]
    swept = sweeps.run_many(members, data, num_epochs=2, how="sharded")
    good = [near(one[:2], each[:2], 1e-4) for one, each in zip(alone, swept, strict=True)]
    good.append(not near(swept[0].params, swept[1].params))
    report("members, each where its own run ends", all(good), str(good))
    built = sweeps.methods_of(
        lambda one: one.build(model, loss_fn, 3),
        [METHODS["finetune"](batch_size=16, learning_rate=rate) for rate in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)],
    )
    members = [sweeps.Member(method, key, *start) for method in built]
    mesh = sweeps._mesh(len(members))
    together = sweeps._together(members, "sharded", mesh, [])
    carry = together.init(key, (), (), data)
    kernel = jax.tree.leaves(carry.params.params)[0]
    shards = {shard.device: shard.data.shape[0] for shard in kernel.addressable_shards}
    rows = jnp.tile(jnp.arange(16), (len(members), 1))
    batch = jax.device_put(data_lib.gather(data, Batch(rows, rows)), NamedSharding(mesh, PartitionSpec()))
    text = jax.jit(together.step).lower(carry, batch).compile().as_text()
    # What crosses devices is which members' metrics were finite: nothing of a network.
    crossing = max([each.largest for each in collectives(text)], default=0)
    good = list(shards.values()) == [1] * 6 and crossing <= len(members)
    report("members, divided over devices that ask nothing of each other", good, f"{shards} {crossing}")
    seconds = sweeps.fastest(members, data)
    report("members, timed beside the other ways", set(seconds) == {"turns", "batched", "scanned", "sharded"})
    difference, moved = packing_test.largest_difference_on_four_devices()
    report("packed text", difference < 1e-5 < 1e-2 < moved, f"{difference} {moved}")
    pair_gradients_test.check_both_ways_on_four_devices()
    report("both gradients of a pair, both ways", True)
    mesh_checks.run_checks(report)
    diffusion_checks.run_checks(report)


def _check_shards(report, near, tree, rows) -> None:
    """Checks what may not see a single shard, inside `shard_map`: the bias is whole everywhere, the rest is divided."""
    import jax.numpy as jnp

    from scissorhands_jax import masks
    from scissorhands_jax.methods import scissorhands_gradient
    from scissorhands_jax.models.cpu_convolution import conv_general_dilated
    from scissorhands_jax.projection import project_gradient

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    places = {"kernel": jax.P("model", "data"), "wide": jax.P(None, "model"), "bias": jax.P()}
    stacked = {name: jax.P(None, *place) for name, place in places.items()}

    def projected(tree, rows, places, stacked, *, axis_name, check=True):
        transform = project_gradient(2, axis_name=axis_name)

        def update(gradient, constraints):
            result, state = transform.update(gradient, transform.init(gradient), constraint_grads=constraints)
            return result, state.dual

        specs = {"in_specs": (places, stacked), "out_specs": (places, jax.P())}
        return jax.jit(jax.shard_map(update, mesh=mesh, check_vma=check, **specs))(tree, rows)

    def refusal(function):
        try:
            function()
        except InputError as error:
            return str(error)
        return "nothing was refused"

    transform = project_gradient(2)
    whole, state = transform.update(tree, transform.init(tree), constraint_grads=rows)
    result = projected(tree, rows, places, stacked, axis_name=("data", "model"))
    report("shards are projected as the whole", near((whole, state.dual), result) and np.all(state.dual > 0))
    divided, of_divided, one = {"kernel": tree["kernel"]}, {"kernel": rows["kernel"]}, {"kernel": places["kernel"]}
    of_one = {"kernel": stacked["kernel"]}
    result = projected(divided, of_divided, one, of_one, axis_name=("data", "model"), check=False)
    expected, state = transform.update(divided, transform.init(divided), constraint_grads=of_divided)
    report("shards are projected as the whole, unchecked", near((expected, state.dual), result))
    found = refusal(lambda: projected(tree, rows, places, stacked, axis_name=None))
    found += refusal(lambda: projected(tree, rows, places, stacked, axis_name="rows"))
    good = "inside shard_map over 'data', 'model' a gradient may be one shard" in found and "names 'rows', but" in found
    report("a shard is refused by the projection", good, found)
    scores = jax.tree.map(jnp.abs, tree)
    ranked = jax.shard_map(lambda s: masks.top_fraction(s, 0.1), mesh=mesh, in_specs=(places,), out_specs=places)
    found = refusal(lambda: ranked(scores))
    report("a shard is refused by the ranking", "only a shard is at hand" in found, found)

    def squares(params, model_state, batch, *, train, key, psum):
        del train, key
        losses = jnp.sum((params["bias"] + batch @ params["wide"]) ** 2)
        return (jax.lax.psum(losses, "model") if psum else losses) / len(batch), model_state

    weights = {"bias": jnp.ones(()), "wide": jax.random.normal(jax.random.key(1), (3, 16))}
    retain = jax.random.normal(jax.random.key(2), (5, 3))
    specs = {"bias": jax.P(), "wide": jax.P(None, "model")}

    def step_of(psum, **options):
        loss_fn = functools.partial(squares, psum=psum)
        gradient_of = scissorhands_gradient(loss_fn, forget_weight=0.5, **options)

        def step(params):
            gradient, _, metrics = gradient_of(params, (), retain[:3] + 0.1, retain)
            return gradient, metrics

        return step

    def by_hand(**options):
        step = step_of(True, **options)
        return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=(specs, jax.P())))(weights)

    whole = step_of(False)(weights)
    report("shards follow the gradient of the whole", near(whole, by_hand(axis_name="model")) and whole[1]["projected"])
    found = refusal(by_hand)
    report("a shard is refused by the gradient", "give scissorhands_gradient axis_name=" in found, found)

    images, kernel = jnp.ones((64, 16, 16, 32)), jax.random.normal(jax.random.key(0), (3, 3, 32, 32))

    def convolve(images, kernel):
        return conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    specs = {"in_specs": (jax.P("data"), jax.P()), "out_specs": jax.P("data")}
    by_hand = jax.jit(jax.shard_map(convolve, mesh=mesh, **specs))(images, kernel)
    report("a convolution of shards", near(convolve(images, kernel), by_hand))


if __name__ == "__main__":
    main()
