"""Re-initialisation: what stays is bit-equal, what is drawn has the promised distribution."""

import functools
import math

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from scissorhands_jax import reinit, trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.trimming import trimming_mask
from scissorhands_jax.models import from_equinox, from_nnx

KEY = jax.random.key(0)
CONV = (3, 3, 20, 50)  # height, width, in, out: fan_in 180
DENSE = (40, 500)  # in, out: fan_in 40


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def network():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 4)).astype(np.float32)
    w[0, :3] = -0.0, np.nan, np.inf
    return {"fc": {"bias": jnp.arange(4.0), "kernel": jnp.asarray(w)}, "scale": jnp.ones((5,), jnp.bfloat16)}


def random_mask(params, seed, share=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < share), params)


def test_untouched_weights_stay_bit_equal_and_marked_ones_change():
    params = network()
    mask = random_mask(params, 1)
    fresh = reinit.reinitialize(KEY, params, mask, initializer=reinit.uniform())
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, params)
    for old, new, marked in zip(*map(jax.tree.leaves, (params, fresh, mask)), strict=True):
        old, new, marked = np.asarray(old), np.asarray(new), np.asarray(marked)
        assert old[~marked].tobytes() == new[~marked].tobytes()
        assert np.all(old[marked] != new[marked])
        assert np.all(np.isfinite(new[marked]))


def test_a_draw_does_not_depend_on_the_mask_or_on_other_values():
    params = network()
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    full = reinit.reinitialize(KEY, params, everything, initializer=reinit.uniform())
    mask = random_mask(params, 2)
    other = jax.tree.map(jnp.ones_like, params)
    some = reinit.reinitialize(KEY, other, mask, initializer=reinit.uniform())
    chex.assert_trees_all_equal(some, trees.where(mask, full, other))


def test_draws_differ_between_keys_and_between_leaves_of_one_shape():
    params = {"a": jnp.zeros(DENSE), "b": jnp.zeros(DENSE)}
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    first = reinit.reinitialize(KEY, params, mask, initializer=reinit.uniform())
    second = reinit.reinitialize(jax.random.key(1), params, mask, initializer=reinit.uniform())
    assert np.all(first["a"] != first["b"])
    assert np.all(first["a"] != second["a"])
    chex.assert_trees_all_equal(first, reinit.reinitialize(KEY, params, mask, initializer=reinit.uniform()))


def test_leaves_outside_trim_are_returned_as_they_are():
    params = network()
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    fresh = reinit.reinitialize(
        KEY, params, everything, initializer=reinit.ones(), trim=trees.select(params, "fc/kernel")
    )
    assert fresh["fc"]["bias"] is params["fc"]["bias"]
    assert fresh["scale"] is params["scale"]
    assert np.all(fresh["fc"]["kernel"] == 1)


@pytest.mark.parametrize(("shape", "fan_in"), [(CONV, 180), (DENSE, 40), ((3000,), 1)])
def test_uniform_fills_plus_minus_one_over_the_root_of_fan_in(shape, fan_in):
    draw = np.asarray(reinit.uniform()(KEY, shape))
    bound = 1 / math.sqrt(fan_in)
    assert np.abs(draw).max() <= bound
    assert draw.min() < -0.99 * bound
    assert draw.max() > 0.99 * bound
    # Within four standard errors of the mean and of the variance of a uniform distribution.
    assert abs(draw.mean()) < 4 * bound / math.sqrt(3 * draw.size)
    assert abs(draw.var() * 3 / bound**2 - 1) < 4 * math.sqrt(0.8 / draw.size)


@pytest.mark.parametrize(("shape", "fan_in"), [(CONV, 180), (DENSE, 40)])
def test_normal_has_the_variance_of_uniform(shape, fan_in):
    draw = np.asarray(reinit.normal()(KEY, shape))
    assert abs(draw.mean()) < 4 / math.sqrt(3 * fan_in * draw.size)
    assert abs(draw.var() * 3 * fan_in - 1) < 4 * math.sqrt(2 / draw.size)
    assert np.abs(draw).max() > 3 / math.sqrt(3 * fan_in)


def test_given_bounds_and_deviations_override_fan_in():
    assert np.abs(reinit.uniform(0.5)(KEY, DENSE)).max() == pytest.approx(0.5, rel=1e-3)
    assert np.std(reinit.normal(0.5)(KEY, DENSE)) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("make", [reinit.uniform, reinit.normal])
@pytest.mark.parametrize("size", [-0.5, math.nan, math.inf])
def test_a_bound_is_a_size(make, size):
    with pytest.raises(InputError, match=r"(bound|stddev) must (not be negative|be finite), got"):
        make(size)


def test_fan_in_of_pytorch_layouts_leaves_the_first_axis_out():
    assert np.abs(reinit.uniform(out_axis=0)(KEY, DENSE)).max() == pytest.approx(1 / math.sqrt(500), rel=1e-3)
    assert np.abs(reinit.uniform(out_axis=0)(KEY, CONV)).max() == pytest.approx(1 / math.sqrt(3000), rel=1e-3)
    for make in (reinit.kaiming_uniform, reinit.normal):
        expected = math.sqrt(40 / 500) * make()(KEY, DENSE)
        np.testing.assert_allclose(make(out_axis=0)(KEY, DENSE), expected, rtol=1e-5, atol=1e-7)


def linen_layers():
    """Layers of Flax linen, whose kernels have the variance 1 / fan_in."""
    image, row = jnp.zeros((1, 8, 8, 16)), jnp.zeros((1, 5, 48))
    return {
        "Dense": nn.Dense(64).init(KEY, row),
        "Conv": nn.Conv(64, (3, 3)).init(KEY, image),
        "grouped Conv": nn.Conv(64, (3, 3), feature_group_count=4).init(KEY, image),
        "ConvTranspose": nn.ConvTranspose(64, (3, 3)).init(KEY, image),
        "MultiHeadDotProductAttention": nn.MultiHeadDotProductAttention(4, qkv_features=64).init(KEY, row),
        "Embed": nn.Embed(400, 64).init(KEY, jnp.zeros((1,), jnp.int32)),
    }


def nnx_layers():
    rngs = nnx.Rngs(0)
    layers = {
        "Linear": nnx.Linear(48, 64, rngs=rngs),
        "Conv": nnx.Conv(16, 64, (3, 3), rngs=rngs),
        "MultiHeadAttention": nnx.MultiHeadAttention(4, 48, 64, decode=False, rngs=rngs),
        "Embed": nnx.Embed(400, 64, rngs=rngs),
    }
    return {name: from_nnx(layer).params for name, layer in layers.items()}


def equinox_layers():
    """Layers of Equinox, whose weights fill (-b, b) with b = 1 / sqrt(fan_in); those of a table are standard normal."""
    layers = {
        "Linear": eqx.nn.Linear(2000, 10, key=KEY),
        "Conv2d": eqx.nn.Conv2d(16, 64, 3, key=KEY),
        "grouped Conv2d": eqx.nn.Conv2d(16, 64, 3, groups=4, key=KEY),
        "MultiheadAttention": eqx.nn.MultiheadAttention(4, 48, key=KEY),
        "MLP": eqx.nn.MLP(200, 40, 100, 1, key=KEY),
    }
    return {name: from_equinox(layer).params for name, layer in layers.items()}


def stacked(layers):
    """The same layers, three times in every array."""
    return {name: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params) for name, params in layers().items()}


@pytest.mark.parametrize("layers", [linen_layers, nnx_layers, equinox_layers])
def test_stacked_layers_are_drawn_one_by_one(layers):
    for name, params in stacked(layers).items():
        everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        told = "Embed" not in name and (name, layers) != ("MultiheadAttention", equinox_layers)  # no biases there
        fresh = reinit.reinitialize(
            KEY, params, everything, initializer=reinit.published(), stacked=None if told else ".*"
        )
        alone = jax.tree.map(lambda leaf: leaf[0], params)
        marks = jax.tree.map(lambda leaf: True, alone)
        expected = reinit.reinitialize(KEY, alone, marks, initializer=reinit.published())
        for own, drawn in zip(jax.tree.leaves(expected), jax.tree.leaves(fresh), strict=True):
            assert own.shape == drawn.shape[1:]
            for layer in np.asarray(drawn):
                assert np.std(layer) == pytest.approx(np.asarray(own).std(), rel=0.1, abs=1e-9)
            assert not own.any() or not np.array_equal(drawn[0], drawn[1])


def test_initializers_of_others_see_one_layer_of_a_stack_and_its_fan_in_is_said():
    assert reinit.fan_in("Block/Dense_0/kernel", (16, 4, 4), stacked=1) == 4
    assert reinit.fan_in("att/query/kernel", (3, 8, 2, 4), stacked=1) == 8
    assert reinit.fan_in("weight", (16, 4, 5), stacked=1) == 5
    assert reinit.fan_in("norm/weight", (16, 4), stacked=1) == 1
    params = {"kernel": jnp.ones((2, 3, 40, 30)), "bias": jnp.ones((2, 3, 30))}
    orthogonal = jax.nn.initializers.orthogonal()
    trim = {"kernel": True, "bias": False}
    drawn = reinit.reinitialize(KEY, params, trim, initializer=orthogonal, trim=trim)["kernel"]
    products = jnp.einsum("abij,abik->abjk", drawn, drawn)
    np.testing.assert_allclose(products, jnp.broadcast_to(jnp.eye(30), products.shape), atol=1e-5)


@pytest.mark.parametrize(("layers", "ratio"), [(linen_layers, 1 / 3), (nnx_layers, 1 / 3), (equinox_layers, 1)])
def test_every_layer_is_drawn_in_the_size_of_its_frameworks_own(layers, ratio):
    for layer, params in layers().items():
        everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        fresh = reinit.reinitialize(jax.random.key(9), params, everything, initializer=reinit.uniform())
        rows = zip(trees.leaf_names(params), *map(jax.tree.leaves, (params, fresh)), strict=True)
        for name, own, drawn in rows:
            if own.ndim > 1 and "bias" not in name:
                found = float(jnp.var(drawn) / jnp.var(own))
                # The variances of both samples, the truncated normals of Flax included, vary by sqrt(2 / size) or less.
                assert found == pytest.approx(ratio, rel=6 * math.sqrt(2 / own.size) + 0.02), (layer, name, own.shape)


def test_the_fan_in_of_biases_is_one_whatever_their_shape():
    for name, shape in (("conv/bias", (64, 1, 1)), ("query/bias", (4, 16)), ("conv/bias", (64,))):
        assert [reinit.fan_in(name, shape, out_axis=axis) for axis in (None, 0)] == [1, 1]
    assert reinit.fan_in("conv/kernel", (64, 1, 1)) == 64


def test_tables_of_equinox_and_pytorch_are_drawn_by_their_name():
    table = {"embedding_table": {"weight": eqx.nn.Embedding(400, 64, key=KEY).weight}}
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), table)
    fresh = reinit.reinitialize(KEY, table, everything, initializer=reinit.normal())
    assert float(jnp.var(fresh["embedding_table"]["weight"])) == pytest.approx(1 / 3, rel=0.05)


def test_an_axis_that_is_given_holds_for_every_name():
    params = {"weight": jnp.zeros(DENSE), "kernel": jnp.zeros(DENSE)}
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    for axis, fan_in in ((0, 500), (-1, 40)):
        fresh = reinit.reinitialize(KEY, params, everything, initializer=reinit.uniform(out_axis=axis))
        for leaf in jax.tree.leaves(fresh):
            assert np.abs(leaf).max() == pytest.approx(1 / math.sqrt(fan_in), rel=1e-3)


@pytest.mark.parametrize("shape", [CONV, DENSE])
def test_kaiming_uniform_with_the_root_of_five_is_uniform(shape):
    draw = reinit.kaiming_uniform(math.sqrt(5))(KEY, shape)
    # Draws near 0 are differences of larger numbers.
    np.testing.assert_allclose(draw, reinit.uniform()(KEY, shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(reinit.kaiming_uniform()(KEY, shape), math.sqrt(6) * draw, rtol=1e-5, atol=1e-7)


def test_published_zeroes_biases_and_draws_everything_else_uniformly():
    params = {
        "fc": {"bias": jnp.ones(4), "kernel": jnp.zeros(DENSE)},
        "norm": {"scale": jnp.zeros(3000)},
        "bias": [jnp.ones(2)],
    }
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    fresh = reinit.reinitialize(KEY, params, mask, initializer=reinit.published())
    assert fresh["fc"]["bias"].tolist() == [0, 0, 0, 0]
    assert np.abs(fresh["fc"]["kernel"]).max() == pytest.approx(1 / math.sqrt(40), rel=1e-3)
    assert np.min(fresh["norm"]["scale"]) == pytest.approx(-1, rel=1e-2)
    assert np.max(fresh["norm"]["scale"]) == pytest.approx(1, rel=1e-2)
    assert np.all(fresh["bias"][0] != 0)  # a list below "bias" is no leaf of that name


def test_published_zeroes_the_biases_of_every_framework():
    params = {"cell": from_equinox(eqx.nn.GRUCell(3, 5, key=KEY)).params}
    params |= {"torch": {"bias_ih": jnp.ones(4), "bias_hh": jnp.ones(4)}}
    params |= {"query": {"bias": jnp.ones((4, 16)), "bias_kernel": jnp.ones((4, 16))}}
    mask = jax.tree.map(lambda leaf: True, params)
    for initializer in (reinit.published(), reinit.with_zero_biases("normal")):
        fresh = reinit.reinitialize(KEY, params, mask, initializer=initializer)
        rows = zip(trees.leaf_names(fresh), jax.tree.leaves(fresh), strict=True)
        found = [name for name, leaf in rows if not leaf.any()]
        assert found == ["cell/bias", "cell/bias_n", "query/bias", "torch/bias_hh", "torch/bias_ih"]


@pytest.mark.parametrize("initializer", ["published", "uniform"])
def test_boxed_parameters_are_drawn_and_trimmed_like_plain_ones(initializer):
    initializer = reinit.published() if initializer == "published" else initializer
    module = nnx.Dict(
        att=nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), emb=nnx.Embed(5, 8, rngs=nnx.Rngs(0))
    )
    state = nnx.state(module, nnx.Param)
    partitioned = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "m")), name="dense")
    partitioned = partitioned.init(KEY, jnp.ones((1, 6)))["params"]
    for boxed, plain in ((state, nnx.to_pure_dict(state)), (partitioned, nn.unbox(partitioned))):
        drawn = [
            reinit.reinitialize(KEY, tree, jax.tree.map(lambda leaf: True, tree), initializer=initializer)
            for tree in (boxed, plain)
        ]
        assert bits(drawn[0]) == bits(drawn[1])
        ones = [jax.tree.map(jnp.ones_like, tree) for tree in (boxed, plain)]
        masks, leaves = zip(*(trimming_mask(tree, tree, fraction=0.5) for tree in ones), strict=True)
        assert bits(masks[0]) == bits(masks[1])
        assert jax.tree.leaves(leaves[0]) == jax.tree.leaves(leaves[1])


def test_a_mask_has_the_shapes_of_the_weights_or_one_bool_for_an_array():
    params = {"w": jnp.zeros((3, 3)), "v": jnp.zeros(3)}
    marks = {"w": jnp.eye(3, dtype=bool), "v": jnp.zeros(3, bool)}

    def draw(params, mask):
        return reinit.reinitialize(KEY, params, mask, initializer=reinit.ones())

    assert draw(params, {"w": True, "v": jnp.array(False)})["w"].all()
    for run in (draw, jax.jit(draw)):
        with pytest.raises(InputError, match=r"the mask has shape \(3,\) at w and needs shape \(3, 3\); give one bool"):
            run(params, marks | {"w": jnp.array([True, False, False])})
        with pytest.raises(InputError, match=r"the mask has shape \(2, 3\) at v and needs shape \(3,\)"):
            run(params, marks | {"v": jnp.ones((2, 3), bool)})
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), marks)
    np.testing.assert_array_equal(jax.vmap(draw, (None, 0))(params, stacked)["w"], stacked["w"])


@pytest.mark.parametrize("name", list(reinit.INITIALIZERS))
def test_initializers_are_found_by_name_and_keep_the_dtype(name):
    for dtype in (jnp.bfloat16, jnp.float32):
        draw = reinit.by_name(name)(KEY, DENSE, dtype)
        assert (draw.shape, draw.dtype) == (DENSE, dtype)
    assert reinit.by_name(name)(KEY, (3, 0)).shape == (3, 0)


def test_constants_are_constant():
    assert np.all(reinit.zeros()(KEY, (3, 2)) == 0)
    assert np.all(reinit.ones()(KEY, (3, 2)) == 1)


def test_initializers_of_jax_fit():
    params = {"w": jnp.zeros((2, 3))}
    mask = {"w": jnp.asarray([[True, False, True], [False] * 3])}
    fresh = reinit.reinitialize(KEY, params, mask, initializer=jax.nn.initializers.constant(3.0))
    assert fresh["w"].tolist() == [[3, 0, 3], [0, 0, 0]]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no initializer 'xavier'; choose one of uniform, normal"):
        reinit.by_name("xavier")


def test_a_name_stands_for_its_initializer():
    params = {"w": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    mask = jax.tree.map(lambda leaf: leaf > 0, params)

    def draw(initializer):
        return reinit.reinitialize(KEY, params, mask, initializer=initializer)

    assert bits(draw("normal")) == bits(draw(reinit.normal()))
    assert not draw(reinit.with_zero_biases("normal"))["bias"].any()
    with pytest.raises(InputError, match="there is no initializer 'unifrom'; near matches: uniform"):
        draw("unifrom")
    with pytest.raises(InputError, match=r"the initializer is 0\.1; give a function"):
        draw(0.1)


def test_only_what_may_change_must_be_real_and_selections_fit():
    draw = functools.partial(reinit.reinitialize, KEY, initializer="uniform")
    params = {"w": jnp.ones((3, 2)), "n": jnp.arange(3), "s": 1.0, "none": jnp.ones((0, 3))}
    marks = jax.tree.map(lambda leaf: True, params)
    with pytest.raises(InputError, match="the parameters have an array of int32 at n, and only real floating-point"):
        draw(params, marks)
    fresh = draw(params, marks, trim=marks | {"n": False})
    assert fresh["n"] is params["n"]
    assert fresh["s"] == draw(params | {"s": jnp.float32(1)}, marks, trim=marks | {"n": False})["s"] != 1
    assert fresh["none"].shape == (0, 3)
    with pytest.raises(InputError, match="the selection is another tree than that of the arrays"):
        draw(params, marks, trim={"w": True})
    empty = reinit.reinitialize(KEY, jnp.ones((0, 3)), True, initializer=jax.nn.initializers.lecun_normal())
    assert empty.shape == (0, 3)


def test_a_shard_is_refused():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    draw = functools.partial(reinit.reinitialize, KEY, mask=True, initializer="uniform")
    by_hand = jax.shard_map(draw, mesh=mesh, in_specs=jax.P("rows"), out_specs=jax.P("rows"))
    message = "inside shard_map over 'rows' only a shard is at hand; draw them outside of it"
    with pytest.raises(InputError, match=message):
        by_hand(jnp.ones((4, 3)))


def test_works_inside_jit():
    params = network()
    mask = random_mask(params, 3)
    draw = jax.jit(lambda p, m: reinit.reinitialize(KEY, p, m, initializer=reinit.published()))
    assert bits(draw(params, mask)) == bits(reinit.reinitialize(KEY, params, mask, initializer=reinit.published()))
