"""Exact masks against a stable sort in NumPy; frozen weights that stay bit-equal under decay and momentum."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from scissorhands_jax import masks, optimizers, trees
from scissorhands_jax.errors import InputError


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def from_bits(*patterns):
    return np.array(patterns, np.uint32).view(np.float32).tolist()


# Zeros of both signs, denormals, neighbours, the largest finite number, infinity and NaNs of several payloads.
NANS = from_bits(0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000)
POOL = [0.0, -0.0, *from_bits(1, 2, 0x007FFFFF), 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 2.5, 3e38]
FLOATS = st.sampled_from([*POOL, float("inf"), *NANS]) | st.floats(0, 4, width=32)
SHAPES = ((2, 3), (5,), (), (0,), (2, 2, 2))


@st.composite
def score_trees(draw):
    leaves = [jnp.asarray(draw(hnp.arrays(np.float32, shape, elements=FLOATS))) for shape in SHAPES]
    return {"a": [leaves[0], Pair(leaves[1], leaves[2])], "b": {"c": leaves[3], "d": leaves[4]}}


SIZE = 6 + 5 + 1 + 0 + 8


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def ordered(values):
    """Values that compare as scores should: float64 knows float32's denormals, infinity and NaN are just large."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = np.asarray(values).astype(np.float64)
    return np.where(np.isnan(values), 2e300, np.minimum(values, 1e300))


def expected_mask(values, k):
    """The k largest by a stable sort: of equal ones those that come first."""
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-ordered(values), kind="stable")[:k]] = True
    return mask


def settings(examples):
    return hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)


class TestTopK:
    @settings(80)
    @hypothesis.given(score_trees(), st.integers(1, SIZE))
    def test_equals_a_stable_sort_with_ties_denormals_infinities_and_nans(self, scores, k):
        mask = masks.top_k(scores, k)
        chex.assert_trees_all_equal_structs(mask, scores)
        assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, scores)
        np.testing.assert_array_equal(flat(mask), expected_mask(flat(scores), k))

    @settings(40)
    @hypothesis.given(score_trees(), st.integers(1, SIZE))
    def test_kth_largest_is_the_exact_value(self, scores, k):
        value = masks.kth_largest(scores, k)
        assert value.dtype == jnp.float32
        np.testing.assert_equal(ordered(value), -np.sort(-ordered(flat(scores)))[k - 1])

    @settings(30)
    @hypothesis.given(score_trees(), st.integers(1, 13))
    def test_only_ranked_leaves_are_compared_and_marked(self, scores, k):
        rank = trees.select(scores, "a/1/first|b/d")
        mask = masks.top_k(scores, k, rank=rank)
        expected = expected_mask(flat([scores["a"][1].first, scores["b"]["d"]]), k)
        np.testing.assert_array_equal(flat([mask["a"][1].first, mask["b"]["d"]]), expected)
        assert not flat(mask["a"][0]).any()
        assert not mask["a"][1].second.any()

    def test_equal_scores_are_taken_in_tree_order(self):
        scores = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}
        for k in (0, 1, 5, 6, 7, 9, 10):
            np.testing.assert_array_equal(flat(masks.top_k(scores, k)), np.arange(10) < k)

    def test_k_may_be_traced_and_compiles_once(self):
        scores = jnp.array([3.0, 1.0, 3.0, 2.0])
        mark = jax.jit(chex.assert_max_traces(masks.top_k, n=1))
        for k in range(1, 5):
            np.testing.assert_array_equal(mark(scores, k), expected_mask(scores, k))

    @pytest.mark.parametrize("k", [-1, 13])
    def test_a_count_that_cannot_be_is_refused(self, k):
        scores = {"a": jnp.arange(8.0), "b": jnp.arange(4.0), "c": jnp.ones(9)}
        for run in (masks.top_k, masks.kth_largest):
            with pytest.raises(InputError, match=f"k must be at (least [01]|most 12, the number of .*), got {k}"):
                run(scores, k, rank=trees.select(scores, "a|b"))
            with pytest.raises(InputError, match=r"k must be a whole number, got 2\.7"):
                run(scores, 2.7)
        with pytest.raises(InputError, match="k must be at least 1, got 0"):
            masks.kth_largest(scores, 0)

    def test_a_traced_count_that_cannot_be_does_what_is_documented(self):
        scores = jnp.arange(1.0, 5.0)
        mark, rank = jax.jit(masks.top_k), jax.jit(masks.kth_largest)
        assert [mark(scores, k).tolist() for k in (-1, 0, 5)] == [[False] * 4, [False] * 4, [True] * 4]
        assert [np.isnan(rank(scores, k)).item() for k in (-1, 0)] == [True, True]
        assert float(rank(scores, 5)) == 0

    def test_vmap_marks_each_row(self):
        rows = jnp.asarray(np.random.default_rng(0).integers(0, 4, (5, 12)), jnp.float32)
        counts = jnp.array([1, 3, 5, 7, 12])
        mask = jax.vmap(masks.top_k)(rows, counts)
        for row, k, marked in zip(rows, counts, mask, strict=True):
            np.testing.assert_array_equal(marked, expected_mask(row, int(k)))

    def test_large_trees_are_exact(self):
        size = (1 << 18) + 13
        rng = np.random.default_rng(0)
        mostly_zero = np.zeros(size)
        mostly_zero[rng.integers(0, size, 40)] = [*range(37), np.inf, np.nan, np.nan]
        for values in (rng.exponential(size=size), rng.integers(0, 50, size), np.ones(size), mostly_zero):
            scores = {"large": jnp.asarray(values, jnp.float32), "small": jnp.full((3,), 25.0)}
            for k in (1, 20, size // 3, size + 3):
                mask = masks.top_k(scores, k)
                np.testing.assert_array_equal(flat(mask), expected_mask(flat(scores), k))
        assert int(masks.count_marked(mask)) == size + 3

    def test_a_pass_settles_three_bits(self, monkeypatch):
        passes = []
        count = masks._count_reaching

        def counting(integers, candidates):
            jax.debug.callback(lambda: passes.append(1))
            return count(integers, candidates)

        monkeypatch.setattr(masks, "_count_reaching", counting)
        values = jnp.asarray(np.random.default_rng(0).exponential(size=1001), jnp.float32)  # a shape of its own
        value = masks.kth_largest(values, 33)
        jax.effects_barrier()
        assert value == np.sort(values)[-33]
        assert len(passes) in (10, 11)  # 31 bits

    def test_narrow_types_rank_like_their_values(self):
        values = np.random.default_rng(0).random(20)
        scores = {"a": jnp.asarray(values, jnp.bfloat16), "b": jnp.asarray(values, jnp.float16), "c": jnp.float32(0.5)}
        wide = np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in scores.values()])
        np.testing.assert_array_equal(flat(masks.top_k(scores, 9)), expected_mask(wide, 9))

    def test_float64_scores_are_told_apart_beyond_float32(self):
        with jax.enable_x64(True):
            scores = jnp.asarray([1 + 1e-12, 1 + 3e-12, 1 + 2e-12, np.nan, 5e-324])
            assert scores.dtype == jnp.float64
            assert masks.top_k(scores, 3).tolist() == [False, True, True, True, False]
            assert float(masks.kth_largest(scores, 3)) == 1 + 2e-12
            assert float(masks.kth_largest(scores, 5)) == 5e-324

    def test_the_tree_is_never_sorted_concatenated_or_gathered(self):
        scores = {"a": jax.ShapeDtypeStruct((2, 1 << 18), jnp.float32), "b": jax.ShapeDtypeStruct((7,), jnp.float32)}
        jaxpr = str(jax.make_jaxpr(lambda s: masks.top_k(s, 5))(scores))
        assert "while[" in jaxpr
        for primitive in ("sort", "concatenate", "gather", "top_k", "cumsum", "scatter"):
            assert f" {primitive}[" not in jaxpr

    def test_no_ranked_leaf_is_refused(self):
        with pytest.raises(InputError, match="ranks no parameter array"):
            masks.top_k({"a": jnp.ones(3)}, 1, rank={"a": False})


class TestTopFraction:
    @pytest.mark.parametrize(("fraction", "count"), [(1e-9, 1), (0.03, 1), (0.075, 2), (0.5, 10), (0.999, 20)])
    def test_marks_the_rounded_share_and_at_least_one(self, fraction, count):
        scores = {"a": jnp.arange(12.0), "b": jnp.arange(8.0) + 0.5}
        mask = masks.top_fraction(scores, fraction)
        assert int(masks.count_marked(mask)) == count
        np.testing.assert_array_equal(flat(mask), expected_mask(flat(scores), count))

    def test_the_share_is_of_the_ranked_weights(self):
        scores = {"a": jnp.arange(100.0), "b": jnp.arange(10.0)}
        mask = masks.top_fraction(scores, 0.3, rank={"a": False, "b": True})
        assert int(masks.count_marked(mask)) == int(masks.count_marked(mask["b"])) == 3

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_shares_outside_zero_and_one_are_refused(self, fraction):
        with pytest.raises(InputError, match="strictly between 0 and 1"):
            masks.top_fraction(jnp.ones(3), fraction)

    def test_works_inside_jit(self):
        scores = jnp.asarray(np.random.default_rng(0).random((6, 5)), jnp.float32)
        mark = jax.jit(lambda s: masks.top_fraction(s, 0.2))
        np.testing.assert_array_equal(flat(mark(scores)), expected_mask(flat(scores), 6))


class TestNegativeScores:
    def test_are_refused_outside_of_jit(self):
        scores = {"a": jnp.array([1.0, -0.5]), "b": jnp.array([2.0])}
        for rank_scores in (
            lambda: masks.top_fraction(scores, 0.5),
            lambda: masks.top_k(scores, 1),
            lambda: masks.bottom_fraction(scores, 0.5),
            lambda: masks.kth_largest(scores, 1),
            lambda: masks.kept_fraction_mask(scores, 0.5),
        ):
            with pytest.raises(InputError, match="a score is negative, but scores are sizes"):
                rank_scores()
        assert masks.top_k(scores, 1, rank={"a": False, "b": True})["b"].tolist() == [True]

    def test_count_as_zero_under_jit(self):
        scores = jnp.array([0.25, -9.0, -0.0, 0.5, -jnp.inf])
        marked = jax.jit(lambda s: masks.top_k(s, 2))(scores)
        assert marked.tolist() == [True, False, False, True, False]


class TestBottomFraction:
    @hypothesis.given(score_trees(), st.floats(0.001, 0.999))
    @settings(50)
    def test_the_smallest_by_a_stable_sort_of_which_equal_ones_come_last(self, scores, fraction):
        mask = masks.bottom_fraction(scores, fraction)
        largest = expected_mask(flat(scores), SIZE - round(fraction * SIZE))
        np.testing.assert_array_equal(flat(mask), ~largest)

    def test_only_ranked_leaves_are_marked_and_all_of_them_may_be(self):
        scores, rank = {"a": jnp.arange(4.0), "b": jnp.zeros(3)}, {"a": True, "b": False}
        marks = {
            fraction: masks.bottom_fraction(scores, fraction, rank=rank)["a"].tolist() for fraction in (0.1, 0.5, 0.9)
        }
        assert marks == {0.1: [False] * 4, 0.5: [True, True, False, False], 0.9: [True] * 4}
        assert not masks.bottom_fraction(scores, 0.9, rank=rank)["b"].any()

    @pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
    def test_a_fraction_that_cannot_be_used_is_refused(self, fraction):
        with pytest.raises(InputError, match="fraction must lie strictly between 0 and 1"):
            masks.bottom_fraction({"a": jnp.ones(3)}, fraction)


class TestKeptFraction:
    @pytest.mark.parametrize("kept", [0.9, 0.5, 0.31])
    def test_marks_what_is_strictly_above_the_kth_smallest(self, kept):
        values = np.random.default_rng(0).random(77).astype(np.float32)
        values[:20] = values[20:40]
        mask, threshold = masks.kept_fraction_mask({"a": jnp.asarray(values[:50]), "b": jnp.asarray(values[50:])}, kept)
        assert float(threshold) == np.sort(values)[int(kept * 77) - 1]
        np.testing.assert_array_equal(flat(mask), values > float(threshold))

    @pytest.mark.parametrize(
        ("values", "kept", "threshold", "marked"),
        [
            ([0, 0, 0, 0, 1, 4], 0.5, 2.0, 1),  # the cut falls on the smallest score
            ([1, 2, 3, 4, 4, 4], 0.9, 1.5, 5),  # or on the largest: then most is marked
            ([2, 2, 2, 2], 0.5, 0.0, 4),  # or on both
        ],
    )
    def test_falls_back_to_half_the_range_at_the_ends(self, values, kept, threshold, marked):
        mask, found = masks.kept_fraction_mask(jnp.asarray(values, jnp.float32), kept)
        assert float(found) == threshold
        assert int(masks.count_marked(mask)) == marked

    @pytest.mark.parametrize(("middle", "at_an_end"), [(0.9, True), (1.5, False), (3.5, False), (4.5, True)])
    def test_an_end_reaches_as_far_as_in_the_published_code(self, middle, at_an_end):
        """Scores within 1e-12 of the smallest or largest count as these."""
        mask, found = masks.kept_fraction_mask(jnp.asarray([0, middle * 1e-12, 5e-12], jnp.float32), 0.67)
        assert float(found) == pytest.approx((2.5 if at_an_end else middle) * 1e-12, rel=1e-5)
        assert int(masks.count_marked(mask)) == (2 if middle == 4.5 else 1)

    def test_only_ranked_leaves_decide_and_are_marked(self):
        scores = {"a": jnp.asarray([9.0, 8.0]), "b": jnp.asarray([1.0, 2.0, 3.0, 4.0]), "c": jnp.zeros((0,))}
        mask, threshold = masks.kept_fraction_mask(scores, 0.5, rank={"a": False, "b": True, "c": True})
        assert float(threshold) == 2
        assert jax.tree.map(lambda leaf: leaf.tolist(), mask) == {
            "a": [False] * 2,
            "b": [False] * 2 + [True] * 2,
            "c": [],
        }

    def test_keeping_less_than_one_weight_is_refused(self):
        with pytest.raises(InputError, match=r"keeping 0.1 of 6 weights leaves k = 0"):
            masks.kept_fraction_mask(jnp.arange(6.0), 0.1)

    @pytest.mark.parametrize("kept", [0.0, -0.5, 1.01, np.nan, np.inf])
    def test_keeping_what_is_no_share_is_refused(self, kept):
        with pytest.raises(InputError, match=f"kept must lie above 0 and at most at 1, got {kept}"):
            masks.kept_fraction_mask(jnp.arange(6.0), kept)


def test_shards_are_refused_where_the_whole_is_counted_or_ranked():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    for function, advice in ((masks.count_marked, "count them outside"), (masks.kth_largest, "rank them outside")):
        arguments = {} if function is masks.count_marked else {"k": 1}
        by_hand = functools.partial(function, **arguments)
        by_hand = jax.shard_map(by_hand, mesh=mesh, in_specs=jax.P("rows"), out_specs=jax.P())
        message = f"over the whole network, and inside shard_map over 'rows' only a shard is at hand; {advice}"
        with pytest.raises(InputError, match=message):
            by_hand(jnp.ones(4))


@pytest.mark.parametrize("ranking", ["top_fraction", "top_k", "bottom_fraction", "kth_largest", "kept_fraction_mask"])
def test_other_selections_and_complex_scores_are_refused_and_numbers_of_python_taken(ranking):
    rank = functools.partial(getattr(masks, ranking))
    share = 1 if "k" in ranking.split("_") or ranking == "kth_largest" else 0.5
    with pytest.raises(InputError, match="the selection is another tree than that of the arrays"):
        rank({"w": jnp.ones(3), "v": jnp.ones(3)}, share, rank={"w": True})
    with pytest.raises(InputError, match=r"the selection has an array of bool and shape \(3,\) at w"):
        rank({"w": jnp.ones(3)}, share, rank={"w": jnp.ones(3, bool)})
    with pytest.raises(InputError, match="the scores are complex64 at w, and complex numbers have no order"):
        rank({"w": jnp.ones(3, jnp.complex64)}, share)
    with pytest.raises(InputError, match="the scores have a str at w"):
        rank({"w": "high"}, share)
    arrays = rank({"w": jnp.arange(3.0), "v": jnp.float32(1.5)}, share)
    chex.assert_trees_all_equal(rank({"w": jnp.arange(3.0), "v": 1.5}, share), arrays)


def test_a_single_bool_counts_for_its_whole_array_where_that_is_known():
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones(4), "s": 1.0}
    mask = {"w": True, "v": jnp.array([True, False, True, False]), "s": jnp.array(True)}
    assert int(masks.count_marked(mask, params)) == 9
    assert int(masks.count_marked(mask | {"w": jnp.array(False)}, params)) == 3
    assert int(masks.count_marked({}, {})) == 0
    with pytest.raises(InputError, match=r"the mask has the bool True at w, .*; give params= as well"):
        masks.count_marked(mask)
    with pytest.raises(InputError, match="the mask is another tree"):
        masks.count_marked({"w": True}, params)


def test_a_mask_of_another_tree_is_not_restricted():
    with pytest.raises(InputError, match="the selection is another tree than that of the arrays"):
        masks.restrict({"w": jnp.ones(3, bool)}, {"v": True})


def test_restrict_clears_what_is_not_selected():
    mask = {"a": jnp.array([True, False]), "b": jnp.array([True, True])}
    restricted = masks.restrict(mask, {"a": True, "b": False})
    assert jax.tree.map(lambda leaf: leaf.tolist(), restricted) == {"a": [True, False], "b": [False, False]}


class TestMaskUpdates:
    def moved(self, *transforms):
        """Parameters before and after five steps of SGD with momentum and decay, and the mask."""
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.asarray([-0.0, 0.0, 3.0, -2.0])}
        mask = {"w": jnp.asarray(rng.random((4, 3)) < 0.5), "b": jnp.asarray([False, False, False, True])}
        optimizer = optax.chain(*transforms)

        @jax.jit
        def step(params, state, gradient):
            updates, state = optimizer.update(gradient, state, params, mask=mask)
            return optax.apply_updates(params, updates), state

        after, state = params, optimizer.init(params)
        for _ in range(5):
            after, state = step(
                after, state, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
            )
        return flat(params), flat(after), flat(mask)

    def test_frozen_weights_stay_bit_equal_under_decay_and_momentum(self):
        before, after, mask = self.moved(optimizers.sgd(0.1, momentum=0.9, weight_decay=0.1), masks.mask_updates())
        np.testing.assert_array_equal(before.view(np.uint32)[~mask], after.view(np.uint32)[~mask])
        assert np.all(before[mask] != after[mask])

    def test_marked_weights_move_as_without_a_mask(self):
        _, after, mask = self.moved(optimizers.sgd(0.1, weight_decay=0.1), masks.mask_updates())
        _, free, _ = self.moved(optimizers.sgd(0.1, weight_decay=0.1), optax.with_extra_args_support(optax.identity()))
        np.testing.assert_array_equal(after[mask], free[mask])

    def test_masking_before_decay_would_not_freeze(self):
        before, after, mask = self.moved(masks.mask_updates(), optimizers.sgd(0.1, weight_decay=0.1))
        assert np.any(before[~mask] != after[~mask])

    def test_leaves_of_other_transformations_are_left_to_them(self):
        params, mask = (
            {"a": jnp.ones(2), "b": jnp.ones(2)},
            {"a": jnp.array([True, False]), "b": jnp.array([True, True])},
        )
        transform = optax.masked(masks.mask_updates(), {"a": True, "b": False})
        updates, _ = transform.update(params, transform.init(params), params, mask=mask)
        assert jax.tree.map(lambda leaf: leaf.tolist(), updates) == {"a": [1.0, 0.0], "b": [1.0, 1.0]}

    def test_a_mask_has_the_shapes_of_the_updates_or_one_bool_for_an_array(self):
        updates = {"w": jnp.ones((3, 3)), "v": jnp.ones(3)}
        marks = jax.tree.map(lambda leaf: leaf > 0, updates)
        transform = masks.mask_updates()
        whole, _ = transform.update(updates, optax.EmptyState(), mask={"w": True, "v": jnp.array(False)})
        assert jax.tree.map(lambda leaf: leaf.tolist(), whole) == {"w": [[1] * 3] * 3, "v": [0] * 3}
        for wrong in ({"w": jnp.ones(3, bool)}, {"v": jnp.ones((2, 3), bool)}):
            with pytest.raises(InputError, match=r"the mask has shape .* and needs shape"):
                transform.update(updates, optax.EmptyState(), mask=marks | wrong)

    def test_a_missing_mask_is_a_type_error(self):
        transform = optax.chain(optax.sgd(0.1), masks.mask_updates())
        params = jnp.ones(3)
        with pytest.raises(TypeError, match="mask"):
            transform.update(params, transform.init(params), params)


@pytest.mark.parametrize("total", [1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**40])
def test_entries_are_counted_in_32_bits_as_long_as_these_suffice(total):
    """Arrays of this size fit no test machine, so their sizes stand for them."""
    leaves = [SimpleNamespace(size=total // 2), SimpleNamespace(size=total - total // 2)]
    with jax.enable_x64(True):
        assert masks._counter(leaves) == (jnp.int32 if total < 2**31 else jnp.int64)
    if total < 2**31:
        assert masks._counter(leaves) == jnp.int32
    else:
        with pytest.raises(InputError, match=f"{total} weights are too many to count in 32 bits; set jax_enable_x64"):
            masks._counter(leaves)


def test_more_scores_than_32_bits_count_are_ranked_where_jax_has_64():
    many = {"a": jax.ShapeDtypeStruct((2**31 + 4,), jnp.float32)}
    with pytest.raises(InputError, match="set jax_enable_x64"):
        jax.eval_shape(lambda scores: masks.top_k(scores, 3), many)
    with jax.enable_x64(True):
        for marked in (masks.top_k, masks.kth_largest):
            found = jax.eval_shape(lambda scores, marked=marked: marked(scores, 3), many)
            assert jax.tree.leaves(found)
        scores = {"a": jnp.array([2.0, 1.0, 2.0, 2.0], jnp.float32)}
        np.testing.assert_array_equal(masks.top_k(scores, 2)["a"], [True, False, True, False])


def test_the_rank_may_be_traced_where_the_scores_are_not():
    scores = {"w": jnp.asarray([1.0, 3.0, 2.0])}
    assert jax.jit(lambda k: masks.top_k(scores, k))(2)["w"].tolist() == [False, True, True]
    assert float(jax.jit(lambda k: masks.kth_largest(scores, k))(2)) == 2.0
    assert jax.jit(lambda: masks.top_fraction(scores, 0.34))()["w"].tolist() == [False, True, False]
    negative = {"w": jnp.asarray([1.0, -3.0])}
    with pytest.raises(InputError, match="a score is negative"):
        jax.jit(lambda k: masks.top_k(negative, k))(1)
