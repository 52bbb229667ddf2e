"""Networks in files of other authors: their layout is found and said, or asked for, and their answers are compared."""

import functools
import logging

import jax
import numpy as np
import pytest

from scissorhands_jax import models, torch_weights
from scissorhands_jax.datasets import Splits
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.jobs import logits_check
from scissorhands_jax.jobs.config import NetworkConfig
from scissorhands_jax.jobs.loading import read_network

SHAPE = (8, 8, 3)
PART = {"image": np.zeros((2, *SHAPE), np.float32), "label": np.arange(2)}
SPLITS = Splits(PART, PART, tuple("0123456789"), augmented=False)
SMALL = {"widths": [3, 4], "stage_sizes": [1, 1]}
CIFAR = {"normalize": "fixed", "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
IMAGENET = {"normalize": "fixed", "mean": list(models.IMAGENET_MEAN), "std": list(models.IMAGENET_STD)}


def small(name):
    return {"widths": [[3], [4]]} if name == "vgg16_bn" else SMALL


def build(name, options):
    return models.build(name, num_classes=10, image_shape=SHAPE, **small(name), **options)


def drawn(model):
    """A network of random numbers, without compiling anything. Variances are small, so that epsilons matter."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        last = path[-1].key
        values = rng.uniform(0.02, 0.05, leaf.shape) if last == "var" else rng.normal(size=leaf.shape) / 4
        return np.zeros(leaf.shape, leaf.dtype) if last == "count" else values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def written(path, name, options, rename=str):
    """Writes a drawn network under other names. Returns it."""
    model = build(name, options)
    params, model_state = drawn(model)
    arrays = torch_weights.to_state_dict(params, model_state)
    torch_weights.write_safetensors(path, {rename(key): array for key, array in arrays.items()})
    return model, params, model_state


def read(path, name, **changes):
    changes = {"model_options": small(name), "dataset": "none"} | changes
    return read_network(NetworkConfig(model=name, weights=str(path), **changes), SPLITS)


def kuangliu(name):
    return "module." + name.replace("downsample", "shortcut").replace("fc.", "linear.")


CASES = {
    "authors": ("resnet18", {}, str, {}),
    "akamaster": ("resnet20", {}, lambda name: f"module.{name}", {}),
    "torchvision or timm": ("resnet18", {"stem": "imagenet", **IMAGENET}, str, {"stem": "imagenet", **IMAGENET}),
    "chenyaofo": (
        "resnet20",
        {"shortcut": "projection", **CIFAR},
        lambda name: name.replace("linear.", "fc."),
        {"shortcut": "projection", **CIFAR},
    ),
    "kuangliu": ("resnet18", CIFAR, kuangliu, CIFAR),
    "kuangliu, a VGG": ("vgg16_bn", {"last_pool": "max", **CIFAR}, "module.{}".format, {"last_pool": "max", **CIFAR}),
    "torchvision or timm, deeper": (
        "resnet34",
        {"stem": "imagenet", **IMAGENET},
        str,
        {"stem": "imagenet", **IMAGENET},
    ),
}


@pytest.mark.parametrize("author", CASES)
def test_files_of_known_authors_are_read_and_what_was_done_is_said(author, tmp_path, caplog):
    name, options, rename, found = CASES[author]
    author = author.partition(",")[0]
    _, params, model_state = written(tmp_path / "a.safetensors", name, options, rename)
    got = read(tmp_path / "a.safetensors", name)
    for here, there in zip(jax.tree.leaves(got[2:4]), jax.tree.leaves((params, model_state)), strict=True):
        np.testing.assert_array_equal(here, there)
    assert got.config.model_options == {**found, **small(name)}
    wanted = {rename(key).removeprefix("module.") for key in torch_weights.to_state_dict(params, model_state)}
    assert {got.names.get(key, key) for key in torch_weights.to_state_dict(*got[2:4])} == wanted
    assert (f"read as a network of {author}, with" in caplog.text) == bool(found)


def test_a_file_without_the_mean_of_its_images_is_told_to_name_it(tmp_path):
    """As torchvision names it, with a stem for small images: nothing is wrong but what the file cannot show."""
    written(tmp_path / "a.safetensors", "resnet18", CIFAR)
    with pytest.raises(
        WeightsError, match=r"keeps the mean and the standard deviation .* build it with normalize=fixed"
    ):
        read(tmp_path / "a.safetensors", "resnet18")


def test_a_layout_that_is_named_is_taken_and_options_of_the_user_win(tmp_path):
    written(tmp_path / "a.safetensors", "resnet18", CIFAR, kuangliu)
    path = tmp_path / "a.safetensors"
    own = {**SMALL, "mean": [0.5, 0.5, 0.5]}
    got = read(path, "resnet18", layout="kuangliu", model_options=own)
    assert got.config.model_options == {**CIFAR, **own}
    with pytest.raises(InputError, match="there is no layout 'kuang'; near matches: kuangliu"):
        read(path, "resnet18", layout="kuang")
    with pytest.raises(
        InputError, match="the layout akamaster has no resnet18; layouts of a resnet18 are: authors, tor"
    ):
        read(path, "resnet18", layout="akamaster")
    with pytest.raises(WeightsError, match="has no averaged weights"):
        read(path, "resnet18", ema=True)


def test_arrays_in_order_are_offered_and_a_table_renames(tmp_path, caplog):
    _, params, _ = written(tmp_path / "named.safetensors", "resnet20", {})
    named = torch_weights.read_state_dict(tmp_path / "named.safetensors")
    layers = (
        "conv1",
        "bn1",
        *(f"layer{stage}.0.{layer}" for stage in (1, 2) for layer in ("conv1", "bn1", "conv2", "bn2")),
    )
    order = [
        f"{layer}.{last}" for layer in (*layers, "linear") for last in ("weight", "bias", "running_mean", "running_var")
    ]
    own = {f"p{index:02}": name for index, name in enumerate(name for name in order if name in named)}
    path = tmp_path / "own.safetensors"
    torch_weights.write_safetensors(path, {mine: named[name] for mine, name in own.items()})
    with pytest.raises(WeightsError, match=r"not those of a resnet20, but its \d\d arrays .* add --layout in-order"):
        read(path, "resnet20")
    got = read(path, "resnet20", layout="in-order")
    assert "were read in the order of the file" in caplog.text
    (tmp_path / "table").write_text("".join(f"{mine} {name}\n" for mine, name in own.items()))
    renamed = read(path, "resnet20", rename=str(tmp_path / "table"))
    for found in (got.params, renamed.params):
        for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(here, there)
    # A file of ours that has the names of such a file says what they mean.
    state = torch_weights.to_state_dict(*got[2:4])
    ours = {got.names.get(name, name): array for name, array in state.items()}
    metadata = torch_weights.names_metadata(got.names)
    torch_weights.write_safetensors(tmp_path / "ours.safetensors", dict(sorted(ours.items(), reverse=True)), metadata)
    again = read(tmp_path / "ours.safetensors", "resnet20")
    for here, there in zip(jax.tree.leaves(again[2:4]), jax.tree.leaves(got[2:4]), strict=True):
        np.testing.assert_array_equal(here, there)
    with pytest.raises(WeightsError, match="do not have the shapes of a resnet20 in order"):
        read(path, "resnet20", layout="in-order", model_options={})


def test_a_part_of_a_network_is_called_so(tmp_path):
    written(tmp_path / "whole.safetensors", "resnet20", {})
    arrays = torch_weights.read_state_dict(tmp_path / "whole.safetensors")
    path = tmp_path / "model-00001-of-00002.safetensors"
    torch_weights.write_safetensors(path, dict(list(arrays.items())[:9]))
    with pytest.raises(WeightsError, match="is part 1 of 2 of a network that was saved in parts"):
        read(path, "resnet20")


def test_what_fits_best_is_described(tmp_path):
    written(tmp_path / "a.safetensors", "resnet18", {"stem": "imagenet", **IMAGENET})
    with pytest.raises(WeightsError, match="they have 10 classes and the model 5"):
        read_network(
            NetworkConfig(model="resnet18", weights=str(tmp_path / "a.safetensors"), model_options=SMALL, dataset=""),
            SPLITS._replace(class_names=tuple("01234")),
        )


def test_a_run_needs_no_description_of_its_file():
    with pytest.raises(InputError, match="--prefix says how to read a file of --weights"):
        read_network(NetworkConfig(model="mlp", checkpoint="run", prefix="model.", dataset=""), SPLITS)


@pytest.fixture(scope="module")
def network():
    """A small network whose BatchNorms have statistics that matter."""
    model = build("resnet20", {})
    return model, *drawn(model)


IMAGES = np.random.default_rng(1).random((6, *SHAPE)).astype(np.float32)


@functools.cache
def compiled(model):
    return jax.jit(functools.partial(model.apply, train=False))


def answers(network, images=IMAGES, state=None):
    model, params, model_state = network
    return np.asarray(compiled(model)(params, state or model_state, images)[0])


class TestCheck:
    @pytest.fixture
    def check(self, network, tmp_path):
        def check(output, images=IMAGES):
            np.savez(tmp_path / "check.npz", input=images.transpose(0, 3, 1, 2), output=output)
            path = str(tmp_path / "check.npz")
            return logits_check.check_answers(path, "resnet20", SMALL, network, SHAPE)

        return check

    def test_the_same_answers_agree_in_any_form(self, check, network):
        logits = answers(network)
        for output in (logits, jax.nn.softmax(logits), jax.nn.log_softmax(logits)):
            assert "answers the 6 images of" in check(output)
        pixels = np.round(IMAGES * 255).astype(np.uint8)
        assert "as it did there, to" in check(answers(network, pixels), pixels)
        normalized = (IMAGES - np.array(models.IMAGENET_MEAN)) / np.array(models.IMAGENET_STD)
        assert "if they were normalised already" in check(answers(network), normalized)

    def test_each_of_the_usual_suspects_is_named(self, check, network):
        model, params, model_state = network
        other = (build("resnet20", {"mean": CIFAR["mean"], "std": CIFAR["std"]}), params, model_state)
        more_epsilon = logits_check._with_added_variance(1e-3 - 1e-5)(model_state)
        padded = jax.jit(lambda: logits_check._logits(model, params, model_state, IMAGES, True))()
        expected = {
            r"in another way \(CIFAR-10, with .*model_options.std=\[0.2023,0.1994,0.201\]": answers(other),
            "channels come in the reverse order": answers(network, IMAGES[..., ::-1]),
            r"there class 2 is 3, 3 is 2 here\)": answers(network)[:, [0, 1, 3, 2, *range(4, 10)]],
            "BatchNorm adds 0.001 to variances": answers(network, state=more_epsilon),
            r"padded as in TensorFlow \(SAME\)": np.asarray(padded),
            "rows and columns are exchanged": answers(network, IMAGES.swapaxes(1, 2)),
            "normalised in another way .* and if channels come in the reverse": answers(other, IMAGES[..., ::-1]),
            r"none of the usual suspects \(normalisation, channel order": answers(network, IMAGES[::-1]),
        }
        for message, output in expected.items():
            with pytest.raises(InputError, match=message):
                check(output)

    def test_a_flattened_image_may_be_in_another_order(self, tmp_path):
        model = models.build("mlp", num_classes=10, image_shape=SHAPE, hidden=[4])
        params, model_state = drawn(model)
        flattened = IMAGES.transpose(0, 3, 1, 2).reshape(IMAGES.shape)
        output = answers((model, params, model_state), flattened)
        note = np.array([None])  # which nobody reads
        np.savez(tmp_path / "check.npz", input=IMAGES, output=output, note=note)
        with pytest.raises(InputError, match=r"and as there if images are flattened channels first"):
            logits_check.check_answers(
                str(tmp_path / "check.npz"), "mlp", {"hidden": [4]}, (model, params, model_state), SHAPE
            )

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": IMAGES}, "has x; give arrays input and output"),
            ({"input": IMAGES[:, :4], "output": np.zeros((6, 10))}, r"input in .* has shape \(6, 4, 8, 3\); give im"),
            ({"input": IMAGES, "output": np.zeros((5, 10))}, r"output in .* \(5, 10\); give the answers to 6 inputs"),
            ({"input": IMAGES * np.nan, "output": np.zeros((6, 10))}, "holds NaN"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, arrays, message):
        np.savez(tmp_path / "check.npz", **arrays)
        with pytest.raises(InputError, match=message):
            logits_check.read_answers(str(tmp_path / "check.npz"), SHAPE, 10)
        with pytest.raises(InputError, match="cannot be read"):
            logits_check.read_answers(str(tmp_path / "none.pt"), SHAPE, 10)

    def test_reading_a_network_compares_its_answers(self, tmp_path, caplog):
        written_network = written(tmp_path / "a.safetensors", "resnet20", {})
        check = {"input": IMAGES, "output": answers(written_network)}
        torch_weights.write_safetensors(tmp_path / "check.safetensors", check)
        with caplog.at_level(logging.WARNING):
            read(tmp_path / "a.safetensors", "resnet20", check=str(tmp_path / "check.safetensors"))
        assert "as it did there" in caplog.text
