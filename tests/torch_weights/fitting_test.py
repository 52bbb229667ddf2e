"""Names of other authors, prefixes, masks and tables: the arrays come out under the network's names, or a reason."""

import numpy as np
import pytest

from scissorhands_jax.errors import WeightsError
from scissorhands_jax.torch_weights import fit_in_order, fit_names, is_averaged, read_renaming

NAMES = ("conv1.weight", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_mean", "fc.weight", "fc.bias")
SHAPES = {name: (2, 3) for name in NAMES} | {"layer1.0.downsample.1.num_batches_tracked": ()}


def arrays(names=NAMES):
    return {name: np.full((2, 3), index, np.float32) for index, name in enumerate(names)}


def assert_fits(fitted, *words):
    expected = arrays()
    for name, array in expected.items():
        np.testing.assert_array_equal(fitted.state_dict[name], array)
    assert len(fitted.notes) == len(words)
    for note, word in zip(fitted.notes, words, strict=True):
        assert word in note


def test_names_that_fit_stay_with_whatever_is_beside_them():
    given = arrays() | {"other": np.ones(1)}
    fitted = fit_names(given, SHAPES)
    assert fitted.state_dict == given
    assert fitted.notes == []


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "model.", "net.backbone.", "module._orig_mod.model.", "net_", "a/b/"]
)
def test_a_shared_prefix_is_removed_and_said(prefix):
    given = {prefix + name: array for name, array in arrays().items()}
    assert_fits(fit_names(given, SHAPES), f"the prefix '{prefix}' was removed")


def test_arrays_without_the_prefix_are_left_aside_and_named():
    given = {"n_averaged": np.ones(())} | {f"module.{name}": array for name, array in arrays().items()}
    fitted = fit_names(given, SHAPES)
    assert_fits(fitted, "and 1 arrays without it were left aside (n_averaged)")
    assert set(fitted.state_dict) == set(NAMES)


def test_a_network_that_is_there_twice_has_to_be_chosen():
    given = {f"model.{name}": array for name, array in arrays().items()}
    given |= {f"ema.{name}": array + 10 for name, array in arrays().items()}
    with pytest.raises(
        WeightsError,
        match=r"averaged weights \(EMA\) and without, under the prefixes model\., ema\.; choose with --ema",
    ):
        fit_names(given, SHAPES)
    assert_fits(fit_names(given, SHAPES, prefix="model."), "the prefix 'model.' was removed, and 5 arrays")
    with pytest.raises(WeightsError, match=r"no name in the file begins with 'net\.'"):
        fit_names(given, SHAPES, prefix="net.")


@pytest.mark.parametrize(
    ("shortcut", "head", "note"),
    [
        (
            "shortcut",
            "linear",
            "'shortcut' was read as 'downsample' and 'linear' was read as 'fc', as in the networks of",
        ),
        ("downsample", "classifier", "'classifier' was read as 'fc'"),
        ("shortcut", "fc", "'shortcut' was read as 'downsample'"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_authors_names_are_recognised(shortcut, head, note, prefix):
    names = [prefix + name.replace("downsample", shortcut).replace("fc", head) for name in NAMES]
    notes = ["was removed"] if prefix else []
    assert_fits(fit_names(arrays(names), SHAPES), *notes, note)


def test_pruned_weights_are_multiplied_by_their_masks():
    given = arrays()
    weight = given.pop("conv1.weight")
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    given |= {"conv1.weight_orig": weight + 5, "conv1.weight_mask": mask}
    fitted = fit_names(given, SHAPES)
    np.testing.assert_array_equal(fitted.state_dict["conv1.weight"], 5 * mask)
    assert set(fitted.state_dict) == set(NAMES)
    assert fitted.notes == ["1 pruned weights were multiplied by their masks"]
    with pytest.raises(WeightsError, match=r"has shape \(2, 3\) and its mask \(3,\)"):
        fit_names(given | {"conv1.weight_mask": np.ones(3)}, SHAPES)


def test_normalised_weights_are_multiplied_by_their_lengths():
    """As `torch.nn.utils.weight_norm` and its parametrisation keep them, along each axis."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(2, 3)).astype(np.float32)
    for first, second in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        for axes in ((1,), (0,), None):
            length = np.sqrt(np.square(weight).sum(axis=axes, keepdims=axes is not None))
            given = arrays(NAMES[1:]) | {f"conv1.{first}": length, f"conv1.{second}": 7 * weight}
            fitted = fit_names(given, SHAPES)
            np.testing.assert_allclose(fitted.state_dict["conv1.weight"], weight, rtol=1e-5)
            assert fitted.notes == ["1 normalised weights were multiplied by their lengths (weight normalisation)"]
            assert set(fitted.state_dict) == set(NAMES)
    with pytest.raises(WeightsError, match=r"direction of shape \(2, 3\) and lengths of shape \(2, 2\)"):
        fit_names({"w_g": np.ones((2, 2)), "w_v": weight}, SHAPES)


@pytest.mark.parametrize(
    "names", [["c.weight_orig", "c.weight_u", "c.weight_v"], ["c.parametrizations.weight.original"]]
)
def test_weights_that_are_computed_otherwise_are_refused_by_name(names):
    with pytest.raises(
        WeightsError, match="parts of weights that are computed from them, as by spectral normalisation"
    ):
        fit_names(arrays(names), SHAPES)


def test_counters_of_a_profiler_are_left_aside():
    given = arrays() | {"total_ops": np.zeros(1), "conv1.total_params": np.zeros(1)}
    assert_fits(fit_names(given, SHAPES), "2 counters of a profiler (total_ops, total_params) were left aside")


@pytest.mark.parametrize("head", ["fc", "linear"])
def test_a_last_layer_beside_the_prefix_belongs_to_the_network(head):
    given = {f"encoder.{name}": array for name, array in list(arrays().items())[:3]}
    given |= {f"{head}.weight": arrays()["fc.weight"], f"{head}.bias": arrays()["fc.bias"], "other": np.ones(1)}
    notes = ["was removed, and 1 arrays without it were left aside (other)", "'linear' was read as 'fc'"]
    assert_fits(fit_names(given, SHAPES), *notes[: 1 + (head == "linear")])


def test_a_single_layer_with_another_name_is_found_by_its_shapes():
    for old, new in (("fc", "fc.1"), ("fc", "last"), ("conv1", "stem.conv")):
        given = {new + name.removeprefix(old) if name.startswith(old) else name: a for name, a in arrays().items()}
        assert_fits(fit_names(given, SHAPES), f"'{new}' was read as '{old}', the only layer with another name")
    given = {name.replace("fc.", "last."): array[:1] for name, array in arrays().items()}
    assert set(fit_names(given, SHAPES).state_dict) == set(given)


def test_a_table_of_ones_own_renames():
    given = arrays([f"a{index}" for index in range(len(NAMES))])
    table = dict(zip(given, NAMES, strict=True))
    assert_fits(fit_names(given, SHAPES, rename=table), "5 arrays were renamed by the table")
    with pytest.raises(WeightsError, match=r"1 names that are not in the file \(b\); its names are a0, a1"):
        fit_names(given, SHAPES, rename={"b": "fc.bias"})
    with pytest.raises(WeightsError, match=r"several arrays the name fc\.bias"):
        fit_names(given, SHAPES, rename={"a0": "fc.bias", "a1": "fc.bias"})


def test_names_of_another_network_stay_as_they_are():
    given = arrays(["x", "y", "linear.weight", "z", "w"])
    assert fit_names(given, SHAPES).state_dict == given


def test_the_averaged_or_the_other_weights_are_chosen():
    given = {f"model.{name}": array for name, array in arrays().items()}
    given |= {f"model_ema.{name}": array + 10 for name, array in arrays().items()}
    assert_fits(fit_names(given, SHAPES, ema=False), "the prefix 'model.' was removed")
    fitted = fit_names(given, SHAPES, ema=True)
    assert fitted.prefix == "model_ema."
    assert fitted.state_dict["fc.bias"][0, 0] == 14
    whole = arrays() | {f"ema.{name}": array + 10 for name, array in arrays().items()}
    assert fit_names(whole, SHAPES, ema=True).state_dict["fc.bias"][0, 0] == 14
    with pytest.raises(WeightsError, match=r"under the prefixes ema\. and without one; choose with --ema or --no-ema"):
        fit_names(whole, SHAPES)
    plain = fit_names(whole, SHAPES, ema=False)
    assert_fits(plain, "5 arrays of averaged weights (EMA) were left aside (ema.")
    assert set(plain.state_dict) == set(NAMES)
    # Whatever the last layer is called.
    headed = {name.replace("fc.", "linear."): array for name, array in whole.items()}
    assert fit_names(headed, SHAPES, ema=True).state_dict["fc.bias"][0, 0] == 14
    assert fit_names(headed, SHAPES, ema=False).state_dict["fc.bias"][0, 0] == 4
    with pytest.raises(WeightsError, match=r"under the prefixes ema\. and without one"):
        fit_names(headed, SHAPES)
    twice = {f"{prefix}.{name}": array for prefix in ("student", "teacher") for name, array in arrays().items()}
    with pytest.raises(WeightsError, match=r"2 times, under the prefixes student\., teacher\.; name one"):
        fit_names(twice, SHAPES)


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema.", "swa", "averaged.net", "!schema.", "!model"])
def test_averaged_weights_are_known_by_the_name(name):
    assert is_averaged(name) != name.startswith("!")


def test_arrays_are_read_in_order_where_all_shapes_agree():
    shapes = {"conv.weight": (2, 3), "bn.running_var": (2,), "bn.num_batches_tracked": (), "fc.weight": (4, 2)}
    given = {"a": np.zeros((2, 3)), "b": np.ones(2), "c.num_batches_tracked": np.zeros(()), "d": np.zeros((4, 2))}
    fitted = fit_in_order(given, shapes)
    assert fitted is not None
    assert list(fitted.state_dict) == ["conv.weight", "bn.running_var", "fc.weight"]
    assert fitted.state_dict["bn.running_var"] is given["b"]
    assert fit_in_order({**given, "e": np.zeros(1)}, shapes) is None
    assert fit_in_order(dict(reversed(given.items())), shapes) is None
    assert fit_in_order({}, {}) is None


@pytest.mark.parametrize(
    "text", ["a b # new\n\nc d\n", "\ufeffa,b\r\nc,d\r\n", '{"a": "b", "c": "d"}'], ids=["words", "csv", "json"]
)
def test_renaming_tables_are_text_or_json(tmp_path, text):
    (tmp_path / "table").write_bytes(text.encode())
    assert read_renaming(tmp_path / "table") == {"a": "b", "c": "d"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the renaming table"),
        ("a b\na c\n", r"line 2 of .* is 'a c'; write the name in the file"),
        ("a\n", "line 1 of .* is 'a'"),
        ("# a b\n", "is empty"),
        ('{"a": 1}', "values that are no text"),
        ('{"a": ', "cannot read the renaming table"),
    ],
)
def test_other_renaming_tables_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "table").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_renaming(tmp_path / "table")


def test_arrays_that_were_read_in_order_keep_the_names_of_the_file():
    given = {
        "0.weight": np.zeros((2, 3)),
        "1.running_mean": np.zeros(2),
        "1.num_batches_tracked": np.zeros(()),
        "same": np.zeros(4),
    }
    shapes = {"conv.weight": (2, 3), "bn.running_mean": (2,), "bn.num_batches_tracked": (), "same": (4,)}
    fitted = fit_in_order(given, shapes)
    assert dict(fitted.names) == {
        "conv.weight": "0.weight",
        "bn.running_mean": "1.running_mean",
        "bn.num_batches_tracked": "1.num_batches_tracked",
    }


def test_what_looks_like_a_part_of_a_weight_is_one_where_all_names_fit():
    given = {"att.x_g": np.ones((2, 1)), "att.x_v": np.ones((2, 3)), "fc.weight": np.ones(4)}
    shapes = {name: array.shape for name, array in given.items()}
    fitted = fit_names(given, shapes)
    assert fitted.state_dict.keys() == given.keys()
    assert fitted.notes == []


def test_two_tensors_of_one_shape_are_no_weight_normalisation():
    given = {f"fc.parametrizations.weight.original{number}": np.ones((4, 4)) for number in (0, 1)}
    with pytest.raises(WeightsError, match="lengths of shape"):
        fit_names(given, {"fc.weight": (4, 4)})
