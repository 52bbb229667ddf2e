"""The losses of diffusion networks against closed forms, and the concepts that methods forget by them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import Data, Model, run, scissorhands
from scissorhands_jax.diffusion import losses, networks, schedules
from scissorhands_jax.diffusion.networks import TINY

LOSSES = (losses.noise_loss, losses.concept_loss)


def multiple():
    """A network that returns a multiple of its input."""

    def apply(params, model_state, x, *, train, key=None):
        return params * x.latents, model_state

    return Model(lambda key: (jnp.float32(1), {}), apply)


def of_context():
    """A network that returns a multiple of its context, everywhere."""

    def apply(params, model_state, x, *, train, key=None):
        return params * x.context[:, :, :, None] * jnp.ones_like(x.latents), model_state

    return Model(lambda key: (jnp.float32(1), {}), apply)


@pytest.mark.parametrize("make", LOSSES)
def test_equal_losses_are_one(make):
    loss_fn, same = (make(networks.unet(dataclasses.replace(TINY.unet))) for _ in range(2))
    assert loss_fn == same
    assert hash(loss_fn) == hash(same)
    assert loss_fn != make(networks.unet(TINY.unet), dataclasses.replace(schedules.SD_V1_SCHEDULE, num_steps=10))


class TestNoiseLoss:
    def test_it_is_the_error_of_the_noise(self):
        """With constant latents c and a factor w, E (noise - w (sqrt(s) c + sqrt(1 - s) noise))^2 is known."""
        loss_fn = losses.noise_loss(multiple())
        factor, constant = 0.7, 0.5
        batch = {"latents": jnp.full((4000, 4, 4, 1), constant), "context": jnp.zeros((4000, 1, 1))}
        found = jax.jit(lambda key: loss_fn(jnp.float32(factor), {}, batch, train=True, key=key)[0])(jax.random.key(1))
        share = schedules.signal_shares(schedules.SD_V1_SCHEDULE)
        expected = np.mean((1 - factor * np.sqrt(1 - share)) ** 2 + factor**2 * share * constant**2)
        assert found == pytest.approx(expected, rel=0.04)  # three standard deviations of 4,000 timesteps

    def test_a_network_of_the_velocity_has_the_velocity_to_predict(self):
        """E (sqrt(s) noise - sqrt(1 - s) c - w (sqrt(s) c + sqrt(1 - s) noise))^2, for the same network."""
        schedule = dataclasses.replace(schedules.SD_V1_SCHEDULE, prediction="v_prediction")
        loss_fn = losses.noise_loss(multiple(), schedule)
        factor, constant = 0.7, 0.5
        batch = {"latents": jnp.full((4000, 4, 4, 1), constant), "context": jnp.zeros((4000, 1, 1))}
        found = jax.jit(lambda key: loss_fn(jnp.float32(factor), {}, batch, train=True, key=key)[0])(jax.random.key(1))
        signal, rest = (
            np.sqrt(share) for share in (schedules.signal_shares(schedule), 1 - schedules.signal_shares(schedule))
        )
        expected = np.mean((signal - factor * rest) ** 2 + constant**2 * (rest + factor * signal) ** 2)
        assert found == pytest.approx(expected, rel=0.04)

    def test_the_key_decides(self):
        loss_fn = losses.noise_loss(multiple())
        batch = {"latents": jnp.ones((2, 4, 4, 1)), "context": jnp.zeros((2, 1, 1))}
        loss = jax.jit(lambda key: loss_fn(jnp.float32(0.5), {}, batch, train=True, key=key)[0])
        assert loss(jax.random.key(1)) == loss(jax.random.key(1)) != loss(jax.random.key(2))
        assert loss(None) == loss(jax.random.key(0))


class TestConceptLoss:
    def test_without_a_pseudo_text_it_is_the_noise_loss(self):
        batch = {"latents": jnp.ones((3, 4, 4, 1)), "context": jnp.ones((3, 1, 1))}
        found, plain = (
            make(multiple())(jnp.float32(0.5), {}, batch, train=True, key=jax.random.key(3))[0] for make in LOSSES
        )
        assert found == plain

    def test_it_is_the_negative_distance_of_two_predictions(self):
        """Predictions w c and w p give -(w c - w p)^2; with the second held fixed its slope is -2 (w c - w p) c."""
        factor, context, pseudo = 0.5, 3.0, 1.0
        batch = {
            "latents": jnp.ones((2, 4, 4, 1)),
            "context": jnp.full((2, 1, 1), context),
            "pseudo": jnp.full((2, 1, 1), pseudo),
        }
        loss_fn = losses.concept_loss(of_context())
        loss, slope = jax.value_and_grad(lambda w: loss_fn(w, {}, batch, train=True, key=jax.random.key(0))[0])(factor)
        assert loss == pytest.approx(-((factor * (context - pseudo)) ** 2))
        assert slope == pytest.approx(-2 * factor * (context - pseudo) * context)

    def test_both_predictions_see_one_noise(self):
        """A network that ignores the text predicts the same for both."""
        batch = {"latents": jnp.ones((2, 4, 4, 1)), "context": jnp.ones((2, 1, 1)), "pseudo": jnp.zeros((2, 1, 1))}
        assert losses.concept_loss(multiple())(jnp.float32(0.5), {}, batch, train=True, key=jax.random.key(0))[0] == 0

    @pytest.mark.parametrize("projected", [True, False])
    def test_scissorhands_draws_the_concept_to_the_other_text(self, projected):
        """The network scales each of two texts; only what the pseudo text gives may take the concept's place."""

        def apply(params, model_state, x, *, train, key=None):
            return jnp.ones_like(x.latents) * (x.context @ params)[:, :, :, None], model_state

        model = Model(lambda key: (jnp.zeros((2, 1)), {}), apply)
        texts = jnp.eye(2)[:, None, :]
        latents = jnp.zeros((8, 2, 2, 1))
        forget = {
            "latents": latents,
            "context": jnp.tile(texts[:1], (8, 1, 1)),
            "pseudo": jnp.tile(texts[1:], (8, 1, 1)),
        }
        retain = {"latents": latents, "context": jnp.tile(texts[1:], (8, 1, 1))}
        method = scissorhands(
            losses.concept_loss(model),
            optax.sgd(0.05),
            fraction=0.5,
            forget_weight=1.0,
            projected=projected,
            batch_size=8,
            saliency_loss_fn=losses.noise_loss(model),
            ceiling=math.inf,
            saliency_train=True,
        )
        params = jnp.array([[5.0], [0.5]])
        result = run(method, jax.random.key(0), params, {}, Data(forget, retain), num_epochs=60)
        assert abs(result.params[0, 0] - result.params[1, 0]) < 0.1 < abs(params[0, 0] - params[1, 0])
