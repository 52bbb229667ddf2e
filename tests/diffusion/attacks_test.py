"""Attacks on networks of a few weights, whose best texts are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import Model
from scissorhands_jax.diffusion import attacks, losses
from scissorhands_jax.diffusion.attacks import AttackSettings
from scissorhands_jax.errors import InputError
from tests.comparison import same_bits


def _predict(params, model_state, x, *, train, key=None):
    return (x.context @ params)[:, :, None] * jnp.ones_like(x.latents), model_state


LOSS = losses.noise_loss(Model(lambda key: (jnp.ones((3, 1)), {}), _predict))
PARAMS = jnp.array([[1.0], [-2.0], [0.5]])
IMAGES = {"latents": jnp.zeros((8, 2, 2, 1))}
VOCABULARY = jnp.array([[0.5, 0.0, 0.0], [0.3, 0.2, 0.0], [0.0, 0.0, 1.2]])
"""Tokens that predict 0.5, -0.1 and 0.6: the second is nearest to the best guess of noise, which is 0."""


def own(fixed, rows):
    return rows


def last_of_two(fixed, rows):
    return jnp.concatenate([fixed, rows])[-1:]


class TestEmbedding:
    def test_it_finds_the_text_that_denoises_best(self):
        """The loss is 1 + (prediction)^2 on average, so the best row predicts nothing."""
        settings = AttackSettings(kind="embedding", tokens=1, steps=200, rounds=1, batch_size=8, learning_rate=0.05)
        start = np.array([[1.0, 0.0, 1.0]])
        found = attacks.attack(LOSS, PARAMS, IMAGES, own, start, jax.random.key(0), settings=settings)
        assert found.tokens is found.success is None
        assert found.losses.shape == (200,)
        assert abs(found.rows @ PARAMS).item() < 0.2 < abs(start @ PARAMS).item()
        again = attacks.attack(LOSS, PARAMS, IMAGES, own, start, jax.random.key(0), settings=settings)
        assert same_bits(found.rows, again.rows)

    def test_it_ends_with_the_first_success(self):
        settings = AttackSettings(kind="embedding", tokens=1, steps=9, rounds=3, batch_size=2)
        seen = []

        def judge(rows, tokens):
            seen.append(rows)
            return len(seen) == 2

        found = attacks.attack(
            LOSS, PARAMS, IMAGES, own, np.ones((1, 3)), jax.random.key(0), settings=settings, judge=judge
        )
        assert (found.rounds, found.success, len(found.losses)) == (2, True, 6)
        never = attacks.attack(
            LOSS, PARAMS, IMAGES, own, np.ones((1, 3)), jax.random.key(0), settings=settings, judge=lambda *_: False
        )
        assert (never.rounds, never.success, len(never.losses)) == (3, False, 9)


class TestPrompt:
    def test_it_finds_the_best_token(self):
        settings = AttackSettings(tokens=2, steps=150, rounds=1, batch_size=8, learning_rate=0.02, weight_decay=0.0)
        fixed = jnp.array([[9.0, 9.0, 9.0]])
        found = attacks.attack(
            LOSS,
            PARAMS,
            IMAGES,
            last_of_two,
            np.zeros((2, 3)),
            jax.random.key(1),
            settings=settings,
            fixed=fixed,
            vocabulary=VOCABULARY,
        )
        assert found.tokens[1] == 1  # what stands before it is not read
        np.testing.assert_array_equal(found.rows, VOCABULARY[found.tokens])

    @pytest.mark.parametrize("rate", [0.1, 3.0])
    def test_a_step_leaves_the_nearest_distribution_for_each_token(self, rate):
        optimizer = optax.sgd(rate)
        start = jnp.array([[0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
        held = (PARAMS, jnp.zeros((1, 3)), VOCABULARY)
        step = functools.partial(attacks._step, LOSS, last_of_two, optimizer)
        found, _, value = step(True, start, optimizer.init(start), held, IMAGES, jax.random.key(0))

        def loss(variables):
            draw_key, loss_key = jax.random.split(jax.random.key(0))
            rows = attacks.drawn_tokens(variables, draw_key) @ VOCABULARY
            context = jnp.broadcast_to(last_of_two(held[1], rows), (8, 1, 3))
            return LOSS(PARAMS, {}, {**IMAGES, "context": context}, train=False, key=loss_key)[0]

        expected_value, slopes = jax.value_and_grad(loss)(start)
        np.testing.assert_allclose(value, expected_value, rtol=1e-6)
        assert np.any(slopes[1] != 0)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        assert found.min() >= 0
        # Optimal where some m gives max(x - m, 0): entries above 0 lie m below x, the others have x of at most m.
        for row, near in zip(np.asarray(start - rate * slopes), np.asarray(found), strict=True):
            level = (row - near)[near > 0]
            assert np.ptp(level) < 1e-5
            assert np.all(row[near == 0] <= level.mean() + 1e-5)

    def test_a_loss_that_is_not_finite_is_no_attack(self):
        """Otherwise NaN would make the first token of the vocabulary the likeliest."""
        settings = AttackSettings(tokens=1, steps=1, rounds=1)
        with pytest.raises(InputError, match="the noise loss of the attack is nan in step 1"):
            attacks.attack(
                LOSS,
                PARAMS,
                {"latents": jnp.full((1, 2, 2, 1), jnp.nan)},
                last_of_two,
                np.zeros((1, 3)),
                jax.random.key(1),
                settings=settings,
                fixed=jnp.full((1, 3), jnp.nan),
                vocabulary=jnp.nan * VOCABULARY,
            )

    def test_without_a_vocabulary_there_is_none(self):
        with pytest.raises(InputError, match="need the rows of a vocabulary"):
            attacks.attack(LOSS, PARAMS, IMAGES, own, np.zeros((1, 3)), jax.random.key(0), settings=AttackSettings())

    def test_drawn_tokens_follow_their_distribution_and_pass_the_gradient(self):
        rows = jnp.tile(jnp.array([[0.7, 0.3, 0.0]]), (4000, 1))
        drawn = attacks.drawn_tokens(rows, jax.random.key(3))
        assert set(np.unique(drawn)) == {0, 1}
        np.testing.assert_array_equal(drawn.sum(axis=1), 1)
        np.testing.assert_allclose(drawn.mean(axis=0), [0.7, 0.3, 0], atol=0.03)
        slopes = jnp.array([[3.0, 0.5, -2.0]])
        found = jax.grad(lambda row: jnp.sum(slopes * attacks.drawn_tokens(row, jax.random.key(3))))(rows[:1])
        np.testing.assert_array_equal(found, [[1, 0.5, -1]])


class TestRate:
    def test_its_interval_is_exact(self):
        found = attacks.attack_rate(7, 142)
        assert (found.successes, found.attacks) == (7, 142)
        assert found.percent == pytest.approx(100 * 7 / 142)
        assert found.low < found.percent < found.high
        assert attacks.attack_rate(0, 10).high == pytest.approx(100 * (1 - 0.025 ** (1 / 10)))

    @pytest.mark.parametrize(
        ("original", "retrained", "expected"),
        [
            (10, 0, {"original": True, "retrained": True}),
            (6, 0, {"original": False, "retrained": True}),  # 6 of 10 may be half
            (10, 9, {"original": True, "retrained": False}),
            (10, None, {"original": True, "retrained": None}),
        ],
    )
    def test_the_gate(self, original, retrained, expected):
        rates = [None if count is None else attacks.attack_rate(count, 10) for count in (original, retrained)]
        assert attacks.attack_gate(*rates) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "word"}, "kind is 'word'; choose one of embedding, prompt"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"steps": 5, "rounds": 6}, "rounds must be at most the 5 steps, got 6"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite, got inf"),
    ],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises(InputError, match=message):
        AttackSettings(**changes).check()
