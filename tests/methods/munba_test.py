"""MUNBa: the bargain against its defining equations, the published formula and an optimizer, and where none exists."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import munba
from scissorhands_jax.methods.munba import bargain, published_bargain
from scissorhands_jax.optimizers import sgd
from tests.methods.example import DATA, GRADIENT, KEY, LOSS, epoch_of, original, plain_loss
from tests.training import clusters

PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)
SIZE = 7
ROOT = np.sqrt(2)


def tree(vector):
    """A vector of seven as a tree with a scalar in it."""
    vector = np.asarray(vector, np.float32)
    return {"matrix": vector[:4].reshape(2, 2), "rest": [vector[4], vector[5:]]}


def flat(gradient):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]).astype(np.float64)


jitted = jax.jit(bargain)


def test_an_array_without_entries_changes_nothing():
    retain, forget = (tree(v) for v in pair(1))
    expected, cosine = bargain(retain, forget)
    agreed, found = bargain(*({"all": t, "none": np.zeros((0, 3), np.float32)} for t in (retain, forget)))
    chex.assert_trees_all_equal(agreed["all"], expected)
    assert agreed["none"].shape == (0, 3)
    assert found == cosine


def solve(retain, forget):
    """The agreed direction as a vector, and the cosine."""
    agreed, cosine = jitted(tree(retain), tree(forget))
    return flat(agreed), float(cosine)


def pair(seed, cosine=None, scale=1.0):
    """Two random vectors, the second `scale` times as long, with a given cosine between them."""
    a, b = np.random.default_rng(seed).normal(size=(2, SIZE))
    if cosine is not None:
        b -= a * (a @ b) / (a @ a)
        b = cosine * a / np.linalg.norm(a) + np.sqrt(1 - cosine**2) * b / np.linalg.norm(b)
    return a, scale * b


CASES = [pair(0), pair(1), pair(2, 0.99), pair(3, -0.6, 50.0), pair(4, -0.99, 1e-3), pair(5, 0.0, 1e3)]


@pytest.mark.parametrize(("retain", "forget"), CASES)
class TestBargain:
    def test_the_defining_equations_hold(self, retain, forget):
        agreed, cosine = solve(retain, forget)
        gradients = np.stack([retain, forget], axis=1)
        alpha, *_ = np.linalg.lstsq(gradients, agreed, rcond=None)
        np.testing.assert_allclose(gradients @ alpha, agreed, rtol=1e-4, atol=1e-5)
        assert np.all(alpha > 0)
        np.testing.assert_allclose(gradients.T @ gradients @ alpha, 1 / alpha, rtol=2e-4)
        expected = retain @ forget / np.linalg.norm(retain) / np.linalg.norm(forget)
        np.testing.assert_allclose(cosine, expected, atol=1e-6)

    def test_it_equals_the_published_formula(self, retain, forget):
        one, two, three = retain @ retain, retain @ forget, forget @ forget
        root = np.sqrt(one * three)
        first = np.sqrt((root**2 - two * root) / (one * root**2 - one * two**2))
        expected = first * retain
        # The published second weight is 0 / 0 for orthogonal gradients.
        if abs(two) > 1e-9 * root:
            expected = expected + (1 - one * first**2) / (two * first) * forget
            np.testing.assert_allclose(solve(retain, forget)[0], expected, rtol=1e-4, atol=1e-5)

    def test_it_maximises_the_sum_of_the_log_gains(self, retain, forget):
        # Gains along a unit vector of the plane of both, in logarithms; scales only add constants.
        basis, _ = np.linalg.qr(np.stack([retain, forget], axis=1))
        a, b = (basis.T @ v / np.linalg.norm(v) for v in (retain, forget))

        def loss(angle):
            g = np.array([np.cos(angle[0]), np.sin(angle[0])])
            return -np.sum(np.log(np.maximum([g @ a, g @ b], 1e-12)))

        starts = np.linspace(0, 2 * np.pi, 400)
        best = minimize(loss, starts[np.argmin([loss([s]) for s in starts])], method="Nelder-Mead", tol=1e-12).x[0]
        expected = ROOT * basis @ np.array([np.cos(best), np.sin(best)])
        np.testing.assert_allclose(solve(retain, forget)[0], expected, rtol=1e-4, atol=1e-4)

    def test_both_gain_the_players_are_equal_and_scales_do_not_matter(self, retain, forget):
        agreed, cosine = solve(retain, forget)
        gains = [agreed @ v / np.linalg.norm(v) for v in (retain, forget)]
        np.testing.assert_allclose(gains, np.sqrt(1 + cosine), rtol=1e-3)
        swapped, _ = solve(forget, retain)
        np.testing.assert_allclose(swapped, agreed, rtol=1e-5, atol=1e-6)
        # Squares of 1e-30 are zero in float32, and those of 1e30 infinite.
        for scales in ((4.0, 0.5), (1e-30, 1e30)):
            scaled, _ = solve(scales[0] * retain, scales[1] * forget)
            np.testing.assert_allclose(scaled, agreed, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(agreed), ROOT, rtol=1e-5)


class TestWhereGradientsDegenerate:
    vector = np.random.default_rng(9).normal(size=SIZE)

    def test_parallel_gradients_are_followed(self):
        agreed, cosine = solve(self.vector, 3 * self.vector)
        np.testing.assert_allclose(agreed, ROOT * self.vector / np.linalg.norm(self.vector), rtol=1e-5)
        assert cosine == pytest.approx(1)

    def test_orthogonal_gradients_are_bisected(self):
        agreed, cosine = solve(np.eye(SIZE)[0], 5 * np.eye(SIZE)[6])
        np.testing.assert_allclose(agreed, np.eye(SIZE)[0] + np.eye(SIZE)[6], rtol=1e-6)
        assert cosine == 0

    @pytest.mark.parametrize("swap", [False, True])
    def test_a_zero_gradient_has_no_say(self, swap):
        gradients = (np.zeros(SIZE), self.vector)
        agreed, cosine = solve(*(gradients[::-1] if swap else gradients))
        np.testing.assert_allclose(agreed, ROOT * self.vector / np.linalg.norm(self.vector), rtol=1e-5)
        assert cosine == 0

    def test_two_zero_gradients_agree_on_nothing(self):
        agreed, cosine = solve(np.zeros(SIZE), np.zeros(SIZE))
        assert agreed.tolist() == [0] * SIZE
        assert cosine == 0

    @pytest.mark.parametrize("scale", [1.0, 3.0, 0.7, 1e-12, 12345.678])
    def test_opposite_gradients_give_no_step_and_not_a_step_along_rounding_errors(self, scale):
        for seed in range(5):
            vector = np.random.default_rng(seed).normal(size=SIZE)
            agreed, cosine = solve(vector, -scale * vector)
            assert agreed.tolist() == [0] * SIZE
            assert cosine == pytest.approx(-1)

    def test_nearly_opposite_gradients_have_a_bargain(self):
        retain, forget = pair(6, -1 + 1e-6)
        agreed, _ = solve(retain, forget)
        np.testing.assert_allclose(np.linalg.norm(agreed), ROOT, rtol=1e-4)
        assert agreed @ retain > 0
        assert agreed @ forget > 0

    def test_narrow_types_are_computed_in_float32_and_kept(self):
        retain, forget = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree(v)) for v in pair(7, -0.5))
        agreed, _ = bargain(retain, forget)
        assert {leaf.dtype for leaf in jax.tree.leaves(agreed)} == {jnp.dtype(jnp.bfloat16)}
        expected, _ = solve(flat(retain), flat(forget))
        np.testing.assert_allclose(flat(agreed), expected, rtol=1e-2)


class TestMethod:
    def step(self, loss_fn=None, start=None, **settings):
        params, model_state = (original()[0], ()) if start is None else start
        method = munba(loss_fn or lift(plain_loss), PLAIN_SGD, num_classes=3, batch_size=4, **settings)
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        carry = method.init(KEY, params, model_state, DATA)
        after, metrics = jax.jit(method.step)(carry, batch)
        followed = jax.tree.map(np.subtract, jax.device_get(params), jax.device_get(after.params))
        return batch, followed, after, metrics

    @pytest.mark.parametrize("forget_loss", ["random_label", "ascent"])
    def test_a_step_goes_against_the_bargain_of_both_gradients(self, forget_loss):
        def shifted(key, labels):
            return (labels + 1) % 3

        batch, followed, _, metrics = self.step(forget_loss=forget_loss, relabel=shifted)
        params = original()[0]
        if forget_loss == "ascent":
            forget = jax.tree.map(jnp.negative, GRADIENT(params, batch.forget))
            np.testing.assert_allclose(metrics["loss_forget"], plain_loss(params, batch.forget), rtol=1e-5)
        else:
            forget = GRADIENT(params, {**batch.forget, "label": (batch.forget["label"] + 1) % 3})
            assert "loss_forget" not in metrics
        expected, cosine = jitted(GRADIENT(params, batch.retain), forget)
        chex.assert_trees_all_close(followed, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["cosine"], cosine, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], ROOT, rtol=1e-5)

    def test_random_labels_are_wrong_and_drawn_anew_in_every_step(self):
        drawn = []

        def loss_fn(params, batch):
            jax.debug.callback(lambda labels: drawn.append(labels.tolist()), batch["label"])
            return plain_loss(params, batch)

        method = munba(lift(loss_fn), PLAIN_SGD, num_classes=3, batch_size=4)
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        carry, step = method.init(KEY, original()[0], (), DATA), jax.jit(method.step)
        for _ in range(8):
            carry, _ = step(carry, batch)
        jax.effects_barrier()
        true, kept = batch.forget["label"].tolist(), batch.retain["label"].tolist()
        random = [labels for labels in drawn if labels != kept]
        assert len(random) >= 8
        assert len({tuple(labels) for labels in random}) > 4
        assert not any(wrong == right for labels in random for wrong, right in zip(labels, true, strict=True))

    def test_only_the_retain_pass_moves_statistics(self):
        batch, _, after, _ = self.step(LOSS, original(), forget_loss="ascent")
        assert int(after.model_state["count"]) == 1
        expected = 0.1 * batch.retain["image"].mean(axis=0)  # noise apart
        np.testing.assert_allclose(after.model_state["mean"], expected, atol=0.02)
        assert abs(batch.retain["image"].mean(axis=0) - batch.forget["image"].mean(axis=0)).max() > 0.3

    def test_it_forgets_a_class_and_keeps_the_others(self):
        method = munba(clusters.LOSS, sgd(0.03), num_classes=3, batch_size=16)
        _, after = clusters.outcome(method, 5)
        assert after.acc_forget == 0
        assert after.acc_retain == 1

    def test_ascent_needs_no_labels(self):
        def loss_fn(params, batch):
            return jnp.mean(jnp.square(batch @ params["w"]))

        method = munba(lift(loss_fn), PLAIN_SGD, num_classes=1, forget_loss="ascent", batch_size=2)
        data = Data(jnp.ones((2, 3)), jnp.arange(12.0).reshape(4, 3))
        carry = method.init(KEY, {"w": jnp.ones(3)}, (), data)
        batch = data_lib.gather(data, next(iter(method.batches(KEY, data, 0))))
        assert jax.eval_shape(method.step, carry, batch)[1]["loss_forget"].shape == ()

    def test_settings_out_of_range_are_refused(self):
        build = functools.partial(munba, LOSS, PLAIN_SGD)
        with pytest.raises(InputError, match="forget_loss is 'uniform'; choose one of random_label, ascent"):
            build(num_classes=3, forget_loss="uniform")
        with pytest.raises(InputError, match="random labels need at least 2 classes, got 1"):
            build(num_classes=1)
        with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
            build(num_classes=3, forget_batch_size=0)


def as_published(retain, forget):
    """The direction, the weights and whether the bargain succeeded, from the published formulas, in float32 NumPy."""
    retain, forget = (np.asarray(vector, np.float32) for vector in (retain, forget))
    tiny, tenth = np.float32(1e-8), np.float32(0.1)
    a, b, c = retain @ retain, retain @ forget, forget @ forget
    with np.errstate(all="ignore"):
        first = np.sqrt((a * c - b * np.sqrt(a * c)) / (a * a * c - a * b * b + tiny))
        second = (1 - a * first * first) / (b * first + tiny)
    succeeded = bool(first > 0 and second > 0)
    weights = (first, second) if succeeded else (np.float32(1), tenth)
    total = weights[0] * retain + weights[1] * forget
    return total * min(1.0, 1.0 / (np.linalg.norm(total) + 1e-6)), weights, succeeded


class TestPublishedCode:
    """`mode="authors"` against an implementation of its own of the published formulas."""

    @pytest.mark.parametrize(
        ("retain", "forget"),
        [
            *(pair(seed) for seed in range(4)),
            pair(2, 0.9),
            pair(3, -0.6, 5.0),
            *(tuple(scale * v for v in pair(seed, 0.4)) for seed in (4, 5) for scale in (0.03, 0.01, 1e-3)),
            tuple(0.01 * v for v in pair(6, -0.5)),
            (1e15 * pair(7)[0], pair(7)[1]),
        ],
    )
    def test_the_direction_equals_the_formulas(self, retain, forget):
        agreed, weights, succeeded = jax.jit(published_bargain)(tree(retain), tree(forget))
        expected, factors, worked = as_published(flat(tree(retain)), flat(tree(forget)))
        assert bool(succeeded) == worked
        np.testing.assert_allclose(weights, factors, rtol=2e-4)
        np.testing.assert_allclose(flat(agreed), expected, rtol=2e-4, atol=2e-6)
        assert np.linalg.norm(flat(agreed)) <= 1 + 1e-5

    def test_a_failed_bargain_falls_back_and_is_clipped_too(self):
        """Small gradients that conflict, numbers that overflow, and gradients that are too small to clip."""
        conflict = tuple(0.01 * v for v in pair(6, -0.5))
        for retain, forget in (conflict, (1e15 * pair(7)[0], pair(7)[1]), (np.zeros(SIZE), np.zeros(SIZE))):
            agreed, weights, succeeded = published_bargain(tree(retain), tree(forget))
            assert not succeeded
            np.testing.assert_allclose(weights, [1, 0.1], rtol=1e-6)
            total = retain + 0.1 * forget
            np.testing.assert_allclose(flat(agreed), total / max(1, np.linalg.norm(total)), rtol=1e-4, atol=1e-7)

    def test_of_large_gradients_it_is_the_bargain_at_norm_one(self):
        for retain, forget in (pair(0), pair(3, -0.6, 2.0)):
            agreed, _, succeeded = published_bargain(tree(retain), tree(forget))
            assert succeeded
            np.testing.assert_allclose(flat(agreed), solve(retain, forget)[0] / ROOT, rtol=1e-3, atol=1e-4)

    def test_damping_hands_small_gradients_to_the_forget_set(self):
        """The 1e-8 outweighs what it damps below norms of about 0.05; the exact bargain does not see scales."""
        retain, forget = (v / np.linalg.norm(v) for v in pair(4, 0.4))
        shares = []
        for scale in (0.5, 0.05, 0.005):
            agreed, _, succeeded = published_bargain(tree(scale * retain), tree(scale * forget))
            assert succeeded
            coefficients, *_ = np.linalg.lstsq(np.stack([retain, forget], axis=1), flat(agreed), rcond=None)
            shares.append(coefficients[0] / coefficients.sum())
        np.testing.assert_allclose(shares[0], 0.5, atol=1e-3)
        assert 0.2 < shares[1] < 0.45
        assert shares[2] < 0.01

    def test_the_forget_set_is_seen_once_an_epoch_and_retain_steps_follow_in_ragged_batches(self):
        method = munba(LOSS, PLAIN_SGD, num_classes=3, batch_size=3, forget_batch_size=4, mode="authors")
        sizes = [tuple(map(data_lib.size, batch)) for batch in method.batches(KEY, DATA, 0)]
        assert sizes == [(4, 3), (2, 3), (0, 3), (0, 1)]
        shorter = Data(DATA.forget, data_lib.take(DATA.retain, np.arange(3)))  # which is passed over a second time
        assert [tuple(map(data_lib.size, batch)) for batch in method.batches(KEY, shorter, 0)] == [(4, 3), (2, 3)]

    def test_a_second_pass_over_the_retain_set_has_an_order_of_its_own(self):
        method = munba(LOSS, PLAIN_SGD, num_classes=3, batch_size=3, forget_batch_size=1, mode="authors")
        few = Data(DATA.forget, data_lib.take(DATA.retain, np.arange(9)))
        for epoch in range(2):
            order = np.concatenate([batch.retain for batch in method.batches(KEY, few, epoch)])
            assert len(order) == 18
            assert (order[:9] != order[9:]).any()

    def test_an_epoch_equals_the_formulas_step_by_step(self):
        rate, decay = 0.5, 0.1
        method = munba(
            lift(plain_loss),
            sgd(rate, momentum=0.0, weight_decay=decay),
            num_classes=3,
            batch_size=4,
            mode="authors",
            relabel=lambda key, labels: (labels + 1) % 3,
        )
        epoch, structure = epoch_of(method), jax.tree.structure(original()[0])
        shapes = [leaf.shape for leaf in jax.tree.leaves(original()[0])]
        weights, unclipped = flat(original()[0]), []
        for batch, metrics in zip(epoch.batches, epoch.metrics, strict=True):
            cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
            parts = [np.asarray(p, np.float32).reshape(s) for p, s in zip(np.split(weights, cuts), shapes, strict=True)]
            params = jax.tree.unflatten(structure, parts)
            direction = flat(GRADIENT(params, batch.retain))
            if batch.forget is not None:
                shifted = {**batch.forget, "label": (batch.forget["label"] + 1) % 3}
                direction, _, worked = as_published(direction, flat(GRADIENT(params, shifted)))
                assert bool(metrics["bargained"]) == worked
            else:
                unclipped.append(np.linalg.norm(direction))
                assert "bargained" not in metrics
            np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(direction), rtol=1e-3)
            weights = weights - rate * (direction + decay * weights)
        np.testing.assert_allclose(flat(epoch.carries[-1].params), weights, rtol=1e-3, atol=1e-4)
        assert len(unclipped) == 1
        assert unclipped[0] > 1.1  # so it would be seen

    def test_both_passes_move_statistics_and_random_labels_may_be_the_true_ones(self):
        drawn = []

        def loss_fn(params, model_state, batch, *, train, key):
            jax.debug.callback(drawn.append, batch["label"])
            return LOSS(params, model_state, batch, train=train, key=key)

        method = munba(loss_fn, PLAIN_SGD, num_classes=3, batch_size=4, mode="authors")
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        carry, step = method.init(KEY, *original(), DATA), jax.jit(method.step)
        for _ in range(50):
            carry, _ = step(carry, batch)
        jax.effects_barrier()
        assert int(carry.model_state["count"]) == 100
        true, kept = np.asarray(batch.forget["label"]), np.asarray(batch.retain["label"])
        random = [labels for labels in drawn if not np.array_equal(labels, kept)]
        share = np.mean(np.stack(random) == true)
        assert share == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 200))
