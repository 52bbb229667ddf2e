"""Fine-tuning against the gradient step by hand."""

import chex
import jax

from scissorhands_jax.base import lift
from tests.methods.example import GRADIENT, build, epoch_of, plain_loss


class TestFinetune:
    def test_a_step_descends_the_retain_loss(self):
        method = build("finetune", lift(plain_loss), learning_rate=0.5, momentum=0.0, weight_decay=0.0)
        epoch = epoch_of(method, steps=1)
        before, after = epoch.carries[0].params, epoch.carries[1].params
        gradient = GRADIENT(before, epoch.batches[0].retain)
        chex.assert_trees_all_close(
            after, jax.tree.map(lambda w, g: w - 0.5 * g, before, gradient), rtol=1e-5, atol=1e-6
        )
