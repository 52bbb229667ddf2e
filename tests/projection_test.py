"""The promises of `project_gradient`, against the optimality conditions and SciPy's non-negative least squares."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from flax import nnx
from flax.training import train_state
from hypothesis import strategies as st

from scissorhands_jax import projection, trees
from scissorhands_jax.errors import InputError

SIZES = {"a": (3, 5), "b": (9,)}  # 24 numbers


def tree_of(vector, dtype=jnp.float32):
    """The last axis of an array of 24 numbers, as a tree; leading axes stay."""
    vector = np.asarray(vector)
    parts = np.split(vector, [15], axis=-1)
    shapes = [(*vector.shape[:-1], *shape) for shape in SIZES.values()]
    return {
        name: jnp.asarray(part.reshape(shape), dtype) for name, part, shape in zip(SIZES, parts, shapes, strict=True)
    }


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@functools.cache
def compiled(count, margin=0.0, eps=0.0):
    transform = projection.project_gradient(count, margin=margin, eps=eps)
    return jax.jit(lambda g, c: transform.update(g, transform.init(g), constraint_grads=c))


def project(gradient, constraints, margin=0.0, eps=0.0):
    """Result, dual and `violated` for vectors; constraints (K, 24)."""
    step = compiled(len(constraints), margin, eps)
    result, state = step(tree_of(gradient), tree_of(constraints))
    return flat(result), np.asarray(state.dual, np.float64), bool(state.violated)


@st.composite
def problems(draw):
    """Up to five constraints, some of them zero, equal, opposite, or sums of others: exactly, being coarse numbers."""
    count = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = np.round(rng.normal(size=(count, 24)) * 16) / 16
    for k in range(1, count):
        kind = draw(st.sampled_from(["free", "free", "zero", "equal", "opposite", "sum", "minus sum"]))
        if kind == "zero":
            rows[k] = 0
        elif kind in ("equal", "opposite"):
            rows[k] = rows[k - 1] * (1 if kind == "equal" else -1)
        elif kind != "free":
            rows[k] = rows[:k].sum(axis=0) * (1 if kind == "sum" else -1)
    pull = draw(st.sampled_from([-2, 0, 0.3, 2]))  # how much the gradient leans on the constraints
    gradient = rng.normal(size=24) + pull * rows.sum(axis=0)
    return gradient.astype(np.float32), rows.astype(np.float32)


class TestGuarantees:
    @hypothesis.settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @hypothesis.given(problems())
    def test_result_is_the_nearest_feasible_vector(self, problem):
        gradient, rows = problem
        result, dual, violated = project(gradient, rows)
        wide, lengths = rows.astype(np.float64), np.linalg.norm(rows, axis=1)
        size = np.linalg.norm(gradient)
        assert violated == bool(np.any(wide @ gradient > 0))
        # Feasible; multipliers not negative, and positive only where the constraint is met with equality.
        assert np.all(wide @ result <= 2e-5 * size * lengths)
        assert np.all(dual >= 0)
        assert np.all(np.abs((wide @ result) * dual) <= 2e-5 * size**2)
        # The correction is made of the constraints alone, and is the nearest one.
        np.testing.assert_allclose(result, gradient - dual @ wide, atol=1e-5 * size)
        nearest = gradient - wide.T @ scipy.optimize.nnls(wide.T, gradient.astype(np.float64))[0]
        np.testing.assert_allclose(result, nearest, atol=1e-4 * size)

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(problems())
    def test_projecting_twice_changes_nothing_more(self, problem):
        gradient, rows = problem
        once, _, _ = project(gradient, rows)
        twice, _, _ = project(once, rows)
        np.testing.assert_allclose(twice, once, atol=1e-4 * np.linalg.norm(gradient))

    def test_without_a_violation_the_gradient_is_returned_bit_for_bit(self):
        rows = np.stack([np.linspace(-1, 1, 24), np.full(24, 3.0)]).astype(np.float32)
        gradient = np.where(np.arange(24) < 4, -0.0, -rows.sum(axis=0)).astype(np.float32)
        assert np.all(rows @ gradient < 0)
        for count in (1, 2):
            result, state = compiled(count)(tree_of(gradient), tree_of(rows[:count]))
            raw = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(result)])
            assert raw.tobytes() == gradient.tobytes()
            assert state.dual.tolist() == [0.0] * count
            assert not state.violated
            np.testing.assert_allclose(state.dots, rows[:count] @ gradient, rtol=1e-6)

    def test_a_zero_constraint_is_ignored(self):
        rng = np.random.default_rng(0)
        gradient, row = rng.normal(size=24).astype(np.float32), rng.normal(size=24).astype(np.float32)
        row *= np.sign(row @ gradient)
        alone, _, _ = project(gradient, row[None])
        beside, dual, _ = project(gradient, np.stack([np.zeros(24, np.float32), row]))
        np.testing.assert_allclose(beside, alone, rtol=1e-5, atol=1e-6)
        assert dual[0] == 0
        untouched, _, violated = project(gradient, np.zeros((1, 24), np.float32))
        np.testing.assert_array_equal(untouched, gradient)
        assert not violated

    @pytest.mark.parametrize("size", [1e-15, 1e-8, 1.0, 1e8])
    @pytest.mark.parametrize("length", [1e-15, 1e-6, 1.0, 1e10])
    def test_scales_of_gradient_and_constraints_do_not_matter(self, size, length):
        rng = np.random.default_rng(1)
        gradient, rows = rng.normal(size=24), rng.normal(size=(2, 24))
        rows += 0.5 * gradient  # both are violated
        expected, dual, _ = project(gradient, rows)
        assert np.all(dual > 0)
        for count in (1, 2):
            expected, dual, _ = project(gradient, rows[:count])
            result, scaled, violated = project(gradient * size, rows[:count] * length)
            assert violated
            np.testing.assert_allclose(result / size, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(scaled * length / size, dual, rtol=1e-4)

    @pytest.mark.parametrize("length", [1e-33, 1e-25, 1e18, 1e30, 1e38])
    def test_squares_of_constraints_neither_overflow_nor_underflow(self, length):
        rng = np.random.default_rng(6)
        rows = rng.uniform(-1, 1, size=(2, 24))
        gradient = rng.normal(size=24) + rows.sum(axis=0)
        for count in (1, 2):
            expected, _, _ = project(gradient, rows[:count])
            lengths = np.array([length, 1])[:count, None]  # one of ordinary length beside it
            for lengths_now in (lengths, lengths[::-1]):
                result, _, violated = project(gradient, rows[:count] * lengths_now)
                assert violated
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

    def test_scaling_by_powers_of_two_changes_no_bit(self):
        rng = np.random.default_rng(7)
        rows = rng.normal(size=(3, 24))
        gradient = rng.normal(size=24) + rows.sum(axis=0)
        expected, dual, _ = project(gradient, rows)
        result, found, _ = project(gradient, rows * 2.0 ** np.array([[90], [-90], [3]]))
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(found * 2.0 ** np.array([90, -90, 3]), dual)

    def test_margin_and_eps_are_in_the_units_of_the_constraints_however_long(self):
        row = np.eye(24, dtype=np.float32)[0]
        result, dual, _ = project(row, 1e30 * row[None], margin=0.5, eps=1e-3)
        np.testing.assert_allclose((dual, result[:1]), [[0.5], [-0.5e30]], rtol=1e-6)
        result, dual, _ = project(row, 1e-30 * row[None], eps=1e-3)
        np.testing.assert_array_equal(result, row)
        np.testing.assert_allclose(dual, [1e-27], rtol=1e-5)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_constraint_that_is_not_finite_shows(self, bad, count):
        rows = -np.ones((count, 24))
        rows[0, 3] = bad
        result, dual, violated = project(np.ones(24), rows)
        assert np.isnan(result).all()
        assert np.isnan(dual).all()
        assert violated

    def test_a_constraint_of_zeros_leaves_a_gradient_that_is_not_finite_as_it_is(self):
        gradient = np.where(np.arange(24) == 5, np.nan, 1).astype(np.float32)
        np.testing.assert_array_equal(project(gradient, np.zeros((1, 24)))[0], gradient)


class TestOneConstraint:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_equals_the_closed_form(self, sign):
        rng = np.random.default_rng(2)
        gradient, row = rng.normal(size=24).astype(np.float32), rng.normal(size=24).astype(np.float32)
        row *= sign * np.sign(row @ gradient)
        dual = max(0.0, float(gradient @ row) / float(row @ row))
        result, found, violated = project(gradient, row[None])
        assert violated == (sign > 0)
        np.testing.assert_allclose(found, [dual], rtol=1e-5)
        np.testing.assert_allclose(result, gradient - dual * row, rtol=1e-4, atol=1e-6)

    def test_margin_bounds_the_dual_of_a_violated_step_from_below(self):
        row = np.eye(24, dtype=np.float32)[0]
        for dot, dual in [(-1.0, 0.0), (0.1, 0.5), (0.5, 0.5), (2.0, 2.0)]:
            result, found, _ = project(dot * row, row[None], margin=0.5)
            np.testing.assert_allclose(found, [dual], rtol=1e-6)
            np.testing.assert_allclose(result, (dot - dual) * row, atol=1e-6)

    def test_eps_is_added_to_the_square(self):
        row = 0.01 * np.eye(24, dtype=np.float32)[0]
        _, dual, _ = project(row, row[None], eps=1e-3)
        np.testing.assert_allclose(dual, [1e-4 / (1e-4 + 1e-3)], rtol=1e-5)


class TestSeveralConstraints:
    def test_margin_applies_to_all_once_one_is_violated(self):
        rows = np.eye(24, dtype=np.float32)[:2]
        result, dual, _ = project(rows[0] * 3 - rows[1], rows, margin=0.5)
        np.testing.assert_allclose(dual, [3, 0.5], rtol=1e-6)
        np.testing.assert_allclose(result, -1.5 * rows[1], atol=1e-6)

    @pytest.mark.parametrize("seed", range(4))
    def test_margin_and_eps_give_the_optimum_of_the_bounded_problem(self, seed):
        count, margin, eps = 3, 0.5, 1e-3
        rng = np.random.default_rng(seed)
        gradient, rows = rng.normal(size=24), rng.normal(size=(count, 24)) / 3
        gradient += 1.5 * rows[0] * np.sign(rows[0] @ gradient)
        gram, dots = rows @ rows.T + eps * np.eye(count), rows @ gradient
        best = scipy.optimize.minimize(
            lambda v: v @ gram @ v / 2 - dots @ v,
            np.ones(count),
            jac=lambda v: gram @ v - dots,
            bounds=[(margin, None)] * count,
            tol=1e-14,
        )
        _, dual, violated = project(gradient, rows, margin, eps)
        assert violated
        np.testing.assert_allclose(dual, best.x, atol=1e-4)

    @pytest.mark.parametrize(
        ("rows", "gradient"),
        [
            (
                [[-7, -15, 10, 15], [21, 45, -30, -45], [-9, -4, 14, -3], [4, -3, -3, -13], [11, -11, 13, -14]],
                [-1.8937297827055335, -0.6395740957523889, 0.21136825223866879, -0.6842079243385594],
            ),
            (
                [
                    [-19, 8, -9, 13, -16],
                    [57, -24, 27, -39, 48],
                    [-5, 0, 7, -9, 10],
                    [-4, 19, -5, -5, 13],
                    [-15, 4, -2, -6, 18],
                ],
                [1.4700003066073706, -0.3887144478180102, -0.23299395522556532, -1.187071447399457, -1.383662372522731],
            ),
        ],
    )
    def test_opposite_constraints_do_not_blow_up(self, rows, gradient):
        # Recorded: the second row is -3 times the first, and their singular system once had a huge solution
        # (1.8e8, 6.1e7, and 1.4e24, 4.7e23) that won over the ordinary one by rounding.
        rows, gradient = np.array(rows) / 7, np.array(gradient)
        gram, dots = np.asarray(rows @ rows.T, np.float32), np.asarray(rows @ gradient, np.float32)
        dual = np.asarray(jax.jit(projection.solve_dual)(gram, dots), np.float64)
        assert np.all(dual < 10)
        assert np.all(rows @ (gradient - dual @ rows) < 1e-5)

    def test_singular_systems_divide_nothing_by_zero(self):
        row = np.eye(3, dtype=np.float32)[0]
        transform = projection.project_gradient(2)
        with jax.debug_nans(True):
            dual = projection.solve_dual(jnp.ones((2, 2)), jnp.array([1.0, 1.0]))
            for other in (row, 0 * row, -row):
                rows = jnp.stack([row, other])
                result, _ = transform.update(jnp.array([1.0, 2.0, 3.0]), None, constraint_grads=rows)
                np.testing.assert_array_equal(result, [0.0, 2.0, 3.0])
        assert float(dual.sum()) == 1


class TestTransformation:
    def problem(self, count=2, dtype=jnp.float32):
        rng = np.random.default_rng(3)
        gradient, rows = rng.normal(size=24), rng.normal(size=(count, 24))
        rows += 0.5 * gradient
        return tree_of(gradient, dtype), tree_of(rows, dtype)

    def test_state_keeps_its_types_and_shapes(self):
        gradient, rows = self.problem()
        transform = projection.project_gradient(2)
        state = transform.init(gradient)
        _, after = compiled(2)(gradient, rows)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        assert [leaf.weak_type for leaf in jax.tree.leaves(after)] == [False] * 3

    def test_vmap_projects_each_problem(self):
        rng = np.random.default_rng(4)
        gradients, rows = rng.normal(size=(3, 24)), rng.normal(size=(3, 2, 24))
        rows[0] += gradients[0]
        rows[1] -= 9 * gradients[1]
        transform = projection.project_gradient(2)

        @jax.jit
        @jax.vmap
        def step(g, c):
            return transform.update(g, transform.init(g), constraint_grads=c)

        results, states = step(tree_of(gradients), tree_of(rows))
        assert states.violated.tolist()[:2] == [True, False]
        for i in range(3):
            expected, dual, _ = project(gradients[i], rows[i])
            np.testing.assert_allclose(flat(jax.tree.map(lambda leaf, i=i: leaf[i], results)), expected, atol=1e-5)
            np.testing.assert_allclose(states.dual[i], dual, atol=1e-5)

    def test_a_selection_projects_its_leaves_alone_and_leaves_the_others_bit_equal(self):
        gradient, rows = self.problem()
        selection = trees.select(gradient, "b")
        masked = optax.masked(projection.project_gradient(2), selection, mask_compatible_extra_args=True)
        result, state = jax.jit(lambda: masked.update(gradient, masked.init(gradient), constraint_grads=rows))()
        assert np.asarray(result["a"]).tobytes() == np.asarray(gradient["a"]).tobytes()
        part, rows_part = {"b": gradient["b"]}, {"b": rows["b"]}
        expected, expected_state = compiled(2)(part, rows_part)
        np.testing.assert_allclose(result["b"], expected["b"], rtol=1e-5)
        np.testing.assert_allclose(state.inner_state.dual, expected_state.dual, rtol=1e-6)
        assert np.any(result["b"] != gradient["b"])

    def test_chains_before_an_optimizer(self):
        gradient, rows = self.problem()
        chain = optax.chain(projection.project_gradient(2), optax.sgd(0.1))
        updates, _ = jax.jit(lambda: chain.update(gradient, chain.init(gradient), gradient, constraint_grads=rows))()
        expected, _ = compiled(2)(gradient, rows)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda leaf: -0.1 * leaf, expected), rtol=1e-5, atol=1e-7)

    def test_partition_projects_the_leaves_of_its_part_alone(self):
        gradient, rows = self.problem()
        parts = {"kept": optax.identity(), "projected": projection.project_gradient(2)}
        transform = optax.partition(parts, {"a": "kept", "b": "projected"})
        result, _ = jax.jit(lambda: transform.update(gradient, transform.init(gradient), constraint_grads=rows))()
        expected, _ = compiled(2)({"b": gradient["b"]}, {"b": rows["b"]})
        np.testing.assert_array_equal(result["a"], gradient["a"])
        np.testing.assert_allclose(result["b"], expected["b"], rtol=1e-5)

    @pytest.mark.parametrize("axis_name", [None, ()])
    def test_trees_without_arrays_are_left_as_they_are(self, axis_name):
        gradient, rows = self.problem()
        project_two = projection.project_gradient(2, axis_name=axis_name)
        for tree in ({}, {"a": None}):
            result, state = project_two.update(tree, project_two.init(tree), constraint_grads=tree)
            assert result == tree
            chex.assert_trees_all_equal(state, project_two.init(tree))
        parts = {"kept": optax.identity(), "projected": project_two}
        for transform in (
            optax.partition(parts, {"a": "kept", "b": "kept"}),
            optax.masked(project_two, {"a": False, "b": False}),
        ):
            result, _ = jax.jit(transform.update)(gradient, transform.init(gradient), constraint_grads=rows)
            chex.assert_trees_all_equal(result, gradient)

    def test_masked_takes_whole_constraints_too(self):
        gradient, rows = self.problem()
        results = []
        for alike in (False, True):
            selection = {"a": True, "b": False}
            masked = optax.masked(projection.project_gradient(2), selection, mask_compatible_extra_args=alike)
            results.append(masked.update(gradient, masked.init(gradient), constraint_grads=rows)[0])
        chex.assert_trees_all_equal(*results)
        assert np.any(results[0]["a"] != gradient["a"])

    def test_numbers_may_be_injected_and_traced(self):
        gradient, rows = self.problem()
        inject = optax.inject_hyperparams(projection.project_gradient, static_args=("num_constraints", "axis_name"))
        transform = inject(num_constraints=2, margin=0.5, eps=1e-3)

        @jax.jit
        def step(state, margin):
            state.hyperparams["margin"] = margin
            return transform.update(gradient, state, constraint_grads=rows)

        for margin in (0.5, 2.0):
            result, state = step(transform.init(gradient), margin)
            expected, expected_state = compiled(2, margin, 1e-3)(gradient, rows)
            chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(state.inner_state.dual, expected_state.dual, rtol=1e-5)
        with pytest.raises(InputError, match="name it in static_args"):
            jax.jit(lambda: optax.inject_hyperparams(projection.project_gradient)(num_constraints=2).init(gradient))()

    def test_many_small_steps_project_their_mean_gradient(self):
        gradient, rows = self.problem()
        transform = optax.MultiSteps(projection.project_gradient(2), every_k_schedule=2)
        state, shift = transform.init(gradient), tree_of(np.random.default_rng(8).normal(size=24))
        for sign in (1, -1):
            moved = jax.tree.map(lambda g, s, sign=sign: g + sign * s, gradient, shift)
            result, state = jax.jit(transform.update)(moved, state, constraint_grads=rows)
        chex.assert_trees_all_close(result, compiled(2)(gradient, rows)[0], rtol=1e-4, atol=1e-5)

    def test_scan_carries_its_state(self):
        gradient, rows = self.problem()
        transform = projection.project_gradient(2)

        def step(state, scale):
            result, state = transform.update(
                jax.tree.map(lambda leaf: leaf * scale, gradient), state, constraint_grads=rows
            )
            return state, result

        last, results = jax.lax.scan(step, transform.init(gradient), jnp.array([1.0, -3.0, 2.0]))
        expected, state = compiled(2)(jax.tree.map(lambda leaf: 2 * leaf, gradient), rows)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[2], results), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(last.dual, state.dual, rtol=1e-5)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda rows: jax.tree.map(lambda leaf: leaf[0], rows),
                r"shape \(3, 5\) for a and needs .*\(2, 3, 5\)",
            ),
            (lambda rows: jax.tree.map(lambda leaf: leaf[:1], rows), r"shape \(1, 3, 5\) for a and needs .*= 2"),
            (lambda rows: rows | {"b": rows["b"][:, 1:]}, r"shape \(2, 8\) for b and needs shape \(2, 9\)"),
            (lambda rows: rows | {"b": 1j * rows["b"]}, "constraint_grads is complex64 at b, and only real numbers"),
            (lambda rows: {"a": rows["a"]}, "another tree than the gradient"),
            (lambda rows: rows | {"b": None}, "a NoneType for b and needs"),
            (lambda rows: rows | {"b": {"c": rows["b"]}}, "a dict for b and needs"),
        ],
    )
    def test_constraints_that_do_not_fit_are_named(self, spoil, message):
        gradient, rows = self.problem()
        transform = optax.chain(projection.project_gradient(2), optax.sgd(0.1))
        with pytest.raises(InputError, match=message):
            transform.update(gradient, transform.init(gradient), constraint_grads=spoil(rows))

    def test_training_loops_of_flax_hand_the_constraints_over(self):
        gradient, rows = self.problem()
        chain = optax.chain(projection.project_gradient(2), optax.sgd(0.1))
        params = jax.tree.map(jnp.ones_like, gradient)
        state = train_state.TrainState.create(apply_fn=None, params=params, tx=chain)

        @jax.jit
        def step(state, gradient, rows):
            updates, opt_state = state.tx.update(gradient, state.opt_state, state.params, constraint_grads=rows)
            params = optax.apply_updates(state.params, updates)
            return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

        expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, compiled(2)(gradient, rows)[0])
        chex.assert_trees_all_close(step(state, gradient, rows).params, expected, rtol=1e-5)

        class Holder(nnx.Module):
            def __init__(self):
                self.a, self.b = nnx.Param(params["a"]), nnx.Param(params["b"])

        module = Holder()
        optimizer = nnx.Optimizer(module, chain, wrt=nnx.Param)
        of_module = nnx.state(module, nnx.Param)
        nnx.update(like := nnx.clone(module), nnx.State({name: nnx.Param(leaf) for name, leaf in gradient.items()}))
        stacked = jax.tree.unflatten(jax.tree.structure(of_module), jax.tree.leaves(rows))
        optimizer.update(module, nnx.state(like, nnx.Param), constraint_grads=stacked)
        chex.assert_trees_all_close({"a": module.a[...], "b": module.b[...]}, expected, rtol=1e-5)

    def test_missing_constraints_are_a_type_error(self):
        gradient, _ = self.problem()
        transform = projection.project_gradient(2)
        with pytest.raises(TypeError, match="constraint_grads"):
            transform.update(gradient, transform.init(gradient))

    def test_bfloat16_gradients_keep_their_type_and_are_projected_as_well_as_it_allows(self):
        rng = np.random.default_rng(0)
        gradient = jnp.asarray(rng.normal(size=4096), jnp.bfloat16)
        rows = jnp.asarray(rng.normal(size=(1, 4096)) + np.asarray(gradient, np.float64), jnp.bfloat16)
        transform = projection.project_gradient(1)
        result, state = transform.update(gradient, transform.init(gradient), constraint_grads=rows)
        assert result.dtype == jnp.bfloat16
        assert state.dual.dtype == jnp.float32
        # Rounding each entry of the result to eight bits is random; a dual rounded to eight bits would not be.
        cosine = flat(result) @ flat(rows) / np.linalg.norm(flat(result)) / np.linalg.norm(flat(rows))
        assert abs(cosine) < 1e-4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_constraints": 0}, "num_constraints must be 1 to 10, got 0"),
            ({"num_constraints": 11}, "num_constraints must be 1 to 10, got 11"),
            ({"margin": -0.1}, "margin must not be negative, got -0.1"),
            ({"eps": -1e-3}, "eps must not be negative, got -0.001"),
            ({"eps": float("inf")}, "eps must be finite, got inf"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            projection.project_gradient(**arguments)

    def test_the_dual_is_solved_for_at_most_ten_constraints(self):
        with pytest.raises(InputError, match=r"there are 11 .* give at most 10"):
            projection.solve_dual(jnp.eye(11), jnp.ones(11))

    def test_the_dual_is_real(self):
        with pytest.raises(InputError, match="gram is complex64, and only real numbers are projected"):
            projection.solve_dual(jnp.eye(2, dtype=jnp.complex64), jnp.ones(2))


def test_one_constraint_is_the_default():
    transform = projection.project_gradient()
    state = transform.init({"w": jnp.zeros(2)})
    assert (state.dots.shape, state.dual.shape, state.violated.dtype) == ((1,), (1,), bool)
    found, state = transform.update(
        {"w": jnp.array([1.0, 1.0])}, state, constraint_grads={"w": jnp.array([[1.0, 0.0]])}
    )
    np.testing.assert_allclose(found["w"], [0.0, 1.0], atol=1e-6)
    assert state.violated


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_state_has_one_type_so_that_loops_carry_it(dtype):
    with jax.enable_x64(True):
        gradient = {"w": jnp.asarray([1.0, -2.0], dtype)}
        constraints = {"w": jnp.asarray([[3.0, 1.0]], dtype)}
        transform = projection.project_gradient()
        state = transform.init(gradient)
        projected, after = transform.update(gradient, state, constraint_grads=constraints)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert projected["w"].dtype == dtype


@pytest.mark.parametrize("lean", [-1.0, 1.0])
@pytest.mark.parametrize("zeros", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_its_derivatives_are_those_of_the_constraints_that_are_not_zero(zeros, lean):
    """A constraint of zero is ignored, also by what differentiates through the projection."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3, 24)).astype(np.float32)
    rows[list(zeros)] = 0
    gradient = lean * rows.sum(axis=0) + rng.normal(size=24).astype(np.float32)
    kept = [k for k in range(3) if k not in zeros]

    def total(gradient, constraints):
        transform = projection.project_gradient(len(constraints))
        found, _ = transform.update(
            {"w": gradient}, transform.init({"w": gradient}), constraint_grads={"w": constraints}
        )
        return jnp.sum(jnp.sin(found["w"]))

    of_gradient, of_rows = jax.grad(total, argnums=(0, 1))(gradient, rows)
    assert np.isfinite(of_gradient).all()
    assert np.isfinite(of_rows).all()
    if kept:
        expected = jax.grad(total, argnums=(0, 1))(gradient, rows[kept])
        np.testing.assert_allclose(of_gradient, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(of_rows[np.array(kept)], expected[1], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(of_gradient, np.cos(gradient), rtol=1e-5)
