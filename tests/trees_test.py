"""Selections by path, and dot products of trees against NumPy in float64."""

import dataclasses
import types
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from scissorhands_jax import models, trees
from scissorhands_jax.diffusion import networks
from scissorhands_jax.errors import InputError


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def network(dtype=jnp.float32, seed=0):
    """Names like those of a ResNet, shapes that differ from leaf to leaf."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    block = {"conv1": {"kernel": draw(3, 3, 2, 4)}, "bn1": {"scale": draw(4), "bias": draw(4)}}
    return {
        "layer3": {"0": block},
        "layer30": {"kernel": draw(2, 5)},
        "head": [Pair(draw(7), draw()), draw(2, 1, 2)],
    }


def chosen(tree, where):
    selection = trees.select(tree, where)
    assert jax.tree.structure(selection) == jax.tree.structure(tree)
    assert all(type(flag) is bool for flag in jax.tree.leaves(selection))
    return [name for name, flag in zip(trees.leaf_names(tree), jax.tree.leaves(selection), strict=True) if flag]


def test_names_are_paths_through_dicts_lists_and_named_tuples():
    assert trees.leaf_names(network()) == [
        "head/0/first",
        "head/0/second",
        "head/1",
        "layer3/0/bn1/bias",
        "layer3/0/bn1/scale",
        "layer3/0/conv1/kernel",
        "layer30/kernel",
    ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Valued:
    """A module of somebody's own, with a field that is called like that of Flax's boxes."""

    value: jax.Array


def test_boxes_of_flax_add_nothing_to_names():
    w = jnp.ones((2, 3))
    boxed = {
        "dense": {"kernel": nn.Partitioned(w, (None, "m")), "bias": nn.LogicallyPartitioned(w[0], ("m",))},
        "value": nnx.Param(w),
        "twice": nnx.Param({"value": nn.Partitioned(w, ()), "b": w}),
    }
    names = ["dense/bias", "dense/kernel", "twice/b", "twice/value", "value"]
    assert trees.leaf_names(boxed) == names
    assert [name for name, _ in trees.named_leaves(boxed)] == names
    assert chosen(boxed, "dense/kernel|twice/value") == ["dense/kernel", "twice/value"]
    assert trees.leaf_names(nnx.Param(w)) == [""]
    shapes = trees.map_named(lambda name, leaf, other: (name, other.shape), boxed, boxed)
    assert shapes["dense"]["bias"].value == ("dense/bias", (3,))
    assert trees.leaf_names({"a": Valued(w), "b": {"value": w}}) == ["a/value", "b/value"]
    with pytest.raises(InputError, match="the parameters have an array of bool at dense, and only"):
        trees.check_trained({"dense": nnx.Param(w > 0)}, "the parameters")


def test_names_of_a_module_are_those_of_its_pure_state():
    module = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    names = trees.leaf_names(nnx.to_pure_dict(nnx.state(module)))
    assert "value/bias" in names
    assert trees.leaf_names(nnx.state(module)) == trees.leaf_names(module) == names


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("layer3", ["layer3/0/bn1/bias", "layer3/0/bn1/scale", "layer3/0/conv1/kernel"]),
        ("layer3/0/bn1", ["layer3/0/bn1/bias", "layer3/0/bn1/scale"]),
        ("layer3/0/bn1/bias", ["layer3/0/bn1/bias"]),
        ("layer30|head/1", ["head/1", "layer30/kernel"]),
        (r"layer\d+", [name for name in trees.leaf_names(network()) if name.startswith("layer")]),
        ("(?i)LAYER3/0/BN1", ["layer3/0/bn1/bias", "layer3/0/bn1/scale"]),
        (".*kernel", ["layer3/0/conv1/kernel", "layer30/kernel"]),
        (lambda name, leaf: leaf.ndim == 1, ["head/0/first", "layer3/0/bn1/bias", "layer3/0/bn1/scale"]),
        (lambda name, leaf: name.endswith("scale"), ["layer3/0/bn1/scale"]),
        (None, trees.leaf_names(network())),
    ],
)
def test_select_matches_whole_path_components_from_the_front(where, names):
    assert chosen(network(), where) == names


@pytest.mark.parametrize("where", ["layer", "ayer3", "kernel", "layer3/", "layer3/0/bn", "LAYER3", ""])
def test_select_refuses_a_pattern_that_matches_only_parts_of_components(where):
    with pytest.raises(InputError, match="matches none of the 7 parameter arrays"):
        trees.select(network(), where)


def test_no_match_shows_near_names():
    with pytest.raises(InputError, match="near matches: layer3"):
        trees.select(network(), "layer4|layr3")
    with pytest.raises(InputError, match="head/0/first"):
        trees.select(network(), lambda name, leaf: False)


def test_invalid_expression_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"'layer\(3' is not a regular expression.*unterminated"):
        trees.select(network(), "layer(3")


def test_select_works_on_shapes_without_values():
    shapes = jax.eval_shape(network)
    assert chosen(shapes, "layer30") == ["layer30/kernel"]


@pytest.mark.parametrize(
    ("name", "shape", "is_bias"),
    [
        ("conv/bias", (64, 1, 1), True),  # of Equinox
        ("query/bias", (4, 16), True),  # of Flax
        ("bias", (), True),
        ("cell/bias_n", (8,), True),
        ("lstm/bias_hh_l0", (32,), True),
        ("attention/in_proj_bias", (96,), True),
        ("attention/bias_k", (1, 1, 32), True),
        ("cell/bias_n", (4, 8), False),
        ("relative_position_bias", (4, 49), False),
        ("bias_kernel", (8, 1), False),
        ("bias_weight_ih", (8,), False),
        ("bias/kernel", (8, 4), False),
        ("bias/0", (8,), False),
        ("scale", (8,), False),
    ],
)
def test_biases_are_known_by_name_and_shape(name, shape, is_bias):
    assert trees.is_bias(name, shape) == is_bias
    assert trees.is_vector(name, shape) == (is_bias or len(shape) < 2)


class Block(nn.Module):
    """A part of a transformer, with a convolution."""

    use_bias: bool

    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm(use_bias=self.use_bias)(x)
        h = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias)(h)
        h = nn.Conv(12, (3,), use_bias=self.use_bias)(h)
        return x + nn.Dense(x.shape[-1], use_bias=self.use_bias)(h), None


class Scanned(nn.Module):
    """Several such parts one after the other, and a head."""

    layers: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        return nn.Dense(5)(blocks(self.use_bias, name="blocks")(x, None)[0])


@pytest.mark.parametrize("layers", [2, 3, 8, 12])  # 2 heads, a width of 3 and 8 features: as many layers as of others
@pytest.mark.parametrize("use_bias", [True, False])
def test_stacks_are_told_by_the_arrays_next_to_them(layers, use_bias):
    params = jax.eval_shape(Scanned(layers, use_bias).init, jax.random.key(0), jnp.zeros((1, 6, 8)))["params"]
    axes = trees.stacked_axes(params)
    assert axes == {"blocks": jax.tree.map(lambda _: 1, params["blocks"]), "Dense_0": {"bias": 0, "kernel": 0}}
    assert not trees.has_image_kernels(params)


def test_stacks_of_other_frameworks_are_told_as_well():
    keys = jax.random.split(jax.random.key(0), 4)

    def perceptron(key):
        return [eqx.nn.LayerNorm(6), eqx.nn.MLP(6, 1, 7, 2, key=key), eqx.nn.GRUCell(3, 5, key=key)]

    @nnx.vmap(in_axes=0, out_axes=0)
    def mapped(key):
        rngs = nnx.Rngs(key)
        return nnx.Sequential(
            nnx.Linear(6, 7, rngs=rngs), nnx.BatchNorm(7, rngs=rngs), nnx.Conv(7, 4, (3, 3), rngs=rngs)
        )

    stacks = (
        eqx.filter(eqx.filter_vmap(perceptron)(keys), eqx.is_array),
        eqx.filter(eqx.filter_vmap(lambda key: eqx.nn.Conv2d(2, 5, 3, key=key))(keys), eqx.is_array),
        nnx.state(mapped(keys), nnx.Param),
        {"kernel": jnp.ones((4, 3, 6, 7)), "bias": jnp.ones((4, 3, 7))},
    )
    for params, expected in zip(stacks, (1, 1, 1, 2), strict=True):
        assert set(jax.tree.leaves(trees.stacked_axes(params))) == {expected}
    assert trees.has_image_kernels(stacks[1])
    assert not trees.has_image_kernels(stacks[3])


def test_layers_that_are_not_stacked_are_told_from_those_that_are():
    key = jax.random.key(0)
    image, row = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 5, 4))
    layers = [
        *(nn.Conv(4, size).init(key, row if len(size) == 1 else image) for size in ((4,), (4, 4), (1, 1))),
        nn.MultiHeadDotProductAttention(4, qkv_features=16).init(key, row),
        nn.DenseGeneral((3, 4)).init(key, row),
        {
            "norm": nn.LayerNorm(feature_axes=(-2, -1), reduction_axes=(-2, -1)).init(key, row),
            "table": jnp.ones((5, 4)),
        },
        eqx.filter([eqx.nn.Conv1d(4, 4, 4, key=key), eqx.nn.Conv3d(4, 4, 4, key=key)], eqx.is_array),
        eqx.filter([eqx.nn.LayerNorm((4, 4)), eqx.nn.Linear(4, 4, key=key)], eqx.is_array),
    ]
    for name in models.MODELS:
        layers.append(jax.eval_shape(models.build(name, num_classes=10, image_shape=(32, 32, 3)).init, key)[0])
    for part in ("unet", "vae", "text"):
        layers.append(networks.outline(part, networks.named_config("tiny")))
    for params in layers:
        assert not any(jax.tree.leaves(trees.stacked_axes(params))), trees.leaf_names(params)


def test_what_nothing_tells_of_is_said():
    params = {"blocks": {"query": {"kernel": jnp.ones((3, 8, 2, 4))}, "b": jnp.ones((3, 4))}, "head": jnp.ones((8, 2))}
    untold = {"blocks": {"query": {"kernel": 0}, "b": 0}, "head": 0}
    told = {"blocks": {"query": {"kernel": 1}, "b": 1}, "head": 0}
    assert trees.stacked_axes(params) == untold
    assert trees.has_image_kernels(params)
    assert trees.stacked_axes(params, "blocks") == told
    assert trees.stacked_axes(params, lambda name, leaf: "blocks" in name) == told
    assert not trees.has_image_kernels(params, "blocks")
    dense = {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}
    assert trees.stacked_axes(dense, {".*": 0}) == {"kernel": 0, "bias": 0}
    assert trees.stacked_axes(dense, {".*": 0, "kernel": 2}) == {"kernel": 2, "bias": 0}
    for stacked, message in (
        ({"head": 3}, r"stacked says that head has 3 axes of layers, and its shape is \(8, 2\); name arrays with more"),
        ({"head": -1}, "the number of stacked axes must be at least 0, got -1"),
        ({"head": 0.5}, "the number of stacked axes must be a whole number, got 0.5"),
        ("layers", "the layer pattern 'layers' matches none"),
    ):
        with pytest.raises(InputError, match=message):
            trees.stacked_axes(params, stacked)


def test_scales_are_vectors_whatever_their_shape():
    assert trees.is_vector("norm/scale", (3, 8))
    assert not trees.is_bias("norm/scale", (3, 8))


def test_size_counts_all_or_only_selected_leaves():
    assert trees.count_weights(network()) == 7 + 1 + 4 + 4 + 4 + 72 + 10
    assert trees.count_weights(network(), trees.select(network(), "layer30|head")) == 7 + 1 + 4 + 10


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def flat_rows(stack):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stack)], axis=1
    )


def stacked(dtype, count=3):
    trees = [network(dtype, seed) for seed in range(1, count + 1)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dot_products_equal_numpy_in_float64(dtype):
    tree, other, stack = network(dtype), network(dtype, 1), stacked(dtype)
    values = jax.jit(
        lambda: (trees.vdot(tree, other), trees.norm(tree), trees.stack_vdot(stack, tree), trees.gram(stack))
    )()
    rows = flat_rows(stack)
    expectations = flat(tree) @ flat(other), np.linalg.norm(flat(tree)), rows @ flat(tree), rows @ rows.T
    for value, expected in zip(values, expectations, strict=True):
        assert value.dtype == jnp.float32
        chex.assert_shape(value, expected.shape)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-5)


def test_bfloat16_is_summed_in_float32():
    # In bfloat16 a running sum of ones stops at 256.
    ones = {"a": jnp.ones((4096,), jnp.bfloat16), "b": jnp.ones((3,), jnp.bfloat16)}
    stack = {"a": jnp.ones((2, 4096), jnp.bfloat16), "b": jnp.ones((2, 3), jnp.bfloat16)}
    assert trees.vdot(ones, ones) == 4099
    assert trees.stack_vdot(stack, ones).tolist() == [4099, 4099]
    assert trees.gram(stack).tolist() == [[4099, 4099], [4099, 4099]]


def test_trees_of_different_types_meet_in_the_wider_one():
    a, b = network(jnp.bfloat16), network(jnp.float32, 1)
    np.testing.assert_allclose(trees.vdot(a, b), flat(a) @ flat(b), rtol=1e-5)
    stack = jax.tree.map(lambda leaf: leaf[None], a)
    np.testing.assert_allclose(trees.stack_vdot(stack, b), [flat(a) @ flat(b)], rtol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        a, b, stack = network(jnp.float64), network(jnp.float64, 1), stacked(jnp.float64)
        dot, gram = jax.jit(lambda: (trees.vdot(a, b), trees.gram(stack)))()
        assert dot.dtype == gram.dtype == jnp.float64
        np.testing.assert_allclose(dot, flat(a) @ flat(b), rtol=1e-13)


def test_nothing_is_concatenated_and_products_keep_full_precision():
    tree, stack = network(), stacked(jnp.float32)
    for function, arguments in ((trees.vdot, (tree, tree)), (trees.stack_vdot, (stack, tree)), (trees.gram, (stack,))):
        with jax.default_matmul_precision("default"):
            jaxpr = str(jax.make_jaxpr(function)(*arguments))
        assert "concatenate" not in jaxpr
        assert jaxpr.count("dot_general") == jaxpr.count("Precision.HIGHEST, Precision.HIGHEST") == 7


def test_where_takes_each_weight_from_one_of_two_trees():
    a, b = network(seed=0), network(seed=1)
    mask = jax.tree.map(lambda leaf: np.asarray(leaf) > 0, a)
    merged = jax.jit(trees.where)(mask, a, b)
    np.testing.assert_array_equal(flat(merged), np.where(flat(mask), flat(a), flat(b)))


def test_where_takes_one_bool_for_a_whole_array_and_refuses_other_shapes():
    a, b = {"w": jnp.ones((3, 3)), "v": jnp.ones(3)}, {"w": jnp.zeros((3, 3)), "v": jnp.zeros(3)}
    merged = trees.where({"w": True, "v": jnp.array(False)}, a, b)
    assert (merged["w"].tolist(), merged["v"].tolist()) == ([[1] * 3] * 3, [0] * 3)
    marks = jax.tree.map(lambda leaf: leaf > 0, a)
    with pytest.raises(InputError, match=r"the mask has shape \(3,\) at w and needs shape \(3, 3\); give one"):
        trees.where(marks | {"w": jnp.ones(3, bool)}, a, b)
    with pytest.raises(InputError, match=r"the other tree has shape \(3,\) at w and needs shape \(3, 3\)"):
        trees.where(marks, a, b | {"w": jnp.zeros(3)})
    with pytest.raises(InputError, match="the mask is another tree than that of the arrays"):
        trees.where({"w": marks["w"]}, a, b)


def test_what_is_not_finite_is_named_by_kind():
    tree = {
        "a": jnp.array([1.0, jnp.nan, -jnp.inf]),
        "b": [np.array([np.inf]), jnp.arange(3)],
        "key": jax.random.key(0),
    }
    assert trees.not_finite(tree) == {("a", "nan"), ("a", "inf"), ("b/0", "inf")}
    assert trees.not_finite(tree["b"][1]) == trees.not_finite(()) == set()


def test_traced_arrays_count_as_finite_and_others_are_still_looked_at():
    bad, found = jnp.array([1.0, jnp.inf]), []

    def look(leaf):
        found.append(trees.not_finite({"a": leaf, "b": bad}))
        return leaf

    jax.jit(look)(bad)
    jax.vmap(look)(bad)
    assert found == [{("b", "inf")}] * 2


def test_what_was_not_finite_before_is_known_by_entry():
    before = {"a": jnp.array([1.0, jnp.nan, -jnp.inf]), "b": [np.array([np.inf, 0], np.float32)], "c": jnp.float32(0)}
    known = trees.entries_not_finite(before, trees.not_finite(before))
    assert {pair: mask.tolist() for pair, mask in known.items()} == {
        ("a", "nan"): [False, True, False],
        ("a", "inf"): [False, False, True],
        ("b/0", "inf"): [True, False],
    }
    assert trees.not_finite(before, known) == set()
    after = before | {"a": jnp.array([jnp.inf, jnp.nan, jnp.nan]), "c": jnp.float32(jnp.inf)}
    assert trees.not_finite(after, known) == {("a", "nan"), ("a", "inf"), ("c", "inf")}
    assert trees.not_finite({"a": jnp.full(2, jnp.nan)}, known) == {("a", "nan")}  # of another shape


def test_a_selection_says_of_every_whole_array_whether_it_is_chosen():
    tree = {"a": jnp.ones(3), "b": [jnp.ones((2, 2)), 1.0]}
    good = {"a": True, "b": [np.bool_(False), jnp.array(True)]}
    trees.check_selection(good, tree)
    assert trees.count_weights(tree, good) == 4
    assert trees.count_weights(tree) == 8
    for bad, message in (
        ({"a": True}, "the selection is another tree than that of the arrays: .*; give one bool for each whole array"),
        (good | {"a": jnp.ones(3, bool)}, r"the selection has an array of bool and shape \(3,\) at a; give one bool"),
        (good | {"a": 1}, "the selection has a int at a; give"),
    ):
        with pytest.raises(InputError, match=message):
            trees.check_selection(bad, tree)
        with pytest.raises(InputError, match=message):
            trees.count_weights(tree, bad)
    with pytest.raises(InputError, match="the selection has a traced array of bool"):
        jax.jit(lambda chosen: trees.count_weights(tree["a"], chosen))(True)


def test_a_copy_survives_donation_of_the_original():
    tree = {"w": jnp.arange(4.0), "key": jax.random.key(0)}
    copied = trees.copy(tree)
    jax.tree.map(lambda leaf: leaf.delete(), tree)
    assert copied["w"].tolist() == [0, 1, 2, 3]
    assert jax.random.key_data(copied["key"]).tolist() == [0, 0]


def test_bytes_are_those_of_arrays_of_shapes_and_of_keys():
    tree = {"a": jnp.zeros((3, 5), jnp.bfloat16), "b": (np.zeros(7, np.uint8), jnp.float32(0))}
    assert trees.nbytes(tree) == 3 * 5 * 2 + 7 + 4
    assert trees.nbytes(jax.eval_shape(lambda: tree)) == trees.nbytes(tree)
    assert trees.nbytes(jax.random.key(0)) == 8


def test_a_tree_with_something_else_than_arrays_is_refused():
    trees.check_arrays({"a": jnp.ones(2), "b": [np.ones(3, bool), 1], "c": jax.random.key(0)}, "the model state")
    for leaf, kind in (
        (lambda x: x, "a function"),
        (np.array(["a"]), "an array of <U1"),
        (np.array([None]), "an array of object"),
        (jax.ShapeDtypeStruct((), jnp.float32), "a ShapeDtypeStruct"),
        (types.SimpleNamespace(dtype="torch.float32"), "a SimpleNamespace"),
        (types.SimpleNamespace(dtype=np.dtype(np.float32)), "a SimpleNamespace"),  # as a data set of h5py has it
    ):
        message = (
            f"the model state have {kind} at layers/1, where only arrays of numbers, of NumPy or JAX, can be; give"
        )
        with pytest.raises(InputError, match=message):
            trees.check_arrays({"layers": [jnp.ones(2), leaf]}, "the model state")


def test_parameters_that_no_method_can_train_are_refused():
    trees.check_trained({"a": jnp.ones(2, jnp.bfloat16), "b": [np.ones(3), 1.0, None]}, "the parameters")
    for leaf, found in (
        (jnp.arange(3), "an array of int32"),
        (np.ones(2, bool), "an array of bool"),
        (jnp.ones(2, jnp.complex64), "an array of complex64"),
        (jax.random.key(0), "an array of key<fry>"),
        (3, "the number 3"),
        (1j, "the number 1j"),
    ):
        with pytest.raises(InputError, match=f"the parameters have {found} at w, .* put it into the model state, or"):
            trees.check_trained({"w": leaf}, "the parameters")
