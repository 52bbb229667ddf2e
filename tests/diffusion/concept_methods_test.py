"""The methods of `sd unlearn` next to Scissorhands, against closed forms on networks of a few weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import Batch, Data, Model, lift, run, trees
from scissorhands_jax.diffusion import anchors, losses, networks, schedules
from scissorhands_jax.diffusion.concept_methods import (
    CONCEPT_METHODS,
    NAMED_PARTS,
    concept_scissorhands,
    concept_training,
    esd,
    named_part,
    replacing,
    selective_amnesia,
    uce,
)
from scissorhands_jax.diffusion.concept_methods.esd import partly_sampled
from scissorhands_jax.diffusion.concept_methods.selective_amnesia import noisy_fisher
from scissorhands_jax.diffusion.concept_methods.uce import edited_kernel
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import drawing_key, microbatched
from scissorhands_jax.methods.scissorhands import constraint_gradients
from scissorhands_jax.training.descriptions import describe_value
from tests.comparison import same_bits

TINY_UNET = networks.outline("unet", networks.TINY)


def of_text():
    """A network that predicts a multiple of its text, everywhere; it does not look at the latents."""

    def apply(params, model_state, x, *, train, key=None):
        return (x.context @ params["w"])[:, :, None] * jnp.ones_like(x.latents), model_state

    return Model(lambda key: ({"w": jnp.ones((2, 1))}, {}), apply)


def of_both():
    """A network that scales its latents and adds what the text gives."""

    def apply(params, model_state, x, *, train, key=None):
        return params["a"] * x.latents + (x.context @ params["w"])[:, :, None], model_state

    return Model(lambda key: ({"a": jnp.float32(1), "w": jnp.ones((2, 1))}, {}), apply)


PARAMS = {"a": jnp.float32(0.4), "w": jnp.array([[0.7], [-0.3]])}
TEXT, OTHER, EMPTY = jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0, -1.0]]]), jnp.array([[[0.5, 0.0]]])


def examples(count=6):
    draw = np.random.default_rng(0)

    def texts(text):
        return jnp.tile(text, (count, 1, 1))

    latents = [jnp.asarray(draw.standard_normal((count, 2, 2, 1)), jnp.float32) for _ in range(2)]
    forget = {"latents": latents[0], "context": texts(TEXT), "pseudo": texts(OTHER), "empty": texts(EMPTY)}
    return Data(forget, {"latents": latents[1], "context": texts(OTHER)})


def stepped(method, params, data):
    """The weights after the first step on all examples, and its metrics."""
    carry = method.init(jax.random.key(1), params, {}, data)
    after, metrics = method.step(carry, Batch(data.forget, data.retain))
    return after.params, metrics, jax.random.fold_in(carry.key, 0)


def close(a, b):
    for first, second in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(first, second, rtol=2e-4, atol=1e-5)


class TestParts:
    def test_names_choose_what_they_say(self):
        for name, kinds in (("cross-attention", {"attn2"}), ("attention", {"attn1", "attn2"})):
            chosen = trees.select(TINY_UNET, named_part(name))
            names = [n for n, c in zip(trees.leaf_names(TINY_UNET), jax.tree.leaves(chosen), strict=True) if c]
            assert {part for n in names for part in n.split("/") if part.startswith("attn")} == kinds
            assert all("/attn" in n for n in names)
        cross, rest = (jax.tree.leaves(trees.select(TINY_UNET, NAMED_PARTS[name])) for name in list(NAMED_PARTS)[:3:2])
        assert [not each for each in cross] == rest
        assert named_part("all") is None is named_part(None)
        assert named_part("up_blocks/1") == "up_blocks/1"

    def test_only_the_part_moves_and_has_a_state(self):
        params = {"x": {"attn2": {"w": jnp.ones(3)}, "attn1": {"w": jnp.ones(3)}}, "y": jnp.ones(2)}
        optimizer = concept_training.training_only(optax.adam(0.1), "cross-attention")
        state = optimizer.init(params)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 3 + 1  # moments of one array, and the count
        assert float(abs(updates["x"]["attn2"]["w"]).min()) > 0
        assert not np.any(updates["y"]) | np.any(updates["x"]["attn1"]["w"])


class TestUce:
    def test_the_kernel_minimises_what_it_says(self):
        draw = np.random.default_rng(1)
        old, erased, places, kept = (draw.standard_normal(shape) for shape in ((5, 3), (2, 5), (2, 5), (4, 5)))
        weights = {"erase_weight": 2.0, "keep_weight": 0.7, "ridge": 0.5}
        with jax.enable_x64(True):
            new = edited_kernel(jnp.asarray(old), erased, places, kept, **weights)

            def objective(kernel):
                square = lambda array: jnp.sum(array**2)  # noqa: E731
                away = 2.0 * square(erased @ kernel - places @ old) + 0.7 * square(kept @ kernel - kept @ old)
                return away + 0.5 * square(kernel - old)

            assert abs(jax.grad(objective)(new)).max() < 1e-9
        exact = edited_kernel(jnp.asarray(old, jnp.float32), erased, places, kept[:1], **weights | {"ridge": 1e-6})
        np.testing.assert_allclose(erased @ exact, places @ old, atol=1e-4)
        np.testing.assert_allclose(kept[:1] @ exact, kept[:1] @ old, atol=1e-4)

    def test_only_keys_and_values_of_cross_attention_change(self):
        draw = np.random.default_rng(2)
        texts = np.eye(32, dtype=np.float32)[:, None]
        data = Data({"context": texts[:2], "pseudo": texts[[5, 5]]}, {"context": texts[7:9]})
        params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape).astype(np.float32), TINY_UNET)
        method = CONCEPT_METHODS["uce"].method(None)
        edited = method.init(jax.random.key(0), params, {}, data).params
        same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, edited)
        assert same == trees.select(params, lambda name, leaf: "attn2/to_k" not in name and "attn2/to_v" not in name)
        assert list(method.batches(jax.random.key(0), data, 0)) == []

    def test_an_edit_without_a_solution_is_refused(self):
        text, kernel = np.ones((1, 2), np.float32), np.ones((2, 3), np.float32)
        with pytest.raises(InputError, match="the edit has no finite solution with ridge = "):
            edited_kernel(kernel, text, text, text, erase_weight=1.0, keep_weight=1.0, ridge=1e-320)

    def test_prompts_of_several_tokens_need_their_last(self):
        data = Data(
            {"context": np.zeros((1, 3, 32)), "pseudo": np.zeros((1, 3, 32))}, {"context": np.zeros((1, 3, 32))}
        )
        with pytest.raises(InputError, match="embeddings of last tokens as 'concept' where prompts have 3"):
            uce().init(jax.random.key(0), {}, {}, data)


class TestEsd:
    def test_a_step_leads_away_from_the_text(self):
        """A network that does not see the latents: target and gradient are known."""
        data, eta, rate = examples(), 1.5, 0.1
        params = {"w": PARAMS["w"]}
        method = esd(of_text(), optax.sgd(rate), eta=eta, sample_steps=4, batch_size=6, steps_per_epoch=3)
        after, metrics, _ = stepped(method, params, data)
        asked, empty = (float((text @ params["w"]).squeeze()) for text in (TEXT, EMPTY))
        target = empty - eta * (asked - empty)
        np.testing.assert_allclose(metrics["loss_replaced"], (asked - target) ** 2, rtol=1e-5)
        slope = 2 * (asked - target) * TEXT[0].T
        np.testing.assert_allclose(after["w"], params["w"] - rate * slope, rtol=1e-5)
        assert len(list(method.batches(jax.random.key(0), data, 0))) == 3
        assert list(method.batches(jax.random.key(0), data._replace(forget=None), 0)) == []  # `init` refuses them
        result = run(method, jax.random.key(0), params, {}, data, num_epochs=30)
        np.testing.assert_allclose((TEXT @ result.params["w"]).squeeze(), target, rtol=1e-3)  # of the original still

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"eta": -1.0}, "eta must not be negative"),
            ({"eta": float("inf")}, "eta must be finite"),
            ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ],
    )
    def test_scales_that_cannot_be_used_are_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            esd(of_text(), optax.sgd(0.1), **options)

    def test_latents_are_sampled_up_to_the_step_that_the_timestep_belongs_to(self):
        data, model, steps = examples(), of_both(), 5
        sampler = schedules.ddim(steps)
        options = {"sampler": jax.tree.map(jnp.asarray, sampler), "guidance": 3.0, "schedule": schedules.SD_V1_SCHEDULE}
        found = jax.jit(lambda key: partly_sampled(model, PARAMS, data.forget, key, **options))
        seen = set()
        for seed in range(12):
            key = jax.random.key(seed)
            noisy = found(key)
            (time,) = set(np.asarray(noisy.timesteps).tolist())
            step = steps - 1 - time // 200
            seen.add(step)
            x = np.asarray(jax.random.normal(jax.random.split(key, 3)[0], (6, 2, 2, 1)))
            texts = [float((text @ PARAMS["w"]).squeeze()) for text in (EMPTY, TEXT)]
            for number in range(step):
                free, asked = (0.4 * x + text for text in texts)
                x = sampler.keep[number] * x + sampler.weights[number, 0] * (free + 3 * (asked - free))
            np.testing.assert_allclose(noisy.latents, x, rtol=1e-3, atol=1e-4)
        assert len(seen) >= 4


def of_timesteps():
    """A network with ten weights, each of which scales the latents at its own tenth of the timesteps."""

    def apply(params, model_state, x, *, train, key=None):
        return params["b"][x.timesteps // 100][:, None, None, None] * x.latents, model_state

    return Model(lambda key: ({"b": jnp.full(10, 0.3)}, {}), apply)


class TestDrawing:
    """Every batch of an estimate draws timesteps and noise of its own, in evaluation mode too."""

    MODEL = of_timesteps()
    PARAMS = MODEL.init(jax.random.key(0))[0]

    def images(self, count, scale):
        latents = np.random.default_rng(count).normal(0, scale, (count, 4, 4, 4)).astype(np.float32)
        return {"latents": latents, "context": np.zeros((count, 3, 8), np.float32)}

    @pytest.mark.parametrize("parts", [1, 4])
    def test_ssd_looks_at_all_timesteps_whatever_the_size_of_its_batches(self, parts):
        settings = dataclasses.replace(CONCEPT_METHODS["ssd"], batch_size=4, microbatches=parts, selection=1.5)
        data = Data(self.images(64, 4.0), self.images(640, 0.1))
        carries = [settings.method(self.MODEL).init(jax.random.key(seed), self.PARAMS, {}, data) for seed in (0, 1)]
        for carry in carries:
            assert np.all(np.asarray(carry.params["b"])[:5] < 0.3)  # later timesteps are nearly noise in either set
        assert not same_bits(carries[0].params, carries[1].params)

    def test_each_constraint_of_an_epoch_and_each_epoch_draws_anew(self):
        loss = losses.noise_loss(self.MODEL)
        batches = [self.images(4, 1.0)] * 12
        held, _ = constraint_gradients(loss, self.PARAMS, {}, batches, key=jax.random.key(0))
        again, _ = constraint_gradients(loss, self.PARAMS, {}, batches, key=jax.random.key(1))
        assert np.count_nonzero(held["b"][-1]) > 7  # of one draw, at most four of the ten would be
        assert not same_bits(held, again)

    def test_parts_of_a_batch_without_a_key_draw_apart(self):
        whole = losses.noise_loss(self.MODEL)
        images = self.images(1, 1.0)
        same = {name: np.repeat(leaf, 12, axis=0) for name, leaf in images.items()}
        divided = microbatched(whole, 12)
        gradient = jax.grad(lambda p: divided(p, {}, same, train=False, key=None)[0])(self.PARAMS)
        assert np.count_nonzero(gradient["b"]) > 5
        assert drawing_key(divided, jax.random.key(3)) is not None
        assert drawing_key(lift(lambda p, b: p["b"].sum()), jax.random.key(3)) is None


class TestReplacing:
    def losses_of(self, data, key):
        """L_r and L_f of a step with this key, each as a function of the weights."""
        keys, loss_fn = jax.random.split(key), losses.concept_loss(of_both())

        def of(part, number, sign):
            return lambda w: sign * loss_fn(w, {}, getattr(data, part), train=True, key=keys[number])[0]

        return of("retain", 0, 1), of("forget", 1, -1)

    def test_salun_moves_the_salient_weights_along_both_losses(self):
        data = examples()
        options = {"noise_loss_fn": losses.noise_loss(of_both()), "fraction": 0.34, "retain_weight": 0.2}
        method = replacing.concept_salun(losses.concept_loss(of_both()), optax.sgd(0.1), batch_size=6, **options)
        after, metrics, key = stepped(method, PARAMS, data)
        retain, forget = self.losses_of(data, key)
        slopes = jax.grad(lambda w: forget(w) + 0.2 * retain(w))(PARAMS)
        moved = jax.tree.map(lambda a, b: a != b, after, PARAMS)
        assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(moved)) == 1  # a third of three weights
        close(after, jax.tree.map(lambda w, g, m: jnp.where(m, w - 0.1 * g, w), PARAMS, slopes, moved))
        np.testing.assert_allclose(metrics["loss_replaced"], forget(PARAMS), rtol=1e-5)

    def test_munba_follows_the_bisector(self):
        data = examples()
        method = replacing.concept_munba(losses.concept_loss(of_both()), optax.sgd(1.0), batch_size=6)
        after, metrics, key = stepped(method, PARAMS, data)
        first, second = (jax.grad(loss)(PARAMS) for loss in self.losses_of(data, key))
        units = [jax.tree.map(lambda leaf, tree=tree: leaf / trees.norm(tree), tree) for tree in (first, second)]
        total = jax.tree.map(jnp.add, *units)
        close(after, jax.tree.map(lambda w, g: w - np.sqrt(2) * g / trees.norm(total), PARAMS, total))
        np.testing.assert_allclose(metrics["cosine"], trees.vdot(*units), rtol=1e-4)

    @pytest.mark.parametrize("weight", [None, 0.3])
    def test_erase_diff_takes_the_least_weight_that_lowers_the_forget_loss(self, weight):
        data = examples()
        method = replacing.erase_diff(
            losses.concept_loss(of_both()), optax.sgd(1.0), eta=0.1, weight=weight, batch_size=6
        )
        after, metrics, key = stepped(method, PARAMS, data)
        retain, forget = (jax.grad(loss)(PARAMS) for loss in self.losses_of(data, key))
        least = 0.1 - trees.vdot(retain, forget) / trees.vdot(forget, forget)
        chosen = max(float(least), 0.0) if weight is None else weight
        np.testing.assert_allclose(metrics["weight"], chosen, rtol=1e-4, atol=1e-6)
        close(after, jax.tree.map(lambda w, r, f: w - r - chosen * f, PARAMS, retain, forget))

    @pytest.mark.parametrize(("retain", "expected"), [([-1.0, 5.0], 0.5 + 0.1), ([1.0, 0.0], 0.0), ([0.1, 0.0], 0.05)])
    def test_the_weight_of_the_rule(self, retain, expected):
        forget = jnp.array([2.0, 0.0])
        weight = replacing.erasing_weight(jnp.array(retain), forget, 0.1)
        np.testing.assert_allclose(weight, expected, atol=1e-6)
        if weight > 0:
            np.testing.assert_allclose((jnp.array(retain) + weight * forget) @ forget, 0.1 * 4, rtol=1e-5)
        assert replacing.erasing_weight(jnp.array(retain), 0 * forget, 0.1) == 0


class TestSelectiveAmnesia:
    def test_fisher_is_the_mean_square_and_holds_the_weights(self):
        data, loss_fn, key = examples(), losses.noise_loss(of_both()), jax.random.key(4)
        batches = [data.retain, data.forget]
        squares = [
            jax.tree.map(jnp.square, jax.grad(lambda w, b=b, n=n: loss_fn(w, {}, b, train=True, key=n)[0])(PARAMS))
            for b, n in zip(batches, (jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)), strict=True)
        ]
        found = noisy_fisher(loss_fn, PARAMS, {}, batches, key)
        close(found, jax.tree.map(lambda a, b: (a + b) / 2, *squares))

    def test_the_penalty_draws_back_to_the_original(self):
        data, rate = examples(), 0.05
        options = {"penalty": 2.0, "retain_weight": 0.5, "fisher_batches": 3, "batch_size": 6}
        method = selective_amnesia(losses.noise_loss(of_both()), optax.sgd(rate), **options)
        carry = method.init(jax.random.key(1), PARAMS, {}, data)
        original, fisher = carry.aux
        assert same_bits(original, PARAMS)
        moved = jax.tree.map(lambda w: w + 0.3, PARAMS)
        after, metrics = method.step(carry._replace(params=moved), Batch(data.forget, data.retain))
        keys = jax.random.split(jax.random.fold_in(carry.key, 0))
        loss_fn = losses.noise_loss(of_both())

        def objective(w):
            forget, retain = (loss_fn(w, {}, batch, train=True, key=k)[0] for batch, k in zip(data, keys, strict=True))
            away = jax.tree.map(lambda f, a, b: jnp.sum(f * (a - b) ** 2), fisher, w, PARAMS)
            return forget + 0.5 * retain + 2.0 * sum(jax.tree.leaves(away))

        close(after.params, jax.tree.map(lambda w, g: w - rate * g, moved, jax.grad(objective)(moved)))
        assert metrics["penalty"] == pytest.approx(
            2 * 0.09 * sum(float(f.sum()) for f in jax.tree.leaves(fisher)), rel=1e-3
        )


def test_the_guided_loss_is_that_of_the_guided_prediction():
    data, key = examples(), jax.random.key(2)
    plain = losses.noise_loss(of_text())(PARAMS, {}, data.forget, train=True, key=key)[0]
    none = losses.guided_noise_loss(of_text(), 0.0)(PARAMS, {}, data.forget, train=True, key=key)[0]
    assert none == pytest.approx(float(plain))
    asked, empty = (float((text @ PARAMS["w"]).squeeze()) for text in (TEXT, EMPTY))
    guided = losses.guided_noise_loss(of_text(), 7.5)(PARAMS, {}, data.forget, train=True, key=key)[0]
    noise = jax.random.normal(jax.random.split(key)[1], (6, 2, 2, 1))
    assert guided == pytest.approx(float(jnp.mean((8.5 * asked - 7.5 * empty - noise) ** 2)), rel=1e-5)


class TestAnchor:
    def test_a_share_of_the_retain_examples_is_seen_under_the_texts_of_forget_examples_in_turn(self):
        forget = {"latents": np.zeros((2, 1)), "context": np.array([[7.0], [8.0]])}
        retain = {"latents": np.arange(10.0)[:, None], "context": np.ones((10, 1))}
        data = anchors.anchored(Data(forget, retain), 0.3)
        assert data.retain["context"].ravel().tolist() == [1.0] * 10 + [7.0, 8.0, 7.0]
        assert len(set(data.retain["latents"][10:].ravel())) == 3
        assert data.forget is forget
        same = Data(forget, retain)
        assert anchors.anchored(same, 0.0) is same

    @pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
    def test_other_shares_are_refused(self, share):
        with pytest.raises(InputError, match="anchor must be a share of the retain images, 0 to 1"):
            anchors.check_anchor(share)


class TestSettings:
    @pytest.mark.parametrize("name", CONCEPT_METHODS)
    def test_every_method_runs_with_its_defaults_and_refuses_what_cannot_be(self, name):
        settings = CONCEPT_METHODS[name]
        for wrong, message in (({"epochs": 0}, "epochs"), ({"learning_rate": 0.0}, "learning_rate")):
            with pytest.raises(InputError, match=message):
                dataclasses.replace(settings, **wrong).method(of_both())
        if name == "uce":
            return
        changes = {"epochs": 2, "batch_size": 3, "train": "all"}
        changes |= {"pseudo": "x"} if isinstance(settings, replacing.ReplacingSettings) else {}
        changes |= {"steps_per_epoch": 2, "sample_steps": 2} if name == "esd" else {}
        changes = {setting: value for setting, value in changes.items() if setting not in settings.unused}
        method = dataclasses.replace(settings, **changes).method(of_both())
        data = examples()
        if name in ("ssd", "selective_amnesia", "finetune", "gradient_ascent", "neggrad_plus", "l1_sparse"):
            data = Data({k: data.forget[k] for k in ("latents", "context")}, data.retain)
        params = run(method, jax.random.key(0), PARAMS, {}, data, num_epochs=2).params
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        assert same_bits(params, PARAMS) == (name == "ssd")  # whose forget set matters no more than the rest here

    @pytest.mark.parametrize("name", [*CONCEPT_METHODS, *concept_scissorhands.PRESETS])
    def test_settings_that_a_method_does_not_read_are_refused(self, name):
        """What it reads is in the description of the method, which differs wherever the method does something else."""
        settings = {**CONCEPT_METHODS, **concept_scissorhands.PRESETS}[name]
        if isinstance(settings, replacing.ReplacingSettings):
            settings = dataclasses.replace(settings, pseudo="x")
        settings, model = dataclasses.replace(settings, train=CONCEPT_METHODS["uce"].train), of_both()
        plain = describe_value((settings.method(model), settings.reads), "method")
        others = {
            **{"batch_size": 4, "microbatches": 2, "pseudo": "y", "optimizer": "sgd", "learning_rate": 0.5},
            **({"batch_size": 6} if settings.batch_size == 4 else {}),
        }
        ignored = set()
        for setting, value in others.items():
            more = {"batch_size": 4} if setting == "microbatches" and settings.batch_size % 2 else {}
            changed = dataclasses.replace(settings, **{setting: value}, **more)
            if setting in settings.unused:
                with pytest.raises(InputError, match=rf"{setting} is .*, and has no effect with this method"):
                    changed.method(model)
                ignored.add(setting)
                continue
            # Another prompt in place of the concept is in the data.
            assert setting == "pseudo" or describe_value((changed.method(model), changed.reads), "method") != plain
            assert setting != "pseudo" or "pseudo" in changed.reads
        assert ignored == set(settings.unused) - {"epochs"}

    @pytest.mark.parametrize(
        ("preset", "changes", "message"),
        [
            ("released", {"ceiling": 0.5}, "ceiling is 0.5, and with pseudo the forget loss is at most 0"),
            ("released", {"ceiling": "other-prompts"}, "ceiling is other-prompts, and with pseudo the"),
            ("paper", {"ceiling": 0.5, "pseudo": "a dog"}, "with pseudo the forget loss is at most 0"),
            ("released", {"anchor": 0.2}, "with departures.fixed_batches no step sees the retain images that it adds"),
        ],
    )
    def test_settings_that_exclude_each_other_are_refused(self, preset, changes, message):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(concept_scissorhands.concept_preset(preset), **changes).method(of_both())

    def test_an_anchor_of_no_image_is_refused(self):
        with pytest.raises(InputError, match=r"an anchor of 0\.01 of 3 retain images is none of them; raise it"):
            anchors.check_anchor(0.01, 3)
        anchors.check_anchor(0.0, 3)

    @pytest.mark.parametrize("name", ["salun", "munba", "erase_diff"])
    def test_what_draws_the_concept_to_another_prompt_needs_one(self, name):
        with pytest.raises(InputError, match="give it as pseudo=PROMPT"):
            CONCEPT_METHODS[name].method(of_both())

    def test_the_authors_second_script(self):
        settings = concept_scissorhands.PRESETS["released-objects"]
        assert settings.reads == ("empty",)
        assert (settings.fraction, settings.learning_rate, settings.forget_weight) == (0.001, 2e-5, 0.1)
        drawn = concept_scissorhands._initializer("trunc_normal")(jax.random.key(0), (4000,), jnp.float32)
        assert float(drawn.std()) == pytest.approx(0.02, rel=0.05)
        chosen = dataclasses.replace(settings, fraction=0.5, trim="all", batch_size=3)
        carry = chosen.method(of_both()).init(jax.random.key(0), PARAMS, {}, examples())
        assert not same_bits(carry.params, PARAMS)
        with pytest.raises(InputError, match="guided must not be negative"):
            dataclasses.replace(settings, guided=-1.0).method(of_both())
