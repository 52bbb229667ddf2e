"""Scissorhands: trimming, the repair and its projection, refusals, and one compilation for all values."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import masks, trees
from scissorhands_jax.base import Data, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods import METHODS, Semantics, scissorhands, trim_network
from scissorhands_jax.methods.scissorhands import constraint_gradients
from scissorhands_jax.methods.semantics import SEMANTICS
from scissorhands_jax.methods.trimming import trimming_mask
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.reinit import ones
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import same_bits
from tests.compilations import Compilations
from tests.methods.example import (
    DATA,
    GRADIENT,
    KEY,
    LOSS,
    PLAIN_SGD,
    build,
    dot,
    epoch_of,
    examples,
    original,
    plain_loss,
)

ONCE = {"every_step_joint": False}


def descent(params, carry):
    """What plain gradient descent with learning rate 1 subtracted."""
    return jax.tree.map(lambda before, after: before - after, params, carry.params)


class TestScissorhandsRepair:
    def test_the_step_never_improves_the_forget_loss_to_first_order(self):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.05, ceiling=math.inf
        )
        carry, step, duals = method.init(KEY, original(3)[0], (), DATA), jax.jit(method.step), []
        for epoch in range(4):
            for positions in method.batches(KEY, DATA, epoch):
                batch, params = data_lib.gather(DATA, positions), carry.params
                carry, metrics = step(carry, batch)
                retain, forget = GRADIENT(params, batch.retain), GRADIENT(params, batch.forget)
                objective = jax.tree.map(lambda r, f: r - 0.05 * f, retain, forget)
                followed = descent(params, carry)
                along, square = dot(objective, forget), dot(forget, forget)
                assert dot(followed, forget) <= 2e-5 * np.sqrt(dot(followed, followed) * square)
                duals.append(max(0.0, along / square))
                expected = jax.tree.map(lambda o, f: o - duals[-1] * f, objective, forget)
                chex.assert_trees_all_close(followed, expected, rtol=1e-3, atol=3e-6)
                np.testing.assert_allclose(metrics["dual"], duals[-1:], rtol=1e-3, atol=1e-5)
                assert bool(metrics["projected"]) == (along > 0)
        assert min(np.count_nonzero(duals), duals.count(0.0)) >= 2

    def test_without_projection_the_step_follows_the_objective(self):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.5, projected=False, ceiling=9.0
        )
        epoch = epoch_of(method, steps=1)
        before, batch = epoch.carries[0].params, epoch.batches[0]
        gradients = [GRADIENT(before, part) for part in (batch.retain, batch.forget)]
        expected = jax.tree.map(lambda r, f: r - 0.5 * f, *gradients)
        chex.assert_trees_all_close(descent(before, epoch.carries[1]), expected, rtol=1e-4, atol=1e-6)
        assert set(epoch.metrics[0]) == {"loss_retain", "loss_forget", "grad_norm"}

    @functools.cached_property
    def twins(self):
        """One example many times in both sets: retain and forget gradients are equal, so every step is violated."""
        one = jax.tree.map(lambda leaf: leaf[:1], DATA.forget)
        return Data(*(jax.tree.map(lambda leaf, n=n: jnp.repeat(leaf, n, axis=0), one) for n in (6, 12)))

    @pytest.mark.parametrize(("margin", "dual"), [(0.0, 1.0), (0.5, 1.0), (5.0, 5.0)])
    def test_margin_bounds_the_dual_of_violated_steps_from_below(self, margin, dual):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.0, margin=margin, ceiling=9.0
        )
        joint = epoch_of(method, self.twins, steps=1).metrics[0]
        assert joint["projected"]
        assert joint["dots"][0] > 0
        np.testing.assert_allclose(joint["dual"], [dual], rtol=1e-4)

    def test_authors_mode_adds_at_least_half_of_each_constraint(self):
        method = scissorhands(
            lift(plain_loss),
            PLAIN_SGD,
            fraction=0.2,
            batch_size=4,
            forget_weight=0.0,
            mode="authors",
            num_constraints=2,
        )
        epoch = epoch_of(method, self.twins, steps=1)
        held = epoch.carries[0].aux.constraint_grads
        assert [leaf.shape[0] for leaf in jax.tree.leaves(held)] == [2] * 3
        assert epoch.metrics[0]["projected"]
        assert np.all(epoch.metrics[0]["dual"] >= 0.5)
        # The constraints stay what they were at the beginning of the epoch.
        chex.assert_trees_all_equal(epoch.carries[1].aux.constraint_grads, held)
        later = method.begin_epoch(epoch.carries[-1], self.twins)
        assert not same_bits(later.aux.constraint_grads, held)
        assert int(later.aux.joint_step) == 0

    def test_only_every_so_many_joint_steps_of_an_epoch_are_projected(self):
        method = scissorhands(
            lift(plain_loss),
            PLAIN_SGD,
            fraction=0.2,
            batch_size=4,
            forget_weight=0.0,
            project_every=2,
            ceiling=9.0,
        )
        epoch = epoch_of(method, self.twins)
        assert [bool(metrics["projected"]) for metrics in epoch.metrics] == [False, True, False]
        unprojected = GRADIENT(epoch.carries[0].params, epoch.batches[0].retain)
        chex.assert_trees_all_close(
            descent(epoch.carries[0].params, epoch.carries[1]), unprojected, rtol=1e-4, atol=1e-6
        )
        # Counted anew in each epoch.
        carry = method.begin_epoch(epoch.carries[1], self.twins)
        assert not method.step(carry, epoch.batches[0])[1]["projected"]

    def test_a_projection_pattern_leaves_other_gradients_as_they_are(self):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.0, project="1", ceiling=9.0
        )
        epoch = epoch_of(method, self.twins, steps=1)
        before, batch = epoch.carries[0].params, epoch.batches[0]
        retain, forget = (GRADIENT(before, part) for part in (batch.retain, batch.forget))
        followed = descent(before, epoch.carries[1])
        chex.assert_trees_all_close(followed[0], retain[0], rtol=1e-4, atol=1e-6)
        assert epoch.metrics[0]["projected"]
        assert not np.allclose(followed[1][0], retain[1][0], rtol=1e-2)
        assert abs(dot(followed[1], forget[1])) < 1e-4

    def test_an_epoch_passes_once_over_both_sets_or_cycles_the_forget_set(self):
        once = list(scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2, **ONCE).batches(KEY, DATA, 0))
        assert [batch.forget is None for batch in once] == [False] * 3 + [True] * 2
        joint = list(scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2, ceiling=1.0).batches(KEY, DATA, 0))
        assert [batch.forget is None for batch in joint] == [False] * 5
        assert sorted(np.concatenate([batch.forget for batch in joint[:3]])) == list(range(6))
        sizes = scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=4, forget_batch_size=1, **ONCE).batches(
            KEY, DATA, 0
        )
        assert [(len(batch.forget), len(batch.retain)) for batch in sizes] == [(1, 4)] * 6

    def test_the_retain_set_is_passed_over_again_until_every_forget_example_was_seen(self):
        larger = Data(DATA.retain, DATA.forget)
        batches = list(scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2, **ONCE).batches(KEY, larger, 0))
        assert sorted(np.concatenate([batch.forget for batch in batches])) == list(range(10))
        assert [len(batch.retain) for batch in batches] == [2] * 5

    def test_ragged_batches_are_not_filled_up(self):
        method = scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=4, ragged_batches=True, **ONCE)
        batches = list(method.batches(KEY, DATA, 0))
        assert [len(batch.retain) for batch in batches] == [4, 4, 2]
        assert [None if batch.forget is None else len(batch.forget) for batch in batches] == [4, 2, None]

    @pytest.mark.parametrize("mode", ["paper", "authors"])
    def test_bfloat16_params_keep_their_type_through_an_epoch(self, mode):
        params, _ = original(dtype=jnp.bfloat16)
        method = scissorhands(lift(plain_loss), sgd(0.05), fraction=0.2, batch_size=4, mode=mode, ceiling=9.0)
        carry = method.init(KEY, params, (), DATA)
        begun = method.begin_epoch(carry, DATA)
        chex.assert_trees_all_equal_shapes_and_dtypes(begun, carry)
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        after, _ = jax.eval_shape(method.step, begun, batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)


class TestTrim:
    def trim(self, loss_fn=None, start=None, **options):
        params, model_state = (original()[0], ()) if start is None else start
        batches = options.pop("batches", [DATA.forget])
        options = {"fraction": 0.2, "initializer": ones()} | options
        return params, trim_network(KEY, loss_fn or lift(plain_loss), params, model_state, batches, **options)

    def marked(self, mask):
        flags = zip(trees.leaf_names(mask), jax.tree.leaves(mask), strict=True)
        return {name: int(leaf.sum()) for name, leaf in flags}

    @pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
    def test_the_rounded_share_of_the_ranked_weights_is_redrawn(self, fraction):
        params, trimmed = self.trim(fraction=fraction)
        marked = self.marked(trimmed.mask)
        assert sum(marked.values()) == max(1, round(fraction * (4 * 6 + 6 * 3)))
        assert marked["0/hidden/bias"] == 0
        # What is marked became one, all the rest is bit-equal.
        expected = jax.tree.map(lambda w, m: jnp.where(m, 1.0, w), params, trimmed.mask)
        assert same_bits(trimmed.params, expected)

    def test_the_most_salient_weights_are_marked(self):
        params, trimmed = self.trim()
        gradient = GRADIENT(params, DATA.forget)
        scores = jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, params)
        kernels = [scores[0]["hidden"].kernel, scores[1][0]]
        masks = [trimmed.mask[0]["hidden"].kernel, trimmed.mask[1][0]]
        inside = np.concatenate([np.asarray(s)[np.asarray(m)] for s, m in zip(kernels, masks, strict=True)])
        outside = np.concatenate([np.asarray(s)[~np.asarray(m)] for s, m in zip(kernels, masks, strict=True)])
        assert inside.min() >= outside.max()

    def test_trimmed_weights_lie_inside_the_pattern_and_the_share_is_of_it(self):
        _, trimmed = self.trim(trim="1", fraction=0.5)
        assert self.marked(trimmed.mask) == {"0/hidden/kernel": 0, "0/hidden/bias": 0, "1/0": 9}

    def test_ranking_more_than_is_trimmed_trims_fewer(self):
        _, everywhere = self.trim(fraction=0.3)
        _, trimmed = self.trim(trim="1", rank="0/hidden/kernel|1", fraction=0.3)
        marked = self.marked(trimmed.mask)
        assert 0 < marked["1/0"] < round(0.3 * 42)
        assert marked == {**self.marked(everywhere.mask), "0/hidden/kernel": 0}

    def test_batches_of_the_saliency_pass_need_not_have_one_size(self):
        _, whole = self.trim()
        _, parts = self.trim(
            batches=[jax.tree.map(lambda leaf, p=p: leaf[p], DATA.forget) for p in (slice(4), slice(4, 6))]
        )
        assert same_bits(whole.mask, parts.mask)
        assert parts.losses.shape == (2,)

    def test_paper_mode_scores_in_eval_mode_and_leaves_statistics_alone(self):
        for train, moved in ((False, 0), (True, 1)):
            _, trimmed = self.trim(LOSS, original(), semantics=Semantics(saliency_train=train))
            assert int(trimmed.model_state["count"]) == moved

    @pytest.mark.parametrize("mode", ["paper", "authors"])
    def test_it_is_compiled_and_mapped_over_keys_and_networks_like_any_pure_function(self, mode):
        def trimmed(key, params):
            batches = [DATA.forget]
            options = {"fraction": 0.3, "initializer": "uniform", "semantics": SEMANTICS[mode]}
            return trim_network(key, lift(plain_loss), params, (), batches, **options)

        keys, params = jax.random.split(KEY), original()[0]
        networks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), params)
        alone = [trimmed(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], networks)) for i in range(2)]
        expected = jax.tree.map(lambda *each: jnp.stack(each), *alone)
        mapped = jax.jit(jax.vmap(trimmed))(keys, networks)
        assert same_bits(mapped.mask, expected.mask)
        chex.assert_trees_all_close(mapped, expected, rtol=1e-6, atol=1e-7)
        compiled = jax.jit(trimmed)(keys[0], params)
        assert same_bits(compiled.mask, alone[0].mask)
        chex.assert_trees_all_close(compiled, alone[0], rtol=1e-6, atol=1e-7)

    def test_vectors_and_bn_names_are_trimmed_only_on_demand(self):
        vector, matrix = jnp.ones(6), jnp.ones((6, 3))
        params = {"bn1": {"scale": vector, "kernel": matrix}, "downsample": {"scale": vector}}
        params |= {"conv": {"kernel": matrix, "bias": vector}}
        norms = ["bn1/kernel", "bn1/scale"]
        for semantics, names in (
            (Semantics(), ["bn1/kernel", "conv/kernel"]),
            (Semantics(trim_vectors=True), [*norms, "conv/bias", "conv/kernel", "downsample/scale"]),
            (Semantics(trim_vectors=True, skip_bn_names=True), ["conv/bias", "conv/kernel", "downsample/scale"]),
        ):

            def total(params, batch):
                return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * jnp.mean(batch)

            batches = [jnp.ones(2)]
            _, trimmed = self.trim(lift(total), (params, ()), batches=batches, fraction=0.9, semantics=semantics)
            assert [name for name, count in self.marked(trimmed.mask).items() if count] == names

    def test_biases_with_several_axes_are_left_alone_like_all_others(self):
        conv = {"weight": jnp.ones((4, 2, 3, 3)), "bias": jnp.ones((4, 1, 1))}  # of Equinox
        params = {"conv": conv, "query": {"kernel": jnp.ones((6, 2, 3)), "bias": jnp.ones((2, 3))}}  # of Flax
        _, trimmed = trimming_mask(params, params, fraction=0.9)
        assert jax.tree.leaves(trimmed) == [False, True, False, True]
        _, trimmed = trimming_mask(params, params, fraction=0.9, semantics=Semantics(trim_vectors=True))
        assert all(jax.tree.leaves(trimmed))

    def test_stacked_layers_are_trimmed_as_layers(self):
        layer = {"weight": jnp.ones((4, 6, 5)), "bias": jnp.ones((4, 6))}
        params = {"norm": {"weight": jnp.ones((4, 5))}, "layer": layer}  # of Equinox, mapped
        _, trimmed = trimming_mask(params, params, fraction=0.9)
        assert trimmed == {"norm": {"weight": False}, "layer": {"weight": True, "bias": False}}
        params = {"w": jnp.ones((4, 5, 5)), "b": jnp.ones((4, 5))}
        _, trimmed = trimming_mask(params, params, fraction=0.9, stacked=".*")
        assert trimmed == {"w": True, "b": False}

        def total(params, batch):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * jnp.mean(batch)

        method = scissorhands(lift(total), PLAIN_SGD, fraction=0.5, ceiling=9.0, batch_size=2, stacked=".*")
        begun = method.init(KEY, params, (), Data(jnp.ones((2, 1)), jnp.ones((2, 1)))).params
        assert same_bits(begun["b"], params["b"])
        drawn = np.abs(begun["w"][begun["w"] != 1])
        assert len(drawn) == 50
        assert 5**-0.5 * 0.8 < drawn.max() < 5**-0.5

    @pytest.mark.parametrize("mode", ["paper", "authors"])
    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
    def test_a_share_that_is_none_is_refused_in_both_modes(self, mode, fraction):
        params = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3)}
        with pytest.raises(InputError, match="fraction must lie strictly between 0 and 1"):
            trimming_mask(params, params, fraction=fraction, semantics=SEMANTICS[mode])

    @pytest.mark.parametrize(("fraction", "count", "marked"), [(0.9, 1000, 900), (0.9, 20, 18), (0.7, 100, 70)])
    def test_the_published_cut_keeps_the_share_that_is_meant(self, fraction, count, marked):
        """1 - 0.9 is a little below 0.1, and a thousand times that a little below 100."""
        params = {"kernel": jnp.arange(1.0, count + 1).reshape(2, -1)}
        mask, _ = trimming_mask(params, params, fraction=fraction, semantics=SEMANTICS["authors"])
        assert int(masks.count_marked(mask)) == marked

    def test_patterns_that_select_nothing_to_trim_are_refused(self):
        with pytest.raises(InputError, match="matches none of the 3 parameter arrays"):
            self.trim(trim="layer4")
        with pytest.raises(InputError, match="selects only biases and scales"):
            self.trim(trim="0/hidden/bias")
        params = {"bn1": {"scale": jnp.ones(3)}, "fc": jnp.ones((3, 2))}
        with pytest.raises(InputError, match="'bn1' selects only arrays of BatchNorm by the name bn, which are not"):
            trimming_mask(params, params, fraction=0.1, trim="bn1", semantics=SEMANTICS["authors"])

    @pytest.mark.parametrize("patterns", [{"trim": "layer4"}, {"rank": "layer4"}])
    def test_patterns_are_refused_before_weights_are_scored(self, patterns):
        def unread():
            pytest.fail("a batch was scored")
            yield

        with pytest.raises(InputError, match="matches none of the 3 parameter arrays"):
            self.trim(batches=unread(), **patterns)

    def test_scores_that_are_not_finite_are_refused(self):
        params = original()[0]
        params[1] = (params[1][0].at[0, 0].set(jnp.nan),)
        with pytest.raises(InputError, match="not finite"):
            self.trim(start=(params, ()))

    def test_only_scores_that_are_ranked_must_be_finite(self):
        params = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "mask": jnp.ones((2, 2))}
        scores = params | {"mask": jnp.full((2, 2), jnp.nan)}
        mask, _ = trimming_mask(scores, params, fraction=0.5, trim="kernel")
        assert int(masks.count_marked(mask)) == 3
        with pytest.raises(InputError, match="saliency of mask is not finite"):
            trimming_mask(scores, params, fraction=0.5)

    def test_no_batch_is_refused(self):
        with pytest.raises(InputError, match="without a batch of examples; give at least one"):
            self.trim(batches=[])


def test_constraint_gradients_are_running_sums_in_the_type_of_the_params():
    batches = [examples(4, seed) for seed in range(3)]
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        params, model_state = original(dtype=dtype)
        rows, losses = constraint_gradients(lift(plain_loss), params, model_state, batches)
        gradients = [GRADIENT(params, batch) for batch in batches]
        sums = [functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), gradients[: k + 1]) for k in range(3)]
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums)
        chex.assert_trees_all_equal_shapes_and_dtypes(rows, expected)
        chex.assert_trees_all_close(rows, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(losses, [plain_loss(params, batch) for batch in batches], rtol=1e-2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"fraction": 0.0}, "fraction must lie strictly between 0 and 1, got 0.0"),
            ({"fraction": 1.0}, "fraction must lie strictly between 0 and 1, got 1.0"),
            ({"forget_weight": -0.1}, "forget_weight must not be negative, got -0.1"),
            ({"ceiling": None}, "a forget batch in every step drives the forget loss up without bound, so it needs a"),
            ({"ceiling": 0.0}, "ceiling must be above 0, got 0.0"),
            ({"ceiling": float("nan")}, "ceiling must be above 0, got nan"),
            ({"mode": "thesis"}, "mode is 'thesis'; choose one of paper, authors"),
            ({"pair": "both"}, "pair is 'both'; choose one of auto, vmap, sequential"),
            ({"num_constraints": 2}, "num_constraints = 2 needs constraints_per_epoch"),
            ({"num_constraints": 11, "mode": "authors"}, "num_constraints must be 1 to 10, got 11"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"forget_batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"saliency": True}, "no setting 'saliency'; near matches: saliency_train, saliency_batches"),
            ({"margin": -1.0}, "margin must not be negative, got -1.0"),
            ({"margin": "half"}, "the departure margin must be float, got 'half'"),
            ({"saliency_train": "yes"}, "the departure saliency_train must be bool, got 'yes'"),
            ({"saliency_batches": 2.5}, r"the departure saliency_batches must be int \| None, got 2.5"),
            ({"project_every": 0}, "project_every and saliency_batches must be at least 1"),
            ({"saliency_batches": 0}, "project_every and saliency_batches must be at least 1"),
            ({"saliency_share": 0.5, "mode": "authors"}, r"weights are scored on 1 of its batches here"),
            ({"saliency_share": 0.5, "saliency_batches": 3}, r"weights are scored on 3 of its batches here"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            scissorhands(LOSS, PLAIN_SGD, **({"fraction": 0.1, "ceiling": 1.0} | settings))

    def test_a_ceiling_is_a_number_or_the_word_uniform(self):
        assert build("scissorhands", ceiling="uniform").init(KEY, *original(), DATA).aux.ceiling == np.float32(
            np.log(3)
        )
        off = build("scissorhands", ceiling="off").init(KEY, *original(), DATA).aux
        assert off.ceiling == np.finfo(np.float32).max
        with pytest.raises(InputError, match="ceiling is 'held_out'; choose one of uniform, held-out, off"):
            build("scissorhands", ceiling="held_out")

    def test_a_projection_pattern_that_matches_nothing_is_refused(self):
        method = scissorhands(lift(plain_loss), PLAIN_SGD, fraction=0.1, project="layer4", batch_size=6, ceiling=1.0)
        with pytest.raises(InputError, match="layer pattern 'layer4' matches none"):
            method.init(KEY, original()[0], (), DATA)

    def test_initializers_are_taken_by_name(self):
        with pytest.raises(InputError, match="no initializer 'xavier'"):
            build("scissorhands", initializer="xavier")


class TestOneCompilationForAllValues:
    """Numbers travel in the carry, so that a sweep over them compiles nothing after its first value."""

    def test_scissorhands(self):
        def sweep(**changes):
            settings = dataclasses.replace(METHODS["scissorhands"](epochs=1, batch_size=4), **changes)
            method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
            return run(method, KEY, *tiny.start(), tiny.data(), num_epochs=1).params

        first = sweep()
        changes = (
            {"forget_weight": 0.7},
            {"ceiling": 0.5},
            {"fraction": 0.2},
            {"learning_rate": 0.3},
            {"weight_decay": 0.1},
        )
        with Compilations() as compilations:
            results = [sweep(**change) for change in (*changes, {"momentum": 0.5})]
        assert compilations.names == []
        for result in results:
            assert not same_bits(result, first)

    def test_ceiling_and_schedule_are_those_of_the_mode_unless_given(self):
        paper, authors = METHODS["scissorhands"](), METHODS["scissorhands"](mode="authors")
        assert (paper.ceiling, paper.schedule) == ("uniform", "linear")
        assert (authors.ceiling, authors.schedule) == ("off", "drops")
        assert paper.changed(mode="authors") == authors
        assert authors.changed(mode="paper") == paper
        assert paper.changed(schedule="cosine").changed(mode="authors").schedule == "cosine"
        assert paper.changed(mode="authors", ceiling=2.0).ceiling == 2.0
        assert config.override(paper, ["ceiling=off"]).ceiling == "off"
        assert config.override(paper, ["mode=authors", "ceiling=1.5"]) == authors.changed(ceiling=1.5)

    def test_equal_settings_make_equal_steps(self):
        settings = METHODS["scissorhands"]()
        steps = [settings.build(tiny.model(), classification_loss(tiny.model()), 3).step for _ in range(2)]
        assert steps[0] == steps[1]
        assert hash(steps[0]) == hash(steps[1])
        other = dataclasses.replace(settings, projected=False).build(tiny.model(), tiny.loss(), 3).step
        assert steps[0] != other
