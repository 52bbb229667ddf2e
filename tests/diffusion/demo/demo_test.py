"""A diffusion network that forgets a digit: numbers against closed forms, and command and experiment in small."""

import dataclasses
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from rich.console import Console

from experiments import diffusion_digits
from scissorhands_jax import Model, files, report, trees
from scissorhands_jax.base import Data, Method, new_carry
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import ceilings, schedules
from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS
from scissorhands_jax.diffusion.demo import attacking, drawing, forgetting, judging, methods, settings, training
from scissorhands_jax.diffusion.demo import page as digits_page
from scissorhands_jax.diffusion.demo import scene as scene_lib
from scissorhands_jax.diffusion.demo.drawings_figures import drawings_figure
from scissorhands_jax.diffusion.unet import Noisy, UNetConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances
from scissorhands_jax.report import provenance

REAL_NETWORK = training.digits_network
NETWORKS = [*settings.DEMONSTRATED, settings.PUBLISHED]
TINY = settings.DigitsSettings(
    digit=3,
    network=dataclasses.replace(settings.DIGITS_NETWORK, context_width=100),
    training=settings.DigitsTraining(epochs=1, batch_size=512),
    unlearning=settings.DigitsUnlearning(epochs=1, batch_size=512, forget_batch_size=8),
    sampling=settings.DigitsSampling(steps=3, forgotten=4, kept=2, unasked=3, batch_size=9, resamples=3),
)


def _predict(params, model_state, x, *, train, key=None):
    """Linear in every place, in the text and in time."""
    layers = params["mid"]
    text = x.context[:, 0] @ layers["attn1"]["kernel"] + x.timesteps[:, None] / 1000 @ layers["time"]["kernel"]
    return x.latents @ layers["conv"]["kernel"] + text[:, None, None], model_state


def _init(key):
    first, second = jax.random.split(key)
    return {
        "mid": {
            "attn1": {"kernel": jax.random.normal(first, (100, 4)) / 10},
            "conv": {"kernel": jax.random.normal(second, (4, 4)) / 2},
            "time": {"kernel": jnp.zeros((1, 4))},
        }
    }, {}


LINEAR = Model(_init, _predict)


@pytest.fixture(scope="module", autouse=True)
def linear():
    """A network that compiles in a moment; the UNet has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "digits_network", lambda config: LINEAR)
        yield


@pytest.fixture(scope="module")
def scene():
    return scene_lib.make_scene(TINY)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo") / "out", "--digit", "3", "--published")


def demo(folder, *words):
    """The command, with a network and counts that are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DigitsSettings", lambda **changes: dataclasses.replace(TINY, **changes))
        assert cli.main(["demo", "diffusion", "--out", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def document(out):
    return json.loads((out / "results.json").read_text())


def without_cost(rows):
    return [{name: value for name, value in row.items() if name != "cost"} for row in rows]


class TestFrechetDistance:
    def exact(self, mean, covariance, count=12):
        """Rows whose mean and covariance are these to rounding."""
        rows = np.random.default_rng(count).normal(size=(count, len(mean)))
        rows -= rows.mean(axis=0)
        white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T)).T)
        return white @ np.linalg.cholesky(covariance).T + mean

    def test_of_independent_coordinates(self):
        first = self.exact(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
        second = self.exact(np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]), count=20)
        expected = (1 + 0 + 4) + (1 + 0 + 4)  # of means, and of standard deviations
        assert distances.frechet_distance(first, second) == pytest.approx(expected)

    def test_of_any_covariances(self):
        draw = np.random.default_rng(0)
        covariances = [root @ root.T for root in draw.normal(size=(2, 4, 4))]
        first, second = (self.exact(np.zeros(4), covariance) for covariance in covariances)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        expected = np.trace(covariances[0] + covariances[1] - 2 * root)
        assert distances.frechet_distance(first, second) == pytest.approx(expected)
        assert distances.frechet_distance(second, first) == pytest.approx(expected)

    def test_to_itself_it_is_nothing_also_with_fewer_rows_than_columns(self):
        rows = np.random.default_rng(1).normal(size=(5, 9))
        assert distances.frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
        assert distances.frechet_distance(rows, rows + 2) == pytest.approx(9 * 4)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (np.zeros((1, 2)), np.zeros((3, 2))),
            (np.zeros((3, 2)), np.zeros((3, 4))),
            (np.zeros(3), np.zeros(3)),
            (np.full((3, 2), np.nan), np.zeros((3, 2))),
        ],
    )
    def test_what_has_none(self, first, second):
        with pytest.raises(InputError, match=r"two arrays of shape|NaN"):
            distances.frechet_distance(first, second)


def test_folding_keeps_squares_of_pixels_together():
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    latents = scene_lib.fold_images(images)
    assert latents.shape == (3, 4, 4, 4)
    np.testing.assert_allclose(latents[1, 2, 3], 2 * images[1, 4:6, 6:8, 0].ravel() - 1, atol=1e-6)
    np.testing.assert_allclose(scene_lib.unfold_latents(latents), images, atol=1e-6)


def test_the_network_is_a_small_unet():
    """Shapes alone, except for a smaller one that is really initialised."""
    model = REAL_NETWORK(settings.DIGITS_NETWORK)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 283_564
    noisy = Noisy(jnp.zeros((2, 4, 4, 4)), jnp.zeros(2), jnp.zeros((2, 1, 32)))
    assert jax.eval_shape(lambda p: model.apply(p, state, noisy, train=False)[0], params).shape == (2, 4, 4, 4)
    small = REAL_NETWORK(UNetConfig(widths=(4,), attention=(False,), layers_per_block=1, heads=1, groups=2))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(small.init(jax.random.key(0))))


def test_guidance_leads_from_the_empty_text_to_the_one_that_was_asked_for():
    predict = lambda noisy: noisy.latents + noisy.context.sum(axis=(1, 2))[:, None, None, None]  # noqa: E731
    latents, asked, empty = jnp.ones((2, 1, 1, 1)), jnp.array([[[3.0]], [[5.0]]]), jnp.zeros((1, 1, 1))
    for guidance in (0.0, 1.0, 2.0):
        found = schedules.guided(predict, asked, empty, guidance)(latents, jnp.float32(7))
        np.testing.assert_allclose(found.ravel(), [1 + 3 * guidance, 1 + 5 * guidance])


def test_texts_are_dropped_in_training_but_not_where_another_is_to_take_their_place():
    def loss_fn(params, model_state, batch, *, train, key):
        return batch["context"].mean(axis=(1, 2)), model_state

    dropping = training.TextDropping(loss_fn, 0.25)
    batch = {"context": jnp.ones((4000, 1, 8))}
    kept, _ = dropping({}, {}, batch, train=True, key=jax.random.key(0))
    assert set(np.unique(kept)) == {0, 1}  # whole texts
    assert kept.mean() == pytest.approx(0.75, abs=0.03)  # four standard deviations
    for given, key in ((batch, None), (batch | {"pseudo": batch["context"]}, jax.random.key(0))):
        assert dropping({}, {}, given, train=True, key=key)[0].min() == 1


class TestExamples:
    def test_what_is_retained_holds_no_forgotten_digit(self, scene):
        data = scene_lib.digit_examples(scene, 3, 4)
        labels = scene.train["label"]
        np.testing.assert_array_equal(data.forget["latents"], scene_lib.fold_images(scene.train["image"][labels == 3]))
        np.testing.assert_array_equal(data.retain["latents"], scene_lib.fold_images(scene.train["image"][labels != 3]))
        np.testing.assert_array_equal(data.retain["context"], scene.texts[labels[labels != 3]])
        assert not (data.retain["context"] == scene.texts[3]).all(axis=(1, 2)).any()
        assert "pseudo" not in data.retain
        assert (data.forget["context"] == scene.texts[3]).all()
        assert (data.forget["pseudo"] == scene.texts[4]).all()

    def test_all_digits_and_none_to_forget(self, scene):
        data = scene_lib.digit_examples(scene, None)
        assert len(data.retain["latents"]) == 1347
        assert len(data.forget["latents"]) == 0

    def test_the_empty_text_is_nothing_and_the_others_differ(self, scene):
        assert not scene.texts[10].any()
        assert len(np.unique(scene.texts, axis=0)) == 11

    def test_the_judge_takes_noise_and_grey_for_no_digit(self, scene):
        draw = np.random.default_rng(0)
        images = np.stack(
            [draw.uniform(size=(8, 8, 1)), np.full((8, 8, 1), 0.5), np.indices((8, 8)).sum(0)[..., None] % 2]
        )
        assert set(judging.judge_digits(scene, images)) == {settings.NO_DIGIT}
        assert (judging.judge_digits(scene, scene.train["image"]) == scene.train["label"]).mean() > 0.99

    def test_an_anchor_is_seen_under_the_forgotten_text(self, scene):
        plain, data = scene_lib.digit_examples(scene, 3), scene_lib.digit_examples(scene, 3, anchor=0.2)
        total = len(plain.retain["latents"])
        more = len(data.retain["latents"]) - total
        assert more == round(0.2 * total)
        for name, values in plain.retain.items():
            np.testing.assert_array_equal(data.retain[name][:total], values)
        assert (data.retain["context"][total:] == scene.texts[3]).all()
        known = {latents.tobytes() for latents in plain.retain["latents"]}
        assert {latents.tobytes() for latents in data.retain["latents"][total:]} <= known
        assert len(np.unique(data.retain["latents"][total:], axis=0)) > 0.98 * more  # without replacement

    def test_the_judge_learned_from_training_digits_alone(self, scene):
        found = judging.judge_digits(scene, scene.test["image"])
        assert 0.97 < np.mean(found == scene.test["label"]) < 1
        train = {image.tobytes() for image in scene.train["image"]}
        assert not any(image.tobytes() in train for image in scene.test["image"])


def test_only_the_share_of_the_attention_is_drawn_anew_and_none_of_it_without_re_initialisation(scene):
    chosen = dataclasses.replace(TINY.unlearning, epochs=0)
    original, _ = LINEAR.init(jax.random.key(5))
    method = training._unlearning_method(TINY.network, 0.1, chosen, 3, settings.Variant(True, True))
    data = scene_lib.digit_examples(scene, 3, 4)
    params = method.init(jax.random.key(0), original, {}, data).params
    moved = {
        name: int(np.sum(before != after))
        for name, before, after in zip(
            trees.leaf_names(original), jax.tree.leaves(original), jax.tree.leaves(params), strict=True
        )
    }
    attention = {name: count for name, count in moved.items() if "/attn" in name}
    assert sum(moved.values()) == sum(attention.values())
    weights = [leaf for name, leaf in zip(moved, jax.tree.leaves(original), strict=True) if "/attn" in name]
    assert sum(moved.values()) == round(chosen.fraction * sum(leaf.size for leaf in weights if leaf.ndim > 1))
    untrimmed = training._untrimmed(method).init(jax.random.key(0), original, {}, data)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), original, untrimmed.params)))


class TestDraw:
    def test_a_drawing_depends_on_its_digit_and_number_alone(self, scene):
        """A network that sees the text: batches, order and other drawings make no difference."""
        params, _ = LINEAR.init(jax.random.key(5))
        alone = drawing.draw_digits(TINY, scene, params, np.array([7, 7]))
        among = drawing.draw_digits(TINY, scene, params, np.array([2] * 8 + [7] * 5 + [10]))
        assert alone.shape == (2, 8, 8, 1)
        np.testing.assert_allclose(alone, among[8:10], atol=1e-5)
        assert abs(alone[0] - alone[1]).max() > 0.1

    def test_a_network_that_predicts_nothing_leaves_the_noise(self, scene, monkeypatch):
        """DDIM then multiplies by the square root of the ratio of the last to the first share of the signal."""
        still = Model(lambda key: ({}, {}), lambda params, state, x, *, train, key=None: (0 * x.latents, state))
        monkeypatch.setattr(training, "digits_network", lambda config: still)
        images = drawing.draw_digits(TINY, scene, {}, np.full(9, 4))
        words = np.asarray(jax.random.key_data(scene.keys["noise"])).ravel().tolist()
        noise = np.random.default_rng([*words, 4]).standard_normal((9, 4, 4, 4), np.float32)
        shares = schedules.signal_shares(settings.DIGITS_SCHEDULE)
        stride = 1000 // 3
        factor = np.sqrt(shares[1] / shares[2 * stride + 1])
        last = np.sqrt(shares[0] / shares[1]) if stride > 1 else 1
        np.testing.assert_allclose(images, np.clip(scene_lib.unfold_latents(factor * last * noise), 0, 1), atol=1e-4)


class TestCommand:
    def test_there_is_a_row_for_every_network(self, document):
        assert [row["network"] for row in document["rows"]] == NETWORKS
        assert document["settings"]["digit"] == 3
        assert document["instead"] == 4
        for row in document["rows"]:
            for name, total in (("forget", 4), ("kept", 18), ("unasked", 3)):
                assert row[name]["total"] == total
                assert row[name]["low"] <= row[name]["percent"] == 100 * row[name]["count"] / total <= row[name]["high"]
            assert sum(row["became"]) == 4
            assert row["became"][3] == row["forget"]["count"]
            assert row["any_digit"]["count"] == 4 - row["became"][settings.NO_DIGIT]
            assert row["frechet"]["low"] <= row["frechet"]["value"] <= row["frechet"]["high"]
            assert row["frechet"]["images"] == 18
            assert row["error_forget"]["digits"] + row["error_kept"]["digits"] == 450
        steps = {row["network"]: row["cost"]["steps"] for row in document["rows"]}
        assert len({steps[name] for name in NETWORKS[2:]}) == 1  # as many as the forget set has batches
        assert steps[report.ORIGINAL] == steps[report.REFERENCE] == 3

    def test_what_it_was_made_with(self, document):
        assert document["versions"]["jax"] == jax.__version__
        assert document["machine"]["cores"]
        phases = document["seconds"]
        assert phases["total"] == pytest.approx(sum(value for name, value in phases.items() if name != "total"))
        assert {"data and judge", "original: training", "scissorhands: unlearning"} <= set(phases)

    def test_the_floor_is_of_real_digits(self, document, scene):
        assert document["real"]["judge"]["count"] == np.sum(
            judging.judge_digits(scene, scene.test["image"]) == scene.test["label"]
        )
        assert (
            445 <= document["real"]["any_digit"]["count"] <= 446
        )  # all but one in a hundred, by the definition of the reach
        assert document["real"]["frechet"]["value"] < min(row["frechet"]["value"] for row in document["rows"])

    def test_page_and_pictures(self, out, document):
        page = (out / "report.html").read_text()
        assert "A diffusion network forgets the 3" in page
        assert page.count("data:image/png;base64,") == 2
        assert all(network in page for network in NETWORKS[2:])
        for sentence in findings(document):
            assert html.escape(sentence) in page
        for name in ("before_after", "controls"):
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_the_published_codes_loss_is_there_if_it_is_asked_for(self, tmp_path, document):
        folder = demo(tmp_path / "out", "--digit", "3")
        fewer, page = json.loads((folder / "results.json").read_text()), (folder / "report.html").read_text()
        assert without_cost(fewer["rows"]) == without_cost(document["rows"])[:-1]
        assert [row["network"] for row in fewer["rows"]] == list(settings.DEMONSTRATED)
        assert findings(fewer) == [line for line in findings(document) if not line.startswith("Another text")]
        assert all(network in page for network in NETWORKS[2:-1])
        assert settings.PUBLISHED not in page

    def test_a_second_demo_needs_permission(self, out, capsys):
        assert cli.main(["demo", "diffusion", "--out", str(out)]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert (out / "results.json").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["diffusion", "--digit", "10"], "--digit must be 0 to 9, got 10"),
            (["diffusion", "--digit", "-1"], "--digit must be 0 to 9, got -1"),
            (["diffusion", "--seed", "-1"], "the seed must be a whole number from 0 to 4294967295, got -1"),
            (["diffusion", "--seeds", "2"], "--seeds belongs to `demo`"),
            (["--digit", "2"], "--digit belongs to `demo diffusion`"),
            (["--published"], "--published belongs to `demo diffusion`"),
        ],
    )
    def test_bad_input_is_refused_before_anything_happens(self, tmp_path, capsys, words, message):
        assert cli.main(["demo", *words, "--out", str(tmp_path / "out")]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


def numbers(row):
    """A row of `results.json` as the demonstration has it."""
    shares = {name: judging.DigitShare(**row[name]) for name in ("forget", "kept", "unasked", "any_digit")}
    errors = {name: judging.MeanError(**row[name]) for name in ("error_forget", "error_kept")}
    distance, cost = judging.PixelDistance(**row["frechet"]), training.TrainingCost(**row["cost"])
    return judging.NetworkNumbers(**row | shares | errors | {"frechet": distance, "cost": cost})


def findings(document):
    """The sentences of a page with these results."""
    real = {name: judging.DigitShare(**document["real"][name]) for name in ("judge", "unasked", "any_digit")}
    distance = judging.PixelDistance(**document["real"]["frechet"])
    return digits_page.findings(
        [numbers(row) for row in document["rows"]], judging.RealNumbers(frechet=distance, **real)
    )


class TestFindings:
    @pytest.mark.parametrize(
        ("forgotten", "kept", "says"),
        [
            (30, 880, "It forgets about the same, as far as this number of drawings shows, and keeps about the same."),
            (100, 880, "It forgets less, and keeps about the same."),
            (5, 700, "It forgets more, and keeps less."),
            (30, 900, "It forgets about the same, as far as this number of drawings shows, and keeps more."),
        ],
    )
    def test_controls_are_judged_by_intervals(self, document, forgotten, kept, says):
        changed = json.loads(json.dumps(document))
        rows = {row["network"]: row for row in changed["rows"]}
        for name, counts in (("scissorhands", (25, 870)), ("no projection", (forgotten, kept))):
            shares = (dataclasses.asdict(judging.digit_share(*pair)) for pair in zip(counts, (150, 900), strict=True))
            rows[name] |= dict(zip(("forget", "kept"), shares, strict=True))
        (said,) = [line for line in findings(changed) if line.startswith("No projection: ")]
        assert said.endswith(says)


class TestVariants:
    def test_each_leaves_out_what_it_says(self, scene, monkeypatch):
        """What `scissorhands` is asked for, and whether the network begins at the original's weights."""
        asked, begun, data = {}, {}, {}

        def unlearning(config, dropped, chosen, steps, variant):
            weight = chosen.published_weight if variant.replaced else chosen.forget_weight
            asked[variant] = (variant.projected, weight)
            return Method(lambda key, params, *_: new_carry(key, {"w": 2 * params["w"]}, {}, ()), None, None)

        def run(method, key, params, given, epochs, on_step):
            variant = list(asked)[-1]
            begun[variant] = float(method.init(key, params, {}, given).params["w"])
            data[variant] = ("pseudo" in given.forget, len(given.retain["latents"]))
            return training.DrawingNetwork({}, training.TrainingCost(0, 0, 0), {})

        monkeypatch.setattr(training, "_unlearning_method", unlearning)
        monkeypatch.setattr(training, "_run", run)
        monkeypatch.setattr(training, "_ceiling", lambda *arguments: 1.0)
        monkeypatch.setattr(training, "_with_ceiling", lambda method, ceiling: method)
        for variant in settings.VARIANTS.values():
            training.unlearn_digit(TINY, scene, {"w": jnp.float32(1)}, variant)
        whole, literal, unprojected, untrimmed, published = settings.VARIANTS.values()
        weight, other = TINY.unlearning.forget_weight, TINY.unlearning.published_weight
        assert asked == {
            whole: (True, weight),
            literal: (True, weight),
            unprojected: (False, weight),
            untrimmed: (True, weight),
            published: (False, other),
        }
        assert begun == {whole: 2, literal: 2, unprojected: 2, untrimmed: 1, published: 2}
        retained = int(np.sum(scene.train["label"] != 3))
        anchored = retained + round(TINY.unlearning.anchor * retained)
        assert data == {
            whole: (False, anchored),
            literal: (False, retained),
            unprojected: (False, anchored),
            untrimmed: (False, anchored),
            published: (True, retained),
        }

    @pytest.mark.parametrize("given", [None, 0.7])
    def test_only_anchored_variants_have_a_ceiling(self, scene, monkeypatch, given):
        """Which is given, or the loss under the texts of other digits; all share one step."""
        data, params, begun = scene_lib.digit_examples(scene, 3, 4), LINEAR.init(jax.random.key(5))[0], []
        own = dataclasses.replace(TINY, unlearning=dataclasses.replace(TINY.unlearning, ceiling=given))

        def run(method, key, original, data_of_variant, epochs, on_step):
            begun.append((method.step, method.init(jax.random.key(0), params, {}, data).aux.ceiling))
            return training.DrawingNetwork({}, training.TrainingCost(0, 0, 0), {})

        monkeypatch.setattr(training, "_run", run)
        monkeypatch.setattr(ceilings, "other_prompts_ceiling", lambda *arguments: 0.3)
        for name, variant in settings.VARIANTS.items():
            found, (step, ceiling) = training.unlearn_digit(own, scene, params, variant), begun.pop()
            assert found.ceiling == ((given or 0.3) if variant.anchored else None), name
            assert ceiling == pytest.approx(found.ceiling) if variant.anchored else ceiling > 1e30
            assert step is training._unlearning_method(TINY.network, 0.1, TINY.unlearning, 3, variant).step

    def test_the_ceiling_that_follows_from_the_data_is_the_loss_under_other_texts(self, scene):
        """A network that reads nothing but the text: with the right text it knows the image."""
        images = np.zeros((12, 8, 8, 4), np.float32)
        contexts = np.repeat(scene.texts[[3, 5]], 6, axis=0)
        data = Data({"latents": images[:6], "context": contexts[:6]}, {"latents": images[6:], "context": contexts[6:]})

        def loss_fn(params, model_state, batch, *, train, key):
            assert not train
            assert batch["latents"].shape == (64, 8, 8, 4)
            return jnp.mean(jnp.abs(batch["context"] - scene.texts[None, 3]).sum(axis=(1, 2))), model_state

        found = ceilings.other_prompts_ceiling(loss_fn, {}, {}, data, jax.random.key(0))
        assert found == pytest.approx(float(np.abs(scene.texts[5] - scene.texts[3]).sum()), rel=1e-5)


class TestOtherMethods:
    def test_each_has_settings_and_sees_what_it_reads(self, scene):
        for name in CONCEPT_METHODS:
            chosen, data = methods.digit_method(name, TINY), methods.method_examples(name, scene, 3)
            assert {"pseudo", "empty"} & set(chosen.reads) <= set(data.forget)
            assert (data.forget["context"] == scene.texts[3]).all()
            share = (data.retain["context"] == 0).all(axis=(1, 2)).mean()
            assert share == pytest.approx(0.1, abs=0.001)
        shown = methods.method_examples("selective_amnesia", scene, 3).forget["latents"]
        np.testing.assert_array_equal(shown, scene_lib.fold_images(scene.train["image"][scene.train["label"] == 4]))

    def test_one_of_them_and_an_edit_without_steps(self, scene):
        params, _ = LINEAR.init(jax.random.key(5))
        found = training.unlearn_by_method(TINY, scene, params, "neggrad_plus")
        assert set(found.losses) == {"loss_forget", "loss_retain"}
        assert training.unlearn_by_method(TINY, scene, params, "ssd").losses == {}


class TestExperiment:
    def test_it_goes_on_where_it_was_stopped_and_agrees_with_the_demo(self, document, tmp_path, monkeypatch):
        """One digit of a seed gives the same numbers in both, in whatever pieces it was made."""
        file, write = tmp_path / "results.json", files.write_text
        writes = []

        def stop(path, text):
            write(path, text)
            writes.append(path)
            if len(writes) == 2:
                raise KeyboardInterrupt

        own = dataclasses.replace(TINY, digit=0)  # the experiment has digits of its own
        arguments = {"seeds": [0], "forgotten": [3], "names": NETWORKS, "console": Console(quiet=True)}
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_text", stop)
            with pytest.raises(KeyboardInterrupt):
                diffusion_digits.run(file, tmp_path / "work", own, **arguments)
        assert [row["network"] for row in json.loads(file.read_text())["rows"]] == NETWORKS[:2]
        diffusion_digits.run(file, tmp_path / "work", own, **arguments)
        found = json.loads(file.read_text())
        now = provenance.running_code().name
        assert {row["code"] for row in found["rows"]} == {now}
        assert found["code"] == f"All cells were made by {now}."
        rows = [{name: value for name, value in row.items() if name not in ("seed", "code")} for row in found["rows"]]
        assert without_cost(rows) == without_cost(document["rows"])
        assert found["real"]["3"] == document["real"]
        assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
        again = file.read_bytes()
        diffusion_digits.run(file, tmp_path / "work", own, **arguments)
        assert file.read_bytes() == again
        # A second retrained network and another seed are further rows of the same file.
        # One of its own alone has a picture, too.
        assert diffusion_digits.picture(tmp_path / "work", found, 0, [3], [settings.PUBLISHED]) is not None
        more = arguments | {"seeds": [0, 1], "names": [report.REFERENCE, settings.RETRAINED_AGAIN]}
        diffusion_digits.run(file, tmp_path / "work", own, **more)
        added = json.loads(file.read_text())["rows"][len(rows) :]
        assert [(row["seed"], row["network"]) for row in added] == [
            (0, settings.RETRAINED_AGAIN),
            (1, report.REFERENCE),
            (1, settings.RETRAINED_AGAIN),
        ]
        retrained = [row for row in found["rows"] if row["network"] == report.REFERENCE]
        assert len({row["error_kept"]["value"] for row in [*retrained, *added]}) == 4

        changed = dataclasses.replace(TINY, training=settings.DigitsTraining(epochs=2))
        with pytest.raises(InputError, match="other settings"):
            diffusion_digits.run(file, tmp_path / "work", changed, **arguments)

    def test_networks_are_attacked_and_the_gate_is_of_originals_and_retrained_ones(self, scene, tmp_path, monkeypatch):
        quick = dataclasses.replace(attacking.DIGITS_ATTACK, steps=4, batch_size=8)
        texts, counts = scene.texts.copy(), []
        params, _ = LINEAR.init(jax.random.key(5))
        share = attacking.attack_digit(TINY, scene, params, attacking=quick)
        assert share.total == TINY.sampling.forgotten
        np.testing.assert_array_equal(scene.texts, texts)  # the found text is of the attack alone

        def attacked(settings, scene, params):
            counts.append(4 if not counts else 0)
            return judging.digit_share(counts[-1], 4)

        monkeypatch.setattr(forgetting, "attack_digit", attacked)
        arguments = {"seeds": [0], "forgotten": [3], "names": NETWORKS[:2], "console": Console(quiet=True)}
        document = diffusion_digits.run(tmp_path / "a.json", tmp_path, TINY, attacked=True, **arguments)
        assert [row["attacked"]["count"] for row in document["rows"]] == [4, 0]
        assert document["summary"]["original"]["attacked"]["mean"]["value"] == 100
        assert document["attack_gate"] == {"original": False, "retrained": False}  # four drawings say too little
        assert "attacked, %" in diffusion_digits.table(document["summary"])
        assert document["settings"]["attack"]["kind"] == "embedding"

    def test_the_summary_says_how_far_networks_are_from_retrained_ones(self):
        def row(network, digit, seed, number):
            value = {"percent": number, "value": number}
            return {"network": network, "digit": digit, "seed": seed} | dict.fromkeys(diffusion_digits.HEADERS, value)

        names = (report.REFERENCE, settings.RETRAINED_AGAIN, settings.WHOLE_METHOD)
        numbers = {(0, 0): (10, 12, 11), (0, 1): (10, 14, 12), (1, 0): (10, 10, 20)}  # by digit and seed
        rows = [row(name, *cell, n) for cell, own in numbers.items() for name, n in zip(names, own, strict=True)]
        assert "distance" not in diffusion_digits.summary(rows[:1])[report.REFERENCE]["kept"]  # as soon as there is one
        found = diffusion_digits.summary(rows)
        again, unlearned = (found[name]["kept"] for name in names[1:])
        assert again["distance"] == (3 + 0) / 2  # of digit 0 the mean of 2 and 4, of digit 1 nothing
        assert unlearned["mean"]["value"] == (11.5 + 20) / 2
        assert unlearned["distance"] == ((1 + 1 + 2 + 2) / 4 + 10) / 2
        assert unlearned["within"] == found[settings.WHOLE_METHOD]["within"] == 1  # the floor is about 4
        assert found[settings.WHOLE_METHOD]["digits"] == 2
        means, away = diffusion_digits.table(found).strip().split("\n\n")
        for row in rows:
            del row["attacked"]
        assert "attacked" not in diffusion_digits.table(diffusion_digits.summary(rows))
        assert "| scissorhands | 15.8 |" in means
        assert away.splitlines()[-1].endswith("| 5.750 (1) | 1 of 2 |")


@pytest.mark.parametrize(
    ("drawings", "labels"),
    [
        ({}, []),
        ({"a": np.zeros((2, 3, 4, 4))}, ["one"]),
        ({"a": np.zeros((1, 3, 4, 4)), "b": np.zeros((1, 2, 4, 4))}, ["one"]),
        ({"a": np.zeros((1, 0, 4, 4))}, ["one"]),
    ],
)
def test_drawings_must_fit_together(drawings, labels):
    with pytest.raises(InputError, match="drawings need one shape"):
        drawings_figure(drawings, labels)
