"""LoRA: off it is the original, merged it is what it was next to the network, and nothing is there twice."""

import math

import jax
import numpy as np
import pytest

from experiments.language_parity import CONFIGS, batch, params_of
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.decoder import decoder
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.lora import BASE, Lora, init_lora, lora_model, merged

SIZES = sizes_of(CONFIGS["qwen2"], "")  # has biases


def test_lora_is_the_original_at_first_and_merged_what_it_was():
    base, tokens, lora = params_of(SIZES), batch()["tokens"], Lora(3, alpha=4.5)
    whole, thin = decoder(SIZES), lora_model(SIZES, lora)

    @jax.jit
    def by_lora(params):
        return thin.apply(params, {BASE: base}, tokens, train=True)[0]

    @jax.jit
    def by_all(params):
        return whole.apply(params, {}, tokens, train=False)[0]

    params = init_lora(jax.random.key(0), SIZES, 3)
    original = by_all(base)
    assert np.allclose(by_lora(params), original, atol=1e-5)
    drawn = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.3 * drawn.normal(size=leaf.shape), np.float32), params)
    beside = by_lora(params)
    assert np.abs(beside - original).max() > 0.1
    assert np.allclose(by_all(merged(base, params, lora)), beside, atol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * 3 * sum(
        sum(layer[name]["kernel"].shape)
        for layer in (base["model"]["layers"]["0"]["self_attn"], base["model"]["layers"]["0"]["mlp"])
        for name in layer
    )
    fresh, state = jax.eval_shape(thin.init, jax.random.key(2))
    assert jax.tree.structure((fresh, state[BASE])) == jax.tree.structure((params, base))


@pytest.mark.parametrize("lora", [Lora(0), Lora(17), Lora(2, alpha=0.0), Lora(2, alpha=math.inf)])
def test_sizes_that_no_matrix_has_are_refused(lora):
    with pytest.raises(InputError, match="of LoRA must be"):
        lora_model(SIZES, lora)
